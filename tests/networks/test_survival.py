"""What survives: the truth where it can be known beforehand, the network's shapes, the guide that follows from it."""

from __future__ import annotations

from pathlib import Path

import pytest
import skimage.data
import torch
import torch.nn.functional as F

from facefix.networks.composition import LaidReferences, compose_guide, limit_change
from facefix.networks.survival import BANDS, Survival, SurvivalNetwork, bands, luma_chroma, resized, rgb, true_survival


@pytest.fixture(scope="module")
def face() -> torch.Tensor:
    """(1, 3, 256, 256) in [-1, 1]."""
    picture = torch.tensor(skimage.data.astronaut()).permute(2, 0, 1)[None].float() / 127.5 - 1
    return F.interpolate(picture, (256, 256), mode="area")


def noise(face: torch.Tensor, strength: float) -> torch.Tensor:
    return face + strength * torch.randn(face.shape, generator=torch.Generator().manual_seed(3))


def everywhere(face: torch.Tensor, fraction: float, gain: float) -> Survival:
    whole = torch.ones(len(face), BANDS, 16, 16)
    return Survival(whole * fraction, whole * gain, whole * gain)


def test_bands_and_colours_can_be_put_together_again(face: torch.Tensor) -> None:
    coarse, found = bands(luma_chroma(face))
    assert [band.shape[-1] for band in found] == [256, 128, 64, 32, 16]
    for band in reversed(found):
        coarse = resized(coarse, band.shape[-1]) + band
    torch.testing.assert_close(rgb(coarse), face, atol=1e-5, rtol=0)


def test_an_undamaged_picture_has_lost_nothing(face: torch.Tensor) -> None:
    survived = true_survival(face, face)
    _, found = bands(luma_chroma(face))
    textured = F.avg_pool2d(found[0][:, 0].square(), 16) > 1e-3
    assert float(survived.fraction[:, 0][textured].min()) > 0.95
    assert float(survived.gain[:, 0][textured].min()) > 0.95


def test_weaker_detail_has_all_survived_and_gets_its_strength_back(face: torch.Tensor) -> None:
    survived = true_survival(face * 0.8, face)
    _, found = bands(luma_chroma(face))
    textured = F.avg_pool2d(found[0][:, 0].square(), 16) > 1e-3
    assert float(survived.fraction[:, 0][textured].mean()) > 0.95
    assert float(survived.gain[:, 0][textured].mean()) == pytest.approx(1.25, abs=0.04)


def test_noise_of_the_same_strength_leaves_half(face: torch.Tensor) -> None:
    """<l b>^2 / (<l^2> <b^2>) = 1 / 2 and <l b> / <l^2> = 1 / 2 where noise and detail are as strong."""
    generator = torch.Generator().manual_seed(1)
    detail, noise_ = (0.3 * torch.randn(1, 1, 256, 256, generator=generator).expand(-1, 3, -1, -1) for _ in range(2))
    survived = true_survival(detail + noise_, detail)
    assert float(survived.fraction[:, 0].mean()) == pytest.approx(0.5, abs=0.03)
    assert float(survived.gain[:, 0].mean()) == pytest.approx(0.5, abs=0.03)


def test_blur_takes_the_fine_bands_first(face: torch.Tensor) -> None:
    survived = true_survival(resized(resized(face, 32), 256), face)
    shares = survived.fraction.mean((0, 2, 3))
    assert float(shares[0]) < 0.15
    assert float(shares[4]) > 0.5


def test_network_gives_estimates_for_every_cell(face: torch.Tensor) -> None:
    torch.manual_seed(0)
    network = SurvivalNetwork((4, 6, 8, 8)).eval()
    with torch.no_grad():
        found = network(torch.cat([face, face.flip(3)]))
        alone = network(face)
    assert found.fraction.shape == found.gain.shape == found.chroma_gain.shape == (2, BANDS, 16, 16)
    assert float(found.fraction.min()) >= 0 and float(found.fraction.max()) <= 1
    torch.testing.assert_close(alone.gain[0], found.gain[0], atol=1e-5, rtol=1e-4)


def test_network_is_saved_and_loaded(tmp_path: Path, face: torch.Tensor) -> None:
    torch.manual_seed(0)
    network = SurvivalNetwork((4, 6, 8, 8)).eval()
    network.save_pretrained(tmp_path)
    again = SurvivalNetwork.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        torch.testing.assert_close(again(face).fraction, network(face).fraction)


def test_a_face_that_has_lost_nothing_is_left_alone(face: torch.Tensor) -> None:
    reference = LaidReferences(face.flip(3)[:, None], torch.ones(1, 1, 1, 3, 3))
    guide = compose_guide(face, everywhere(face, 1.0, 1.0), reference)
    torch.testing.assert_close(guide, face, atol=1e-4, rtol=0)


