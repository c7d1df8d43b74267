"""Pieces of faces that the autoencoder learns from: every scale, colour jitter, some of them blurred."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from facefix.datasets.augment import colour_matrices


@dataclass(frozen=True, slots=True)
class CropRecipe:
    """How crops are made."""

    colour: float
    """share of crops with colour jitter"""
    low_quality: float
    """share of crops that are blurred and noisy"""


def draw_crops(
    pools: Sequence[Sequence[torch.Tensor]], count: int, size: int, recipe: CropRecipe, generator: torch.Generator
) -> torch.Tensor:
    """(count, 3, size, size) in [-1, 1] out of pools of uint8 (3, H, W) pictures, every pool as often.

    Half of them are cut at the pictures' own scale, the others are up to 1.8 times as large or 0.75 times as small
    before they are resized. Half of them are mirrored.
    """
    crops = torch.stack([_crop(pools, size, recipe, generator) for _ in range(count)])
    return _jitter_colours(crops, recipe.colour, generator) * 2 - 1


def _number(low: float, high: float, generator: torch.Generator) -> float:
    return low + (high - low) * float(torch.rand((), generator=generator))


def _crop(
    pools: Sequence[Sequence[torch.Tensor]], size: int, recipe: CropRecipe, generator: torch.Generator
) -> torch.Tensor:
    pool = pools[int(_number(0, len(pools), generator))]
    picture = pool[int(_number(0, len(pool), generator))]
    height, width = picture.shape[1:]
    side = size if _number(0, 1, generator) < 0.5 else int(size * _number(0.75, 1.8, generator))
    side = min(side, height, width)
    top, left = (int(_number(0, extent - side + 1, generator)) for extent in (height, width))
    piece = picture[:, top : top + side, left : left + side].float() / 255
    if _number(0, 1, generator) < 0.5:
        piece = piece.flip(2)
    if side != size:
        piece = F.interpolate(piece[None], size=(size, size), mode="bilinear", antialias=True)[0]
    if _number(0, 1, generator) < recipe.low_quality:
        piece = _worsened(piece, generator)
    return piece.clamp(0, 1)


def _worsened(piece: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Smaller by 1.5 to 12 and large again, half of the time with noise."""
    size = piece.shape[1]
    small = max(2, int(size / _number(1.5, 12, generator)))
    shrunk = F.interpolate(piece[None], size=(small, small), mode="bilinear", antialias=True)
    piece = F.interpolate(shrunk, size=(size, size), mode="bilinear")[0]
    if _number(0, 1, generator) < 0.5:
        noise = torch.randn(piece.shape, generator=generator).to(piece.device)
        piece = piece + noise * _number(0, 0.05, generator)
    return piece


def _jitter_colours(crops: torch.Tensor, share: float, generator: torch.Generator) -> torch.Tensor:
    """Any hue, saturation from grey to 1.8 times, other gain and colour cast, now and then the negative."""
    count = len(crops)
    draw = torch.rand(count, 8, generator=generator).to(crops.device)
    jittered = draw[:, 0] < share
    saturation = torch.where(draw[:, 1] < 0.1, 0.0, 0.4 + 1.4 * draw[:, 2])
    matrices = colour_matrices(draw[:, 3], saturation) * (0.6 + 0.8 * draw[:, 4]).view(-1, 1, 1)
    casts = (draw[:, 5:8] - 0.5) * 0.3
    negative = torch.frac(draw[:, 1] * math.pi * 100) < 0.05
    sign = torch.where(negative, -1.0, 1.0)
    matrices = matrices * sign.view(-1, 1, 1)
    casts = torch.where(negative[:, None], torch.ones_like(casts), casts)
    identity = torch.eye(3, device=crops.device).expand(count, 3, 3)
    matrices = torch.where(jittered.view(-1, 1, 1), matrices, identity)
    casts = torch.where(jittered[:, None], casts, torch.zeros_like(casts))
    coloured = torch.einsum("bij,bjhw->bihw", matrices, crops) + casts[:, :, None, None]
    return coloured.clamp(0, 1)
