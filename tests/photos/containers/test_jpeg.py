"""What lies behind the picture of a JPEG: trailing bytes, previews, gain maps, stereo pairs."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import photo_factory as factory
from PIL import Image
from regions import inverted_region

from facefix.photos.photo import read_photo, write_photo


def test_jpeg_keeps_what_follows_the_picture(folder: Path, tmp_path: Path) -> None:
    photo = read_photo(factory.make(folder, "segments.jpg"))
    write_photo(photo, [], tmp_path / "x.jpg")
    assert (tmp_path / "x.jpg").read_bytes().endswith(b"\xff\xd9trailing bytes of a motion photo")


def multi_picture(kind: int) -> bytes:
    """A JPEG with a second one behind it and an MPF segment that lists both (CIPA DC-007)."""
    buffer = io.BytesIO()
    Image.fromarray(factory.portrait()).save(buffer, "JPEG", quality=80)
    first, second = buffer.getvalue(), buffer.getvalue()
    length = 4 + 8 + 2 + 3 * 12 + 4 + 32
    base = 2 + 4 + 4
    total = len(first) + 4 + length
    entries = struct.pack(">IIIHH", kind, total, 0, 0, 0) + struct.pack(">IIIHH", kind, len(second), total - base, 0, 0)
    block = b"MM\0*\0\0\0\x08" + struct.pack(">H", 3) + struct.pack(">HHI4s", 0xB000, 7, 4, b"0100")
    block += struct.pack(">HHII", 0xB001, 4, 1, 2) + struct.pack(">HHII", 0xB002, 7, 32, 50) + b"\0\0\0\0" + entries
    segment = b"\xff\xe2" + struct.pack(">H", 2 + 4 + len(block)) + b"MPF\0" + block
    assert len(segment) == 4 + length
    return first[:2] + segment + first[2:] + second


def test_previews_and_gain_maps_behind_a_jpeg_stay_in_reach(tmp_path: Path) -> None:
    (tmp_path / "gain.jpg").write_bytes(multi_picture(0))
    with Image.open(tmp_path / "gain.jpg") as image:
        assert image.format == "MPO" and getattr(image, "n_frames", 1) == 2
    photo = read_photo(tmp_path / "gain.jpg")
    assert photo.frames == 1 and photo.copy_reason is None
    write_photo(photo, [inverted_region(photo)], tmp_path / "out.jpg", extra_xmp=factory.XMP)
    with Image.open(tmp_path / "out.jpg") as image:
        assert getattr(image, "n_frames", 1) == 2
        image.seek(1)
        np.testing.assert_array_equal(np.asarray(image), np.asarray(Image.open(io.BytesIO(photo.carrier.source.data))))


def test_stereo_jpegs_are_only_copied(tmp_path: Path) -> None:
    (tmp_path / "stereo.jpg").write_bytes(multi_picture(0x020002))
    assert "stereo" in (read_photo(tmp_path / "stereo.jpg").copy_reason or "")
