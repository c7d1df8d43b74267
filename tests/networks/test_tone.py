"""Photos of a single tone keep it; photos with colours are left alone."""

from __future__ import annotations

import torch

from facefix.networks.tone import luma_of, tone_of


def colourful(seed: int = 0) -> torch.Tensor:
    small = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return torch.nn.functional.interpolate(small, size=(64, 64), mode="bilinear")


def sepia(images: torch.Tensor) -> torch.Tensor:
    luma = luma_of(images)
    return torch.cat([0.8 * luma + 0.1, 0.7 * luma, 0.55 * luma - 0.1], dim=1)


def test_colours_stay() -> None:
    photo = colourful()
    tone = tone_of(photo)
    assert not bool(tone.single)
    other = colourful(1)
    assert torch.equal(tone(other), other)


def test_grey_stays_exactly_grey() -> None:
    photo = luma_of(colourful()).expand(-1, 3, -1, -1)
    tone = tone_of(photo)
    assert bool(tone.single)
    toned = tone(colourful(1))
    assert torch.equal(toned[:, 0], toned[:, 1])
    assert torch.equal(toned[:, 0], toned[:, 2])
    assert torch.allclose(toned[:, :1], luma_of(colourful(1)), atol=1e-5)


def test_sepia_stays_sepia_under_noise() -> None:
    noise = 0.06 * torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    photo = sepia(colourful())
    tone = tone_of(
        torch.nn.functional.interpolate(photo, size=(512, 512)) + torch.nn.functional.interpolate(noise, 512)
    )
    assert not bool(tone_of(photo + 5 * noise).single)
    assert bool(tone_of(photo).single)
    assert torch.allclose(tone_of(photo)(photo), photo, atol=0.02)
    assert tone.curves.shape == (1, 3, 3)


def test_each_photo_of_a_batch_has_its_own() -> None:
    batch = torch.cat([colourful(), luma_of(colourful(3)).expand(-1, 3, -1, -1)])
    tone = tone_of(batch)
    assert tone.single.tolist() == [False, True]
    result = tone(batch)
    assert torch.equal(result[0], batch[0])
    assert torch.equal(result[1, 0], result[1, 2])
