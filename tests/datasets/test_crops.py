"""Pieces of faces for the autoencoder: their range, their size, what the recipe's shares do, and the seed."""

from __future__ import annotations

import pytest
import torch

from facefix.datasets.crops import CropRecipe, draw_crops

PLAIN = CropRecipe(colour=0.0, low_quality=0.0)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def grey_ramp(side: int) -> torch.Tensor:
    """(3, side, side) uint8, brighter to the right, the same in all channels."""
    return torch.linspace(0, 255, side).round().to(torch.uint8).expand(3, side, side).contiguous()


def test_crops_are_of_the_wanted_size_and_in_range() -> None:
    crops = draw_crops([[grey_ramp(80)], [grey_ramp(200)]], 12, 32, CropRecipe(1.0, 1.0), generator())
    assert crops.shape == (12, 3, 32, 32)
    assert float(crops.min()) >= -1 and float(crops.max()) <= 1
    assert not torch.isnan(crops).any()


def test_the_same_seed_draws_the_same_crops() -> None:
    recipe = CropRecipe(0.5, 0.5)
    first, again, other = (draw_crops([[grey_ramp(96)]], 6, 32, recipe, generator(seed)) for seed in (4, 4, 5))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_half_of_the_crops_are_mirrored_and_half_are_at_the_scale_of_the_picture() -> None:
    picture = grey_ramp(64)
    crops = draw_crops([[picture]], 200, 32, PLAIN, generator())
    brighter_to_the_left = crops[:, 0, 16, 0] > crops[:, 0, 16, -1]
    assert 70 < int(brighter_to_the_left.sum()) < 130
    steps = (crops[:, 0, 16, 1:] - crops[:, 0, 16, :-1]).abs().mean(1) * 63 / 2  # 1 at the picture's own scale
    assert 70 < int(((steps - 1).abs() < 0.02).sum()) < 130
    assert float(steps.min()) > 0.7 and float(steps.max()) < 1.9


def test_every_pool_is_drawn_from_as_often_whatever_its_size() -> None:
    black, white = (torch.full((3, 32, 32), value, dtype=torch.uint8) for value in (0, 255))
    crops = draw_crops([[black] * 50, [white]], 200, 32, PLAIN, generator())
    assert 70 < int((crops.mean((1, 2, 3)) > 0).sum()) < 130


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_colour_jitter_follows_its_share(share: float) -> None:
    colourful = torch.zeros(3, 32, 32, dtype=torch.uint8)
    colourful[0], colourful[1], colourful[2] = 200, 90, 40
    crops = draw_crops([[colourful]], 20, 32, CropRecipe(share, 0.0), generator())
    plain = (torch.tensor([200.0, 90.0, 40.0]) / 255 * 2 - 1).view(3, 1, 1)
    changed = ((crops - plain).abs().amax((1, 2, 3)) > 0.02).float().mean()
    assert float(changed) == (0.0 if share == 0 else pytest.approx(1.0, abs=0.1))


def test_low_quality_crops_have_less_detail() -> None:
    checks = (torch.arange(64)[:, None] + torch.arange(64)).remainder(2).mul(255).to(torch.uint8).expand(3, 64, 64)
    sharp, blurred = (draw_crops([[checks]], 8, 64, CropRecipe(0.0, share), generator()) for share in (0.0, 1.0))
    assert float(blurred.std((2, 3)).mean()) < 0.5 * float(sharp.std((2, 3)).mean())
