"""TIFF's tag directories, as they stand in TIFF files, EXIF blocks and MPF segments: found, read, changed in place.

TIFF 6.0 section 2, and the BigTIFF proposal of 2004. Nothing is ever serialised anew: values are looked up where they
lie, so that maker notes, which point into the block by absolute offsets, survive.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

_TYPE_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}

_INTEGER_FORMATS = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 13: "I", 16: "Q", 17: "q", 18: "Q"}

_MOST_ENTRIES = 4096
"""More entries than this are taken for damage."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One tag: its type and count, and where in the block its values lie."""

    tag: int
    type: int
    count: int
    value_at: int
    record_at: int

    @property
    def size(self) -> int:
        """Bytes of all values."""
        return self.count * _TYPE_SIZES[self.type]


@dataclass(frozen=True, slots=True)
class Layout:
    """Byte order and offset width of a block."""

    order: str
    """"<" or ">", as struct has it"""
    big: bool

    @property
    def offset_format(self) -> str:
        """struct format of an offset"""
        return "Q" if self.big else "I"

    @property
    def inline_size(self) -> int:
        """Values of at most this many bytes stand in the entry itself."""
        return 8 if self.big else 4


@dataclass(frozen=True, slots=True)
class Directory:
    """One directory of tags."""

    layout: Layout
    entries: dict[int, Entry]
    next_at: int
    """offset of the next directory; 0 where this is the last"""
    link_at: int
    """where the offset of the next directory stands"""


def header(block: bytes) -> tuple[Layout, int]:
    """Layout of a TIFF block and the offset of its first directory. Raises ValueError when it is not one."""
    orders = {b"II": "<", b"MM": ">"}
    order = orders.get(block[:2])
    if order is None or len(block) < 8:
        raise ValueError("no TIFF header")
    magic = struct.unpack_from(order + "H", block, 2)[0]
    if magic == 42:
        return Layout(order, False), struct.unpack_from(order + "I", block, 4)[0]
    if magic == 43 and len(block) >= 16:
        return Layout(order, True), struct.unpack_from(order + "Q", block, 8)[0]
    raise ValueError(f"no TIFF header: magic number {magic}")


def directory(block: bytes, layout: Layout, at: int) -> Directory:
    """The directory at offset ``at``. Entries that do not fit into the block are left out.

    Raises ValueError when there is no directory there.
    """
    count_format, record = (layout.order + "Q", 20) if layout.big else (layout.order + "H", 12)
    start = at + struct.calcsize(count_format)
    if at < 8 or start > len(block):
        raise ValueError(f"directory at {at} lies outside of {len(block)} bytes")
    count = struct.unpack_from(count_format, block, at)[0]
    link_at = start + count * record
    if count > _MOST_ENTRIES or link_at > len(block):
        raise ValueError(f"directory at {at} claims {count} entries")
    found = (_entry(block, layout, start + index * record) for index in range(count))
    entries = {entry.tag: entry for entry in found if entry is not None}
    try:
        next_at = struct.unpack_from(layout.order + layout.offset_format, block, link_at)[0]
    except struct.error:
        next_at = 0
    return Directory(layout, entries, next_at, link_at)


def integers(block: bytes, layout: Layout, entry: Entry) -> tuple[int, ...]:
    """The values of an entry of whole numbers. Raises ValueError for other types."""
    code = _INTEGER_FORMATS.get(entry.type)
    if code is None:
        raise ValueError(f"tag {entry.tag}: expected whole numbers, found type {entry.type}")
    return struct.unpack_from(f"{layout.order}{entry.count}{code}", block, entry.value_at)


def integer(block: bytes, found: Directory, tag: int, default: int | None = None) -> int | None:
    """The first value of ``tag``, or ``default`` where it is missing or no whole number."""
    entry = found.entries.get(tag)
    if entry is None or entry.count < 1 or entry.type not in _INTEGER_FORMATS:
        return default
    code = _INTEGER_FORMATS[entry.type]
    return int(struct.unpack_from(found.layout.order + code, block, entry.value_at)[0])


def raw(block: bytes, entry: Entry) -> bytes:
    """The bytes of an entry's values."""
    return block[entry.value_at : entry.value_at + entry.size]


def text(block: bytes, found: Directory, tag: int) -> str | None:
    """The value of an ASCII tag without its closing NUL."""
    entry = found.entries.get(tag)
    return None if entry is None else raw(block, entry).split(b"\0")[0].decode("latin-1").strip()


def put_integer(block: bytearray, found: Directory, tag: int, value: int) -> bool:
    """Overwrite the single value of ``tag`` where it lies; False when it is missing or ``value`` does not fit."""
    entry = found.entries.get(tag)
    if entry is None or entry.count != 1 or entry.type not in _INTEGER_FORMATS:
        return False
    try:
        struct.pack_into(found.layout.order + _INTEGER_FORMATS[entry.type], block, entry.value_at, value)
    except struct.error:
        return False
    return True


def _entry(block: bytes, layout: Layout, at: int) -> Entry | None:
    tag, kind = struct.unpack_from(layout.order + "HH", block, at)
    count = struct.unpack_from(layout.order + layout.offset_format, block, at + 4)[0]
    if kind not in _TYPE_SIZES:
        return None
    inline_at = at + 4 + layout.inline_size
    value_at = inline_at
    size = count * _TYPE_SIZES[kind]
    if size > layout.inline_size:
        value_at = struct.unpack_from(layout.order + layout.offset_format, block, inline_at)[0]
    return None if value_at + size > len(block) else Entry(tag, kind, count, value_at, at)
