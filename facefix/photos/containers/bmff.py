"""Boxes of ISO base media files (ISO/IEC 14496-12) and the ``meta`` box of pictures, read and put together again.

Only what has to change is parsed; every other box is carried as bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

_MOST_BOXES = 4096
"""More boxes on one level than this are taken for damage."""


@dataclass(frozen=True, slots=True)
class Box:
    """Where a box lies: ``start`` .. ``end`` with its header, its payload from ``payload`` on."""

    kind: bytes
    start: int
    payload: int
    end: int


@dataclass(slots=True)
class Location:
    """Where an item's data lie (section 8.11.3)."""

    method: int
    """0 in the file, 1 in the idat box, 2 in another item"""
    reference: int
    """data reference; 0 is this file"""
    extents: list[tuple[int, int]]
    """offset and length of each part"""


@dataclass(frozen=True, slots=True)
class Item:
    """One entry of the item information box (section 8.11.6)."""

    identity: int
    kind: bytes
    content_type: bytes
    hidden: bool
    is_protected: bool
    box: bytes
    """the whole infe box"""


@dataclass(slots=True)
class Associations:
    """One ipma box (ISO/IEC 23008-12, section 9.3): for each item its properties as (essential, index from 1)."""

    version: int
    flags: int
    items: dict[int, list[tuple[bool, int]]]


@dataclass(slots=True)
class Meta:
    """The parts of a ``meta`` box that pictures are described by."""

    head: bytes
    """version and flags"""
    children: list[tuple[bytes, bytes]]
    """kind and bytes of every child, in their order"""
    primary: int
    items: list[Item]
    locations: dict[int, Location]
    references: list[tuple[bytes, int, list[int]]] = field(default_factory=list)
    """kind, from, to"""
    properties: list[bytes] = field(default_factory=list)
    """whole boxes, in the order of their indices from 1"""
    associations: list[Associations] = field(default_factory=list)
    idat: bytes = b""
    changed: set[bytes] = field(default_factory=set)
    """kinds of children that are to be serialised anew"""

    def item(self, identity: int) -> Item:
        """The item of that number. Raises ValueError where there is none."""
        found = next((item for item in self.items if item.identity == identity), None)
        if found is None:
            raise ValueError(f"item {identity} is missing")
        return found

    def properties_of(self, identity: int) -> list[tuple[int, bytes]]:
        """Index and box of each property of an item, in the order in which they apply."""
        indices = [index for box in self.associations for _, index in box.items.get(identity, ()) if index]
        return [(index, self.properties[index - 1]) for index in indices if index <= len(self.properties)]


def boxes(data: bytes, start: int = 0, end: int | None = None) -> Iterator[Box]:
    """The boxes in ``data`` from ``start`` to ``end``; bytes at the end that are no box are left out."""
    end = len(data) if end is None else end
    for _ in range(_MOST_BOXES):
        if start + 8 > end:
            return
        size, kind = struct.unpack_from(">I4s", data, start)
        payload = start + 8
        if size == 1 and start + 16 <= end:
            size, payload = struct.unpack_from(">Q", data, start + 8)[0], start + 16
        stop = end if size == 0 else start + size
        if stop > end or stop < payload:
            return
        yield Box(kind, start, payload, stop)
        start = stop


def box(kind: bytes, payload: bytes) -> bytes:
    """A box around ``payload``."""
    return struct.pack(">I4s", len(payload) + 8, kind) + payload


def read_meta(data: bytes, found: Box) -> Meta:
    """Parse a ``meta`` box. Raises ValueError where it is not as the standard has it."""
    try:
        return _meta(data, found)
    except (struct.error, IndexError) as error:
        raise ValueError(f"damaged meta box: {error}") from error


def write_meta(meta: Meta) -> bytes:
    """The box again; children whose kind is in ``meta.changed`` are serialised anew, others as they were."""
    writers = {b"iinf": _write_iinf, b"iloc": _write_iloc, b"iref": _write_iref, b"iprp": _write_iprp}
    parts = [meta.head]
    for kind, whole in meta.children:
        if kind == b"idat":
            parts.append(box(kind, meta.idat) if kind in meta.changed else whole)
        else:
            parts.append(writers[kind](meta, whole) if kind in meta.changed and kind in writers else whole)
    if b"iref" in meta.changed and b"iref" not in dict(meta.children) and meta.references:
        parts.append(_write_iref(meta, b""))
    return box(b"meta", b"".join(parts))


