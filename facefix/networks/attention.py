"""Fused attention with its log-sum-exp, and its twin in bf16 products on the CPU."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F

from facefix.errors import UsageError
from facefix.networks import blocks
from facefix.networks.reference_cache import Branch, KeyValue

FusedAttention = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


LOGITS_AT_ONCE = 2**20
"""attention logits that exist at the same time for every thread, where they exist at all: 2 MB in bf16"""


LOGITS_AT_ONCE_DIM = 32
"""with heads of this dimension; wider ones compute longer on a logit, and with more queries read the keys less often"""


HEADS_AT_ONCE = 2
"""and of at least so many heads: the more queries of the same head, the faster the products"""


LARGEST_LOGIT = 100.0
"""powers of two up to this and down to the inverse can be summed up in bf16's range"""


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
        return _tokens(_differentiable(_heads(query, heads), _heads(key, heads), _heads(value, heads)))
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
    parts: dict[int, torch.Tensor] = {}
    for branch in branches:
        reference_key, reference_value = _layer_of(branch, layer, query)
        rows = range(query.shape[0])[branch.rows]
        joined = _differentiable(
            _heads(query[branch.rows], heads),
            _heads(torch.cat([key[branch.rows], reference_key.expand(len(rows), -1, -1)], dim=1), heads),
            _heads(torch.cat([value[branch.rows], reference_value.expand(len(rows), -1, -1)], dim=1), heads),
            _copies_bias(branch.copies, key.shape[1], reference_key),
        )
        parts |= dict(zip(rows, joined.split(1), strict=True))  # (1, heads, T, dim) each
    alone = [row for row in range(query.shape[0]) if row not in parts]
    if alone:
        own = _differentiable(*(_heads(part[alone], heads) for part in (query, key, value)))
        parts |= dict(zip(alone, own.split(1), strict=True))
    return _tokens(torch.cat([parts[row] for row in range(query.shape[0])]))


def _differentiable(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """Attention of (B, heads, T, dim) with a gradient; in bf16 on the CPU by plain products, in half the time."""
    if bias is not None or query.device.type != "cpu" or query.dtype != torch.bfloat16 or not blocks.multiplies_bf16():
        return F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
    with torch.autocast("cpu", enabled=False):
        scaled = query.flatten(0, 1) * query.shape[3] ** -0.5
        weights = torch.bmm(scaled, key.flatten(0, 1).transpose(1, 2)).softmax(2)
        attended: torch.Tensor = torch.bmm(weights, value.flatten(0, 1)).unflatten(0, query.shape[:2])
    return attended


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

    Args:
        counts: (S, 1), how often each key counts in the sum of the weights.
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
