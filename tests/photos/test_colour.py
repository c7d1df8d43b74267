"""ICC profiles both ways, and what counts as a photo without colour."""

from __future__ import annotations

import imagecodecs
import numpy as np
import photo_factory as factory
import pytest
from PIL import Image

from facefix.photos import colour


def test_srgb_needs_no_conversion() -> None:
    assert colour.load_profile(factory.srgb(), "rgb") == (None, None)
    assert colour.load_profile(None, "rgb") == (None, None)
    assert colour.load_profile(factory.adobe_rgb(), "grey") == (None, None)


@pytest.mark.parametrize("bad", [b"x" * 400, factory.adobe_rgb()[:200], b"\0"])
def test_broken_profiles_give_a_note(bad: bytes) -> None:
    profile, note = colour.load_profile(bad, "rgb")
    assert profile is None and note is not None and note.startswith("ICC profile ignored")


def test_a_profile_of_other_samples_gives_a_note() -> None:
    profile, note = colour.load_profile(factory.adobe_rgb(), "cmyk")
    assert profile is None and note is not None


def test_there_and_back() -> None:
    profile, _ = colour.load_profile(factory.adobe_rgb(), "rgb")
    assert profile is not None
    colours = np.random.default_rng(1).random((20, 30, 3), dtype=np.float32)
    np.testing.assert_allclose(profile.to_srgb(profile.from_srgb(colours)), colours, atol=1e-4)


def test_adobe_rgb_by_its_definition() -> None:
    """Adobe RGB (1998), section 4.3: gamma 2.19921875, and its matrix to XYZ; sRGB by IEC 61966-2-1."""
    profile, _ = colour.load_profile(bytes(imagecodecs.cms_profile("adobergb")), "rgb")
    assert profile is not None
    samples = np.array([[[0.4, 0.5, 0.6], [0.7, 0.6, 0.5], [0.2, 0.2, 0.2]]])
    to_xyz = np.array([[0.57667, 0.18556, 0.18823], [0.29734, 0.62736, 0.07529], [0.02703, 0.07069, 0.99134]])
    to_linear = np.array([[3.2406, -1.5372, -0.4986], [-0.9689, 1.8758, 0.0415], [0.0557, -0.2040, 1.0570]])
    linear = samples**2.19921875 @ to_xyz.T @ to_linear.T
    expected = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * np.maximum(linear, 0) ** (1 / 2.4) - 0.055)
    np.testing.assert_allclose(profile.to_srgb(samples.astype(np.float32)), expected, atol=0.004)


def test_colour_and_none() -> None:
    portrait = factory.portrait(512, 512)
    grey = np.asarray(Image.fromarray(portrait).convert("L").convert("RGB"))
    noise = np.random.default_rng(0).normal(0, 6, portrait.shape)
    assert not colour.is_monochrome(portrait)
    assert not colour.is_monochrome((portrait // 4 + 96).astype(np.uint8))
    assert colour.is_monochrome(grey)
    assert colour.is_monochrome(np.clip(grey * [1, 0.9, 0.75] + noise, 0, 255).astype(np.uint8))
    assert colour.is_monochrome(np.zeros((1, 1, 3), np.uint8))


def test_colour_photos_of_faces_are_not_taken_for_toned(shared: object) -> None:
    from pathlib import Path

    crops = sorted((Path(str(shared)) / "data" / "eval_public").glob("*.jpg"))
    assert len(crops) > 80
    assert not [crop.name for crop in crops if colour.is_monochrome(np.asarray(Image.open(crop).convert("RGB")))]
