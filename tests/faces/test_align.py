"""Geometry of the aligned crop: exact on known transforms, faithful to the pixels."""

from __future__ import annotations

import math

import numpy as np
import pytest
from PIL import Image
from skimage import data

from facefix.errors import UsageError
from facefix.faces import align


def known_similarity(scale: float, degrees: float, tx: float, ty: float) -> align.Matrix:
    c, s = scale * math.cos(math.radians(degrees)), scale * math.sin(math.radians(degrees))
    return np.array([[c, -s, tx], [s, c, ty]])


@pytest.mark.parametrize("scale", [0.2, 1.0, 9.0])
@pytest.mark.parametrize("degrees", [0, 17, -90, 180])
def test_crop_matrix_recovers_the_similarity_it_was_given(scale: float, degrees: float) -> None:
    photo_from_crop = known_similarity(scale, degrees, 300.5, -40.25)
    landmarks = align.apply(photo_from_crop, align.TEMPLATE_512)
    matrix = align.crop_matrix(landmarks)
    np.testing.assert_allclose(matrix, align.invert(photo_from_crop), atol=1e-9)
    np.testing.assert_allclose(align.apply(matrix, landmarks), align.TEMPLATE_512, atol=1e-9)
    assert align.scale_of(matrix) == pytest.approx(1 / scale)


def test_crop_matrix_never_mirrors() -> None:
    mirrored = align.TEMPLATE_512 * [-1, 1] + [511, 0]
    assert np.linalg.det(align.crop_matrix(mirrored)[:, :2]) > 0


def test_invert_and_compose_round_trip() -> None:
    matrix = known_similarity(0.37, 31, 12, 99)
    np.testing.assert_allclose(align.compose(align.invert(matrix), matrix), [[1, 0, 0], [0, 1, 0]], atol=1e-12)


@pytest.mark.parametrize("landmarks", [np.ones((5, 2)), np.full((5, 2), np.nan), np.ones((4, 2))])
def test_landmarks_without_a_shape_are_refused(landmarks: align.Matrix) -> None:
    with pytest.raises(UsageError, match="landmarks: expected"):
        align.crop_matrix(landmarks)


def test_identity_warp_returns_the_same_pixels() -> None:
    photo = data.astronaut()
    np.testing.assert_array_equal(align.warp(photo, known_similarity(1, 0, 0, 0), size=512), photo)


def test_whole_pixel_shift_and_right_angle_are_exact_inside() -> None:
    photo = data.astronaut()
    np.testing.assert_array_equal(
        align.warp(photo, known_similarity(1, 0, -100, -50), size=200), photo[50:250, 100:300]
    )
    turned = align.warp(photo, known_similarity(1, 90, 511, 0), size=512)
    assert np.abs(turned.astype(int) - np.rot90(photo, -1)).max() <= 1


def test_there_and_back_keeps_the_face() -> None:
    photo = data.astronaut()
    matrix = known_similarity(2.3, 12, -200, -60)
    back = align.warp(align.warp(photo, matrix, size=900), align.invert(matrix), size=(512, 512))
    region = (slice(80, 300), slice(150, 350))
    assert np.abs(back[region].astype(float) - photo[region]).mean() < 1.5


def test_border_is_mirrored() -> None:
    photo = data.astronaut()
    warped = align.warp(photo, known_similarity(1, 0, 40, 30), size=200)
    np.testing.assert_array_equal(warped[30:, :40], photo[:170, :40][:, ::-1])
    np.testing.assert_array_equal(warped[:30, 40:], photo[:30, :160][::-1])


def test_the_far_border_is_mirrored_too() -> None:
    photo = data.astronaut()
    warped = align.warp(photo, known_similarity(1, 0, -412, -412), size=200)
    np.testing.assert_array_equal(warped[:100, 100:], photo[412:, 412:][:, ::-1])


def test_strong_shrinking_does_not_alias() -> None:
    stripes = np.zeros((1600, 1600, 3), np.uint8)
    stripes[:, ::2] = 255
    shrunk = align.warp(stripes, known_similarity(0.13, 3, 0, 0), size=200)
    assert np.abs(shrunk[10:-10, 10:-10].astype(int) - 128).max() < 12


def test_shrinking_stays_in_place() -> None:
    photo = data.astronaut()
    large = np.array(Image.fromarray(photo).resize((2048, 2048), Image.Resampling.BICUBIC))
    quarter = np.array([[0.25, 0, -0.375], [0, 0.25, -0.375]])
    difference = align.warp(large, quarter, size=512).astype(float) - photo
    assert np.abs(difference[8:-8, 8:-8]).mean() < 4
    assert abs(difference.mean()) < 0.2


def test_one_pixel_image_fills_the_crop() -> None:
    pixel = np.full((1, 1, 3), 77, np.uint8)
    assert (align.warp(pixel, known_similarity(3, 0, 4, 4), size=16) == 77).all()


def test_dlib_chip_lies_inside_the_crop() -> None:
    corners = align.apply(align.invert(align.DLIB_CHIP_FROM_CROP), [(0, 0), (150, 150)])
    assert corners.min() > 0
    assert corners.max() < align.CROP_SIZE
