"""What a camera raw file says about the photo: taken over byte for byte, without what only the sensor's data needs.

Most camera raw files are TIFF inside (TIFF 6.0, DNG 1.6, TIFF/EP); of the others the preview's EXIF and XMP are taken.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from facefix.photos.containers import jpeg
from facefix.photos.metadata import ifd

XMP, IPTC, RESOURCES = 700, 33723, 34377
_PACKETS = (XMP, IPTC, RESOURCES)

_ORIENTATION, _EXIF, _GPS, _INTEROPERABILITY, _MAKER_NOTE = 274, 34665, 34853, 40965, 37500
_SHORT, _LONG, _LAST_CLASSIC_TYPE = 3, 4, 13

_DESCRIPTIVE = frozenset(
    {269, 270, 271, 272, 305, 306, 315, 316, 33432}  # document, description, camera, software, time, artist, rights
    | {282, 283, 296}  # resolution
    | {18246, 18249, *range(40091, 40096)}  # Microsoft's rating and title, comment, author, keywords, subject
    | {50708, 50709, 50735, 50736}  # DNG's camera model, its serial number, lens
    | {33434, 33437, 34850, 34855, 36867, 36868, *range(37377, 37387), 37396}  # TIFF/EP's exposure, time and lens
)
"""Tags of the first directory that describe the photo and not how the file stores it."""

_TIFF_LIKE = {b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"IIU\0", b"IIRO", b"IIRS", b"MMOR"}
"""First bytes of TIFF, BigTIFF, and what Panasonic and Olympus made of them."""

_Record = tuple[int, int, bytes]
"""type, count and values of a tag"""


@dataclass(frozen=True, slots=True)
class Described:
    """The metadata of a camera raw file, for the developed picture."""

    exif: bytes | None = None
    """an EXIF block with orientation 1"""
    xmp: bytes | None = None
    iptc: bytes | None = None
    """IPTC-IIM records"""
    resources: bytes | None = None
    """Photoshop's image resources"""
    orientation: int = 1
    """EXIF orientation that the file's own picture has, 1 to 8"""

    @property
    def all_resources(self) -> bytes | None:
        """Image resources with the IPTC records among them, as a JPEG holds them (8BIM 0x0404)."""
        resources = self.resources or b""
        if self.iptc and b"8BIM\x04\x04" not in resources:
            resources += b"8BIM\x04\x04\0\0" + struct.pack(">I", len(self.iptc)) + self.iptc
            resources += b"\0" * (len(self.iptc) % 2)
        return resources or None


def looks_like_tiff(data: bytes) -> bool:
    """Whether a file's directories can be read as TIFF's."""
    return data[:4] in _TIFF_LIKE


def of_tiff(data: bytes) -> Described:
    """The metadata in a file that looks like TIFF, or in an EXIF block. Raises ValueError where it has no directory."""
    if data[2:4] not in (b"*\0", b"\0*", b"+\0", b"\0+"):
        data = data[:2] + (b"*\0" if data[:2] == b"II" else b"\0*") + data[4:]
    layout, at = ifd.header(data)
    first = ifd.directory(data, layout, at)
    described = _records(data, first, _DESCRIPTIVE)
    described[_ORIENTATION] = (_SHORT, 1, struct.pack(layout.order + "H", 1))
    below = {}
    for pointer in (_EXIF, _GPS):
        found = _below(data, first, pointer)
        if found is not None:
            below[pointer] = _records(data, found, found.entries.keys() - {_MAKER_NOTE, _INTEROPERABILITY})
            inner = _below(data, found, _INTEROPERABILITY)
            if inner is not None:
                below[_INTEROPERABILITY] = _records(data, inner, inner.entries.keys())
    xmp, iptc, resources = (ifd.raw(data, entry) if (entry := first.entries.get(tag)) else None for tag in _PACKETS)
    turn = ifd.integer(data, first, _ORIENTATION)
    orientation = turn if turn in range(1, 9) and turn is not None else 1
    return Described(_block(layout.order, described, below), xmp, iptc, resources, orientation)


def of_preview(preview: bytes) -> Described:
    """The metadata in a preview that is a JPEG. Raises ValueError where it is none."""
    source = jpeg.open(preview)
    described = of_tiff(source.exif) if source.exif else Described()
    return replace(described, xmp=source.xmp or described.xmp, resources=jpeg.image_resources(source))


def _below(data: bytes, directory: ifd.Directory, pointer: int) -> ifd.Directory | None:
    at = ifd.integer(data, directory, pointer)
    try:
        return ifd.directory(data, directory.layout, at) if at else None
    except (ValueError, struct.error):
        return None


def _records(data: bytes, directory: ifd.Directory, tags: Iterable[int]) -> dict[int, _Record]:
    """Those tags of a directory that it has, as they stand there."""
    entries = (directory.entries[tag] for tag in tags if tag in directory.entries)
    return {
        entry.tag: (entry.type, entry.count, ifd.raw(data, entry))
        for entry in entries
        if entry.type <= _LAST_CLASSIC_TYPE
    }


def _block(order: str, first: dict[int, _Record], below: dict[int, dict[int, _Record]]) -> bytes:
    """A TIFF block with one directory and those below it; ``below`` has them by the tags that point to them."""
    block = bytearray(struct.pack(order + "2sHI", b"II" if order == "<" else b"MM", 42, 0))
    if _INTEROPERABILITY in below:
        _point(order, below[_EXIF], _INTEROPERABILITY, _put(block, order, below.pop(_INTEROPERABILITY)))
    for pointer, records in below.items():
        _point(order, first, pointer, _put(block, order, records))
    struct.pack_into(order + "I", block, 4, _put(block, order, first))
    return bytes(block)


def _point(order: str, records: dict[int, _Record], pointer: int, offset: int) -> None:
    records[pointer] = (_LONG, 1, struct.pack(order + "I", offset))


def _put(block: bytearray, order: str, records: Mapping[int, _Record]) -> int:
    """Append a directory and its values; return its offset."""
    rows = []
    for tag, (kind, count, value) in sorted(records.items()):
        if len(value) > 4:
            offset = len(block)
            block += value + b"\0" * (len(value) % 2)
            value = struct.pack(order + "I", offset)  # noqa: PLW2901
        rows.append(struct.pack(order + "HHI", tag, kind, count) + value.ljust(4, b"\0"))
    at = len(block)
    block += struct.pack(order + "H", len(rows)) + b"".join(rows) + bytes(4)
    return at
