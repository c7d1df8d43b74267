"""HEIC and AVIF: only the coded picture changes, every other item, property and box stays byte for byte."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import photo_factory as factory
import pytest
from numpy.typing import NDArray
from PIL import Image

from facefix.errors import PhotoError
from facefix.photos.containers import bmff, heif_items
from facefix.photos.containers.av1_header import code_points
from facefix.photos.photo import read_photo, write_photo
from facefix.photos.region import Region

PACKET = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"/></x:xmpmeta>'


def heic(pixels: NDArray[Any], **options: Any) -> bytes:
    """Encoded by x265."""
    pillow_heif = pytest.importorskip("pillow_heif")
    image = pillow_heif.from_pillow(Image.fromarray(pixels))
    image.info["thumbnails"] = options.pop("thumbnails", [])
    buffer = io.BytesIO()
    image.save(buffer, quality=90, **options)
    return buffer.getvalue()


def avif(pixels: NDArray[Any], **options: Any) -> bytes:
    """Encoded by libavif through imagecodecs, which writes code points as told."""
    return bytes(imagecodecs.avif_encode(pixels, level=90, speed=8, numthreads=1, **options))


def pillow_avif(**options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(factory.portrait()).save(buffer, "AVIF", quality=90, speed=8, **options)
    return buffer.getvalue()


def exif_with_thumbnail() -> bytes:
    """An EXIF block, big-endian: Orientation, Artist as EXIF 3.0's UTF-8, and a thumbnail in IFD1."""
    small = io.BytesIO()
    Image.fromarray(factory.portrait(40, 52)).save(small, "JPEG")
    artist = "Åsa\0".encode()
    first = struct.pack(">H", 2) + struct.pack(">HHIHH", 0x112, 3, 1, 1, 0)
    second_at = 8 + 2 + 2 * 12 + 4 + 8
    first += struct.pack(">HHII", 0x13B, 129, len(artist), second_at - 8) + struct.pack(">I", second_at)
    thumbnail_at = second_at + 2 + 2 * 12 + 4
    second = struct.pack(">H", 2) + struct.pack(">HHII", 0x201, 4, 1, thumbnail_at)
    second += struct.pack(">HHIII", 0x202, 4, 1, len(small.getvalue()), 0)
    return b"MM\0*" + struct.pack(">I", 8) + first + artist.ljust(8, b"\0") + second + small.getvalue()


CASES: dict[str, Callable[[], bytes]] = {
    "p3.avif": lambda: avif(factory.portrait(), primaries=12, transfer=13, matrix=6, pixelformat="420"),
    "pq10.avif": lambda: avif(factory.portrait_16bit() >> 6, bitspersample=10, primaries=9, transfer=16, matrix=9),
    "identity.avif": lambda: avif(factory.portrait(), matrix=0, pixelformat="444"),
    "grey.avif": lambda: avif(factory.portrait()[:, :, 1].copy()),
    "narrow.avif": lambda: pillow_avif(range="limited"),
    "alpha.avif": lambda: avif(np.dstack([factory.portrait(), factory.portrait()[:, :, :1]])),
    "thumbnail.avif": lambda: pillow_avif(exif=exif_with_thumbnail()),
    "motion.heic": lambda: heic(factory.portrait()) + bmff.box(b"mpvd", b"a video" * 100),
    "thumbnail.heic": lambda: heic(factory.portrait(), thumbnails=[64], exif=exif_with_thumbnail()),
    "grid.heic": lambda: heic(factory.portrait(), tile_size=64, exif=factory.exif(6)),
    "odd.heic": lambda: heic(factory.portrait(159, 207)),
    "alpha.heic": lambda: heic(np.dstack([factory.portrait(), factory.portrait()[:, :, :1]])),
    "trailer.heic": lambda: heic(factory.portrait(), xmp=factory.XMP) + b"\0\0\0",
}


