"""Put other coded pictures into a HEIF or AVIF file, and leave every byte that does not describe them as it was.

New data take the place of the old where they lie; what comes after moves, and the item locations with it. Thumbnails,
auxiliary pictures, brands, boxes behind the picture and metadata are not even looked at.
"""

from __future__ import annotations

import copy
import itertools
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from facefix.photos.containers import bmff, heif_items
from facefix.photos.containers.bmff import Item, Location, Meta
from facefix.photos.containers.heif_items import CONFIGURATIONS, Picture


@dataclass(frozen=True, slots=True)
class Coded:
    """One coded picture as an encoder gave it."""

    content: bytes
    configuration: bytes
    """the whole av1C or hvcC box"""
    size: tuple[int, int]
    """width, height"""


@dataclass(frozen=True, slots=True)
class _Edit:
    start: int
    end: int
    data: bytes


def replaced(
    picture: Picture, coded: Mapping[int, Coded], contents: Mapping[int, bytes], xmp: bytes | None, scale: int = 1
) -> bytes:
    """The file with other pictures.

    Args:
        picture: the file as it is.
        coded: new pictures by item.
        contents: other items' new data, as EXIF.
        xmp: a new packet; empty takes it away, None leaves it.
        scale: how many times as wide and high the pictures became.

    Raises:
        ValueError: the file is built so that this cannot be done.
    """
    meta = copy.deepcopy(picture.meta)
    meta.changed.add(b"iloc")
    by_configuration: dict[bytes, list[int]] = {}
    for item, each in coded.items():
        by_configuration.setdefault(each.configuration, []).append(item)
    for box, items in by_configuration.items():
        _set_property(meta, items, CONFIGURATIONS[meta.item(items[0]).kind], box)
    if scale != 1:
        _enlarge(picture, meta, coded, scale)
    data = {**{item: each.content for item, each in coded.items()}, **contents}
    added = _set_xmp(picture, meta, data, xmp)
    return _written(picture, meta, data, added, picture.coded[0])


def coded_picture(data: bytes) -> Coded:
    """The primary picture of a file that an encoder just wrote. Raises ValueError."""
    picture = heif_items.read_picture(data)
    kind = CONFIGURATIONS.get(picture.meta.item(picture.meta.primary).kind, b"")
    configuration = heif_items.property_of(picture.meta, picture.meta.primary, kind)
    if configuration is None:
        raise ValueError("the encoder gave no single coded picture")
    return Coded(picture.content(picture.meta.primary), configuration, picture.size)


def _set_property(meta: Meta, items: Sequence[int], kind: bytes, box: bytes) -> None:
    """Give ``items`` the property ``box`` in place of the one of that kind; other items keep theirs."""
    meta.changed.add(b"iprp")
    tables = [table for table in meta.associations if any(item in table.items for item in items)]
    old = {index for item in items for index, each in meta.properties_of(item) if each[4:8] == kind}
    if not old:
        raise ValueError(f"the picture has no {kind.decode()} property")
    users = {
        item
        for table in meta.associations
        for item, entry in table.items.items()
        if old & {index for _, index in entry}
    }
    if len(old) == 1 and users <= set(items):
        meta.properties[old.pop() - 1] = box
        return
    meta.properties.append(box)
    new = len(meta.properties)
    for table in tables:
        for item in items:
            entry = table.items.get(item, [])
            table.items[item] = [(essential, new if index in old else index) for essential, index in entry]


def _enlarge(picture: Picture, meta: Meta, coded: Mapping[int, Coded], scale: int) -> None:
    """Sizes that the boxes give. Raises ValueError where something else depends on the picture's size."""
    if any(kind == b"dimg" and meta.primary in targets for kind, _, targets in meta.references):
        raise ValueError("another picture is made from this one, so it cannot be enlarged")
    sizes: dict[tuple[int, int], list[int]] = {}
    for item, each in coded.items():
        sizes.setdefault(each.size, []).append(item)
    for size, items in sizes.items():
        _set_property(meta, items, b"ispe", _spatial_extent(*size))
    clap = heif_items.property_of(meta, meta.primary, b"clap")
    if clap is not None:
        numbers = list(struct.unpack_from(">IIIIiIiI", clap, 8))
        numbers[::2] = [number * scale for number in numbers[::2]]
        _set_property(meta, [meta.primary], b"clap", bmff.box(b"clap", struct.pack(">IIIIiIiI", *numbers)))
    if picture.grid is None:
        return
    width, height = picture.grid.width * scale, picture.grid.height * scale
    _set_property(meta, [meta.primary], b"ispe", _spatial_extent(width, height))
    _write_grid(picture, meta, width, height)


def _write_grid(picture: Picture, meta: Meta, width: int, height: int) -> None:
    location = meta.locations[meta.primary]
    content = picture.content(meta.primary)
    code = ">II" if content[1] & 1 else ">HH"
    if len(location.extents) != 1 or location.method != 1 or (code == ">HH" and max(width, height) > 0xFFFF):
        raise ValueError("the size of its grid cannot be changed in place")
    at = location.extents[0][0] + 4
    size = struct.pack(code, width, height)
    meta.idat = meta.idat[:at] + size + meta.idat[at + len(size) :]
    meta.changed.add(b"idat")


