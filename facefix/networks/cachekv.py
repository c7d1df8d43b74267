"""CacheKV: the keys and values of reference images at every self-attention layer (arXiv 2412.05043, section 3.2).

The reference latents, zero-padded to the denoiser's input channels, go once through the denoiser at t = 0, and every
self-attention layer's keys and values are kept. In a denoising step the same layer attends to its own keys and values
followed by the references' on the token axis. The reference pass depends neither on the LQ face nor on the timestep,
so the cache of a person is exact for every face of that person.

Softmax over own and reference tokens is computed as two fused attentions that are merged by their log-sum-exp. So a
cache is never copied per face, and n identical copies of a reference cost as much as one: they add log n to its
log-sum-exp.

    attend over own tokens   -> o1, l1 = log sum exp(q k_own)
    attend over references   -> o2, l2 = log sum exp(q k_ref) + log n
    result = o1 + sigmoid(l2 - l1) (o2 - o1)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import zip_longest

import torch
import torch.nn.functional as F
from diffusers import UNet2DModel, VQModel
from diffusers.models.attention_processor import Attention

from facefix.errors import UsageError
from facefix.networks import blocks
from facefix.networks.attention import _attend
from facefix.networks.reference_cache import Branch, KeyValue, ReferenceCache, ReferenceEncoding
from facefix.networks.rope import RotaryCode

Recorded = dict[str, KeyValue]
"""where the layers of a reference pass leave their keys and values"""


def attention_layers(unet: UNet2DModel) -> dict[str, Attention]:
    """The self-attention layers of a denoiser in the order in which they run, by module name."""
    blocks = [(f"down_blocks.{i}", block) for i, block in enumerate(unet.down_blocks)]
    blocks.append(("mid_block", unet.mid_block))
    blocks += [(f"up_blocks.{i}", block) for i, block in enumerate(unet.up_blocks)]
    return {
        f"{name}.{below}": module
        for name, block in blocks
        for below, module in block.named_modules()
        if isinstance(module, Attention)
    }


def install_cachekv(unet: UNet2DModel, rotary: RotaryCode | None = None) -> UNet2DModel:
    """Give every self-attention layer of the denoiser the processor that can read references; return the denoiser.

    Without references and position code it computes what diffusers' own processor does. Doing it twice changes nothing.

    Args:
        rotary: position code of queries and keys, own and references'; none in the published model.
    """
    _install(attention_layers(unet), rotary)
    return unet


def install_attention(autoencoder: VQModel) -> VQModel:
    """Give the autoencoder's attention layers the same processor, which keeps the layout; return the autoencoder."""
    _install({name: module for name, module in autoencoder.named_modules() if isinstance(module, Attention)})
    return autoencoder


def _install(layers: Mapping[str, Attention], rotary: RotaryCode | None = None) -> None:
    for name, layer in layers.items():
        if not isinstance(layer.processor, CacheKVAttnProcessor) or layer.processor.rotary != rotary:
            layer.set_processor(CacheKVAttnProcessor(name, rotary))


def reference_pass(
    unet: UNet2DModel,
    reference_latents: torch.Tensor,
    *,
    encoding: ReferenceEncoding = "each",
    sources: tuple[str, ...] = (),
) -> ReferenceCache:
    """Keys and values of references: one pass at t = 0, all references as one batch (they do not see each other).

    Differentiable where grad is enabled.

    Args:
        reference_latents: (N, 8, h, w) for one set of N references, or (B, N, 8, h, w) for a set per row of a batch.
    """
    per_row = reference_latents if reference_latents.dim() == 5 else reference_latents[None]
    batch, count = per_row.shape[:2]
    flat = per_row.flatten(0, 1)  # (B N, 8, h, w)
    padding = unet.config.in_channels - flat.shape[1]
    recorded: Recorded = {}
    _forward(unet, F.pad(flat, (0, 0, 0, 0, 0, padding)), 0, recorded=recorded)
    if not recorded:
        raise UsageError("reference_pass: expected a denoiser prepared by install_cachekv(), found another processor")
    # (B N, T, C) -> (B, N T, C)
    layers = {
        name: (k.reshape(batch, -1, k.shape[-1]), v.reshape(batch, -1, v.shape[-1]))
        for name, (k, v) in recorded.items()
    }
    return ReferenceCache(layers, count, encoding, sources)


def denoise(
    unet: UNet2DModel,
    sample: torch.Tensor,
    timestep: torch.Tensor | int,
    branches: Sequence[Branch] = (),
    *,
    copies: int = 1,
) -> torch.Tensor:
    """The denoiser's prediction, each row of the batch reading its branch's references.

    Args:
        sample: (B, 16, h, w), noisy latents followed by LQ latents on the channel axis, and (B, 24, h, w) with the
            guide's latents for a denoiser that takes one.
        timestep: one for all, or (B,).
        branches: rows of the result that no branch names attend to themselves only.
        copies: the batch stands for this many copies of itself, one after the other, that differ in what they read
            only. What comes before the first attention layer is then computed once for all of them.

    Returns:
        (copies B, 8, h, w).
    """
    reading = tuple(branch for branch in branches if branch.cache is not None)
    prediction = _forward(unet, sample, timestep, branches=reading, copies=copies)
    assert prediction is not None
    return prediction


