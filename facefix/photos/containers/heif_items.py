"""What a HEIF or AVIF file says about its primary picture (ISO/IEC 23008-12; AV1 Image File Format 1.1)."""

from __future__ import annotations

import functools
import itertools
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from facefix.photos import orientation as turning
from facefix.photos.containers import bmff
from facefix.photos.containers.bmff import Meta

CONFIGURATIONS = {b"hvc1": b"hvcC", b"av01": b"av1C"}
"""Property that holds the decoder's configuration, by type of coded item."""

XMP_TYPE = b"application/rdf+xml"

_ALPHA_TYPES = (b"urn:mpeg:mpegB:cicp:systems:auxiliary:alpha", b"urn:mpeg:hevc:2015:auxid:1")
_LAYERED = {b"a1op", b"a1lx", b"lsel", b"oinf", b"tols"}
_DERIVED = (b"grid", b"iovl", b"iden", b"tmap")
_PICTURES = (*CONFIGURATIONS, *_DERIVED, b"hev1", b"avc1", b"jpeg", b"j2k1", b"vvc1", b"unci", b"mski")


@dataclass(frozen=True, slots=True)
class Grid:
    """A picture put together from tiles (ISO/IEC 23008-12, section 6.6.2.3)."""

    rows: int
    columns: int
    width: int
    height: int
    tiles: tuple[int, ...]
    """items, row by row"""


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """The primary picture and what belongs to it."""

    data: bytes
    meta_box: bmff.Box
    meta: Meta
    coded: tuple[int, ...]
    """the items that hold its coded pixels: itself, or a grid's tiles row by row"""
    grid: Grid | None
    alpha: int | None
    """item of its alpha plane"""
    exif_item: int | None
    xmp_item: int | None

    @property
    def size(self) -> tuple[int, int]:
        """Width and height as coded."""
        found = property_of(self.meta, self.meta.primary, b"ispe")
        if found is None:
            raise ValueError("the picture has no size (ispe)")
        width, height = struct.unpack_from(">II", found, 12)
        return width, height

    def content(self, item: int) -> bytes:
        """The data of an item."""
        location = self.meta.locations.get(item)
        if location is None:
            raise ValueError(f"item {item} lies nowhere")
        return bmff.joined(self.meta.idat if location.method == 1 else self.data, location.extents)


def read_picture(data: bytes) -> Picture:
    """Look up the primary picture. Raises ValueError where the file is not built as the standards have it."""
    meta_box = next((each for each in bmff.boxes(data) if each.kind == b"meta"), None)
    if meta_box is None:
        raise ValueError("no meta box")
    meta = bmff.read_meta(data, meta_box)
    kind = meta.item(meta.primary).kind
    picture = Picture(data, meta_box, meta, (meta.primary,), None, None, None, None)
    grid = _grid(picture) if kind == b"grid" else None
    described = [item for item in meta.items if _points_to(meta, item.identity, b"cdsc", meta.primary)]
    lone = [item for item in meta.items if not any(each[:2] == (b"cdsc", item.identity) for each in meta.references)]
    candidates = described + lone
    exif = next((item.identity for item in candidates if item.kind == b"Exif"), None)
    xmp = next((each.identity for each in candidates if each.kind == b"mime" and each.content_type == XMP_TYPE), None)
    alpha = next((i for i in _pointing(meta, b"auxl", meta.primary) if _auxiliary_type(meta, i) in _ALPHA_TYPES), None)
    coded = grid.tiles if grid is not None else (meta.primary,)
    return Picture(data, meta_box, meta, coded, grid, alpha, exif, xmp)


def property_of(meta: Meta, item: int, kind: bytes) -> bytes | None:
    """The first property of that kind that an item has, as a whole box."""
    return next((each for _, each in meta.properties_of(item) if each[4:8] == kind), None)


