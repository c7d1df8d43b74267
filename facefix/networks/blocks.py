"""The blocks of diffusers' networks, run channels-last and strip by strip: on the CPU without gradients.

A residual block is two rounds of normalising, SiLU and a 3x3 convolution. GroupNorm needs the whole map for its mean
and variance only; the rest goes strip by strip, in rows that fit the processor's cache. So neither normalised nor
padded copies of whole maps exist, which is most of the memory at full resolution, and the convolutions are those of
:mod:`facefix.networks.winograd`.

Every function computes what the block computes, but for rounding. Where :func:`applies` says no (another device or
dtype, gradients), the block itself runs.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.vae import Decoder, Encoder
from diffusers.models.downsampling import Downsample2D
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.unets.unet_2d_blocks import UNetMidBlock2D
from diffusers.models.upsampling import Upsample2D
from torch import nn

from facefix.networks.winograd import (
    PackedConvolution,
    PlainConvolution,
    RowConvolution,
    StripConvolution,
    UpsamplingConvolution,
)

STRIP_BYTES = 2**21
"""size of a strip; with what is made of it about the second-level caches of two cores"""
MIN_CHANNELS = 48
"""narrower blocks run as they are: there it costs more than it saves"""
STATISTICS_PARTS = 512
"""a map's pixels are summed up in at most so many parts in fp32, the parts in float64"""
STATISTICS_PIXELS = 16
"""and in parts of at least so many pixels"""

Made = TypeVar("Made")
Affine = tuple[torch.Tensor, torch.Tensor]
"""factor and offset of every channel of every image, (B, 1, 1, C) each"""


def applies(x: torch.Tensor) -> bool:
    """Whether feature maps like this one are run here: in fp32, and in bf16 where the processor multiplies it."""
    if x.device.type != "cpu" or torch.is_grad_enabled():
        return False
    return x.dtype == torch.float32 or (x.dtype == torch.bfloat16 and multiplies_bf16())


@functools.cache
def multiplies_bf16() -> bool:
    """Whether this processor has bf16 products, and torch's oneDNN uses them."""
    supported = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    return torch.cpu._is_avx512_bf16_supported() and torch.backends.mkldnn.is_available() and bool(supported())


def channels_last(x: torch.Tensor) -> torch.Tensor:
    """(B, C, H, W) -> (B, H, W, C), contiguous; a view where it lies so in memory."""
    return x.permute(0, 2, 3, 1).contiguous()


def channels_first(x: torch.Tensor) -> torch.Tensor:
    """(B, H, W, C) -> (B, C, H, W) in channels-last format: a view."""
    return x.permute(0, 3, 1, 2)


def _planar(x: torch.Tensor) -> torch.Tensor:
    """The layout in which torch's GroupNorm is exact on the CPU in fp32."""
    return x.contiguous() if applies(x) else x


def normalize(norm: nn.GroupNorm, x: torch.Tensor) -> torch.Tensor:
    """GroupNorm of (B, H, W, C). torch's own is ten times less exact for channels-last maps in fp32 on the CPU."""
    factor, offset = _affine(norm, x)
    return torch.addcmul(offset, x, factor)


def residual_block(
    block: ResnetBlock2D, x: torch.Tensor, embedding: torch.Tensor | None = None, *, in_place: bool = False
) -> torch.Tensor:
    """(B, C, H, W) -> (B, O, H, W).

    :param embedding: (B, E) timestep embedding, where the block takes one.
    :param in_place: the result may be written over ``x``.
    """
    if not (applies(x) and _is_plain(block)):
        result: torch.Tensor = block(_planar(x), embedding)
        return result
    rows = channels_last(x)
    hidden = rows.new_empty(*rows.shape[:3], block.conv1.out_channels)
    _normalize_and_convolve(block.conv1, rows, _affine(block.norm1, rows), hidden)

    # What is added to whole channels moves their mean only: it goes into the second norm.
    added = block.conv1.bias.expand(x.shape[0], -1)
    if block.time_emb_proj is not None and embedding is not None:
        added = added + block.time_emb_proj(F.silu(embedding))
    affine = _affine(block.norm2, hidden, added)

    if block.conv_shortcut is not None:
        out = _packed(block.conv_shortcut)(rows, block.conv_shortcut.bias + block.conv2.bias)
    elif in_place:
        out = rows.add_(block.conv2.bias)
    else:
        out = rows + block.conv2.bias
    _normalize_and_convolve(block.conv2, hidden, affine, out, add=True)
    return channels_first(out)