def picture_item(identity: int, kind: bytes, content_type: bytes) -> Item:
    """A new entry of the item information box for an item of MIME type ``content_type``."""
    version, width = (2, "H") if identity < 1 << 16 else (3, "I")
    payload = struct.pack(f">B3x{width}H4s", version, identity, 0, kind) + b"\0" + content_type + b"\0"
    return Item(identity, kind, content_type, False, False, box(b"infe", payload))


def _meta(data: bytes, found: Box) -> Meta:
    at = found.payload + 4
    children = [(child, data[child.start : child.end]) for child in boxes(data, at, found.end)]
    by_kind: Mapping[bytes, Box] = {child.kind: child for child, _ in reversed(children)}
    for needed in (b"pitm", b"iinf", b"iloc", b"iprp"):
        if needed not in by_kind:
            raise ValueError(f"no {needed.decode()} box")
    pitm = by_kind[b"pitm"].payload
    meta = Meta(
        head=data[found.payload : at],
        children=[(child.kind, whole) for child, whole in children],
        primary=struct.unpack_from(">I" if data[pitm] else ">H", data, pitm + 4)[0],
        items=list(_read_iinf(data, by_kind[b"iinf"])),
        locations=_read_iloc(data, by_kind[b"iloc"]),
    )
    if b"iref" in by_kind:
        meta.references = list(_read_iref(data, by_kind[b"iref"]))
    if b"idat" in by_kind:
        meta.idat = data[by_kind[b"idat"].payload : by_kind[b"idat"].end]
    for child in boxes(data, by_kind[b"iprp"].payload, by_kind[b"iprp"].end):
        if child.kind == b"ipco":
            meta.properties = [data[each.start : each.end] for each in boxes(data, child.payload, child.end)]
        elif child.kind == b"ipma":
            meta.associations.append(_read_ipma(data, child))
    return meta


def _read_iinf(data: bytes, found: Box) -> Iterator[Item]:
    first = found.payload + (8 if data[found.payload] else 6)
    for entry in boxes(data, first, found.end):
        version, flags = data[entry.payload], data[entry.payload + 3]
        if version < 2:
            raise ValueError(f"infe of version {version}")
        identity, protection, kind = struct.unpack_from(">HH4s" if version == 2 else ">IH4s", data, entry.payload + 4)
        texts = data[entry.payload + (12 if version == 2 else 14) : entry.end].split(b"\0")
        content_type = texts[1] if kind == b"mime" and len(texts) > 1 else b""
        whole = data[entry.start : entry.end]
        yield Item(identity, kind, content_type, bool(flags & 1), protection != 0, whole)


def _read_iloc(data: bytes, found: Box) -> dict[int, Location]:
    at = found.payload
    version, sizes = data[at], struct.unpack_from(">H", data, at + 4)[0]
    offset_size, length_size, base_size = sizes >> 12, sizes >> 8 & 15, sizes >> 4 & 15
    index_size = sizes & 15 if version else 0
    reader = _Reader(data, at + 6, found.end)
    locations = {}
    for _ in range(reader.number(4 if version == 2 else 2)):
        identity = reader.number(4 if version == 2 else 2)
        method = reader.number(2) & 15 if version else 0
        reference, base = reader.number(2), reader.number(base_size)
        extents = []
        for _ in range(reader.number(2)):
            reader.number(index_size)
            offset = base + reader.number(offset_size)
            extents.append((offset, reader.number(length_size)))
        locations[identity] = Location(method, reference, extents)
    return locations


def _read_iref(data: bytes, found: Box) -> Iterator[tuple[bytes, int, list[int]]]:
    width = 4 if data[found.payload] else 2
    for entry in boxes(data, found.payload + 4, found.end):
        reader = _Reader(data, entry.payload, entry.end)
        origin = reader.number(width)
        yield entry.kind, origin, [reader.number(width) for _ in range(reader.number(2))]