def exif_block(picture: Picture) -> bytes | None:
    """The EXIF block from its TIFF header on; None where there is none."""
    if picture.exif_item is None:
        return None
    whole = picture.content(picture.exif_item)
    start = exif_start(whole)
    return whole[start:] or None


def exif_start(content: bytes) -> int:
    """Where in an Exif item the TIFF header stands (ISO/IEC 23008-12, annex A.2.1)."""
    if len(content) < 4:
        return len(content)
    return min(len(content), 4 + int.from_bytes(content[:4], "big"))


def icc_profile(picture: Picture) -> bytes | None:
    """The ICC profile; None where there is none."""
    for _, each in picture.meta.properties_of(picture.meta.primary):
        if each[4:8] == b"colr" and each[8:12] in (b"prof", b"rICC"):
            return each[12:]
    return None


def code_points(picture: Picture) -> tuple[int, int, int, int] | None:
    """Primaries, transfer, matrix and full-range flag (ITU-T H.273) from the container; None where it has none."""
    for item in (picture.meta.primary, picture.coded[0]):
        for _, each in picture.meta.properties_of(item):
            if each[4:8] == b"colr" and each[8:12] == b"nclx":
                primaries, transfer, matrix, flags = struct.unpack_from(">HHHB", each, 12)
                return primaries, transfer, matrix, flags >> 7
    return None


def orientation(picture: Picture) -> int | None:
    """EXIF's number for how rotation and mirror properties turn the stored picture; None where there are none."""
    turns = [each for _, each in picture.meta.properties_of(picture.meta.primary) if each[4:8] in (b"irot", b"imir")]
    if not turns:
        return None
    corners = np.arange(6).reshape(2, 3)
    turned = functools.reduce(_turned, turns, corners)
    return next(n for n in range(1, 9) if np.array_equal(turning.upright(corners, n), turned))


def crop(picture: Picture) -> tuple[int, int, int, int] | None:
    """left, top, width, height of the clean aperture within the coded picture; None where it is all shown.

    Raises ValueError where it does not fall on whole pixels.
    """
    found = property_of(picture.meta, picture.meta.primary, b"clap")
    if found is None:
        return None
    numbers = struct.unpack_from(">IIIIiIiI", found, 8)
    if 0 in numbers[1::2]:
        raise ValueError("its clean aperture is damaged")
    width, height, across, down = (numbers[i] / numbers[i + 1] for i in (0, 2, 4, 6))
    full = picture.size
    left, top = (full[0] - width) / 2 + across, (full[1] - height) / 2 + down
    box = (int(left), int(top), int(width), int(height))
    if box != (left, top, width, height) or left < 0 or top < 0 or left + width > full[0] or top + height > full[1]:
        raise ValueError("its clean aperture lies between pixels or past the edge")
    return box


def copy_reason(picture: Picture) -> str | None:
    """Why the picture cannot be replaced with all else kept; None where it can."""
    meta = picture.meta
    others = _other_pictures(picture)
    turns = [each[4:8] for _, each in meta.properties_of(meta.primary) if each[4:8] in (b"clap", b"irot", b"imir")]
    reasons = (
        (others > 0, f"it holds {others + 1} pictures"),
        (any(each.kind == b"moov" for each in bmff.boxes(picture.data)), "it holds a picture sequence beside it"),
        (any(each[:2] == (b"prem", meta.primary) for each in meta.references), "its colours hold its transparency"),
        (_has_alternatives(picture), "it holds alternatives of the same picture"),
        (b"clap" in turns[1:], "it is cropped after it is turned"),
    )
    return _coding_reason(picture) or next((reason for holds, reason in reasons if holds), None)


