"""EXIF orientation as geometry, against Pillow's own."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from facefix.photos import orientation as turning

orientations = st.sampled_from([None, *range(1, 9), 9])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_upright_is_what_pillow_shows(orientation: int) -> None:
    stored = np.arange(5 * 7 * 3, dtype=np.uint8).reshape(5, 7, 3)
    image = Image.fromarray(stored)
    image.getexif()[0x0112] = orientation
    np.testing.assert_array_equal(turning.upright(stored, orientation), np.asarray(ImageOps.exif_transpose(image)))


@given(height=st.integers(1, 9), width=st.integers(1, 9), orientation=orientations)
def test_stored_undoes_upright(height: int, width: int, orientation: int | None) -> None:
    picture = np.arange(height * width).reshape(height, width)
    turned = turning.upright(picture, orientation)
    assert turned.shape == ((width, height) if turning.swaps_sides(orientation) else (height, width))
    np.testing.assert_array_equal(turning.stored(turned, orientation), picture)


@given(data=st.data(), orientation=orientations)
def test_boxes_turn_with_their_pixels(data: st.DataObject, orientation: int | None) -> None:
    width, height = data.draw(st.integers(1, 12)), data.draw(st.integers(1, 12))
    left, top = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    right, bottom = data.draw(st.integers(left + 1, width)), data.draw(st.integers(top + 1, height))
    picture = np.zeros((height, width), bool)
    picture[top:bottom, left:right] = True
    stored = turning.stored(picture, orientation)
    x0, y0, x1, y1 = turning.stored_box((left, top, right, bottom), orientation, (width, height))
    expected = np.zeros_like(stored)
    expected[y0:y1, x0:x1] = True
    np.testing.assert_array_equal(stored, expected)
