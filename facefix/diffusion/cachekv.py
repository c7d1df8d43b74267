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

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from types import MappingProxyType
from typing import Literal

import torch
import torch.nn.functional as F
from diffusers import UNet2DModel, VQModel
from diffusers.models.attention_processor import Attention

from facefix.diffusion import blocks
from facefix.errors import UsageError

FusedAttention = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
ReferenceEncoding = Literal["strip", "each"]
KeyValue = tuple[torch.Tensor, torch.Tensor]
"""Keys and values of one layer, token-major: (B, N T, C) each, for N references of T tokens in C = heads x dim."""

LOGITS_AT_ONCE = 2**20
"""attention logits that exist at the same time for every thread, where they exist at all: 2 MB in bf16"""
LOGITS_AT_ONCE_DIM = 32
"""with heads of this dimension; wider ones compute longer on a logit, and with more queries read the keys less often"""
HEADS_AT_ONCE = 2
"""and of at least so many heads: the more queries of the same head, the faster the products"""
LARGEST_LOGIT = 100.0
"""powers of two up to this and down to the inverse can be summed up in bf16's range"""


@dataclass(frozen=True, slots=True, eq=False)
class ReferenceCache:
    """Keys and values of a set of references at every self-attention layer. An immutable value.

    One cache serves any number of faces, in any number of threads. With ``encoding="each"`` caches of single images can
    be joined with :meth:`compose`; a ``"strip"`` cache belongs to its set of images.
    """

    layers: Mapping[str, KeyValue]
    """layer name -> keys and values, (1, N T, C) each (or (B, N T, C): a set of references per row of a batch)"""
    num_references: int
    encoding: ReferenceEncoding = "strip"
    sources: tuple[str, ...] = ()
    """where the references came from, in order: file names or whatever the caller gave"""
    images: torch.Tensor | None = None
    """(1, N, 3, S, S) (or (B, N, 3, S, S)) references in [-1, 1], for a denoiser that takes a guide made from them"""
    landmarks: torch.Tensor | None = None
    """(1, N, 68, 3) (or (B, N, 68, 3)) x, y and deviation of their landmarks in px of the 512 crop, likewise"""

    def __post_init__(self) -> None:
        if self.num_references < 1:
            raise UsageError(f"ReferenceCache: expected at least one reference, found {self.num_references}")
        object.__setattr__(self, "layers", MappingProxyType(dict(self.layers)))

    @property
    def nbytes(self) -> int:
        """Memory of all keys and values, and of the images where they are kept, in bytes."""
        tensors = [tensor for pair in self.layers.values() for tensor in pair]
        tensors += [tensor for tensor in (self.images, self.landmarks) if tensor is not None]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    @property
    def device(self) -> torch.device:
        """Where the keys and values are."""
        return next(iter(self.layers.values()))[0].device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the keys and values."""
        return next(iter(self.layers.values()))[0].dtype

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> ReferenceCache:
        """The same cache on another device or in another dtype (itself where nothing changes)."""
        device, dtype = torch.device(device or self.device), dtype or self.dtype
        if (device, dtype) == (self.device, self.dtype):
            return self
        layers = {name: (k.to(device, dtype), v.to(device, dtype)) for name, (k, v) in self.layers.items()}
        images, landmarks = (None if x is None else x.to(device) for x in (self.images, self.landmarks))
        return ReferenceCache(layers, self.num_references, self.encoding, self.sources, images, landmarks)

    @classmethod
    def compose(cls, caches: Sequence[ReferenceCache]) -> ReferenceCache:
        """One cache of all the references of several, in order. No network runs.

        :raises UsageError: there is none, or a cache comes from a strip: its images were encoded knowing each other.
        """
        if not caches:
            raise UsageError("ReferenceCache.compose: expected at least one cache, found none")
        if len(caches) == 1:
            return caches[0]
        strips = [cache.sources for cache in caches if cache.encoding != "each"]
        if strips:
            raise UsageError(
                "ReferenceCache.compose: expected caches of references encoded one by one ('each'), found 'strip' "
                f"caches {strips}; encode the whole set in one call instead"
            )
        layers = {
            name: tuple(torch.cat([cache.layers[name][part] for cache in caches], dim=1) for part in (0, 1))
            for name in caches[0].layers
        }
        sources = tuple(source for cache in caches for source in cache.sources)
        count = sum(cache.num_references for cache in caches)
        images, landmarks = (
            torch.cat(kept, dim=1) if len(kept) == len(caches) else None
            for kept in (
                [cache.images for cache in caches if cache.images is not None],
                [cache.landmarks for cache in caches if cache.landmarks is not None],
            )
        )
        return cls(layers, count, "each", sources, images, landmarks)  # type: ignore[arg-type]

    def split(self) -> tuple[ReferenceCache, ...]:
        """One cache per reference of an ``"each"`` cache: views, no copy. The inverse of :meth:`compose`.

        :raises UsageError: the cache comes from a strip.
        """
        if self.num_references == 1:
            return (self,)
        if self.encoding != "each":
            raise UsageError("ReferenceCache.split: expected references encoded one by one ('each'), found 'strip'")
        chunks = {
            name: (k.chunk(self.num_references, 1), v.chunk(self.num_references, 1))
            for name, (k, v) in self.layers.items()
        }
        sources = self.sources or ("",) * self.num_references
        images, landmarks = (
            (None,) * self.num_references if x is None else x.split(1, dim=1) for x in (self.images, self.landmarks)
        )
        return tuple(
            ReferenceCache(
                {name: (k[i], v[i]) for name, (k, v) in chunks.items()},
                1,
                "each",
                (sources[i],),
                images[i],
                landmarks[i],
            )
            for i in range(self.num_references)
        )


@dataclass(frozen=True, slots=True)
class Branch:
    """Rows of a batch that read the same cache."""

    rows: slice
    cache: ReferenceCache | None
    """None: these rows attend to themselves only"""
    copies: int = 1
    """the cache counts as this many identical copies of itself"""


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


def install_cachekv(unet: UNet2DModel) -> UNet2DModel:
    """Give every self-attention layer of the denoiser the processor that can read references; return the denoiser.

    Without references it computes what diffusers' own processor does. Doing it twice changes nothing.
    """
    _install(attention_layers(unet))
    return unet


def install_attention(autoencoder: VQModel) -> VQModel:
    """Give the autoencoder's attention layers the same processor, which keeps the layout; return the autoencoder."""
    _install({name: module for name, module in autoencoder.named_modules() if isinstance(module, Attention)})
    return autoencoder


