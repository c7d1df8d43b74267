"""Quality numbers mean what they say: monotone, blind to size and exposure, and right about degraded pictures."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from skimage import data

from facefix.datasets import degradation
from facefix.faces import align, quality
from facefix.faces.face import Detection, Quality

Crop = NDArray[np.uint8]
EYES_NOSE_MOUTH = np.array([[203.0, 101.0], [247.5, 103.5], [226.5, 127.5], [202.5, 140.0], [245.0, 141.0]])
"""Landmarks of skimage's astronaut, by eye."""


@pytest.fixture(scope="module")
def portrait() -> Crop:
    return align.warp(data.astronaut(), align.crop_matrix(EYES_NOSE_MOUTH))


def blurred(crop: Crop, sigma: float) -> Crop:
    return np.array(Image.fromarray(crop).filter(ImageFilter.GaussianBlur(sigma)))


def degraded(crop: Crop, preset: str, seed: int) -> Crop:
    image = torch.from_numpy(crop.copy()).permute(2, 0, 1)[None] / 127.5 - 1
    low = degradation.apply(image, [degradation.draw(preset, seed)])[0]
    return ((low.permute(1, 2, 0).numpy() + 1) * 127.5).round().clip(0, 255).astype(np.uint8)


def test_sharpness_falls_with_blur(portrait: Crop) -> None:
    values = [quality.sharpness_and_noise(blurred(portrait, sigma))[0] for sigma in (0, 1, 2, 4, 8)]
    assert values == sorted(values, reverse=True)
    assert values[-1] < 0.1


def test_sharpness_ignores_exposure_and_contrast(portrait: Crop) -> None:
    dark = (portrait * 0.4 + 20).astype(np.uint8)
    before, after = (quality.sharpness_and_noise(crop)[0] for crop in (portrait, dark))
    assert after == pytest.approx(before, abs=0.05)


def test_noise_is_measured_and_does_not_look_sharp(portrait: Crop) -> None:
    rng = np.random.default_rng(0)
    soft = blurred(portrait, 3)
    noisy = (soft + rng.normal(0, 12, soft.shape[:2])[..., None]).clip(0, 255).astype(np.uint8)
    sharpness, noise = quality.sharpness_and_noise(noisy)
    assert noise == pytest.approx(12, rel=0.15)
    assert sharpness < quality.RESTORE_BELOW_SHARPNESS
    assert quality.sharpness_and_noise(soft)[1] < 1


def test_face_width_is_in_photo_pixels() -> None:
    for factor in (0.5, 1.0, 3.0):
        detection = Detection((0, 0, 1, 1), EYES_NOSE_MOUTH * factor, 1.0)
        assessed = quality.assess(np.zeros((512, 512, 3), np.uint8), detection)
        assert assessed.face_px == pytest.approx(44.6 * 2.33 * factor, rel=0.1)


def test_yaw_and_roll() -> None:
    template = align.TEMPLATE_512
    assert abs(quality.yaw_of(template)) < 0.02
    assert abs(quality.roll_of(template)) < 1e-6
    turned = template.copy()
    turned[2, 0] += 40
    assert quality.yaw_of(turned) == pytest.approx(40 / 63, abs=0.03)
    assert quality.yaw_of(turned * 0.1) == pytest.approx(quality.yaw_of(turned))
    angle = np.radians(30)
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    assert quality.roll_of(template @ rotation.T) == pytest.approx(30)
    assert quality.yaw_of(template @ rotation.T) == pytest.approx(quality.yaw_of(template))


@pytest.mark.parametrize(
    ("numbers", "word"),
    [((60, 1.0, 0.0), "small"), ((200, 0.3, 0.0), "blurred"), ((200, 0.9, 12.0), "noisy"), ((200, 0.9, 1.0), "")],
)
def test_reasons(numbers: tuple[float, float, float], word: str) -> None:
    face_px, sharpness, noise = numbers
    found = Quality(face_px, sharpness, 0.0, 0.0, 0.5, noise)
    needed, why = quality.needs_restoring(found)
    usable, why_not = quality.can_be_reference(found)
    assert needed is bool(word)
    assert usable is not needed
    assert word in why and word in why_not


def test_a_turned_face_is_no_reference() -> None:
    usable, why = quality.can_be_reference(Quality(300, 1.0, -0.9, 0.0, 0.5))
    assert not usable
    assert "turned" in why


def test_degraded_faces_are_told_from_clean_ones(shared: Path) -> None:
    with open(shared / "data" / "manifest.csv", newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "eval_public" and row["size"] == "512"][::4]
    needed = {"clean": 0, "moderate": 0, "severe": 0}
    for seed, row in enumerate(rows):
        crop = np.array(Image.open(shared / "data" / row["file"]).convert("RGB"))
        versions = {"clean": crop, **{preset: degraded(crop, preset, seed) for preset in ("moderate", "severe")}}
        for name, version in versions.items():
            needed[name] += quality.needs_restoring(
                quality.assess(version, Detection((0, 0, 1, 1), align.TEMPLATE_512, 1.0))
            )[0]
    assert needed["severe"] == len(rows)
    assert needed["moderate"] >= 0.8 * len(rows)
    assert needed["clean"] <= 0.1 * len(rows)