def test_a_network_changes_what_is_lost_and_not_what_is_left(face: torch.Tensor) -> None:
    change = noise(torch.zeros_like(face), 0.2)
    lost, left = (limit_change(change, everywhere(face, fraction, 1.0)) for fraction in (0.0, 1.0))
    torch.testing.assert_close(lost, change, atol=1e-4, rtol=0)
    assert float(left.abs().mean()) < 0.1 * float(change.abs().mean())
    half = everywhere(face, 1.0, 1.0)
    half.fraction[..., :8] = 0
    mixed = limit_change(change, half)
    assert float(mixed[..., 32:96].square().mean()) > 20 * float(mixed[..., 160:224].square().mean())


def test_noise_goes_without_a_reference_and_detail_comes_with_one(face: torch.Tensor) -> None:
    noisy = noise(face, 0.2)
    survived = true_survival(noisy, face)
    cleaned = compose_guide(noisy, survived)
    assert float((cleaned - face).square().mean()) < 0.5 * float((noisy - face).square().mean())
    blurred = resized(resized(face, 32), 256)
    survived = true_survival(blurred, face)
    reference = LaidReferences(face[:, None], torch.ones(1, 1, 1, 3, 3))
    completed = compose_guide(blurred, survived, reference)
    alone = compose_guide(blurred, survived)
    assert float((completed - face).square().mean()) < 0.4 * float((alone - face).square().mean())


def test_of_two_references_the_one_that_fits_is_taken_at_each_place(face: torch.Tensor) -> None:
    blurred = resized(resized(face, 64), 256)
    survived = true_survival(blurred, face)
    left, right = face.clone(), face.clone()
    left[..., 128:] = face.flip(2)[..., 128:]
    right[..., :128] = face.flip(2)[..., :128]
    certain = torch.ones(1, 2, 1, 3, 3)
    errors = {
        name: float((compose_guide(blurred, survived, laid) - face)[..., 32:224, 32:224].square().mean())
        for name, laid in {
            "both": LaidReferences(torch.stack([left, right], 1), certain),
            "left": LaidReferences(left[:, None], certain[:, :1]),
            "right": LaidReferences(right[:, None], certain[:, :1]),
        }.items()
    }
    assert errors["both"] < 0.9 * min(errors["left"], errors["right"])


def test_nothing_is_taken_where_references_are_not_certain(face: torch.Tensor) -> None:
    survived = everywhere(face, 0.0, 1.0)
    reference = LaidReferences(face.flip(3)[:, None], torch.zeros(1, 1, 1, 3, 3))
    torch.testing.assert_close(compose_guide(face, survived, reference), face, atol=1e-4, rtol=0)


def test_a_grey_face_stays_grey_and_a_sepia_one_sepia(face: torch.Tensor) -> None:
    grey = face.mean(1, keepdim=True).expand(-1, 3, -1, -1)
    blurred = resized(resized(grey, 32), 256)
    reference = LaidReferences(face[:, None], torch.ones(1, 1, 1, 3, 3))
    survived = true_survival(blurred, grey)
    guide = compose_guide(blurred, survived, reference)
    assert float((guide.amax(1) - guide.amin(1)).max()) < 1e-4
    assert float((guide - blurred).abs().mean()) > 0.01
    tint = torch.tensor((1.0, 0.8, 0.6)).view(1, 3, 1, 1)
    sepia = compose_guide((blurred + 1) * tint - 1, survived, reference)
    ratio = (sepia + 1)[:, 2].mean() / (sepia + 1)[:, 0].mean()
    assert float(ratio) == pytest.approx(0.6, abs=0.02)
    spread = ((sepia + 1)[:, 2] - 0.6 * (sepia + 1)[:, 0]).std()
    assert float(spread) < 0.1 * float((sepia + 1)[:, 0].std())


def test_a_row_of_a_batch_is_what_it_is_alone(face: torch.Tensor) -> None:
    faces = torch.cat([noise(face, 0.1), resized(resized(face, 64), 256)])
    survived = true_survival(faces, torch.cat([face, face]))
    laid = LaidReferences(torch.stack([face, face.flip(3)], 1).expand(2, -1, -1, -1, -1), torch.ones(2, 2, 1, 3, 3))
    together = compose_guide(faces, survived, laid)
    one = Survival(survived.fraction[1:], survived.gain[1:], survived.chroma_gain[1:])
    alone = compose_guide(faces[1:], one, LaidReferences(laid.images[1:], laid.certainty[1:]))
    torch.testing.assert_close(alone[0], together[1], atol=1e-5, rtol=1e-4)
