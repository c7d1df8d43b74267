"""Metadata as exiftool sees it, and the EXIF fields that are read or put right."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import photo_factory as factory
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from facefix.photos import exif, ifd
from facefix.photos.photo import Region, read_photo, write_photo

NAMES = [*factory.ALL, *factory.HEICS]

OF_THE_FILE = {"SourceFile", "System:Directory", "System:FileName", "System:FileSize"}
OF_THE_FILE |= {"System:FileAccessDate", "System:FileInodeChangeDate"}

OF_THE_PICTURE = {
    ".tif": {"StripOffsets", "StripByteCounts", "TileOffsets", "TileByteCounts", "RowsPerStrip"},
    ".avif": {"MediaDataSize", "MediaData"},
    ".heic": {"MediaDataSize", "MediaData"},
    ".jpg": {"ColorTransform"},
}
"""Where the compressed picture lies and how long it is. ColorTransform: YCCK is written as CMYK."""

OF_A_JPEG_STRIP = {"PreviewImage", "PreviewImageStart", "PreviewImageLength", "Warning"}
"""exiftool shows the strips of a JPEG-compressed TIFF as a preview."""


def exiftool(folder: Path) -> dict[str, dict[str, Any]]:
    """Every field of every file below ``folder``, by file name."""
    if shutil.which("exiftool") is None:
        pytest.skip("exiftool is not installed (Debian: libimage-exiftool-perl)")
    command = ["exiftool", "-j", "-a", "-G1", "-b", "-U", "-ee", str(folder)]
    found = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    return {Path(fields["SourceFile"]).name: fields for fields in found}


def changed_fields(one: dict[str, Any], other: dict[str, Any]) -> set[str]:
    """Names, without their group, of the fields that differ."""
    return {
        key.split(":")[-1]
        for key in one.keys() | other.keys()
        if key not in OF_THE_FILE and one.get(key) != other.get(key)
    }


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """Folders of originals, of outputs with a changed region, and of outputs with another XMP packet as well."""
    folders = tuple(tmp_path_factory.mktemp(name) for name in ("in", "out", "xmp"))
    patch, alpha = np.zeros((30, 30, 3), np.float32), np.ones((30, 30), np.float32)
    packet = factory.XMP.replace(b"A portrait", b"Restored")
    for name in NAMES:
        try:
            photo = read_photo(factory.make(folders[0], name))
        except pytest.skip.Exception:
            continue
        write_photo(photo, [Region(50, 50, patch, alpha)], folders[1] / name)
        write_photo(photo, [Region(50, 50, patch, alpha)], folders[2] / name, extra_xmp=packet)
    return folders[0], folders[1], folders[2]


def test_exiftool_finds_nothing_changed_but_the_place_of_the_picture(written: tuple[Path, Path, Path]) -> None:
    before, after = exiftool(written[0]), exiftool(written[1])
    assert before.keys() == after.keys() and len(before) >= len(factory.ALL)
    for name, fields in before.items():
        allowed = OF_THE_PICTURE.get(Path(name).suffix, set())
        allowed = allowed | OF_A_JPEG_STRIP if name.startswith("jpeg") else allowed
        allowed = allowed - {"ColorTransform"} if name != "ycck.jpg" else allowed
        assert changed_fields(fields, after[name]) <= allowed, name


def test_exiftool_finds_the_new_xmp_packet_and_no_damage(written: tuple[Path, Path, Path]) -> None:
    before, after = exiftool(written[0]), exiftool(written[2])
    for name, fields in after.items():
        if name.endswith(".bmp"):
            continue
        assert fields["XMP-dc:Title"] == "Restored", name
        assert "ExifTool:Error" not in fields, name
        if not name.startswith("jpeg"):
            assert fields.get("ExifTool:Warning") == before[name].get("ExifTool:Warning"), name
        changed = {key for key in changed_fields(before[name], fields) if not key.startswith(("XMP", "Title"))}
        extra = {
            "FileType",
            "WebP_Flags",
            "ImageWidth",
            "ImageHeight",
            "VP8Version",
            "HorizontalScale",
            "VerticalScale",
        }
        allowed = (
            OF_THE_PICTURE.get(Path(name).suffix, set())
            | OF_A_JPEG_STRIP
            | extra
            | {"ApplicationNotes", "MediaDataOffset"}
        )
        assert changed <= allowed, name


def test_exiftool_on_real_photos(shared: Path, tmp_path: Path) -> None:
    folder = shared / "data" / "photos_public"
    patch, alpha = np.zeros((30, 30, 3), np.float32), np.ones((30, 30), np.float32)
    for path in folder.iterdir():
        write_photo(read_photo(path), [Region(20, 20, patch, alpha)], tmp_path / path.name)
    before, after = exiftool(folder), exiftool(tmp_path)
    for name, fields in before.items():
        assert changed_fields(fields, after[name]) == set(), name


def block(*entries: bytes, order: str = "<") -> bytes:
    """A TIFF block with one directory."""
    head = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(order + "I", 8)
    return head + struct.pack(order + "H", len(entries)) + b"".join(entries) + struct.pack(order + "I", 0)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("value", range(11))
def test_orientation_in_both_byte_orders(order: str, value: int) -> None:
    entry = struct.pack(order + "HHIHH", 0x0112, 3, 1, value, 0)
    assert exif.orientation(block(entry, order=order)) == (value if 1 <= value <= 8 else None)
    turned = exif.with_orientation(block(entry, order=order), 5)
    assert exif.orientation(turned) == 5 and len(turned) == len(block(entry, order=order))


@pytest.mark.parametrize(
    ("time", "offset", "expected"),
    [
        ("1970:01:01 00:00:00", None, 0.0),
        ("2024:02:29 12:00:00", "+05:30", 1709188200.0),
        ("1907:06:15 10:00:00", None, -1973858400.0),
        ("0000:00:00 00:00:00", None, None),
        ("    :  :     :  :  ", None, None),
        ("2024:13:01 00:00:00", None, None),
    ],
)
def test_time_taken(time: str, offset: str | None, expected: float | None) -> None:
    made = Image.Exif()
    made.get_ifd(0x8769)[0x9003] = time
    if offset:
        made.get_ifd(0x8769)[0x9011] = offset
    assert exif.taken(made.tobytes().removeprefix(b"Exif\0\0")) == expected


def test_sizes_are_put_right_in_place() -> None:
    made = factory.exif().removeprefix(b"Exif\0\0")
    larger = exif.with_size(made, 4000, 3000)
    assert len(larger) == len(made) and sum(a != b for a, b in zip(made, larger, strict=True)) <= 4
    assert exif.with_size(larger, 160, 208) == made


@given(st.binary(max_size=200))
def test_damaged_blocks_count_as_missing(data: bytes) -> None:
    for candidate in (data, b"II*\0\x08\0\0\0" + data, b"MM\0*\0\0\0\x08" + data, b"MM\0+\0\x08\0\0" + data):
        exif.orientation(candidate)
        exif.taken(candidate)
        assert len(exif.with_size(candidate, 10, 10)) == len(candidate)


@given(data=st.data())
def test_flipped_bytes_in_a_real_block(data: st.DataObject) -> None:
    made = bytearray(factory.exif().removeprefix(b"Exif\0\0"))
    for _ in range(data.draw(st.integers(1, 8))):
        made[data.draw(st.integers(0, len(made) - 1))] = data.draw(st.integers(0, 255))
    exif.orientation(bytes(made))
    exif.taken(bytes(made))
    exif.with_size(bytes(made), 70000, 70000)


def test_a_directory_of_absurd_length_is_refused() -> None:
    with pytest.raises(ValueError, match="claims 65535 entries"):
        ifd.directory(b"II*\0\x08\0\0\0\xff\xff" + bytes(100), ifd.Layout("<", False), 8)