def _read_ipma(data: bytes, found: Box) -> Associations:
    version, flags = data[found.payload], data[found.payload + 3]
    reader = _Reader(data, found.payload + 4, found.end)
    items: dict[int, list[tuple[bool, int]]] = {}
    width = 2 if flags & 1 else 1
    for _ in range(reader.number(4)):
        identity = reader.number(4 if version else 2)
        values = [reader.number(width) for _ in range(reader.number(1))]
        top = 1 << (8 * width - 1)
        items[identity] = [(bool(value & top), value & (top - 1)) for value in values]
    return Associations(version, flags, items)


def _write_iinf(meta: Meta, whole: bytes) -> bytes:
    version = max(whole[8], 1 if len(meta.items) >= 1 << 16 else 0)
    count = struct.pack(">I" if version else ">H", len(meta.items))
    return box(b"iinf", bytes([version]) + whole[9:12] + count + b"".join(item.box for item in meta.items))


def _write_iloc(meta: Meta, whole: bytes) -> bytes:
    """Offsets from the start of the file, without base; fields as wide as they were, at least four bytes."""
    version = max(whole[8], 2 if max(meta.locations) >= 1 << 16 else 0)
    version = max(version, 1 if any(each.method for each in meta.locations.values()) else 0)
    farthest = max((offset + length for each in meta.locations.values() for offset, length in each.extents), default=0)
    is_wide = 8 in (whole[12] >> 4, whole[12] & 15) or farthest >= 1 << 32
    number, wide = ("I" if version == 2 else "H"), ("Q" if is_wide else "I")
    parts = [bytes([version]), whole[9:12], b"\x88\x00" if is_wide else b"\x44\x00"]
    parts.append(struct.pack(">" + number, len(meta.locations)))
    for identity, each in meta.locations.items():
        parts.append(struct.pack(">" + number, identity))
        parts.append(struct.pack(">H", each.method) if version else b"")
        parts.append(struct.pack(">HH", each.reference, len(each.extents)))
        parts.extend(struct.pack(f">{wide}{wide}", *extent) for extent in each.extents)
    return box(b"iloc", b"".join(parts))


def _write_iref(meta: Meta, whole: bytes) -> bytes:
    numbers = [number for _, origin, targets in meta.references for number in (origin, *targets)]
    version = 1 if (whole and whole[8]) or max(numbers, default=0) >= 1 << 16 else 0
    number = "I" if version else "H"
    entries = (
        box(kind, struct.pack(f">{number}H{len(targets)}{number}", origin, len(targets), *targets))
        for kind, origin, targets in meta.references
    )
    return box(b"iref", bytes([version, 0, 0, 0]) + b"".join(entries))


def _write_iprp(meta: Meta, whole: bytes) -> bytes:
    parts, tables = [], iter(meta.associations)
    for child in boxes(whole, 8):
        if child.kind == b"ipco":
            parts.append(box(b"ipco", b"".join(meta.properties)))
        else:
            parts.append(_write_ipma(next(tables)) if child.kind == b"ipma" else whole[child.start : child.end])
    return box(b"iprp", b"".join(parts))


def _write_ipma(table: Associations) -> bytes:
    largest = max((index for entry in table.items.values() for _, index in entry), default=0)
    flags = table.flags | (1 if largest > 127 else 0)
    top, code = (1 << 15, "H") if flags & 1 else (1 << 7, "B")
    parts = [struct.pack(">B3sI", table.version, flags.to_bytes(3, "big"), len(table.items))]
    for identity, entry in table.items.items():
        values = [index | (top if essential else 0) for essential, index in entry]
        width = "I" if table.version else "H"
        parts.append(struct.pack(f">{width}B{len(values)}{code}", identity, len(values), *values))
    return box(b"ipma", b"".join(parts))


class _Reader:
    """Whole numbers of 0 to 8 bytes, big-endian, one after the other."""

    def __init__(self, data: bytes, at: int, end: int) -> None:
        self._data, self._at, self._end = data, at, end

    def number(self, size: int) -> int:
        if self._at + size > self._end:
            raise ValueError("a box ends too early")
        value = int.from_bytes(self._data[self._at : self._at + size], "big")
        self._at += size
        return value


def joined(data: bytes, extents: Iterable[tuple[int, int]]) -> bytes:
    """The bytes of all ``extents``. Raises ValueError where one reaches past the end."""
    parts = []
    for offset, length in extents:
        if offset + length > len(data):
            raise ValueError(f"item data at {offset} reach past the end")
        parts.append(data[offset : offset + length])
    return b"".join(parts)
