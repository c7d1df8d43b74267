"""All the pictures of a TIFF file: pages, reduced copies, pictures inside tags; and which bytes of the file are named.

TIFF 6.0 sections 2 and 8 (NewSubfileType); Adobe PageMaker 6.0 TIFF Technical Notes (SubIFDs); Adobe Photoshop TIFF
Technical Notes, 2002 (ImageSourceData holds layers).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from facefix.photos.metadata import ifd

_NEW_SUBFILE_TYPE, _SUBFILE_TYPE, _WIDTH, _HEIGHT = 254, 255, 256, 257
_STRIP_OFFSETS, _STRIP_COUNTS, _TILE_OFFSETS, _TILE_COUNTS = 273, 279, 324, 325
_JPEG_OFFSET, _JPEG_LENGTH = 513, 514
_SUB_DIRECTORIES, _POINTERS = 330, (400, 34665, 34853, 40965)
_IMAGE_SOURCE_DATA = 37724
_LAYERS = (b"Layr", b"ryaL", b"Lr16", b"61rL", b"Lr32", b"23rL")
"""Keys of the blocks that hold layers, in either byte order."""

_REDUCED = 1
_OLD_REDUCED = 2
_LARGEST_THUMBNAIL = 320
"""px of the longer side; a larger reduced copy is a level of a pyramid, which viewers show"""

_MOST_DIRECTORIES = 1000


@dataclass(frozen=True, slots=True)
class Pages:
    """What pictures a file holds."""

    count: int
    """pictures in the chain that are no reduced copies"""
    why_not_written: str | None
    """why writing the first picture alone would leave the others contradicting it"""
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Picture:
    directory: ifd.Directory
    width: int
    height: int
    reduced: bool

    @property
    def longer_side(self) -> int:
        """In pixels."""
        return max(self.width, self.height)


def survey(data: bytes, layout: ifd.Layout, at: int) -> Pages:
    """The pictures of the file whose first directory is at ``at``."""
    chain = [_picture(data, found) for found in _chain(data, layout, at)]
    first = chain[0]
    below = [_picture(data, found) for found in _sub_directories(data, layout, first.directory)]
    others = [picture for picture in (*chain[1:], *below) if picture.width and picture.height]
    count = 1 + sum(not picture.reduced for picture in chain[1:])
    return Pages(count, _why_not_written(data, first, others, below), _notes(first, others))


def named_places(data: bytes, layout: ifd.Layout, at: int) -> tuple[tuple[int, int], ...]:
    """Start and end of the header, all directories, all values, and the picture data of all but the first directory."""
    places = [(0, 16 if layout.big else 8)]
    for number, found in enumerate(_all_directories(data, layout, at)):
        places.append((found.start, min(found.end, len(data))))
        places.extend(ifd.value_places(data, found))
        if number:
            places.extend(_picture_data(data, found))
    return tuple(places)


def _why_not_written(data: bytes, first: _Picture, others: list[_Picture], below: list[_Picture]) -> str | None:
    pages = 1 + sum(not picture.reduced for picture in others if picture not in below)
    larger = max(others, key=lambda picture: picture.width * picture.height, default=first)
    if pages > 1 and not first.reduced:
        return f"TIFF with {pages} pages"
    if first.reduced or larger.width * larger.height > first.width * first.height:
        return (
            f"TIFF whose first picture ({first.width} x {first.height}) is a reduced copy of another "
            f"({larger.width} x {larger.height})"
        )
    if any(not picture.reduced for picture in below):
        return f"TIFF with {1 + len(below)} pictures"
    if any(picture.longer_side > _LARGEST_THUMBNAIL for picture in others) or len(others) > 1:
        return f"TIFF with {len(others)} reduced copies of the picture (a pyramid)"
    layers = first.directory.entries.get(_IMAGE_SOURCE_DATA)
    if layers is not None and any(key in ifd.raw(data, layers) for key in _LAYERS):
        return "TIFF with Photoshop layers"
    return None


def _notes(first: _Picture, others: list[_Picture]) -> tuple[str, ...]:
    thumbnails = [picture for picture in others if picture.reduced and picture.longer_side <= _LARGEST_THUMBNAIL]
    if first.reduced or len(others) != 1 or not thumbnails:
        return ()
    return (f"the thumbnail in the file ({thumbnails[0].width} x {thumbnails[0].height}) stays as it was",)


def _picture(data: bytes, found: ifd.Directory) -> _Picture:
    def number(tag: int) -> int:
        return ifd.integer(data, found, tag, 0) or 0

    reduced = bool(number(_NEW_SUBFILE_TYPE) & _REDUCED) or number(_SUBFILE_TYPE) == _OLD_REDUCED
    return _Picture(found, number(_WIDTH), number(_HEIGHT), reduced)


def _chain(data: bytes, layout: ifd.Layout, at: int) -> Iterator[ifd.Directory]:
    """The directories that follow one another. The first one must be readable."""
    seen = set[int]()
    while at and at not in seen and len(seen) < _MOST_DIRECTORIES:
        try:
            found = ifd.directory(data, layout, at)
        except (ValueError, struct.error):
            if not seen:
                raise
            return
        seen.add(at)
        yield found
        at = found.next_at


def _sub_directories(data: bytes, layout: ifd.Layout, found: ifd.Directory) -> Iterator[ifd.Directory]:
    entry = found.entries.get(_SUB_DIRECTORIES)
    if entry is None:
        return
    for at in ifd.integers(data, layout, entry)[:_MOST_DIRECTORIES]:
        try:
            yield ifd.directory(data, layout, at)
        except (ValueError, struct.error):
            continue


def _all_directories(data: bytes, layout: ifd.Layout, at: int) -> Iterator[ifd.Directory]:
    """Every directory that another one points to, the first one first."""
    waiting, seen = list(_chain(data, layout, at)), set[int]()
    while waiting and len(seen) < _MOST_DIRECTORIES:
        found = waiting.pop(0)
        if found.start in seen:
            continue
        seen.add(found.start)
        yield found
        waiting.extend(_sub_directories(data, layout, found))
        for tag in _POINTERS:
            pointer = ifd.integer(data, found, tag)
            if pointer and pointer not in seen:
                try:
                    waiting.append(ifd.directory(data, layout, pointer))
                except (ValueError, struct.error):
                    continue


def _picture_data(data: bytes, found: ifd.Directory) -> Iterator[tuple[int, int]]:
    for offsets_tag, counts_tag in (
        (_STRIP_OFFSETS, _STRIP_COUNTS),
        (_TILE_OFFSETS, _TILE_COUNTS),
        (_JPEG_OFFSET, _JPEG_LENGTH),
    ):
        offsets, counts = (found.entries.get(tag) for tag in (offsets_tag, counts_tag))
        if offsets is None:
            continue
        starts = ifd.integers(data, found.layout, offsets)
        lengths = ifd.integers(data, found.layout, counts) if counts is not None else ()
        for number, start in enumerate(starts):
            length = lengths[number] if number < len(lengths) and lengths[number] else len(data)
            yield start, min(start + length, len(data))