def norm_act_conv(norm: nn.GroupNorm, activation: nn.Module, conv: nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
    """What networks end with: GroupNorm, SiLU and a 3x3 convolution."""
    if not (applies(x) and isinstance(activation, nn.SiLU) and conv.in_channels >= MIN_CHANNELS):
        result: torch.Tensor = conv(activation(norm(_planar(x))))
        return result
    rows = channels_last(x)
    out = rows.new_empty(*rows.shape[:3], conv.out_channels)
    _normalize_and_convolve(conv, rows, _affine(norm, rows), out)
    return channels_first(out if conv.bias is None else out.add_(conv.bias))


def convolve(conv: nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
    """Any convolution; the result is channels-last where this module applies."""
    if not (applies(x) and conv.out_channels >= MIN_CHANNELS):
        result: torch.Tensor = conv(x)
        return result
    return channels_first(_packed(conv)(channels_last(x), conv.bias))


def upsample(block: Upsample2D, x: torch.Tensor) -> torch.Tensor:
    """(B, C, H, W) -> (B, O, 2 H, 2 W): nearest, then a 3x3 convolution."""
    if not (applies(x) and x.shape[1] >= MIN_CHANNELS):
        result: torch.Tensor = block(_planar(x))
        return result
    conv = block.conv
    kept = _derived(conv, UpsamplingConvolution)
    rows = channels_last(x)
    batch, height, width, _ = rows.shape
    out = rows.new_empty(batch, 2 * height, 2 * width, conv.out_channels)
    for strip in _strips(rows, 1, width_margin=1):
        strip.inside[:, :, 1:-1] = strip.of(rows)
        padded = strip.padded
        padded[:, :, 0] = 0
        padded[:, :, -1] = 0
        kept(padded, out[strip.images, 2 * strip.first : 2 * strip.last])
    return channels_first(out.add_(conv.bias))


def downsample(block: Downsample2D, x: torch.Tensor) -> torch.Tensor:
    """(B, C, H, W) -> (B, O, H/2, W/2): a 3x3 convolution of stride 2."""
    if not (applies(x) and x.shape[1] >= MIN_CHANNELS):
        result: torch.Tensor = block(_planar(x))
        return result
    if block.padding:
        return convolve(block.conv, x)
    # The autoencoder's: padded below and to the right only.
    conv = block.conv
    rows = channels_last(x)
    batch, height, width, channels = rows.shape
    out = rows.new_empty(batch, height // 2, width // 2, conv.out_channels)
    step = max(_strip_values(rows) // (batch * width * channels) // 2 * 2, 2)
    for first in range(0, height, step):
        last = min(first + step, height)
        padded = F.pad(rows[:, first : last + 1], (0, 0, 0, 1, 0, max(last + 1 - height, 0)))
        out[:, first // 2 : last // 2] = _packed(conv)(padded, conv.bias)
    return channels_first(out)


def run_encoder(encoder: Encoder, images: torch.Tensor) -> torch.Tensor:
    """The autoencoder's ``Encoder``: (B, 3, H, W) -> (B, 8, H/8, W/8)."""
    hidden = convolve(encoder.conv_in, images)
    for block in encoder.down_blocks:
        for resnet in block.resnets:
            hidden = residual_block(resnet, hidden, in_place=True)
        for downsampler in block.downsamplers or ():
            hidden = downsample(downsampler, hidden)
    hidden = _middle(encoder.mid_block, hidden)
    return norm_act_conv(encoder.conv_norm_out, encoder.conv_act, encoder.conv_out, hidden)


def run_decoder(decoder: Decoder, latents: torch.Tensor) -> torch.Tensor:
    """The autoencoder's ``Decoder``: (B, 8, h, w) -> (B, 3, 8 h, 8 w)."""
    hidden = _middle(decoder.mid_block, convolve(decoder.conv_in, latents))
    for block in decoder.up_blocks:
        for resnet in block.resnets:
            hidden = residual_block(resnet, hidden, in_place=True)
        for upsampler in block.upsamplers or ():
            hidden = upsample(upsampler, hidden)
    return norm_act_conv(decoder.conv_norm_out, decoder.conv_act, decoder.conv_out, hidden)


def _middle(block: UNetMidBlock2D, hidden: torch.Tensor) -> torch.Tensor:
    hidden = residual_block(block.resnets[0], hidden, in_place=True)
    for attention, resnet in zip(block.attentions, block.resnets[1:], strict=True):
        if attention is not None:
            hidden = attention(hidden)
        hidden = residual_block(resnet, hidden, in_place=True)
    return hidden


def _is_plain(block: ResnetBlock2D) -> bool:
    """Whether it is the block of :func:`residual_block`, and wide enough: diffusers builds others from that class."""
    return bool(
        min(block.in_channels, block.out_channels) >= MIN_CHANNELS
        and block.upsample is None
        and block.downsample is None
        and (block.time_embedding_norm == "default" or block.time_emb_proj is None)
        and block.output_scale_factor == 1
        and isinstance(block.nonlinearity, nn.SiLU)
        and not (block.training and block.dropout.p)
    )


def _affine(norm: nn.GroupNorm, x: torch.Tensor, added: torch.Tensor | None = None) -> Affine:
    """GroupNorm of (B, H, W, C) maps as a factor and an offset of every channel, from moments in fp32 and float64.

    :param added: (B, C), a constant that is to be added to each channel first.
    """
    batch, height, width, channels = x.shape
    pixels = height * width
    parts = max(min(pixels // STATISTICS_PIXELS, STATISTICS_PARTS), 1)
    while pixels % parts:
        parts -= 1
    # Every parts-th pixel belongs to the same part, so that a part's channels are columns of one matrix.
    moments = [
        torch.batch_norm_update_stats(image.float().reshape(pixels // parts, parts * channels, 1, 1), None, None, 0.0)
        for image in x
    ]
    means, variances = (
        torch.stack(values).double().view(batch, parts, channels) for values in zip(*moments, strict=True)
    )
    if added is not None:
        means = means + added.double()[:, None]
    grouped = (batch, parts, norm.num_groups, channels // norm.num_groups)
    means, variances = means.view(grouped), variances.view(grouped)
    mean = means.mean((1, 3), keepdim=True)  # (B, 1, G, 1)
    variance = (variances + (means - mean).square()).mean((1, 3), keepdim=True)
    factor = norm.weight.double().view(1, 1, *grouped[2:]) * (variance + norm.eps).rsqrt()
    offset = norm.bias.double().view(1, 1, *grouped[2:]) - mean * factor
    factor, offset = factor.view(batch, 1, 1, channels), offset.view(batch, 1, 1, channels)
    if added is not None:
        offset = offset + added.double().view(batch, 1, 1, channels) * factor
    return factor.to(x.dtype), offset.to(x.dtype)


def _normalize_and_convolve(
    conv: nn.Conv2d, x: torch.Tensor, affine: Affine, out: torch.Tensor, *, add: bool = False
) -> None:
    """``conv(silu(x * factor + offset))`` without the bias, into (B, H, W, O) or, with ``add``, added to it."""
    convolution = _strip_convolution(conv, x.shape[1])
    factor, offset = affine
    for strip in _strips(x, convolution.rows):
        inside = strip.inside
        torch.addcmul(offset[strip.images], strip.of(x), factor[strip.images], out=inside)
        F.silu(inside, inplace=True)
        convolution(strip.padded, out[strip.images, strip.first : strip.last], add=add)


def _strip_convolution(conv: nn.Conv2d, height: int) -> StripConvolution:
    if min(conv.in_channels, conv.out_channels) >= MIN_CHANNELS and height % RowConvolution.rows == 0:
        return _derived(conv, RowConvolution)
    return _derived(conv, PlainConvolution)


@dataclass(frozen=True, slots=True)
class _Strip:
    """Rows ``first`` to ``last`` of some images of a batch, with room for a row above and a row below."""

    images: slice
    first: int
    last: int
    height: int
    padded: torch.Tensor
    """(b, last - first + 2, W, C); rows outside of the map are zero"""

    @property
    def _seen(self) -> tuple[int, int]:
        return max(self.first - 1, 0), min(self.last + 1, self.height)

    @property
    def inside(self) -> torch.Tensor:
        """The part of ``padded`` that lies in the map."""
        top, bottom = self._seen
        return self.padded[:, top - self.first + 1 : bottom - self.first + 1]

    def of(self, x: torch.Tensor) -> torch.Tensor:
        """The same part of (B, H, W, C) maps."""
        top, bottom = self._seen
        return x[self.images, top:bottom]


def _strips(x: torch.Tensor, multiple: int, *, width_margin: int = 0) -> Iterator[_Strip]:
    """Strips of a multiple of so many rows, one after the other in the same buffer."""
    batch, height, width, channels = x.shape
    values = _strip_values(x)
    images = max(min(batch, values // (multiple * width * channels)), 1)
    most = max(values // (images * width * channels) // multiple, 1) * multiple
    even = math.ceil(height / math.ceil(height / most))
    rows = min(math.ceil(even / multiple) * multiple, height)
    padded_width = width + 2 * width_margin
    buffer = x.new_empty(images * (rows + 2) * padded_width * channels)
    for image in range(0, batch, images):
        for first in range(0, height, rows):
            last = min(first + rows, height)
            shape = (min(images, batch - image), last - first + 2, padded_width, channels)
            padded = buffer[: shape[0] * shape[1] * shape[2] * shape[3]].view(shape)
            if first == 0:
                padded[:, 0] = 0
            if last == height:
                padded[:, -1] = 0
            yield _Strip(slice(image, image + shape[0]), first, last, height, padded)


def _strip_values(x: torch.Tensor) -> int:
    return STRIP_BYTES // x.element_size()


class _Derived:
    """What was made of a module's weight: kind -> (weight, its contents, what was made).

    It hangs on the module without being part of its state: neither saved, nor copied with it.
    """

    def __init__(self) -> None:
        self.kinds: dict[object, tuple[torch.Tensor, tuple[int, int], object]] = {}

    def __deepcopy__(self, memo: object) -> _Derived:
        return _Derived()

    def __reduce__(self) -> tuple[type[_Derived], tuple[()]]:
        return _Derived, ()


def _derived(conv: nn.Conv2d, make: Callable[[torch.Tensor], Made]) -> Made:
    """``make(conv.weight)``, made anew only when the weight has changed."""
    weight = conv.weight
    kinds = conv.__dict__.setdefault("_facefix_derived", _Derived()).kinds
    _, known, made = kinds.get(make, (None, None, None))
    if known != contents(weight):
        made = make(weight)
        # Keeps the memory: its address cannot be reused meanwhile.
        kinds[make] = (weight.detach(), contents(weight), made)
    return made  # type: ignore[no-any-return]


def contents(weight: torch.Tensor) -> tuple[int, int]:
    """Differs when the weight has changed, as long as its memory is kept."""
    return weight.data_ptr(), 0 if weight.is_inference() else weight._version


def _packed(conv: nn.Conv2d) -> PackedConvolution:
    stride, padding = conv.stride, conv.padding
    assert not isinstance(padding, str)
    key = _PackedGeometry(stride, padding, conv.groups)
    return _derived(conv, key)


@dataclass(frozen=True, slots=True)
class _PackedGeometry:
    """Makes a packed convolution of one stride, padding and number of groups from a weight."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    groups: int

    def __call__(self, weight: torch.Tensor) -> PackedConvolution:
        return PackedConvolution(weight, stride=self.stride, padding=self.padding, groups=self.groups)
