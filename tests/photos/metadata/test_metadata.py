"""Metadata as exiftool sees it, and the EXIF fields that are read or put right."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import numpy as np
import photo_factory as factory
import pytest
from albums import Borrow
from conftest import REPOSITORY
from exiftool import (
    OF_A_FRESH_JPEG,
    OF_A_JPEG_STRIP,
    OF_THE_PACKET,
    OF_THE_PICTURE,
    OF_THE_SENSOR,
    OF_THE_SIZE,
    OF_TURNING,
    OUR_FIELDS,
    changed_by_writing,
    changed_fields,
    describe,
    exiftool,
    our_fields,
)
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from facefix.jobs.restore import restore_album
from facefix.photos import provenance
from facefix.photos.containers import raw_metadata
from facefix.photos.metadata import exif, ifd
from facefix.photos.photo import read_photo, write_photo
from facefix.photos.region import Region
from facefix.restoration.run import Options, Request
from facefix.settings import Settings

NAMES = [*factory.ALL, *factory.HEICS]

IMAGE_REGION = "XMP-iptcExt:ImageRegion"

SAID = OUR_FIELDS - {"XMP-facefix:PriorDigitalSourceType"} | {IMAGE_REGION}
"""Our word in a photo that said nothing of the kind before."""


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
        assert changed_fields(fields, after[name]) <= changed_by_writing(name), name


@pytest.mark.parametrize("scale", [1, 2])
def test_exiftool_finds_in_a_restored_photo_only_its_size_and_our_word(tmp_path: Path, scale: int) -> None:
    """As the job writes them, with its XMP, as they are and enlarged."""
    album, out = tmp_path / "album", tmp_path / "out"
    album.mkdir()
    side = 30 * scale
    patch, alpha = np.zeros((side, side, 3), np.float32), np.ones((side, side), np.float32)
    for name in NAMES:
        try:
            photo = read_photo(factory.make(album, name))
        except pytest.skip.Exception:
            continue
        regions = [Region(50, 50, patch, alpha, scale)]
        said = provenance.describe(photo, regions, model="small", recipe="r1")
        write_photo(photo, regions, out / name, scale=scale, extra_xmp=said.packet)
    before, after = exiftool(album), exiftool(out)
    assert before.keys() == after.keys() and len(before) >= len(factory.ALL)
    for name, fields in before.items():
        changed = {field for field in changed_fields(fields, after[name]) if "HEVCConfig" not in field}
        assert changed <= changed_by_writing(name) | OF_THE_PACKET | (OF_THE_SIZE if scale > 1 else set()), name
        if not name.endswith(".bmp"):
            assert after[name]["XMP-facefix:Model"] == "small", name


@pytest.mark.parametrize("suffix", [".tif", ".jpg"])
@pytest.mark.parametrize("scale", [1, 2])
@pytest.mark.parametrize("said", [True, False])
def test_exiftool_on_a_developed_raw_photo(tmp_path: Path, suffix: str, scale: int, said: bool) -> None:
    """EXIF, places, XMP and IPTC go along, with our word in the XMP and without."""
    pytest.importorskip("rawpy")
    album, out = tmp_path / "album", tmp_path / "out"
    album.mkdir()
    factory.dng(album / "a.dng")
    describe(album / "a.dng")
    photo = read_photo(album / "a.dng")
    regions = [Region(50, 50, np.zeros((30, 30, 3), np.float32), np.ones((30, 30), np.float32), scale)]
    packet = provenance.describe(photo, regions, model="small", recipe="r1").packet if said else None
    write_photo(photo, regions, out / f"a{suffix}", scale=scale, extra_xmp=packet)
    (before,), (after,) = exiftool(album).values(), exiftool(out).values()
    allowed = OF_THE_SENSOR | OF_TURNING | OF_THE_SIZE | (OF_A_FRESH_JPEG if suffix == ".jpg" else set())
    assert changed_fields(before, after) <= allowed
    assert our_fields(after) == (SAID if said else set())
    assert "ExifTool:Error" not in after and "ExifTool:Warning" not in after
    for field in (
        "ExifIFD:DateTimeOriginal",
        "GPS:GPSLatitude",
        "XMP-dc:Title",
        "IPTC:Keywords",
        "InteropIFD:InteropIndex",
    ):
        assert after[field] == before[field] is not None
    assert after["IFD0:Orientation"] == after["XMP-tiff:Orientation"] == "Horizontal (normal)"
    assert (after["XMP-mwg-rs:RegionAreaX"], after["XMP-mwg-rs:RegionAreaY"]) == (0.6, 0.3)


def test_the_previews_metadata_describe_a_raw_photo_that_is_no_tiff(tmp_path: Path) -> None:
    """Canon's and Fujifilm's newer files: EXIF, XMP and IPTC are in the JPEG inside them."""
    preview = factory.make(tmp_path, "segments.jpg").read_bytes()
    found = raw_metadata.of_preview(preview)
    assert found.xmp == factory.XMP and found.orientation == 6
    assert found.exif is not None and exif.orientation(found.exif) == 1
    assert exif.taken(found.exif) == exif.taken(factory.exif(None).removeprefix(b"Exif\0\0"))
    assert found.all_resources is not None and factory.IPTC in found.all_resources
    bare = raw_metadata.of_preview(factory.make(tmp_path, "bare.jpg").read_bytes())
    assert (bare.exif, bare.xmp, bare.all_resources) == (None, None, None)


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
        allowed = changed_by_writing(name) | OF_A_JPEG_STRIP | OF_THE_PACKET | extra
        assert changed <= allowed, name


def test_exiftool_on_real_photos(shared: Path, tmp_path: Path) -> None:
    folder = shared / "data" / "photos_public"
    patch, alpha = np.zeros((30, 30, 3), np.float32), np.ones((30, 30), np.float32)
    for path in folder.iterdir():
        write_photo(read_photo(path), [Region(20, 20, patch, alpha)], tmp_path / path.name)
    before, after = exiftool(folder), exiftool(tmp_path)
    for name, fields in before.items():
        assert changed_fields(fields, after[name]) == set(), name


def test_exiftool_on_a_run_over_real_photos(shared: Path, tmp_path: Path) -> None:
    """The whole job: every output says what its original says, and where a face was restored our own word besides."""
    album, out = shared / "data" / "photos_public", tmp_path / "out"
    settings = Settings.load({"output": out, "faces": "dlib", "device": "cpu", "restore": "all", "report": False})
    summary = restore_album(Request((album,)), settings, Options(restorer=Borrow()))
    before, after = exiftool(album), {name: fields for name, fields in exiftool(out).items() if name in os.listdir(out)}
    assert before.keys() == after.keys() and summary.statuses["restored"] >= 10
    for name, fields in before.items():
        ours = our_fields(after[name])
        assert ours in (set(), SAID), name
        assert changed_fields(fields, after[name]) <= (OF_THE_PACKET if ours else set()), name
    assert sum(bool(our_fields(fields)) for fields in after.values()) == summary.statuses["restored"]


def test_readme_lists_every_field_that_may_change() -> None:
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    listed = readme.split("### What changes in a photo's metadata", 1)[1].split("\n## ", 1)[0]
    may_change = OF_A_FRESH_JPEG | OF_A_JPEG_STRIP | OF_THE_PACKET | OF_THE_SENSOR | OF_THE_SIZE | OF_TURNING
    may_change |= {field for fields in OF_THE_PICTURE.values() for field in fields} | {"ColorTransform", IMAGE_REGION}
    missing = {field for field in may_change | OUR_FIELDS if f"`{field.split(':')[-1]}`" not in listed}
    assert missing == set()


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
