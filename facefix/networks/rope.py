"""Rotary position code in two dimensions (Su et al. 2021, arXiv 2104.09864; axial as in Heo et al. 2024, 2403.13298).

Every head's channels are pairs; a pair is turned by an angle that grows with the row, or with the column, of its token.
So the product of a query and a key depends on how far apart the two lie on the face. Places are fractions of the side,
the same at every resolution. Aligned faces have their features at the same places: queries find a reference's tokens by
where they are from the first step of training on.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch
from diffusers.models.attention_processor import Attention

from facefix.errors import UsageError


@dataclass(frozen=True, slots=True)
class RotaryCode:
    """Frequencies of the code. Part of a model's configuration."""

    lowest: float = 1.0
    """radians over the side of the face"""
    highest: float = 40.0

    def rotate(self, x: torch.Tensor, height: int, width: int, heads: int) -> torch.Tensor:
        """(B, H W, C) queries or keys, row by row -> the same, every head's channels turned by their place.

        Raises:
            UsageError: a head's dimension is no multiple of 4: two axes of pairs.
        """
        dim = x.shape[2] // heads
        if dim % 4:
            raise UsageError(f"rotary code: expected a head dimension that is a multiple of 4, found {dim}")
        cos, sin = (part.to(x.device, x.dtype) for part in _angles(self, height, width, dim))  # (T, 1, dim / 2)
        first, second = x.unflatten(2, (heads, dim)).chunk(2, dim=3)  # (B, T, heads, dim / 2) each
        return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=3).flatten(2)


@functools.lru_cache(maxsize=64)
def _angles(code: RotaryCode, height: int, width: int, dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosine and sine of every token's angles, (T, 1, dim / 2) each: rows' frequencies, then columns'."""
    count = dim // 4
    steps = torch.arange(count, dtype=torch.float64) / max(count - 1, 1)
    frequencies = code.lowest * (code.highest / code.lowest) ** steps  # (dim / 4,)
    rows = ((torch.arange(height, dtype=torch.float64) + 0.5) / height)[:, None] * frequencies
    columns = ((torch.arange(width, dtype=torch.float64) + 0.5) / width)[:, None] * frequencies
    angles = torch.cat(
        [rows[:, None].expand(-1, width, -1), columns[None].expand(height, -1, -1)], dim=2
    )  # (H, W, dim / 2)
    angles = angles.flatten(0, 1)[:, None]
    return angles.cos().float(), angles.sin().float()


@torch.no_grad()
def start_at_the_same_place(layer: Attention, sharpness: float, share: float = 0.5) -> None:
    """Initial biases of queries and keys that make some heads look at tokens near their own place, in any image.

    With equal biases b on query and key, the logit of two tokens a distance apart is b^2 times the sum of the cosines
    of the code's angles between them: largest where they lie at the same place.

    Args:
        sharpness: that logit at distance zero.
        share: of the heads.
    """
    dim = layer.to_q.weight.shape[0] // layer.heads
    amplitude = math.sqrt(sharpness * math.sqrt(dim) / (dim // 2))
    bias = torch.zeros(layer.heads, dim)
    bias[: round(layer.heads * share), : dim // 2] = amplitude  # the first of each pair
    for projection in (layer.to_q, layer.to_k):
        projection.bias.copy_(bias.flatten())
