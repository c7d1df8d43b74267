"""Change a TIFF file where it stands: bytes into freed places or at the end, tags in place or in a new directory."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from facefix.photos.metadata import ifd

_BYTE, _SHORT, _LONG, _LONG8 = 1, 3, 4, 16
_FORMATS = {_SHORT: "H", _LONG: "I", _LONG8: "Q"}
_CLASSIC_LIMIT = 1 << 32


class Patch:
    """One file under change. ``finish`` gives the result."""

    def __init__(self, data: bytes, directory: ifd.Directory) -> None:
        self._data = bytearray(data)
        self._directory = directory
        self._free: list[tuple[int, int]] = []
        self._records: dict[int, bytes] = {}
        self._removed: set[int] = set()

    def replace_bytes(self, data: bytes) -> None:
        """Take ``data``, which is as long and differs in values only, for the file."""
        self._data[:] = data

    def free(self, places: Sequence[tuple[int, int]]) -> None:
        """Offset and length of bytes that are needed no longer. They may overlap."""
        for start, length in sorted(places):
            end = min(start + length, len(self._data))
            if self._free and start <= self._free[-1][1]:
                self._free[-1] = (self._free[-1][0], max(end, self._free[-1][1]))
            elif start < end:
                self._free.append((start, end))

    def put(self, data: bytes) -> int:
        """Store ``data`` in the first free place it fits, else at the end; return its offset."""
        for index, (start, end) in enumerate(self._free):
            aligned = start + start % 2
            if aligned + len(data) <= end:
                self._data[aligned : aligned + len(data)] = data
                self._free[index] = (aligned + len(data), end)
                return aligned
        if self._free and self._free[-1][1] == len(self._data):
            del self._data[self._free.pop()[0] :]
        self._data.extend(b"\0" * (len(self._data) % 2))
        offset = len(self._data)
        self._data.extend(data)
        return offset

    def set(self, tag: int, values: Sequence[int], *, wide: bool = False) -> None:
        """Give ``tag`` these whole numbers: in place where type and count allow, else by a new record.

        ``wide`` numbers (offsets and lengths) get 8 bytes in BigTIFF.
        """
        layout, entry = self._directory.layout, self._directory.entries.get(tag)
        fits = entry is not None and entry.type in _FORMATS and entry.count == len(values)
        if entry is not None and fits and max(values, default=0) < 1 << 8 * struct.calcsize("=" + _FORMATS[entry.type]):
            struct.pack_into(f"{layout.order}{len(values)}{_FORMATS[entry.type]}", self._data, entry.value_at, *values)
            return
        kind = _LONG8 if layout.big and wide else _LONG
        packed = struct.pack(f"{layout.order}{len(values)}{_FORMATS[kind]}", *values)
        self._records[tag] = self._record(tag, kind, len(values), packed)

    def set_bytes(self, tag: int, value: bytes) -> None:
        """Give ``tag`` a value of bytes."""
        self._records[tag] = self._record(tag, _BYTE, len(value), value)

    def remove(self, tag: int) -> None:
        """Take a tag out of the directory, where it is in there."""
        self._removed.add(tag)

    def finish(self) -> bytes:
        """The file with all changes. Raises ValueError when it outgrows its format's offsets."""
        if self._records or self._removed & self._directory.entries.keys():
            self._write_directory()
        if not self._directory.layout.big and len(self._data) >= _CLASSIC_LIMIT:
            raise ValueError("the result is larger than 4 GiB, which a TIFF cannot be; use a BigTIFF")
        return bytes(self._data)

    def _record(self, tag: int, kind: int, count: int, packed: bytes) -> bytes:
        layout = self._directory.layout
        head = struct.pack(f"{layout.order}HH{layout.offset_format}", tag, kind, count)
        if len(packed) <= layout.inline_size:
            return head + packed.ljust(layout.inline_size, b"\0")
        return head + struct.pack(layout.order + layout.offset_format, self.put(packed))

    def _write_directory(self) -> None:
        """A copy of the directory with the new records, and the header's pointer to it."""
        layout, size = self._directory.layout, 20 if self._directory.layout.big else 12
        records = {
            tag: bytes(self._data[entry.record_at : entry.record_at + size])
            for tag, entry in self._directory.entries.items()
            if tag not in self._removed
        } | self._records
        count = struct.pack(layout.order + ("Q" if layout.big else "H"), len(records))
        following = struct.pack(layout.order + layout.offset_format, self._directory.next_at)
        offset = self.put(count + b"".join(records[tag] for tag in sorted(records)) + following)
        struct.pack_into(layout.order + layout.offset_format, self._data, 8 if layout.big else 4, offset)
