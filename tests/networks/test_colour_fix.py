"""Colour fixes and grey: what has to hold for any picture. Published values are in the tests of InterLCM."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from facefix.errors import UsageError
from facefix.networks.colour_fix import fix_colours, is_grey, keep_grey, wavelet_bands
from facefix.networks.images import pixels_to_tensor, tensor_to_pixels


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_bands_add_up_to_the_picture() -> None:
    images = noise(2, 3, 40, 24)
    fine, coarse = wavelet_bands(images)
    assert torch.allclose(fine + coarse, images, atol=1e-6)


@pytest.mark.parametrize("kind", ["wavelet", "adain"])
def test_a_face_with_its_own_colours_stays(kind: str) -> None:
    images = noise(1, 3, 32, 32) * 0.4
    assert torch.allclose(fix_colours(images, images, kind), images, atol=1e-5)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["wavelet", "adain"])
def test_a_colour_cast_is_undone(kind: str) -> None:
    images = noise(1, 3, 64, 64) * 0.3
    cast = images + torch.tensor([0.2, -0.1, 0.05]).view(1, 3, 1, 1)
    assert torch.allclose(fix_colours(cast, images, kind), images, atol=1e-5)  # type: ignore[arg-type]


def test_faces_of_a_batch_do_not_mix() -> None:
    restored, lq = noise(3, 3, 32, 32), noise(3, 3, 32, 32, seed=1)
    for kind in ("wavelet", "adain"):
        together = fix_colours(restored, lq, kind)  # type: ignore[arg-type]
        alone = torch.cat([fix_colours(a, b, kind) for a, b in zip(restored.split(1), lq.split(1), strict=True)])  # type: ignore[arg-type]
        assert torch.allclose(together, alone, atol=1e-6)


def test_wrong_arguments() -> None:
    images = noise(1, 3, 16, 16)
    assert fix_colours(images, images * 2, "none") is images
    with pytest.raises(UsageError, match="colour_fix"):
        fix_colours(images, images, "sepia")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="shape"):
        fix_colours(images, images[..., :8], "wavelet")


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 2**31), low=st.integers(0, 200))
def test_grey_stays_grey_exactly(seed: int, low: int) -> None:
    random = np.random.default_rng(seed)
    levels = random.integers(low, 256, size=(24, 24, 1), dtype=np.uint8).repeat(3, axis=2)
    restored = noise(1, 3, 24, 24, seed=seed % 2**31).clamp(-1, 1)
    found = keep_grey(restored, levels[None])
    pixels = tensor_to_pixels(found, nearest=True)[0]
    assert np.array_equal(pixels[..., 0], pixels[..., 1])
    assert np.array_equal(pixels[..., 0], pixels[..., 2])


def test_coloured_faces_are_left_as_they_are_beside_grey_ones() -> None:
    random = np.random.default_rng(0)
    coloured = random.integers(0, 256, size=(16, 16, 3), dtype=np.uint8)
    grey = coloured[..., :1].repeat(3, axis=2)
    restored = pixels_to_tensor(np.stack([coloured, coloured[::-1].copy()]))
    found = keep_grey(restored, np.stack([coloured, grey]))
    assert torch.equal(found[0], restored[0])
    assert not torch.equal(found[1], restored[1])


def test_a_tinted_grey_face_keeps_its_tint() -> None:
    grey = np.random.default_rng(0).integers(60, 180, size=(32, 32, 1))
    tinted = (grey + np.array([20, 5, -15])).astype(np.uint8)
    assert is_grey(tinted)
    found = tensor_to_pixels(keep_grey(noise(1, 3, 32, 32).clamp(-1, 1), tinted[None]), nearest=True)[0]
    assert np.abs(found.mean(axis=(0, 1)) - tinted.mean(axis=(0, 1))).max() < 2
