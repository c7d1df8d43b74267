"""The archive degradation: one seed one photo, its tone kept in the target, every kind of damage what it says it is."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
import skimage.data
import torch
from torch.nn import functional as F

from facefix.datasets import archive
from facefix.datasets.archive import MEDIA, TONES, Tone
from facefix.datasets.archive_capture import Blur, Interlace, Jpeg, Mosaic, Noise, Resolution, Screen, Sharpen, Step
from facefix.datasets.archive_surface import Cracks, Crease, Dust, Foxing, Grain, Halftone, Scratches, Texture
from facefix.datasets.degradation import degrade, targets

GREY = Tone(0.0, (0.1,) * 3, (0.9,) * 3, 1.0)


@pytest.fixture(scope="module")
def face() -> torch.Tensor:
    astronaut = torch.tensor(skimage.data.astronaut()).permute(2, 0, 1).float() / 255
    return F.interpolate(astronaut[None], (256, 256), mode="area")[0]


def flat(channels: int = 3, level: float = 0.5, side: int = 128) -> torch.Tensor:
    return torch.full((channels, side, side), level)


def spectrum(picture: torch.Tensor) -> torch.Tensor:
    return torch.fft.rfft2(picture[0] - picture[0].mean()).abs()


def test_a_seed_gives_the_same_photo_in_any_batch(face: torch.Tensor) -> None:
    images = torch.stack([face, face.flip(2), face])
    together = degrade(images, [3, 4, 5], "archive", scale=0.5)
    for row, seed in enumerate((3, 4, 5)):
        assert torch.equal(degrade(images[[row]], [seed], "archive", scale=0.5)[0], together[row])
    assert not torch.equal(together[0], together[2])
    torch.testing.assert_close(together * 255, (together * 255).round(), atol=1e-4, rtol=0)
    assert together.shape == images.shape and float(together.min()) >= 0 and float(together.max()) <= 1


def test_grey_photos_are_grey_to_the_level_and_keep_their_tone(face: torch.Tensor) -> None:
    grey = [seed for seed in range(60) if archive.draw(seed).tone.grey]
    assert 15 < len(grey) < 40
    for seed in grey[:6]:
        for picture in (degrade(face[None], [seed], "archive", scale=0.5), targets(face[None], [seed], "archive")):
            assert torch.equal(picture[:, 0], picture[:, 1]) and torch.equal(picture[:, 1], picture[:, 2])


def test_target_has_the_light_of_the_photo(face: torch.Tensor) -> None:
    """On a large scale photo and target are alike, on a fine one they are not: that is the damage."""
    seeds = [seed for seed in range(80) if not any(isinstance(s, Screen) for s in archive.draw(seed).steps)][:24]
    images = face.expand(len(seeds), -1, -1, -1)
    photo, target = degrade(images, seeds, "archive", scale=0.5), targets(images, seeds, "archive")
    coarse = [F.adaptive_avg_pool2d(pictures, 4) for pictures in (photo, target, images)]
    to_target = (coarse[0] - coarse[1]).abs().mean((1, 2, 3))
    to_image = (coarse[0] - coarse[2]).abs().mean((1, 2, 3))
    assert float(to_target.median()) < 0.02
    assert float(to_target.mean()) < 0.4 * float(to_image.mean())
    assert float((photo - target).abs().mean()) > 0.02


def test_draws_have_the_stated_shares() -> None:
    drawn = [archive.draw(seed) for seed in range(3000)]
    media = Counter(one.medium for one in drawn)
    for medium, share in MEDIA.items():
        assert media[medium] / len(drawn) == pytest.approx(share, abs=0.03)
    for medium, tones in TONES.items():
        grey = [one.tone.grey for one in drawn if one.medium == medium]
        assert np.mean(grey) == pytest.approx(tones["grey"], abs=0.08)
    kinds = Counter(type(step) for one in drawn for step in one.steps)
    every = {Blur, Grain, Texture, Halftone, Scratches, Cracks, Crease, Dust, Foxing, Screen, Interlace, Mosaic, Jpeg}
    assert every | {Resolution} <= set(kinds) and min(kinds[kind] for kind in every) > 20
    assert 3 < np.mean([len(one.steps) for one in drawn]) < 6
    assert np.mean([one.severity for one in drawn]) == pytest.approx(0.5, abs=0.03)


def test_severe_photos_are_worse_than_mild_ones(face: torch.Tensor) -> None:
    drawn = [archive.draw(seed) for seed in range(200)]
    worst = sorted(drawn, key=lambda one: one.severity)
    errors = [
        [float((one(face, 0.5) - one.target(face)).square().mean()) for one in group]
        for group in (worst[:25], worst[-25:])
    ]
    assert np.median(errors[1]) > 3 * np.median(errors[0])


def test_blur_and_motion_have_the_stated_width() -> None:
    point = torch.zeros(1, 65, 65)
    point[0, 32, 32] = 1
    offsets = torch.arange(-32.0, 33)
    blurred = Blur(sigma=3.0)(point, 1.0)[0]
    assert float((blurred.sum(0) * offsets**2).sum()) == pytest.approx(9, rel=0.03)
    moved = Blur(sigma=1.0, length=12.0, angle=0.0)(point, 1.0)[0]
    assert float((moved.sum(0) * offsets**2).sum()) == pytest.approx(1 + 12**2 / 12, rel=0.05)
    assert float((moved.sum(1) * offsets**2).sum()) == pytest.approx(1, rel=0.05)
    assert float(Blur(sigma=6.0)(point, 0.5)[0].max()) == pytest.approx(float(blurred.max()), rel=0.01)


def test_grain_has_its_strength_and_clumps() -> None:
    fine, coarse = (Grain(10, size, 0.0, 7)(flat(1), 1.0) - 0.5 for size in (1.0, 4.0))
    for noise in (fine, coarse):
        assert float(noise.std()) == pytest.approx(10 / 255, rel=0.05)  # in middle grey
    assert float((coarse[0, :, 1:] * coarse[0, :, :-1]).mean()) > 0.8 * float(coarse.var())
    assert abs(float((fine[0, :, 1:] * fine[0, :, :-1]).mean())) < 0.1 * float(fine.var())
    assert float((Grain(10, 1.0, 0.0, 7)(flat(1, 0.05), 1.0) - 0.05).std()) < 0.6 * float(fine.std())


@pytest.mark.parametrize("level", [0.2, 0.5, 0.8])
def test_halftone_keeps_the_tone_and_has_its_period(level: float) -> None:
    dots = Halftone(period=8.0, angle=0.0, softness=0.3)(flat(1, level), 1.0)
    assert float(dots.mean()) == pytest.approx(level, abs=0.04)
    assert float(dots.std()) > 0.3
    strongest = divmod(int(spectrum(dots).argmax()), 65)
    assert strongest in ((0, 16), (16, 0), (112, 0))  # 128 pixels are 16 periods


def test_screen_gives_moire_from_a_pitch_that_the_picture_cannot_hold() -> None:
    picture = Screen(pitch=1.0625, angle=0.0, bend=0.0, strength=0.2, glare=0.0)(flat(), 1.0)
    strongest = divmod(int(spectrum(picture).argmax()), 65)
    assert strongest in ((0, 8), (8, 0), (120, 0))  # 128 / 1.0625 = 120.5 periods alias to 7.5
    assert float((picture[0] - picture[2]).abs().mean()) > 0.02  # coloured


@pytest.mark.parametrize(
    "step",
    [
        Scratches(8, 1.0, 1.5, 0.9, 5),
        Cracks(3, 1.0, 5, 0.9, 5),
        Crease(0.4, 0.1, 1.0, 0.8),
        Dust(30, 2, 1.0, True, 0.9, 5),
        Foxing(4, 20, 0.6, 5),
    ],
    ids=lambda step: type(step).__name__,
)
def test_surface_damage_is_local_and_seeded(step: Step) -> None:
    picture = flat(3, 0.5, 256)
    found = step(picture, 0.5)
    changed = (found - picture).abs().amax(0)
    assert float(changed.max()) > 0.2
    assert 0.001 < float((changed > 0.05).float().mean()) < 0.3
    assert torch.equal(step(picture, 0.5), found)


def test_foxing_is_brown_on_colour_and_grey_on_grey() -> None:
    spots = Foxing(10, 60, 0.6, 5)
    brown = spots(flat(), 1.0)
    assert float(brown[0].mean()) > float(brown[1].mean()) > float(brown[2].mean())
    assert spots(flat(1), 1.0).shape == (1, 128, 128)


def test_low_resolution_mosaic_and_interlace(face: torch.Tensor) -> None:
    small = Resolution(8.0, "bilinear", "nearest", ())(face, 0.5)
    blocks = small.unfold(1, 4, 4).unfold(2, 4, 4)
    assert float((blocks.amax((-1, -2)) - blocks.amin((-1, -2))).max()) < 1e-6
    mosaic = Mosaic(16.0)(face, 0.5)
    torch.testing.assert_close(mosaic, F.interpolate(F.avg_pool2d(face[None], 8), scale_factor=8.0)[0])
    combed = Interlace(2.0, 10.0, 0.0)(face, 0.5)
    assert torch.equal(combed[:, ::2], face[:, ::2])
    assert torch.equal(combed[:, 1::2], face[:, 1::2].roll(5, dims=2))


def test_sharpening_noise_texture_and_jpeg(face: torch.Tensor) -> None:
    fine = face - Blur(1.0)(face, 1.0)
    torch.testing.assert_close(Sharpen(1.5, 1.0)(face, 1.0), face + 1.5 * fine, atol=1e-5, rtol=0)
    assert float((Noise(12, 3)(flat(), 1.0) - 0.5).std()) == pytest.approx(12 / 255, rel=0.05)
    assert float(Texture(0.2, 8, 0.3, 1)(flat(), 1.0).mean()) == pytest.approx(0.5, abs=0.01)
    errors = [float((Jpeg(quality)(face, 1.0) - face).abs().mean()) for quality in (15, 50, 95)]
    assert errors[0] > 1.5 * errors[1] > 2 * errors[2]
    assert Jpeg(50)(face[:1], 1.0).shape == (1, 256, 256)


def test_tones(face: torch.Tensor) -> None:
    grey = GREY(face)
    assert grey.shape == (1, 256, 256) and float(grey.min()) >= 0.1 - 1e-6 and float(grey.max()) <= 0.9 + 1e-6
    sepia = Tone(0.0, (0.1, 0.05, 0.0), (1.0, 0.9, 0.7), 1.0)(face)
    torch.testing.assert_close((sepia[0] - 0.1) / 0.9, sepia[2] / 0.7)  # a curve of the luma for each channel
    dark_edge = Tone(1.0, (0.0,) * 3, (1.0,) * 3, 1.0, light=(0.6, 0.0, 0.0, 0.0))(flat(3, 0.8))
    assert float(dark_edge[:, 0, 0].mean()) == pytest.approx(0.32, abs=0.01)
    assert float(dark_edge[:, 64, 64].mean()) == pytest.approx(0.8, abs=0.01)
    yellow = Tone(1.0, (0.0,) * 3, (1.0,) * 3, 1.0, yellowing=0.5, seed=4)(flat(3, 0.8))
    assert float(yellow[2].mean()) < float(yellow[0].mean()) - 0.05
    assert math.isclose(float(Tone(1.0, (0.0,) * 3, (1.0,) * 3, 1.0)(flat()).mean()), 0.5, abs_tol=1e-6)