def with_references(
    unet: UNet2DModel, sample: torch.Tensor, timestep: torch.Tensor | int, cache: ReferenceCache | None
) -> torch.Tensor:
    """:func:`denoise` with one cache (or none) for the whole batch."""
    return denoise(unet, sample, timestep, (Branch(slice(None), cache),))


def _forward(
    unet: UNet2DModel,
    sample: torch.Tensor,
    timestep: torch.Tensor | int,
    *,
    branches: tuple[Branch, ...] = (),
    copies: int = 1,
    recorded: Recorded | None = None,
) -> torch.Tensor | None:
    """``UNet2DModel.forward`` over the model's own blocks, with what its attention layers are to read passed along.

    diffusers' own forward has no way to hand anything to the attention of the middle and upper blocks. Passing it
    along instead of leaving it in the model is what lets calls in several threads share one model. It also lets copies
    of the batch part ways at the first attention layer, and a reference pass end at the last one: it returns None.
    """
    rows = sample.shape[0]
    timesteps = torch.as_tensor(timestep, device=sample.device).expand(rows)
    embedding = unet.time_embedding(unet.time_proj(timesteps).to(sample.dtype))  # (B, 4 C)
    last_layer = next(reversed(attention_layers(unet).values())) if recorded is not None else None

    def attend(layer: Attention, hidden: torch.Tensor) -> torch.Tensor:
        attended: torch.Tensor = layer(hidden, branches=branches, recorded=recorded)
        return attended

    hidden = blocks.convolve(unet.conv_in, sample)
    skips = [hidden]
    for block in unet.down_blocks:
        for resnet, attention in zip_longest(block.resnets, getattr(block, "attentions", ())):
            hidden = blocks.residual_block(resnet, hidden, embedding)
            if attention is not None:
                hidden, embedding = _copied(hidden, copies * rows), _copied(embedding, copies * rows)
                hidden = attend(attention, hidden)
            skips.append(hidden)
        for downsampler in block.downsamplers or ():
            hidden = blocks.downsample(downsampler, hidden)
            skips.append(hidden)

    hidden, embedding = _copied(hidden, copies * rows), _copied(embedding, copies * rows)
    hidden = blocks.residual_block(unet.mid_block.resnets[0], hidden, embedding)
    for attention, resnet in zip(unet.mid_block.attentions, unet.mid_block.resnets[1:], strict=True):
        hidden = attend(attention, hidden)
        hidden = blocks.residual_block(resnet, hidden, embedding, in_place=True)

    for block in unet.up_blocks:
        for resnet, attention in zip_longest(block.resnets, getattr(block, "attentions", ())):
            skip = _copied(skips.pop(), copies * rows)
            hidden = blocks.residual_block(resnet, torch.cat([hidden, skip], dim=1), embedding)
            if attention is not None:
                hidden = attend(attention, hidden)
                if attention is last_layer:
                    return None
        for upsampler in block.upsamplers or ():
            hidden = blocks.upsample(upsampler, hidden)

    return blocks.norm_act_conv(unet.conv_norm_out, unet.conv_act, unet.conv_out, hidden)


def _copied(rows: torch.Tensor, count: int) -> torch.Tensor:
    """Rows repeated, one copy of all after the other, until there are this many."""
    times = count // rows.shape[0]
    return rows if times == 1 else torch.cat([rows] * times)  # keeps the layout


class CacheKVAttnProcessor:
    """diffusers attention processor: self-attention that can record its keys and values, or read references.

    It holds nothing but its layer's name and position code; what to read or where to record comes with each call.
    """

    def __init__(self, layer: str, rotary: RotaryCode | None = None) -> None:
        self.layer, self.rotary = layer, rotary

    def __call__(
        self,
        attn: Attention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        temb: torch.Tensor | None = None,
        branches: tuple[Branch, ...] = (),
        recorded: Recorded | None = None,
    ) -> torch.Tensor:
        """Self-attention over (B, C, H, W) feature maps, with residual connection."""
        batch, channels, height, width = hidden_states.shape
        in_rows = blocks.applies(hidden_states)
        if in_rows:
            rows = blocks.channels_last(hidden_states)
            tokens = blocks.normalize(attn.group_norm, rows).flatten(1, 2)  # (B, T, C)
        else:
            tokens = attn.group_norm(hidden_states.flatten(2)).transpose(1, 2)  # (B, T, C)
        query, key, value = attn.to_q(tokens), attn.to_k(tokens), attn.to_v(tokens)  # (B, T, C)
        if self.rotary is not None:
            query, key = (self.rotary.rotate(x, height, width, attn.heads) for x in (query, key))

        if recorded is not None:
            recorded[self.layer] = (key, value)
        attended = _attend(query, key, value, attn.heads, self.layer, branches)  # (B, T, C)

        if in_rows:
            return blocks.channels_first(attn.to_out[0](attended).view_as(rows).add_(rows))
        attended = attn.to_out[0](attended).transpose(1, 2).reshape(batch, channels, height, width)
        # The result keeps the layout of the feature map. A transposed one would send the layers after it through
        # torch's channels-last GroupNorm, which on the CPU is ten times less exact in fp32.
        layout = torch.contiguous_format if hidden_states.is_contiguous() else torch.channels_last
        result: torch.Tensor = (hidden_states + attended).contiguous(memory_format=layout)
        return result