def _coding_reason(picture: Picture) -> str | None:
    """Why the coded data themselves cannot be replaced."""
    meta, kinds = picture.meta, {item.identity: item.kind for item in picture.meta.items}
    coded = {kinds.get(item) for item in picture.coded}
    if len(coded) != 1 or not coded <= CONFIGURATIONS.keys():
        return "its picture is stored as " + ", ".join(sorted({(kind or b"?").decode("latin-1") for kind in coded}))
    for item in picture.coded:
        location = meta.locations.get(item)
        if location is None or location.method or location.reference or not location.extents:
            return "its picture lies in another place than the file's media data"
        if meta.item(item).is_protected:
            return "its picture is protected"
        if any(each[4:8] in _LAYERED for _, each in meta.properties_of(item)):
            return "its picture is coded in layers"
    return "its coded data are shared with another picture" if _is_shared(picture, set(picture.coded)) else None


def _grid(picture: Picture) -> Grid:
    meta = picture.meta
    content = picture.content(meta.primary)
    wide = content[1] & 1
    width, height = struct.unpack_from(">II" if wide else ">HH", content, 4)
    tiles = next((to for kind, origin, to in meta.references if (kind, origin) == (b"dimg", meta.primary)), [])
    grid = Grid(content[2] + 1, content[3] + 1, width, height, tuple(tiles))
    if len(tiles) != grid.rows * grid.columns:
        raise ValueError(f"grid of {grid.rows} x {grid.columns} has {len(tiles)} tiles")
    return grid


def _turned(pixels: NDArray[Any], found: bytes) -> NDArray[Any]:
    if found[4:8] == b"irot":
        return np.rot90(pixels, found[8] & 3)
    return pixels[:, ::-1] if found[8] & 1 else pixels[::-1]


def _points_to(meta: Meta, item: int, kind: bytes, target: int) -> bool:
    return any(each[:2] == (kind, item) and target in each[2] for each in meta.references)


def _pointing(meta: Meta, kind: bytes, target: int) -> list[int]:
    return [origin for each, origin, targets in meta.references if each == kind and target in targets]


def _auxiliary_type(meta: Meta, item: int) -> bytes:
    found = property_of(meta, item, b"auxC") or b""
    return found[12:].split(b"\0")[0]


def _other_pictures(picture: Picture) -> int:
    """How many pictures stand beside the primary one, not counting its thumbnails, auxiliary pictures and parts."""
    meta = picture.meta
    parts = {to for kind, _, targets in meta.references if kind == b"dimg" for to in targets}
    beside = {origin for kind, origin, _ in meta.references if kind in (b"thmb", b"auxl")}
    return sum(
        item.kind in _PICTURES and not item.hidden and item.kind != b"tmap"
        for item in meta.items
        if item.identity != meta.primary and item.identity not in parts | beside
    )


def _is_shared(picture: Picture, replaced: set[int]) -> bool:
    """Whether bytes of the picture are also another item's, or the picture's tiles also another picture's."""
    meta = picture.meta
    if any(
        kind == b"dimg" and origin != meta.primary and picture.grid is not None and set(targets) & replaced
        for kind, origin, targets in meta.references
    ):
        return True
    spans = sorted(
        (offset, offset + length, item in replaced, item)
        for item, location in meta.locations.items()
        if location.method == 0
        for offset, length in location.extents
    )
    overlap = any(one[1] > other[0] and (one[2] or other[2]) for one, other in itertools.pairwise(spans))
    return overlap or len(set(picture.coded)) != len(picture.coded)


def _has_alternatives(picture: Picture) -> bool:
    """Whether the primary picture stands in a group of alternatives with anything but its own tone map."""
    kinds = {item.identity: item.kind for item in picture.meta.items}
    for kind, whole in picture.meta.children:
        if kind != b"grpl":
            continue
        for group in bmff.boxes(whole, 8):
            if group.kind != b"altr":
                continue
            count = struct.unpack_from(">I", whole, group.payload + 8)[0]
            members = struct.unpack_from(f">{min(count, 64)}I", whole, group.payload + 12)
            if picture.meta.primary in members and any(
                kinds.get(item) != b"tmap" for item in members if item != picture.meta.primary
            ):
                return True
    return False
