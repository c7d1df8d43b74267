"""Camera raw is developed upright and written as TIFF or JPEG."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import photo_factory as factory
import pytest
from PIL import Image
from regions import inverted_region

from facefix.photos import orientation as turning
from facefix.photos.photo import read_photo, write_photo


def test_camera_raw_is_developed_and_written_as_tiff_or_jpeg(tmp_path: Path) -> None:
    pytest.importorskip("rawpy")
    factory.dng(tmp_path / "x.dng")
    photo = read_photo(tmp_path / "x.dng")
    assert (photo.format, photo.mode, photo.size, photo.orientation) == ("RAW", "RGB;16", (208, 160), None)
    upright = np.rot90(factory.portrait(), 3).astype(int)
    assert np.abs(photo.pixels.astype(int) - upright)[8:-8, 8:-8].mean() < 16
    for suffix, mode in ((".tif", "RGB;16"), (".jpg", "RGB")):
        target = tmp_path / f"x.dng{suffix}"
        write_photo(photo, [inverted_region(photo)], target, extra_xmp=factory.XMP)
        result = read_photo(target)
        assert (result.mode, result.size, result.xmp, result.frames) == (mode, (208, 160), factory.XMP, 1)
        with Image.open(target) as image:
            assert image.getexif()[0x010F] == "Kodak" and result.orientation == 1
        write_photo(photo, [], target, scale=2)
        assert read_photo(target).size == (416, 320)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_camera_raw_is_developed_upright(tmp_path: Path, orientation: int) -> None:
    pytest.importorskip("rawpy")
    factory.dng(tmp_path / "stored.dng", 1)
    factory.dng(tmp_path / "turned.dng", orientation)
    expected = turning.upright(read_photo(tmp_path / "stored.dng").pixels, orientation)
    assert np.array_equal(read_photo(tmp_path / "turned.dng").pixels, expected)
