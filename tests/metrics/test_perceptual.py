"""The perceptual network is the ImageNet classifier it claims to be, and its distance orders images as eyes do."""

from __future__ import annotations

from pathlib import Path

import pytest
import skimage.data
import torch
from torch.nn import functional as F

from facefix.errors import CheckpointError
from facefix.metrics.perceptual import EfficientNetLite0, PerceptualDistance, load_efficientnet_lite0, weights_path

TABBY_TIGER_CAT_EGYPTIAN = {281, 282, 285}
ESPRESSO_AND_COFFEE_CUPS = {504, 967, 968, 925, 969}


def as_images(pixels: object, size: int) -> torch.Tensor:
    image = torch.tensor(pixels).permute(2, 0, 1)[None].float() / 127.5 - 1
    side = min(image.shape[2:])
    top, left = (image.shape[2] - side) // 2, (image.shape[3] - side) // 2
    square = image[:, :, top : top + side, left : left + side]
    return F.interpolate(square, (size, size), mode="bilinear", antialias=True, align_corners=False)


@pytest.fixture(scope="module")
def distance() -> PerceptualDistance:
    return PerceptualDistance()


@pytest.fixture(scope="module")
def face() -> torch.Tensor:
    return as_images(skimage.data.astronaut(), 256)


def blurred(image: torch.Tensor, factor: int) -> torch.Tensor:
    small = F.interpolate(image, scale_factor=1 / factor, mode="area")
    return F.interpolate(small, image.shape[2:], mode="bilinear", align_corners=False)


def test_classifies_known_pictures(distance: PerceptualDistance) -> None:
    cat = distance.network(as_images(skimage.data.chelsea(), 224)).softmax(1)[0]
    assert int(cat.argmax()) in TABBY_TIGER_CAT_EGYPTIAN
    assert float(cat.max()) > 0.3
    coffee = distance.network(as_images(skimage.data.coffee(), 224)).softmax(1)[0]
    assert int(coffee.argmax()) in ESPRESSO_AND_COFFEE_CUPS


def test_folding_batch_norms_changes_nothing(distance: PerceptualDistance, face: torch.Tensor) -> None:
    state = torch.load(weights_path(), weights_only=True)
    plain = EfficientNetLite0().eval()
    plain.load_state_dict({name.lstrip("_").replace("._", "."): value for name, value in state.items()})
    with torch.no_grad():
        torch.testing.assert_close(distance.network(face), plain(face), rtol=1e-3, atol=1e-3)


def test_distance_is_zero_at_equality_and_grows_with_damage(distance: PerceptualDistance, face: torch.Tensor) -> None:
    noise = torch.randn(face.shape, generator=torch.Generator().manual_seed(0))
    steps = torch.cat([face, blurred(face, 2), blurred(face, 4), blurred(face, 8), blurred(face, 16)])
    values = distance(steps, face.expand(5, -1, -1, -1))
    assert values.shape == (5,)
    assert float(values[0]) < 1e-6
    assert bool((values.diff() > 0.01).all())
    little, much = distance(torch.cat([face + 0.05 * noise, face + 0.2 * noise]), face.expand(2, -1, -1, -1))
    assert 0 < float(little) < float(much)


def test_features_of_the_target_can_be_kept(distance: PerceptualDistance, face: torch.Tensor) -> None:
    kept = distance.features(face)
    assert [tuple(stage.shape[1:]) for stage in kept] == [
        (16, 128, 128),
        (24, 64, 64),
        (40, 32, 32),
        (112, 16, 16),
        (320, 8, 8),
    ]
    other = blurred(face, 4)
    torch.testing.assert_close(distance(other, kept), distance(other, face))


def test_gradient_reaches_the_image_and_not_the_weights(distance: PerceptualDistance, face: torch.Tensor) -> None:
    image = blurred(face, 4).requires_grad_()
    before = distance(image, face)
    (gradient,) = torch.autograd.grad(before.sum(), image)
    assert not any(parameter.requires_grad for parameter in distance.parameters())
    stepped = image.detach() - 20 * gradient
    assert float(distance(stepped, face)) < float(before.detach())


def test_stays_in_evaluation_mode(distance: PerceptualDistance) -> None:
    assert not distance.train().training
    assert not distance.network.training


def test_bfloat16_agrees_with_float32(distance: PerceptualDistance, face: torch.Tensor) -> None:
    other = blurred(face, 4)
    exact = distance(other, face)
    with torch.autocast("cpu", torch.bfloat16):
        rough = distance(other, face)
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough, exact, rtol=0.05, atol=0)
    half = PerceptualDistance(load_efficientnet_lite0()).to(torch.bfloat16)
    torch.testing.assert_close(half(other, face), exact, rtol=0.05, atol=0)


def test_another_network_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.pth"
    torch.save({"weight": torch.zeros(3)}, path)
    with pytest.raises(CheckpointError, match=r"other\.pth.*EfficientNet-Lite0"):
        load_efficientnet_lite0(path)
