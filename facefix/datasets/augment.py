"""Augmentation of reference images: ReF-LDM's for another picture of the person, a stronger one for the same picture.

A person with a single picture gets references made from it. They must differ enough from the target that copying does
not pay: other crop, other colours, mirrored, slightly bent.

Every image has its own seed and comes out the same in any batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F


@dataclass(frozen=True, slots=True)
class Strength:
    """Ranges that augmentations are drawn from."""

    jitter: float
    """brightness, contrast and saturation times 1 +- this"""
    hue: float
    """+- turns of the hue circle"""
    rotation_deg: float
    translation: float
    """fraction of the side"""
    scale: tuple[float, float]
    perspective: float
    """how far a corner moves inwards at most, in halves of the side"""
    bend: float
    """amplitude of a smooth random warp, fraction of the side"""
    flip: float
    """chance of a mirror image"""


PUBLISHED = Strength(0.2, 0.02, 2.0, 0.05, (0.95, 1.05), 0.2, 0.0, 0.5)
"""ReF-LDM: ColorJitter, RandomAffine, RandomPerspective, horizontal flip."""

SAME_PICTURE = Strength(0.35, 0.05, 8.0, 0.06, (0.9, 1.25), 0.25, 0.012, 0.5)

ALIGNED = Strength(0.3, 0.03, 3.0, 0.012, (0.96, 1.05), 0.06, 0.012, 0.0)
"""For references that serve as a guide: on the template but for what alignment and expression move, never mirrored."""


def augment(images: torch.Tensor, seeds: Sequence[int], strength: Strength = PUBLISHED) -> torch.Tensor:
    """Augmented ``images`` (B, 3, H, W) RGB in [0, 1], one seed each; same shape and range, border repeated."""
    grids, colours = [], []
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        grids.append(_grid(images.shape[2], images.shape[3], strength, generator))
        colours.append(_colour(strength, generator))
    grid = torch.stack(grids).to(images.device, images.dtype)  # (B, H, W, 2)
    moved = F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    return _recolour(moved, torch.tensor(colours, device=images.device, dtype=images.dtype))


def _uniform(low: float, high: float, generator: torch.Generator) -> float:
    return low + (high - low) * float(torch.rand((), generator=generator))


def _grid(height: int, width: int, strength: Strength, generator: torch.Generator) -> torch.Tensor:
    """(H, W, 2) places in [-1, 1] to sample from: mirror, similarity, perspective, smooth warp."""
    angle = math.radians(_uniform(-strength.rotation_deg, strength.rotation_deg, generator))
    zoom = 1 / _uniform(*strength.scale, generator)
    shift = [_uniform(-2 * strength.translation, 2 * strength.translation, generator) for _ in range(2)]
    mirror = -1.0 if _uniform(0, 1, generator) < strength.flip else 1.0
    y, x = torch.meshgrid(_centres(height), _centres(width), indexing="ij")
    points = torch.stack([x * mirror, y, torch.ones_like(x)], dim=-1) @ _perspective(strength.perspective, generator).T
    points = points[..., :2] / points[..., 2:]
    turn = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]) * zoom
    points = points @ turn.T + torch.tensor(shift)
    if strength.bend:
        coarse = torch.randn(1, 2, 5, 5, generator=generator) * (2 * strength.bend)
        bend = F.interpolate(coarse, size=(height, width), mode="bicubic", align_corners=True)
        points = points + bend[0].permute(1, 2, 0)
    return points


def _centres(count: int) -> torch.Tensor:
    return (2 * torch.arange(count) + 1) / count - 1


def _perspective(distortion: float, generator: torch.Generator) -> torch.Tensor:
    """(3, 3) homography that sends the corners of [-1, 1]^2 to corners up to ``distortion`` further outside or inside.

    torchvision's RandomPerspective moves corners inwards by up to half the side times the distortion; the inverse map,
    which says where to sample, is approximated by moving them outwards as far.
    """
    corners = torch.tensor([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]])
    moved = corners * (1 + distortion * torch.rand(4, 2, generator=generator))
    rows = []
    for (x, y), (u, v) in zip(corners.tolist(), moved.tolist(), strict=True):
        rows.append([x, y, 1, 0, 0, 0, -u * x, -u * y])
        rows.append([0, 0, 0, x, y, 1, -v * x, -v * y])
    solution = torch.linalg.solve(torch.tensor(rows, dtype=torch.float64), moved.double().flatten())
    return torch.cat([solution, torch.ones(1, dtype=torch.float64)]).view(3, 3).float()


def _colour(strength: Strength, generator: torch.Generator) -> list[float]:
    """Factors of brightness, contrast and saturation, and turns of hue."""
    factors = [_uniform(1 - strength.jitter, 1 + strength.jitter, generator) for _ in range(3)]
    return [*factors, _uniform(-strength.hue, strength.hue, generator)]


_TO_YIQ = ((0.299, 0.587, 0.114), (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112))


def _recolour(images: torch.Tensor, colours: torch.Tensor) -> torch.Tensor:
    """Brightness, contrast about the mean grey, saturation and hue (as a rotation in YIQ), ``colours`` (B, 4)."""
    brightness, contrast, saturation, hue = (column.view(-1, 1, 1, 1) for column in colours.unbind(1))
    images = (images * brightness).clamp(0, 1)
    grey = (images * images.new_tensor(_TO_YIQ[0]).view(1, 3, 1, 1)).sum(1, keepdim=True)
    images = (contrast * images + (1 - contrast) * grey.mean((2, 3), keepdim=True)).clamp(0, 1)
    return torch.einsum("bij,bjhw->bihw", colour_matrices(hue.flatten(), saturation.flatten()), images).clamp(0, 1)


def colour_matrices(hue_turns: torch.Tensor, saturation: torch.Tensor) -> torch.Tensor:
    """(B, 3, 3) matrices on RGB that turn the hue and scale the saturation, keeping the luma."""
    angle = 2 * math.pi * hue_turns
    cos, sin, zero = saturation * angle.cos(), saturation * angle.sin(), torch.zeros_like(angle)
    turn = torch.stack([torch.ones_like(angle), zero, zero, zero, cos, -sin, zero, sin, cos], 1).view(-1, 3, 3)
    to_yiq = torch.tensor(_TO_YIQ, device=angle.device, dtype=angle.dtype)
    matrices: torch.Tensor = torch.linalg.inv(to_yiq) @ turn @ to_yiq
    return matrices