def _install(layers: Mapping[str, Attention]) -> None:
    for name, layer in layers.items():
        if not isinstance(layer.processor, CacheKVAttnProcessor):
            layer.set_processor(CacheKVAttnProcessor(name))


def reference_pass(
    unet: UNet2DModel,
    reference_latents: torch.Tensor,
    *,
    encoding: ReferenceEncoding = "each",
    sources: tuple[str, ...] = (),
) -> ReferenceCache:
    """Keys and values of references: one pass at t = 0, all references as one batch (they do not see each other).

    Differentiable where grad is enabled.

    :param reference_latents: (N, 8, h, w) for one set of N references, or (B, N, 8, h, w) for a set per row of a batch.
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

    :param sample: (B, 16, h, w), noisy latents followed by LQ latents on the channel axis, and (B, 24, h, w) with the
        guide's latents for a denoiser that takes one.
    :param timestep: one for all, or (B,).
    :param branches: rows of the result that no branch names attend to themselves only.
    :param copies: the batch stands for this many copies of itself, one after the other, that differ in what they read
        only. What comes before the first attention layer is then computed once for all of them.
    :returns: (copies B, 8, h, w).
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

    It holds nothing but its layer's name; what to read or where to record comes with each call.
    """

    def __init__(self, layer: str) -> None:
        self.layer = layer

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


def _heads(x: torch.Tensor, heads: int) -> torch.Tensor:
    by_head: torch.Tensor = x.unflatten(-1, (heads, -1))
    return by_head.transpose(-3, -2)  # (B, T, C) -> (B, heads, T, dim); the same without a batch


def _tokens(x: torch.Tensor) -> torch.Tensor:
    return x.transpose(1, 2).flatten(2)  # (B, heads, T, dim) -> (B, T, C)


