"""The warp: landmarks land on landmarks, the border stays, and what is unsure moves less."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from facefix.networks.landmarks import CROP_PX, POINTS, Landmarks
from facefix.networks.warp import Warp, thin_plate_warp


def shape(seed: int = 0) -> torch.Tensor:
    """(1, 68, 2) points spread over the middle of the crop."""
    generator = torch.Generator().manual_seed(seed)
    return 140 + 240 * torch.rand(1, POINTS, 2, generator=generator)


def landmarks(points: torch.Tensor, deviation: float = 0.7) -> Landmarks:
    return Landmarks(points, torch.full(points.shape[:2], deviation))


def at(warp: Warp, points: torch.Tensor) -> torch.Tensor:
    """(B, n, 2) displacement at points."""
    grid = (points / (CROP_PX - 1) * 2 - 1)[:, None]
    return F.grid_sample(warp.displacement, grid, align_corners=True)[:, :, 0].mT


def smooth_move(points: torch.Tensor) -> torch.Tensor:
    return points + 6 * torch.stack([torch.sin(points[..., 1] / 60), torch.cos(points[..., 0] / 80)], -1)


def test_landmarks_land_on_landmarks_and_the_border_stays() -> None:
    face = shape()
    reference = smooth_move(face)
    warp = thin_plate_warp(landmarks(reference), landmarks(face))
    assert float((at(warp, face) - (reference - face)).norm(dim=-1).mean()) < 1.0
    assert float((reference - face).norm(dim=-1).mean()) > 5
    edges = torch.cat([warp.displacement[..., 0], warp.displacement[..., -1], warp.displacement[..., 0, :]], -1)
    assert float(edges.abs().max()) < 2.5
    assert float(warp.certainty.max()) > 0.9


def test_a_picture_is_read_where_the_warp_says() -> None:
    """A dot on a landmark of the reference comes to lie on that landmark of the face."""
    face = shape(3)
    reference = smooth_move(face)
    x, y = reference[0, 10].round().long().tolist()
    picture = torch.zeros(1, 3, CROP_PX, CROP_PX)
    picture[:, :, y - 3 : y + 4, x - 3 : x + 4] = 1
    laid = thin_plate_warp(landmarks(reference), landmarks(face))(picture)[0, 0].clamp_min(0)
    rows, columns = torch.meshgrid(torch.arange(CROP_PX), torch.arange(CROP_PX), indexing="ij")
    centre = torch.stack([(laid * columns).sum(), (laid * rows).sum()]) / laid.sum()
    assert float((centre - face[0, 10]).norm()) < 1.5


def test_same_landmarks_leave_a_picture_as_it_is() -> None:
    picture = torch.rand(1, 3, 64, 64)
    warp = thin_plate_warp(landmarks(shape()), landmarks(shape()))
    torch.testing.assert_close(warp(picture), picture, atol=1e-4, rtol=0)


def test_the_unsure_move_less_and_are_said_to_be_unsure() -> None:
    face, reference = shape(), smooth_move(shape())
    moves = [thin_plate_warp(landmarks(reference), landmarks(face, d)) for d in (0.7, 6.0, 60.0)]
    lengths = [float(at(warp, face).norm(dim=-1).mean()) for warp in moves]
    assert lengths[0] > 1.2 * lengths[1] > 6 * lengths[2]
    certainty = [float(warp.certainty[:, :, 12:24, 12:24].mean()) for warp in moves]
    assert certainty[0] > certainty[1] > certainty[2]
    assert certainty[2] < 0.1


def test_folds_are_not_believed() -> None:
    """Points that would have to pass each other fold the picture."""
    face = shape()
    folded = face.clone()
    folded[..., 0] = 512 - face[..., 0]
    warp = thin_plate_warp(landmarks(folded), landmarks(face))
    assert float(warp.certainty[:, :, 12:22, 12:22].mean()) < 0.15


@pytest.mark.parametrize("side", [256, 512])
def test_a_batch_is_what_its_rows_are_alone(side: int) -> None:
    faces, references = torch.cat([shape(1), shape(2)]), torch.cat([smooth_move(shape(1)), shape(5)])
    pictures = torch.rand(2, 3, side, side)
    together = thin_plate_warp(landmarks(references), landmarks(faces))
    for row in range(2):
        alone = thin_plate_warp(landmarks(references[row : row + 1]), landmarks(faces[row : row + 1]))
        torch.testing.assert_close(alone.displacement[0], together.displacement[row], atol=1e-3, rtol=1e-4)
        torch.testing.assert_close(alone(pictures[row : row + 1])[0], together(pictures)[row], atol=1e-3, rtol=0)
