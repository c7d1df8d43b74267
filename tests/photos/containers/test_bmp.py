"""BMP with 32 bits a pixel and masks of any order: written in place, the fourth byte kept."""

from __future__ import annotations

import io
import itertools
import struct

import numpy as np
import pytest
from photo_factory import portrait
from PIL import Image

from facefix.photos.containers import bmp
from facefix.photos.raster import Raster


def masked(places: tuple[int, int, int], alpha: bool) -> tuple[bytes, np.ndarray]:
    """A bitmap with a BITMAPV4HEADER, red, green, blue in these bytes of a pixel, and its four-byte pixels."""
    pixels = portrait(40, 52)
    rest = 6 - sum(places)
    stored = np.empty((52, 40, 4), np.uint8)
    stored[:, :, list(places)] = pixels
    stored[:, :, rest] = np.random.default_rng(0).integers(1, 256, (52, 40)) if alpha else 0
    masks = [0xFF << 8 * place for place in places] + [0xFF << 8 * rest if alpha else 0]
    header = struct.pack("<IiiHHIIiiII", 108, 40, 52, 1, 32, 3, stored.size, 2835, 2835, 0, 0)
    header += struct.pack("<4I", *masks) + b"BGRs" + b"\0" * 48
    file = b"BM" + struct.pack("<IHHI", 14 + len(header) + stored.size, 0, 0, 14 + len(header))
    return file + header + stored[::-1].tobytes(), stored


def readable(data: bytes) -> bool:
    try:
        Image.open(io.BytesIO(data)).load()
    except (OSError, ValueError):
        return False
    return True


LAYOUTS = [
    (places, alpha)
    for places in itertools.permutations(range(4), 3)
    for alpha in (False, True)
    if readable(masked(places, alpha)[0])
]
"""those that Pillow reads"""


def test_pillow_reads_several_layouts() -> None:
    assert len(LAYOUTS) > 4


@pytest.mark.parametrize(("places", "alpha"), LAYOUTS)
def test_a_change_is_written_in_place(places: tuple[int, int, int], alpha: bool) -> None:
    data, stored = masked(places, alpha)
    source = bmp.open(data)
    raster = bmp.decode(source)
    assert np.array_equal(raster.samples[:, :, :3], portrait(40, 52))
    samples = raster.samples.copy()
    samples[10:20, 10:20, :3] = 77
    result = bmp.encode(source, Raster(samples, raster.model, raster.alpha), None)
    assert result.notes == () and len(result.data) == len(data)
    expected = stored.copy()
    expected[10:20, 10:20, list(places)] = 77
    assert result.data[14 + 108 :] == expected[::-1].tobytes()
    assert result.data[: 14 + 108] == data[: 14 + 108]


def test_sixteen_bits_a_pixel_become_twenty_four_and_say_so() -> None:
    pixels = np.random.default_rng(0).integers(0, 1 << 15, (4, 6), dtype=np.uint16)
    header = struct.pack("<IiiHHIIiiII", 40, 6, 4, 1, 16, 0, pixels.nbytes, 0, 0, 0, 0)
    data = b"BM" + struct.pack("<IHHI", 54 + pixels.nbytes, 0, 0, 54) + header + pixels.tobytes()
    source = bmp.open(data)
    result = bmp.encode(source, bmp.decode(source), None)
    assert result.notes == ("BMP with 16 bits per pixel became one with 24",)
    assert np.array_equal(bmp.decode(bmp.open(result.data)).samples, bmp.decode(source).samples)