def _attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, heads: int, layer: str, branches: tuple[Branch, ...]
) -> torch.Tensor:
    """Attention of (B, T, C) queries to their own keys and values and to those of their branch's references."""
    if _multiplies_in_bf16(query):
        return _attend_in_products(query, key, value, heads, layer, branches)
    if not branches:
        return _tokens(F.scaled_dot_product_attention(_heads(query, heads), _heads(key, heads), _heads(value, heads)))
    fused = _fused_with_log_sum_exp(query)
    if fused is None:
        return _attend_joined(query, key, value, heads, layer, branches)
    own, own_log_sum = fused(_heads(query, heads), _heads(key, heads), _heads(value, heads))
    for branch in branches:
        rows = branch.rows
        reference_key, reference_value = _layer_of(branch, layer, query)
        # All faces of the branch become one long row of queries, so that they share the cache without a copy of it.
        shared = reference_key.shape[0] == 1
        faces = query[rows]  # (b, T, C)
        folded = faces.reshape(1, -1, faces.shape[2]) if shared else faces  # (1, b T, C)
        theirs, log_sum = fused(_heads(folded, heads), _heads(reference_key, heads), _heads(reference_value, heads))
        if shared:  # (1, heads, b T, dim) -> (b, heads, T, dim)
            theirs = theirs.squeeze(0).unflatten(1, (faces.shape[0], -1)).transpose(0, 1)
            log_sum = log_sum.squeeze(0).unflatten(1, (faces.shape[0], -1)).transpose(0, 1)
        weight = torch.sigmoid(log_sum + math.log(branch.copies) - own_log_sum[rows]).unsqueeze(-1)
        own[rows] = torch.lerp(own[rows], theirs, weight.to(own.dtype))
    return _tokens(own)


def _attend_joined(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, heads: int, layer: str, branches: tuple[Branch, ...]
) -> torch.Tensor:
    """The same with own and reference tokens joined: differentiable, and for devices without log-sum-exp."""
    attended = F.scaled_dot_product_attention(_heads(query, heads), _heads(key, heads), _heads(value, heads))
    parts = list(attended.split(1))  # B x (1, heads, T, dim)
    for branch in branches:
        reference_key, reference_value = _layer_of(branch, layer, query)
        rows = range(query.shape[0])[branch.rows]
        joined = F.scaled_dot_product_attention(
            _heads(query[branch.rows], heads),
            _heads(torch.cat([key[branch.rows], reference_key.expand(len(rows), -1, -1)], dim=1), heads),
            _heads(torch.cat([value[branch.rows], reference_value.expand(len(rows), -1, -1)], dim=1), heads),
            attn_mask=_copies_bias(branch.copies, key.shape[1], reference_key),
        )
        for row, part in zip(rows, joined.split(1), strict=True):
            parts[row] = part
    return _tokens(torch.cat(parts))


def _multiplies_in_bf16(query: torch.Tensor) -> bool:
    """Where plain matrix products are faster than torch's fused kernel, which multiplies in fp32.

    That is bf16 on processors with AVX-512 bf16 and without tiles (AMX).
    """
    return (
        query.device.type == "cpu"
        and query.dtype == torch.bfloat16
        and not torch.is_grad_enabled()
        and blocks.multiplies_bf16()
        and not torch.cpu._is_amx_tile_supported()
    )


def _attend_in_products(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, heads: int, layer: str, branches: tuple[Branch, ...]
) -> torch.Tensor:
    """The same with plain matrix products, one face after the other.

    Own and reference tokens of one face are joined for the time of its attention. Logits are rounded to bf16 before the
    softmax, as in the published code under autocast.
    """
    result = torch.empty_like(query)
    read = {row: (branch, n) for branch in branches for n, row in enumerate(range(query.shape[0])[branch.rows])}
    for row in range(query.shape[0]):
        keys, values = key[row], value[row]
        counts = values.new_ones(keys.shape[0], 1)
        if row in read:
            branch, n = read[row]
            reference_key, reference_value = _layer_of(branch, layer, query)
            own_set = n if reference_key.shape[0] > 1 else 0
            keys = torch.cat([keys, reference_key[own_set]])
            # n identical keys weigh as much as one with n times the value that counts n times.
            values = torch.cat([values, reference_value[own_set] * branch.copies])
            counts = F.pad(counts, (0, 0, 0, reference_key.shape[1]), value=branch.copies)
        _softmax_of_products(
            _heads(query[row], heads), _heads(keys, heads), _heads(values, heads), counts, _heads(result[row], heads)
        )
    return result


