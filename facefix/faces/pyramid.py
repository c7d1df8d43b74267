"""A photo at falling sizes in one flat buffer, from which square windows of any size are cut all at once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

STEP = 0.7071
"""Size of a level relative to the one before."""

_LEAST_SIDE = 12
"""Smaller levels show nothing."""

_WINDOWS_AT_ONCE = 256


@dataclass(frozen=True, slots=True, eq=False)
class Pyramid:
    """Levels from the photo itself down; pixels are uint8 RGB."""

    levels: tuple[Tensor, ...]
    """(1, 3, h, w) each"""
    scales: NDArray[np.float64]
    """(L, 2): level pixels per photo pixel along x and y"""
    flat: Tensor
    """(all pixels of all levels, 3)"""
    starts: Tensor
    """(L,) where each level begins in ``flat``"""
    sizes: Tensor
    """(L, 2) width and height of each level"""

    def at_most(self, pixels: int) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
        """The largest level of at most so many pixels, (h, w, 3), and its scale along x and y; else the smallest."""
        fits = [index for index, size in enumerate(self.sizes.tolist()) if size[0] * size[1] <= pixels]
        index = fits[0] if fits else len(self.levels) - 1
        picture: NDArray[np.uint8] = self.levels[index][0].permute(1, 2, 0).numpy()
        return picture, self.scales[index]

    def cut(self, boxes: Tensor, side: int) -> Tensor:
        """Windows (N, 3, side, side), 0..255, of square ``boxes`` (N, 4) in photo pixels; black outside the photo.

        Boxes are edges: the first pixel reaches from 0 to 1. Each is read bilinearly from the smallest level that has
        at least ``side`` pixels across it.
        """
        parts = [self._cut_some(some, side) for some in boxes.split(_WINDOWS_AT_ONCE)]
        return torch.cat(parts) if parts else torch.zeros((0, 3, side, side))

    def _cut_some(self, boxes: Tensor, side: int) -> Tensor:
        scales = torch.from_numpy(self.scales).to(boxes)
        enough = scales.amin(dim=1)[None] * (boxes[:, 2] - boxes[:, 0])[:, None] >= side  # (N, L), falling scales
        level = (enough.sum(dim=1) - 1).clamp_(min=0)
        scale, size, start = scales[level], self.sizes[level], self.starts[level]
        steps = (torch.arange(side, dtype=boxes.dtype) + 0.5) / side
        low, span = boxes[:, :2] * scale, (boxes[:, 2:] - boxes[:, :2]) * scale
        x, y = (low[:, axis, None] + span[:, axis, None] * steps - 0.5 for axis in (0, 1))  # (N, side)
        columns, rows = _neighbours(x, size[:, 0, None]), _neighbours(y, size[:, 1, None])
        cut = torch.zeros((len(boxes), side, side, 3), dtype=torch.float32)
        for row, row_weight in rows:
            for column, column_weight in columns:
                places = start[:, None, None] + row[:, :, None] * size[:, 0, None, None] + column[:, None, :]
                weights = (row_weight[:, :, None] * column_weight[:, None, :]).float()
                cut += self.flat[places] * weights[..., None]
        return cut.permute(0, 3, 1, 2)  # (N, 3, side, side), channels last in memory


def build(rgb: NDArray[np.uint8], smallest_scale: float) -> Pyramid:
    """The levels of a photo (H, W, 3) down to where less than ``smallest_scale`` of it, or too few pixels, are left."""
    height, width = rgb.shape[:2]
    photo = torch.from_numpy(rgb if rgb.flags.writeable else rgb.copy())
    levels = [photo.permute(2, 0, 1)[None]]  # (1, 3, H, W), channels last in memory
    scale = STEP
    while scale >= smallest_scale and min(height, width) * scale >= _LEAST_SIDE:
        size = (round(height * scale), round(width * scale))
        levels.append(functional.interpolate(levels[-1], size=size, mode="bilinear", antialias=True))
        scale *= STEP
    sizes = torch.tensor([(level.shape[3], level.shape[2]) for level in levels])
    flat = torch.cat([level.permute(0, 2, 3, 1).reshape(-1, 3) for level in levels])
    ends = (sizes[:, 0] * sizes[:, 1]).cumsum(0)
    scales = sizes.double().numpy() / np.array([width, height])
    return Pyramid(tuple(levels), scales, flat, ends - sizes[:, 0] * sizes[:, 1], sizes)


def _neighbours(places: Tensor, size: Tensor) -> list[tuple[Tensor, Tensor]]:
    """The two pixels beside each place along one axis, with their weights: none where they are outside."""
    first = places.floor()
    part = places - first
    found = []
    for pixel, weight in ((first.long(), 1 - part), (first.long() + 1, part)):
        inside = (pixel >= 0) & (pixel < size)
        found.append((pixel.clamp(min=0).minimum(size - 1), weight * inside))
    return found
