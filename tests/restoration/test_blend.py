"""A restored crop put back: exact where nothing changed, seamless where something did."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from skimage import data

from facefix.errors import UsageError
from facefix.faces import align
from facefix.photos.region import Region, picture_part
from facefix.restoration.blend import blend_face, face_mask

EYES = np.array([[200.0, 112.0], [245.0, 110.0]])
"""of the astronaut"""


@pytest.fixture(scope="module")
def photo() -> NDArray[np.uint8]:
    """(512, 512, 3) the astronaut Eileen Collins (NASA, public domain)."""
    return np.asarray(data.astronaut())


@pytest.fixture(scope="module")
def matrix() -> align.Matrix:
    return align.similarity(EYES, align.TEMPLATE_512[:2])


def composed(photo: NDArray[np.uint8], region: Region) -> NDArray[np.float32]:
    """The photo with the region laid over it, 0..1."""
    left, top, right, bottom = region.box
    result = picture_part(photo, (0, 0, photo.shape[1] * region.scale, photo.shape[0] * region.scale), region.scale)
    weight = region.alpha[:, :, None]
    result[top:bottom, left:right] = result[top:bottom, left:right] * (1 - weight) + region.rgb * weight
    return result


def psnr(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    return float(-10 * np.log10(max(float(((one - other) ** 2).mean()), 1e-12)))


@settings(max_examples=15, deadline=None)
@given(
    size=st.floats(30, 900),
    angle=st.floats(-3.1, 3.1),
    x=st.floats(-40, 550),
    y=st.floats(-40, 550),
    scale=st.integers(1, 2),
)
def test_own_crop_changes_nothing(
    photo: NDArray[np.uint8], size: float, angle: float, x: float, y: float, scale: int
) -> None:
    centre, direction = np.array([x, y]), np.array([np.cos(angle), np.sin(angle)]) * size / 8
    matrix = align.similarity([centre - direction, centre + direction], align.TEMPLATE_512[:2])
    region = blend_face(photo, align.warp(photo, matrix), matrix, scale=scale)
    left, top, right, bottom = region.box
    assert 0 <= left <= right <= 512 * scale and 0 <= top <= bottom <= 512 * scale
    if region.alpha.size:
        before = picture_part(photo, region.box, scale)
        assert psnr(region.rgb, before) > 45


def test_strength_zero_is_the_photo_and_half_is_half(photo: NDArray[np.uint8], matrix: align.Matrix) -> None:
    other = 255 - align.warp(photo, matrix)
    assert not blend_face(photo, other, matrix, strength=0).alpha.any()
    full, half = blend_face(photo, other, matrix), blend_face(photo, other, matrix, strength=0.5)
    assert full.box == half.box
    np.testing.assert_array_equal(full.rgb, half.rgb)
    np.testing.assert_allclose(half.alpha, full.alpha / 2, atol=0.003)


def test_detail_comes_from_the_crop_and_colour_from_the_photo(photo: NDArray[np.uint8], matrix: align.Matrix) -> None:
    blurred = np.asarray(Image.fromarray(photo).reduce(6).resize((512, 512), Image.Resampling.BICUBIC))
    sharp = align.warp(photo, matrix).astype(np.float64)
    tinted = np.clip(sharp * [1.15, 1.0, 0.85] + [12, 0, -8], 0, 255).astype(np.uint8)
    region = blend_face(blurred, tinted, matrix)
    result, inside = composed(blurred, region), np.zeros((512, 512), bool)
    left, top, right, bottom = region.box
    inside[top:bottom, left:right] = region.alpha > 0.9
    truth = photo.astype(np.float32) / 255
    before = psnr(blurred[inside].astype(np.float32) / 255, truth[inside])
    assert psnr(result[inside], truth[inside]) > before + 4
    tint = (result[inside] - truth[inside]).mean(axis=0)
    assert np.abs(tint).max() < 1.5 / 255
    outside = np.ones((512, 512), bool)
    outside[top:bottom, left:right] = region.alpha == 0
    np.testing.assert_array_equal(result[outside], blurred[outside].astype(np.float32) / 255)


def test_no_seam(photo: NDArray[np.uint8], matrix: align.Matrix) -> None:
    """A crop that is brighter and bluer all over changes nothing: the photo's own light and colour are kept."""
    pale = (photo // 2 + 50).astype(np.uint8)
    brighter = (align.warp(pale, matrix) + np.array([20, 20, 35])).astype(np.uint8)
    region = blend_face(pale, brighter, matrix)
    change = composed(pale, region) - pale.astype(np.float32) / 255
    assert np.abs(change).max() < 2 / 255


def test_mask_follows_the_face() -> None:
    mask = face_mask()
    assert mask.shape == (512, 512) and mask.min() == 0 and mask.max() == 1
    for x, y in align.TEMPLATE_512:
        assert mask[round(y), round(x)] > 0.999
    assert not mask[[0, -1]].any() and not mask[:, [0, -1]].any()
    for corner in ((60, 60), (60, 451), (451, 60), (451, 451)):
        assert mask[corner] == 0
    assert np.abs(np.diff(mask, axis=0)).max() < 0.05 and np.abs(np.diff(mask, axis=1)).max() < 0.05


@pytest.mark.parametrize("toning", [(1.0, 1.0, 1.0), (1.0, 0.86, 0.68)])
def test_a_photo_without_colour_stays_without(
    photo: NDArray[np.uint8], matrix: align.Matrix, toning: tuple[float, ...]
) -> None:
    grey = np.asarray(Image.fromarray(photo).convert("L"))[:, :, None]
    toned = np.rint(grey * np.array(toning)).astype(np.uint8)
    coloured = align.warp(photo, matrix)
    for told in (True, False):
        region = blend_face(toned, coloured, matrix, grey=told)
        used = region.rgb[region.alpha > 0.5]
        expected = used[:, :1] * np.array(toning)
        if toning == (1.0, 1.0, 1.0):
            np.testing.assert_array_equal(used[:, 0], used[:, 1])
            np.testing.assert_array_equal(used[:, 0], used[:, 2])
        assert np.abs(used - expected).mean() < 5 / 255


def test_small_faces_are_averaged_not_sampled() -> None:
    """Stripes as fine as the crop allows come out even in a photo eight times coarser."""
    photo = np.full((128, 128, 3), 128, np.uint8)
    crop = np.full((512, 512, 3), 128, np.int16)
    crop[:, ::2] += 60
    crop[:, 1::2] -= 60
    matrix = np.array([[8.0, 0.0, -256.3], [0.0, 8.0, -256.3]])
    region = blend_face(photo, crop.astype(np.uint8), matrix)
    assert np.abs(region.rgb - 128 / 255).max() < 4 / 255


def test_large_faces_keep_the_photo_s_grain(photo: NDArray[np.uint8]) -> None:
    large = np.asarray(Image.fromarray(photo).resize((2048, 2048), Image.Resampling.BICUBIC)).astype(np.int16)
    grainy = np.clip(large + np.random.default_rng(0).integers(-12, 13, large.shape), 0, 255).astype(np.uint8)
    matrix = align.similarity(EYES * 4, align.TEMPLATE_512[:2])
    smooth = align.warp(large.astype(np.uint8), matrix)
    region = blend_face(grainy, smooth, matrix)
    used = region.alpha > 0.9
    left, top, right, bottom = region.box
    grain = (region.rgb - large[top:bottom, left:right].astype(np.float32) / 255)[used]
    assert grain.std() > 0.8 * 12 / np.sqrt(3) / 255


def test_enlarged_photo_gets_the_detail(photo: NDArray[np.uint8]) -> None:
    small = np.asarray(Image.fromarray(photo).reduce(4))
    matrix = align.similarity(EYES / 4 - 0.375, align.TEMPLATE_512[:2])
    crop = align.warp(photo, align.similarity(EYES, align.TEMPLATE_512[:2]))
    region = blend_face(small, crop, matrix, scale=4)
    left, top, right, bottom = region.box
    used = region.alpha > 0.9
    truth = photo[top:bottom, left:right].astype(np.float32)[used] / 255
    assert psnr(region.rgb[used], truth) > psnr(picture_part(small, region.box, 4)[used], truth) + 3


def test_float_photos_are_the_same(photo: NDArray[np.uint8], matrix: align.Matrix) -> None:
    other = align.warp(np.ascontiguousarray(photo[:, ::-1]), matrix)
    as_bytes = blend_face(photo, other, matrix)
    as_floats = blend_face(photo.astype(np.float32) / 255, other, matrix)
    np.testing.assert_allclose(as_bytes.rgb, as_floats.rgb, atol=1e-5)


def test_a_crop_beside_the_photo_touches_nothing(photo: NDArray[np.uint8]) -> None:
    matrix = np.array([[1.0, 0.0, 3000.0], [0.0, 1.0, 3000.0]])
    assert blend_face(photo, np.zeros((512, 512, 3), np.uint8), matrix).alpha.size == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"strength": 1.5}, "strength"),
        ({"scale": 0}, "scale"),
        ({"matrix": np.zeros((2, 3))}, "matrix"),
        ({"restored": np.zeros((256, 256, 3), np.uint8)}, "restored"),
        ({"photo_rgb": np.zeros((9, 9), np.uint8)}, "photo_rgb"),
    ],
)
def test_refuses(photo: NDArray[np.uint8], matrix: align.Matrix, change: dict[str, object], message: str) -> None:
    given_values = {"photo_rgb": photo, "restored": np.zeros((512, 512, 3), np.uint8), "matrix": matrix} | change
    with pytest.raises(UsageError, match=message):
        blend_face(**given_values)  # type: ignore[arg-type]