@pytest.fixture(params=CASES)
def original(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path: Path = tmp_path / request.param
    path.write_bytes(CASES[request.param]())
    return path


def negative(path: Path, scale: int = 1) -> Region:
    """A rectangle in the middle of a photo as its negative."""
    pixels = read_photo(path).pixels
    pixels = np.repeat(np.repeat(pixels, scale, 0), scale, 1)
    height, width = pixels.shape[:2]
    part = pixels[height // 4 : height // 2, width // 4 : width // 2].astype(np.float32) / 255
    return Region(width // 4, height // 4, np.asarray(1 - part, np.float32), np.ones(part.shape[:2], np.float32), scale)


def parts(data: bytes) -> dict[str, Any]:
    """All that is in a file but its coded picture and where things lie."""
    picture = heif_items.read_picture(data)
    meta = picture.meta
    moving = set(picture.coded) | {picture.xmp_item}
    contents = {item: picture.content(item) for item in meta.locations if item not in moving}
    properties = {
        item.identity: [each for _, each in meta.properties_of(item.identity) if each[4:8] not in (b"av1C", b"hvcC")]
        for item in meta.items
        if item.identity != picture.xmp_item
    }
    kept = {
        "items": [item.box for item in meta.items if item.identity != picture.xmp_item],
        "references": [each for each in meta.references if each[1] != picture.xmp_item],
        "contents": contents,
        "properties": properties,
        "meta": [each for kind, each in meta.children if kind not in (b"iloc", b"iinf", b"iref", b"iprp")],
        "boxes": [data[each.start : each.end] for each in bmff.boxes(data) if each.kind not in (b"meta", b"mdat")],
    }
    end = max(each.end for each in bmff.boxes(data))
    return kept | {"trailer": data[end:]}


def test_all_but_the_picture_stays(original: Path, tmp_path: Path) -> None:
    photo, target = read_photo(original), tmp_path / "out" / original.name
    target.parent.mkdir()
    region = negative(original)
    written = write_photo(photo, [region], target, extra_xmp=PACKET)
    assert (written.notes, photo.copy_reason) == ((), None)
    assert parts(target.read_bytes()) == parts(original.read_bytes())
    result = read_photo(target)
    assert (result.xmp, result.orientation, result.mode) == (PACKET, photo.orientation, photo.mode)
    assert result.carrier.source.exif == photo.carrier.source.exif
    distance = np.abs(result.pixels.astype(int) - photo.pixels)
    box = np.s_[region.top : region.box[3], region.left : region.box[2]]
    assert distance[box].mean() > 40
    distance[region.top - 8 : region.box[3] + 8, region.left - 8 : region.box[2] + 8] = 0
    assert distance.mean() < 3

    write_photo(result, [], target, extra_xmp=b"")
    assert parts(target.read_bytes()) == parts(original.read_bytes())
    assert read_photo(target).xmp is None


@pytest.mark.parametrize("name", ["p3.avif", "thumbnail.avif", "alpha.avif", "grid.heic", "odd.heic", "alpha.heic"])
def test_sizes_follow_when_enlarged(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(CASES[name]())
    photo = read_photo(path)
    write_photo(photo, [negative(path, 2)], tmp_path / "large", scale=2)
    result = read_photo(tmp_path / "large")
    assert result.size == (photo.size[0] * 2, photo.size[1] * 2)
    small = Image.fromarray(result.pixels).resize(photo.size, Image.Resampling.BOX)
    difference = np.abs(np.asarray(small).astype(int) - photo.pixels)
    assert difference[: photo.size[1] // 5].mean() < 4
    before, after = (parts(each.read_bytes()) for each in (path, tmp_path / "large"))
    assert after["items"] == before["items"] and after["references"] == before["references"]


@pytest.mark.parametrize("orientation", range(2, 9))
def test_the_container_alone_turns_the_picture(orientation: int, tmp_path: Path) -> None:
    """libavif writes rotation and mirror properties; without the EXIF item nothing else says so."""
    block = factory.exif(orientation)
    data = pillow_avif(exif=block)
    picture = heif_items.read_picture(data)
    assert heif_items.orientation(picture) == orientation
    (tmp_path / "a.avif").write_bytes(data.replace(b"ExifExif", b"noneExif", 1))
    photo = read_photo(tmp_path / "a.avif")
    assert photo.orientation == orientation and photo.carrier.source.exif is None


def test_code_points_from_the_stream() -> None:
    for points in ((12, 13, 6), (9, 16, 9), (1, 13, 0)):
        names = dict(zip(("primaries", "transfer", "matrix"), points, strict=True))
        data = avif(factory.portrait(), pixelformat="444", **names)
        picture = heif_items.read_picture(data)
        assert code_points(picture.content(1)) == (*points, 1) == heif_items.code_points(picture)
    narrow = heif_items.read_picture(pillow_avif(range="limited"))
    points_of_narrow = heif_items.code_points(narrow)
    assert points_of_narrow is not None and points_of_narrow[3] == 0
    assert code_points(narrow.content(1)) == points_of_narrow
    assert code_points(b"\x0a\x02\x18") is None


def renamed_property(data: bytes, old: bytes, new: bytes) -> bytes:
    """With the first property of one kind called another."""
    at = data.index(old)
    return data[:at] + new + data[at + 4 :]


def with_alternatives(data: bytes) -> bytes:
    """With a second coded item and a group that says either may be shown."""
    picture = heif_items.read_picture(data)
    meta = picture.meta
    group = bmff.box(b"grpl", bmff.box(b"altr", struct.pack(">IIIII", 0, 9, 2, 1, 2)))
    meta.children.append((b"grpl", group))
    kind, location = meta.items[0].kind, meta.locations[1]
    meta.items.append(bmff.picture_item(2, kind, b""))
    meta.references.append((b"thmb", 2, [1]))
    offset, length = location.extents[0]
    meta.locations[2] = bmff.Location(0, 0, [(offset + length, 0)])
    meta.changed |= {b"iinf", b"iloc", b"iref"}
    for _ in range(2):  # the box's own length moves what follows it
        box = bmff.write_meta(meta)
        shift = len(box) - (picture.meta_box.end - picture.meta_box.start)
        meta.locations[1] = bmff.Location(0, 0, [(offset + shift, length)])
        meta.locations[2] = bmff.Location(0, 0, [(offset + shift + length, 0)])
    box = bmff.write_meta(meta)
    return data[: picture.meta_box.start] + box + data[picture.meta_box.end :]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (lambda: renamed_property(pillow_avif(), b"pixi", b"a1lx"), "coded in layers"),
        (lambda: pillow_avif() + bmff.box(b"moov", b""), "picture sequence"),
        (lambda: with_alternatives(pillow_avif()), "alternatives"),
    ],
)
def test_what_cannot_be_kept_is_only_copied(data: Callable[[], bytes], reason: str, tmp_path: Path) -> None:
    assert reason in (heif_items.copy_reason(heif_items.read_picture(data())) or "")
    if reason == "picture sequence":  # an empty box of that kind is none that libavif would open
        return
    (tmp_path / "a.avif").write_bytes(data())
    with pytest.raises(PhotoError, match="can only be copied"):
        write_photo(read_photo(tmp_path / "a.avif"), [], tmp_path / "b.avif")


def test_damaged_boxes_are_refused() -> None:
    whole = CASES["grid.heic"]()
    for place in range(8, 1000, 7):
        data = whole[:place] + b"\xff\xff" + whole[place + 2 :]
        try:
            picture = heif_items.read_picture(data)
            heif_items.copy_reason(picture)
            assert min(picture.size) >= 0
        except (ValueError, struct.error):
            continue
