"""References laid onto a face: a thin-plate spline through 68 landmarks, anchored at the border of the crop.

Duchon 1977 and Bookstein 1989, "Principal warps: thin-plate splines and the decomposition of deformations". The
spline smooths: each point pulls with the certainty that it has (Wahba 1990, "Spline models for observational data",
ch. 1), and the displacement itself is shrunk by what a displacement is expected to be against how unsure it is, so that
a face whose landmarks cannot be seen leaves the reference as it is.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from facefix.networks.landmarks import CROP_PX, Landmarks

_ANCHORS = 6
"""border points a side that do not move"""

_COARSE = 33
"""places a side where the spline is evaluated; between them the displacement is interpolated"""

_EXPECTED_PX = (14.0, 7.0)
"""How far a point of one aligned picture of a person lies from that of another, in x and in y (root mean squares over
464 pairs: 16 and 6 px): the 17 points of the face's outline, and the others."""

_OUTLINE = 17

_STRAIN = 0.6
"""Stretching (1 is to twice the length) at which a reference looks odd"""

_STIFFNESS = 0.02
"""How much a point may be missed for each px^2 of its variance, in the spline's units"""


@dataclass(frozen=True, slots=True)
class Warp:
    """Where pictures are read to lie on other faces."""

    displacement: torch.Tensor
    """(B, 2, c, c) x, y in px of the 512 crop, at places spread evenly from corner pixel to corner pixel"""
    certainty: torch.Tensor
    """(B, 1, c, c) 0 where nothing is known about how the pictures lie, 1 where it is known exactly"""

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """(B, 3, S, S) pictures, read where this says; the border is repeated."""
        side = images.shape[-1]
        flow = F.interpolate(self.displacement.to(images.device), (side, side), mode="bilinear", align_corners=True)
        line = torch.linspace(-1, 1, side, device=images.device)
        places = torch.stack(torch.meshgrid(line, line, indexing="xy"), -1)
        grid = places + flow.permute(0, 2, 3, 1) * (2 / (CROP_PX - 1))
        return F.grid_sample(images.float(), grid, mode="bicubic", padding_mode="border", align_corners=True)


def thin_plate_warp(references: Landmarks, faces: Landmarks) -> Warp:
    """The warp that lays references onto faces, row by row.

    :param references: points of B clean pictures.
    :param faces: points of the B faces that they are to lie on, as a network sees them.
    """
    variance = (references.deviation.square() + faces.deviation.square()).double()  # (B, 68)
    expected = variance.new_full((variance.shape[1],), _EXPECTED_PX[1])
    expected[:_OUTLINE] = _EXPECTED_PX[0]
    trust = expected.square() / (expected.square() + variance)
    moved = (references.points - faces.points).double() * trust[..., None]
    anchors = _border().to(moved.device).expand(len(moved), -1, -1)
    points = torch.cat([faces.points.double(), anchors], 1) / CROP_PX
    values = torch.cat([moved, torch.zeros_like(anchors)], 1)
    slack = torch.cat([variance, variance.new_zeros(len(moved), anchors.shape[1])], 1) * (_STIFFNESS / CROP_PX**2)
    weights, affine = _spline(points, values, slack)
    line = torch.linspace(0, CROP_PX - 1, _COARSE, dtype=torch.float64, device=moved.device) / CROP_PX
    places = torch.stack(torch.meshgrid(line, line, indexing="xy"), -1).view(1, -1, 2).expand(len(moved), -1, -1)
    displacement = _kernel(places, points) @ weights + _affine_part(places) @ affine  # (B, c c, 2)
    nearness = torch.exp(-torch.cdist(places, faces.points.double() / CROP_PX).square() / (2 * 0.06**2)) + 1e-9
    certainty = (nearness * trust[:, None]).sum(2) / nearness.sum(2)
    moves = displacement.mT.unflatten(2, (_COARSE, _COARSE)).float()
    return Warp(moves, certainty[:, None].unflatten(2, (_COARSE, _COARSE)).float() * _intact(moves))


def _intact(displacement: torch.Tensor) -> torch.Tensor:
    """(B, 2, c, c) -> (B, 1, c, c): 1 where a picture is only moved, less where stretched, 0 where folded."""
    step = (CROP_PX - 1) / (_COARSE - 1)
    down, across = torch.gradient(displacement, spacing=step, dim=(2, 3))
    (xx, yx), (xy, yy) = across.unbind(1), down.unbind(1)
    area = (1 + xx) * (1 + yy) - xy * yx
    strain = xx.square() + yy.square() + (xy + yx).square() / 2
    kept = torch.exp(-strain / (2 * _STRAIN**2)) * (area > 0.2)
    return -F.max_pool2d(-kept[:, None], 3, stride=1, padding=1)  # what lies beside a fold is no better


def _border() -> torch.Tensor:
    """(1, n, 2) px: points around the crop's edge."""
    line = torch.linspace(0, CROP_PX - 1, _ANCHORS, dtype=torch.float64)
    x, y = torch.meshgrid(line, line, indexing="xy")
    outer = (x == line[0]) | (x == line[-1]) | (y == line[0]) | (y == line[-1])
    return torch.stack([x[outer], y[outer]], -1)[None]


def _kernel(places: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """(B, m, 2), (B, n, 2) -> (B, m, n) r^2 log r."""
    squared = (places[:, :, None] - points[:, None]).square().sum(-1)
    return 0.5 * squared * torch.log(squared.clamp_min(1e-12))


def _affine_part(points: torch.Tensor) -> torch.Tensor:
    """(B, n, 2) -> (B, n, 3)"""
    return torch.cat([torch.ones_like(points[..., :1]), points], -1)


def _spline(points: torch.Tensor, values: torch.Tensor, slack: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, n, 2) weights of the kernels and (B, 3, 2) coefficients of the affine part."""
    kernel = _kernel(points, points) + torch.diag_embed(slack)
    affine = _affine_part(points)
    zero = affine.new_zeros(len(points), 3, 3)
    system = torch.cat([torch.cat([kernel, affine], 2), torch.cat([affine.mT, zero], 2)], 1)
    wanted = torch.cat([values, values.new_zeros(len(points), 3, 2)], 1)
    solved = torch.linalg.solve(system, wanted)
    return solved[:, : points.shape[1]], solved[:, points.shape[1] :]