def _spatial_extent(width: int, height: int) -> bytes:
    return bmff.box(b"ispe", struct.pack(">III", 0, width, height))


def _set_xmp(picture: Picture, meta: Meta, data: dict[int, bytes], xmp: bytes | None) -> dict[int, bytes]:
    """Put a packet into its item; return the data of items that have no place in the file yet."""
    item = picture.xmp_item
    if xmp is None or (not xmp and item is None):
        return {}
    if item is not None and not xmp:
        meta.items = [each for each in meta.items if each.identity != item]
        data[item] = b""
        meta.references = [each for each in meta.references if each[1] != item]
        meta.changed |= {b"iinf", b"iref"}
        return {}
    if item is not None and meta.locations[item].method == 0:
        data[item] = xmp
        return {}
    if item is None:
        item = max([each.identity for each in meta.items] + [meta.primary]) + 1
        new: Item = bmff.picture_item(item, b"mime", heif_items.XMP_TYPE)
        meta.items.append(new)
        meta.references.append((b"cdsc", item, [meta.primary]))
        meta.changed |= {b"iinf", b"iref"}
    meta.locations[item] = Location(0, 0, [])
    return {item: xmp}


def _written(picture: Picture, meta: Meta, data: Mapping[int, bytes], added: Mapping[int, bytes], beside: int) -> bytes:
    """The file with ``data`` in place of items' old data and ``added`` behind the item ``beside``."""
    edits = []
    for item, content in data.items():
        tail = b"".join(added.values()) if item == beside else b""
        for number, (offset, length) in enumerate(picture.meta.locations[item].extents):
            edits.append(_Edit(offset, offset + length, content + tail if number == 0 else b""))
    edits.extend(_mdat_sizes(picture.data, edits))
    known = {item.identity for item in meta.items}
    old = dict(meta.locations)
    # Offsets do not change the length of the table, unless they need eight bytes where they had four.
    length = len(picture.data) + sum(len(edit.data) for edit in edits)
    meta.locations = {
        item: _dummy(each, length, item in data or item in added) for item, each in old.items() if item in known
    }
    size = len(bmff.write_meta(meta))
    edits.append(_Edit(picture.meta_box.start, picture.meta_box.end, bytes(size)))
    edits.sort(key=lambda edit: (edit.start, edit.end))
    if any(one.end > other.start for one, other in itertools.pairwise(edits)):
        raise ValueError("its items overlap")
    meta.locations = {item: _moved(edits, item, each, data) for item, each in old.items() if item in known}
    at = _place(edits, picture.meta.locations[beside].extents[0][0]) + len(data[beside])
    for item, content in added.items():
        meta.locations[item] = Location(0, 0, [(at, len(content))])
        at += len(content)
    box = bmff.write_meta(meta)
    if len(box) != size:
        raise ValueError("its item locations cannot be widened")
    return _applied(picture.data, [_with_meta(edit, picture, box) for edit in edits])


def _with_meta(edit: _Edit, picture: Picture, box: bytes) -> _Edit:
    return _Edit(edit.start, edit.end, box) if edit.start == picture.meta_box.start else edit


def _dummy(location: Location, end: int, is_new: bool) -> Location:
    """A location of the same form that lies as far back as any may."""
    if location.method:
        return location
    return Location(0, location.reference, [(end, 0)] * (1 if is_new else len(location.extents)))


def _moved(edits: Sequence[_Edit], item: int, location: Location, data: Mapping[int, bytes]) -> Location:
    if location.method or location.reference:
        return location
    if item in data:
        return Location(0, 0, [(_place(edits, location.extents[0][0]), len(data[item]))])
    return Location(0, 0, [(_place(edits, offset), length) for offset, length in location.extents])


def _place(edits: Sequence[_Edit], offset: int) -> int:
    """Where in the new file the byte lies that was at ``offset``."""
    return offset + sum(len(edit.data) - (edit.end - edit.start) for edit in edits if edit.end <= offset)


def _mdat_sizes(data: bytes, edits: Sequence[_Edit]) -> list[_Edit]:
    """New size fields of the media data boxes that ``edits`` lie in."""
    found, seen = [], 0
    for each in bmff.boxes(data):
        inside = [edit for edit in edits if each.payload <= edit.start and edit.end <= each.end]
        if not inside:
            continue
        seen += len(inside)
        if each.kind != b"mdat":
            raise ValueError(f"its picture lies in a {each.kind.decode('latin-1')} box")
        size = each.end - each.start + sum(len(edit.data) - (edit.end - edit.start) for edit in inside)
        first = struct.unpack_from(">I", data, each.start)[0]
        if first == 1:
            found.append(_Edit(each.start + 8, each.start + 16, struct.pack(">Q", size)))
        elif first:
            found.append(_Edit(each.start, each.start + 4, struct.pack(">I", size)))
    if seen != len(edits):
        raise ValueError("its picture lies outside of the media data")
    return found


def _applied(data: bytes, edits: Sequence[_Edit]) -> bytes:
    parts, at = [], 0
    for edit in edits:
        parts += [data[at : edit.start], edit.data]
        at = edit.end
    return b"".join([*parts, data[at:]])
