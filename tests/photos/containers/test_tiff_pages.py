"""TIFF files with more than one picture, or with tags that reach over one another."""

from __future__ import annotations

import io
import struct
from typing import Any

import numpy as np
import pytest
import tifffile
from photo_factory import portrait, srgb

from facefix.photos.containers import tiff
from facefix.photos.metadata import ifd
from facefix.photos.raster import Raster

PROFILE = srgb()
"""made once: it holds the time"""


def written(*pages: tuple[tuple[int, int], dict[str, Any]]) -> bytes:
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer) as writer:
        for size, options in pages:
            writer.write(portrait(*size), photometric="rgb", metadata=None, **options)
    return buffer.getvalue()


def why(data: bytes) -> str:
    return tiff.open(data).copy_reason or ""


def test_a_single_picture_is_written() -> None:
    assert tiff.open(written(((160, 208), {}))).copy_reason is None


def test_pages_are_copied() -> None:
    assert "2 pages" in why(written(((160, 208), {}), ((160, 208), {})))


def test_a_reduced_copy_before_the_picture_is_copied() -> None:
    first_reduced = written(((80, 104), {"subfiletype": 1, "subifds": 1}), ((160, 208), {}))
    assert "is a reduced copy" in why(first_reduced)
    assert "is a reduced copy" in why(written(((80, 104), {"subfiletype": 1}), ((160, 208), {})))


def test_a_larger_picture_in_a_sub_directory_is_what_the_file_is_about() -> None:
    assert "80 x 104" in why(written(((80, 104), {"subifds": 1}), ((160, 208), {})))


def test_a_pyramid_is_copied() -> None:
    levels = [((80, 104), {"subfiletype": 1}), ((40, 52), {"subfiletype": 1})]
    assert "pyramid" in why(written(((160, 208), {"subifds": 2}), *levels))
    assert "pyramid" in why(written(((160, 208), {}), *levels))
    assert "pyramid" in why(written(((800, 1040), {}), ((400, 520), {"subfiletype": 1})))


def test_one_thumbnail_is_left_and_said() -> None:
    source = tiff.open(written(((160, 208), {}), ((80, 104), {"subfiletype": 1})))
    assert source.copy_reason is None
    assert source.notes == ("the thumbnail in the file (80 x 104) stays as it was",)


def test_photoshop_layers_are_copied_and_its_other_blocks_are_not_a_reason() -> None:
    head = b"Adobe Photoshop Document Data Block\0"
    for key, expected in ((b"Layr", "layers"), (b"8BIMpatt", "")):
        block = (37724, "B", len(head) + len(key), head + key, True)
        assert expected in why(written(((160, 208), {"extratags": [block]})))
    assert why(written(((160, 208), {"extratags": [block]}))) == ""


def tagged(data: bytes, tag: int, values: bytes) -> bytes:
    """The file with the inline values of a tag replaced."""
    layout, at = ifd.header(data)
    entry = ifd.directory(data, layout, at).entries[tag]
    changed = bytearray(data)
    changed[entry.record_at + 8 : entry.record_at + 12] = values.ljust(4, b"\0")
    return bytes(changed)


def without(data: bytes, tag: int) -> bytes:
    """The file with a tag renamed to a private one, which nobody reads."""
    layout, at = ifd.header(data)
    entry = ifd.directory(data, layout, at).entries[tag]
    changed = bytearray(data)
    struct.pack_into(layout.order + "H", changed, entry.record_at, 65000)
    return bytes(changed)


def one_strip(compression: str | None = None) -> bytes:
    profile = [(34675, "B", len(PROFILE), PROFILE, True)]
    return written(((160, 208), {"rowsperstrip": 208, "compression": compression, "extratags": profile}))


def changed_picture(source: Any) -> Raster:
    raster = tiff.decode(source)
    samples = raster.samples.copy()
    samples[50:90, 50:90] = np.random.default_rng(0).integers(0, 256, (40, 40, 3))
    return Raster(samples, "rgb")


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("count", ["missing", "zero", "past the end", "over what follows"])
def test_wrong_strip_lengths_are_read_and_never_written_over_what_other_tags_name(
    compression: str | None, count: str
) -> None:
    whole = one_strip(compression)
    if count == "missing":
        data = without(whole, 279)
    else:
        length = ifd.integers(whole, *_strip_count(whole))[0]
        value = {"zero": 0, "past the end": 1 << 30, "over what follows": length + 400}[count]
        data = tagged(whole, 279, struct.pack("<I", value))
    source = tiff.open(data)
    assert np.array_equal(tiff.decode(source).samples, tiff.decode(tiff.open(whole)).samples)
    changed = changed_picture(source)
    result = tiff.encode(source, changed, b"<x:xmpmeta xmlns:x='adobe:ns:meta/'/>" * 9).data
    reopened = tiff.open(result)
    assert reopened.icc == PROFILE == source.icc
    assert np.array_equal(tiff.decode(reopened).samples, changed.samples)
    assert np.array_equal(tifffile.imread(io.BytesIO(result)), changed.samples)


def _strip_count(data: bytes) -> tuple[ifd.Layout, ifd.Entry]:
    layout, at = ifd.header(data)
    return layout, ifd.directory(data, layout, at).entries[279]


def test_tags_of_types_that_are_not_known_are_carried_over() -> None:
    name = "Zoë Example 写真".encode()
    data = written(((160, 208), {"extratags": [(315, "s", len(name) + 1, name + b"\0", True)]}))
    layout, at = ifd.header(data)
    for kind in (129, 77):
        marked = bytearray(data)
        record = ifd.directory(data, layout, at).entries[315].record_at
        struct.pack_into("<H", marked, record + 2, kind)
        source = tiff.open(bytes(marked))
        result = tiff.encode(source, changed_picture(source), b"<xmp/>").data
        layout, at = ifd.header(result)
        places = dict(ifd.directory(result, layout, at).records)
        found_kind, count, offset = struct.unpack_from("<HII", result, places[315] + 2)
        assert (found_kind, count) == (kind, len(name) + 1)
        assert result[offset : offset + len(name)] == name
        data = written(((160, 208), {"extratags": [(315, "s", len(name) + 1, name + b"\0", True)]}))
        layout, at = ifd.header(data)


@pytest.mark.parametrize("compression", [None, "zlib", "lzw", "packbits"])
def test_bits_of_either_order(compression: str | None) -> None:
    """FillOrder 2 turns the bits of every byte as it lies in the file, compressed or not, as libtiff has it."""
    options = {"rowsperstrip": 208, "compression": compression, "extratags": [(65001, "H", 1, 2, True)]}
    plain = written(((160, 208), options))
    layout, at = ifd.header(plain)
    found = ifd.directory(plain, layout, at)
    start = ifd.integers(plain, layout, found.entries[273])[0]
    length = ifd.integers(plain, layout, found.entries[279])[0]
    turned = bytes(int(f"{value:08b}"[::-1], 2) for value in range(256))
    data = bytearray(plain)
    struct.pack_into("<H", data, found.entries[65001].record_at, 266)
    data[start : start + length] = plain[start : start + length].translate(turned)
    source = tiff.open(bytes(data))
    assert np.array_equal(tiff.decode(source).samples, tiff.decode(tiff.open(plain)).samples)
    changed = changed_picture(source)
    assert np.array_equal(tiff.decode(tiff.open(tiff.encode(source, changed, None).data)).samples, changed.samples)