def _softmax_of_products(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, counts: torch.Tensor, out: torch.Tensor
) -> None:
    """Attention of (heads, T, dim) queries into ``out``, so many at once that their logits stay in the caches.

    Weights are powers of two of the logits, without the logits' maximum being taken off first: where no product of a
    query and a key can be so large that they overflow or vanish, that is as exact, and saves two passes over them.

    :param counts: (S, 1), how often each key counts in the sum of the weights.
    """
    heads, own, dim = query.shape
    query = (query * (dim**-0.5 / math.log(2))).contiguous()
    key, value = key.contiguous().transpose(1, 2), value.contiguous()  # (heads, dim, S), (heads, S, dim)
    if heads == 1:
        key = key.contiguous()  # torch would do it in every product with a single transposed matrix
    counts = counts.expand(heads, -1, -1)
    largest = query.norm(dim=2).amax(1) * key.norm(dim=1).amax(1)  # (heads,)
    in_range = bool((largest < LARGEST_LOGIT).all())
    tokens = key.shape[2]
    at_once = LOGITS_AT_ONCE * min(torch.get_num_threads(), 8) * max(dim // LOGITS_AT_ONCE_DIM, 1)
    rows = min(max(at_once // (min(HEADS_AT_ONCE, heads) * tokens), 1), own)
    together = min(max(at_once // (rows * tokens), HEADS_AT_ONCE), heads)
    buffer = query.new_empty(together * rows * tokens)
    for head in range(0, heads, together):
        group = slice(head, min(head + together, heads))
        for first in range(0, own, rows):
            chunk = slice(first, min(first + rows, own))
            shape = (group.stop - head, chunk.stop - first, tokens)
            weights = buffer[: math.prod(shape)].view(shape)
            torch.bmm(query[group, chunk], key[group], out=weights)
            if not in_range:
                weights.sub_(weights.amax(2, keepdim=True))
            weights.exp2_()
            torch.div(torch.bmm(weights, value[group]), torch.bmm(weights, counts[group]), out=out[group, chunk])


def _copies_bias(copies: int, own_tokens: int, reference_key: torch.Tensor) -> torch.Tensor | None:
    """Added to the attention logits so that each reference token counts as ``copies`` tokens."""
    if copies == 1:
        return None
    bias = reference_key.new_zeros(1, 1, 1, own_tokens + reference_key.shape[1])
    bias[..., own_tokens:] = math.log(copies)
    return bias


def _layer_of(branch: Branch, layer: str, query: torch.Tensor) -> KeyValue:
    """The branch's keys and values of one layer, checked against the queries that will read them."""
    assert branch.cache is not None
    pair = branch.cache.layers.get(layer)
    if pair is None or pair[0].shape[2] != query.shape[2]:
        found = "no such layer" if pair is None else f"{pair[0].shape[2]} channels"
        raise UsageError(
            f"references: expected a ReferenceCache made by this model ({layer}: {query.shape[2]} channels), "
            f"found {found}; call encode_references() of this pipeline"
        )
    if pair[0].dtype != query.dtype or pair[0].device != query.device:
        raise UsageError(
            f"references: expected a ReferenceCache in {query.dtype} on {query.device}, found {pair[0].dtype} on "
            f"{pair[0].device}; move it with .to()"
        )
    return pair


def _fused_with_log_sum_exp(query: torch.Tensor) -> FusedAttention | None:
    """torch's fused attention kernel that also returns the log-sum-exp of its logits; None where there is none.

    The log-sum-exp has no gradient, so the joined form serves where gradients flow.
    """
    if torch.is_grad_enabled() and query.requires_grad:
        return None
    if query.device.type == "cpu":
        return _flash_attention_cpu
    if query.device.type == "cuda":
        return _attention_cuda
    return None


def _flash_attention_cpu(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    attended, log_sum_exp = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(query, key, value)
    return attended, log_sum_exp  # (B, heads, T, dim), (B, heads, T)


def _attention_cuda(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    if query.dtype in (torch.bfloat16, torch.float16):
        flash = torch.ops.aten._scaled_dot_product_flash_attention(query, key, value)
        return flash[0], flash[1]
    efficient = torch.ops.aten._scaled_dot_product_efficient_attention(query, key, value, None, True)
    return efficient[0], efficient[1][..., : query.shape[2]]  # its log-sum-exp is padded to a multiple of 32
