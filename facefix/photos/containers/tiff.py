"""TIFF: only the strips or tiles whose samples change are written anew; all else stays where it lies in the file.

TIFF 6.0 (Aldus, 1992); Adobe Photoshop TIFF technical notes (1995, 2002) for deflate and JPEG in TIFF; BigTIFF (2004).
Keeping the file and patching it keeps every tag, also maker notes and private directories that nobody else understands.
"""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import TiffImagePlugin

from facefix.photos import orientation as turning
from facefix.photos.containers import libtiff, tiff_patch, tiff_segments
from facefix.photos.containers.base import Encoded, Source
from facefix.photos.containers.tiff_segments import Geometry
from facefix.photos.metadata import exif as exif_block
from facefix.photos.metadata import ifd
from facefix.photos.raster import Alpha, Bytes8, Model, Raster

_SUBFILE_TYPE, _WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _FILL_ORDER = 254, 256, 257, 258, 259, 262, 266
_SAMPLES, _PLANAR, _PREDICTOR, _COLOR_MAP, _EXTRA_SAMPLES, _SAMPLE_FORMAT = 277, 284, 317, 320, 338, 339
_STRIP_OFFSETS, _ROWS_PER_STRIP, _STRIP_COUNTS = 273, 278, 279
_TILE_WIDTH, _TILE_HEIGHT, _TILE_OFFSETS, _TILE_COUNTS = 322, 323, 324, 325
_T4_OPTIONS, _JPEG_TABLES, _SUBSAMPLING, _XMP, _ICC = 292, 347, 530, 700, 34675

_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE, _CMYK, _YCBCR = 0, 1, 2, 3, 5, 6
_MODELS: dict[int, tuple[Model, int]] = {
    _WHITE_IS_ZERO: ("grey", 1),
    _BLACK_IS_ZERO: ("grey", 1),
    _RGB: ("rgb", 3),
    _PALETTE: ("palette", 1),
    _CMYK: ("cmyk", 4),
}
_MODE_NAMES = {"bilevel": "1", "grey": "L", "rgb": "RGB", "palette": "P", "cmyk": "CMYK"}
_ALPHA_NAMES = {"L": "LA", "RGB": "RGBA", "P": "PA", "CMYK": "CMYKA"}
_ALPHAS: dict[int, Alpha] = {1: "premultiplied", 2: "straight"}

_MOST_PAGES = 1000

_COMPRESSION_NAMES = {6: "old-style JPEG", 34712: "JPEG 2000", 50001: "WebP", 50002: "JPEG XL", 34887: "LERC"}


@dataclass(frozen=True, slots=True)
class _Details:
    directory: ifd.Directory
    geometry: Geometry | None
    """how the samples lie in the file; None where only Pillow can decode them"""
    photometric: int
    model: Model
    alpha: Alpha
    palette: Bytes8 | None
    compression: int


def open(data: bytes) -> Source:
    """Read the first directory and count the pages."""
    layout, at = ifd.header(data)
    first = ifd.directory(data, layout, at)
    width, height = ifd.integer(data, first, _WIDTH, 0) or 0, ifd.integer(data, first, _HEIGHT, 0) or 0
    if not width or not height:
        raise ValueError("no picture size")
    details = _details(data, first, width, height)
    frames = _count_pages(data, layout, at)
    mode = _MODE_NAMES[details.model]
    mode = _ALPHA_NAMES.get(mode, mode) if details.alpha != "none" else mode
    if details.geometry is not None and details.geometry.bits == 16:
        mode += ";16"
    return Source(
        format="TIFF",
        mode=mode,
        size=(width, height),
        data=data,
        exif=data,
        icc=ifd.raw(data, first.entries[_ICC]) if _ICC in first.entries else None,
        xmp=ifd.raw(data, first.entries[_XMP]) if _XMP in first.entries else None,
        frames=frames,
        copy_reason=f"TIFF with {frames} pages" if frames > 1 else _why_not_written(details),
        details=details,
    )


def decode(source: Source) -> Raster:
    """Decode our own way where the samples lie plainly in the file, else with libtiff."""
    details: _Details = source.details
    geometry = details.geometry
    if geometry is None or not geometry.is_plain:
        return _decode_by_pillow(source)
    samples = np.zeros((geometry.height, geometry.width, geometry.channels), geometry.dtype)
    for segment in tiff_segments.segments(geometry):
        segment.place(samples, tiff_segments.decode(source.data, geometry, segment))
    return _as_raster(samples, details)


def encode(source: Source, raster: Raster, xmp: bytes | None) -> Encoded:
    """Write the segments whose samples changed, all of them when the size did, and patch the tags that say where."""
    details: _Details = source.details
    geometry = details.geometry
    if geometry is None:
        raise ValueError(f"cannot be written: {_why_not_written(details)}")
    patch = tiff_patch.Patch(source.data, details.directory)
    if raster.size != source.size:
        patch.replace_bytes(exif_block.with_size(source.data, *raster.size))
        geometry = geometry.resized(*raster.size)
        geometry = geometry.as_one_strip() if geometry.is_fax else geometry
        patch.set(_WIDTH, [raster.size[0]])
        patch.set(_HEIGHT, [raster.size[1]])
    offsets, counts = _encode_segments(source, raster, geometry, patch)
    patch.set(_TILE_OFFSETS if geometry.tiled else _STRIP_OFFSETS, offsets, wide=True)
    patch.set(_TILE_COUNTS if geometry.tiled else _STRIP_COUNTS, counts, wide=True)
    if not geometry.tiled and (geometry.is_fax or raster.size != source.size):
        patch.set(_ROWS_PER_STRIP, [geometry.rows])
    if geometry.compression == tiff_segments.FAX_GROUP_3 and _T4_OPTIONS in details.directory.entries:
        patch.set(_T4_OPTIONS, [0])
    if xmp:
        patch.set_bytes(_XMP, xmp)
    elif xmp is not None:
        patch.remove(_XMP)
    return Encoded(patch.finish())


def is_lossless(source: Source) -> bool:
    """All but JPEG in TIFF."""
    details: _Details = source.details
    return details.compression != tiff_segments.JPEG


def _details(data: bytes, first: ifd.Directory, width: int, height: int) -> _Details:
    """What the tags say about the samples."""

    def number(tag: int, default: int) -> int:
        value = ifd.integer(data, first, tag, default)
        return default if value is None else value

    photometric, compression = number(_PHOTOMETRIC, 1), number(_COMPRESSION, 1)
    channels = number(_SAMPLES, 1)
    bits = _numbers(data, first, _BITS) or (1,)
    is_jpeg_ycbcr = photometric == _YCBCR and compression == tiff_segments.JPEG and channels == 3
    model, colours = _MODELS.get(_RGB if is_jpeg_ycbcr else photometric, ("rgb", 3))
    extra = _numbers(data, first, _EXTRA_SAMPLES)
    alpha = _ALPHAS.get(extra[0], "none") if extra and channels > colours else "none"
    palette = _palette(data, first) if model == "palette" else None
    is_known = (
        (photometric in _MODELS or is_jpeg_ycbcr)
        and channels >= colours
        and len(set(bits)) == 1
        and bits[0] in ((8, 16) if colours > 1 else (1, 2, 4, 8, 16))
        and set(_numbers(data, first, _SAMPLE_FORMAT)) <= {1}
        and not (model == "palette" and (palette is None or bits[0] == 16))
    )
    if model == "grey" and bits[0] == 1 and channels == 1:
        model = "bilevel"
    geometry = None
    if is_known:
        tiled = _TILE_OFFSETS in first.entries
        geometry = Geometry(
            width=width,
            height=height,
            channels=channels,
            bits=bits[0],
            order=first.layout.order,
            compression=compression,
            predictor=number(_PREDICTOR, 1),
            planar=number(_PLANAR, 1) == 2,
            reversed_bits=number(_FILL_ORDER, 1) == 2,
            tiled=tiled,
            columns=number(_TILE_WIDTH, width) if tiled else width,
            rows=number(_TILE_HEIGHT, height) if tiled else min(number(_ROWS_PER_STRIP, height), height),
            offsets=_numbers(data, first, _TILE_OFFSETS if tiled else _STRIP_OFFSETS),
            counts=_numbers(data, first, _TILE_COUNTS if tiled else _STRIP_COUNTS),
            jpeg_tables=_jpeg_tables(data, first) if compression == tiff_segments.JPEG else b"",
            jpeg_ycbcr=is_jpeg_ycbcr,
            subsampling=_numbers(data, first, _SUBSAMPLING)[:2] if is_jpeg_ycbcr else (),
        )
        geometry.check()
    return _Details(first, geometry, photometric, model, alpha, palette, compression)


def _numbers(data: bytes, first: ifd.Directory, tag: int) -> tuple[int, ...]:
    entry = first.entries.get(tag)
    return () if entry is None else ifd.integers(data, first.layout, entry)


def _jpeg_tables(data: bytes, first: ifd.Directory) -> bytes:
    """A JPEG stream with quantisation tables: that of the tag, else the beginning of the first segment."""
    if _JPEG_TABLES in first.entries:
        return ifd.raw(data, first.entries[_JPEG_TABLES])
    offsets = _numbers(data, first, _TILE_OFFSETS) or _numbers(data, first, _STRIP_OFFSETS) or (0,)
    return data[offsets[0] : offsets[0] + 4096]


def _palette(data: bytes, first: ifd.Directory) -> Bytes8 | None:
    """RGBA palette of the ColorMap tag: 16-bit values, though some writers put 8-bit ones there."""
    values = np.asarray(_numbers(data, first, _COLOR_MAP))
    if values.size == 0 or values.size % 3:
        return None
    colours = values.reshape(3, -1).T
    colours = colours >> 8 if colours.max() > 255 else colours
    return np.column_stack([colours, np.full(len(colours), 255)]).astype(np.uint8)


def _count_pages(data: bytes, layout: ifd.Layout, at: int) -> int:
    """Directories in the chain that are no thumbnails of another."""
    pages, seen = 0, set[int]()
    while at and at not in seen and len(seen) < _MOST_PAGES:
        seen.add(at)
        try:
            page = ifd.directory(data, layout, at)
        except (ValueError, struct.error):
            break
        is_thumbnail = bool((ifd.integer(data, page, _SUBFILE_TYPE, 0) or 0) & 1)
        pages += not is_thumbnail or pages == 0
        at = page.next_at
    return pages


def _why_not_written(details: _Details) -> str | None:
    geometry = details.geometry
    if geometry is None:
        return f"TIFF with an unusual pixel layout (photometric interpretation {details.photometric})"
    if not geometry.can_be_written:
        name = _COMPRESSION_NAMES.get(details.compression, f"scheme {details.compression}")
        return f"TIFF with {name} compression can be read but not written"
    return None


def _as_raster(samples: NDArray[Any], details: _Details) -> Raster:
    """The file's samples in the raster's polarity; undone by _as_stored."""
    geometry = details.geometry
    assert geometry is not None
    if details.photometric == _WHITE_IS_ZERO:
        samples[:, :, 0] = (1 << geometry.bits) - 1 - samples[:, :, 0]
    bits = geometry.bits if geometry.bits < 8 and details.model == "grey" else None
    return Raster(samples, details.model, details.alpha, details.palette, bits=bits)


def _as_stored(raster: Raster, details: _Details) -> NDArray[Any]:
    samples = raster.samples
    if details.photometric == _WHITE_IS_ZERO:
        samples = samples.copy()
        samples[:, :, 0] = raster.peak - samples[:, :, 0]
    return samples


def _decode_by_pillow(source: Source) -> Raster:
    details: _Details = source.details
    libtiff.silence()
    image = TiffImagePlugin.TiffImageFile(io.BytesIO(source.data))
    image.load()  # which turns the picture upright
    samples = turning.contiguous(turning.stored(np.asarray(image), exif_block.orientation(source.exif)))
    if image.mode == "1":
        return Raster(samples.astype(np.uint8)[:, :, None], "bilevel")
    if image.mode == "P" and details.palette is not None:
        return Raster(samples[:, :, None], "palette", palette=details.palette)
    models: dict[str, tuple[Model, Alpha]] = {
        "L": ("grey", "none"),
        "LA": ("grey", "straight"),
        "RGB": ("rgb", "none"),
        "RGBA": ("rgb", "straight"),
        "RGBX": ("rgb", "none"),
        "CMYK": ("cmyk", "none"),
    }
    if image.mode not in models:
        raise ValueError(f"samples of mode {image.mode} are not supported")
    return Raster(samples if samples.ndim == 3 else samples[:, :, None], *models[image.mode])


def _encode_segments(
    source: Source, raster: Raster, geometry: Geometry, patch: tiff_patch.Patch
) -> tuple[list[int], list[int]]:
    """Offsets and byte counts of all segments, the changed ones written through ``patch``."""
    details: _Details = source.details
    samples = _as_stored(raster, details)
    same_size = raster.size == source.size
    before = _as_stored(decode(source), details) if same_size and not geometry.is_plain else None
    if before is not None and geometry.is_fax:
        if np.array_equal(before, samples):
            return list(geometry.offsets), list(geometry.counts)
        geometry, same_size = geometry.as_one_strip(), False
    results: list[tuple[int, int] | bytes] = []
    for segment in tiff_segments.segments(geometry):
        old = tiff_segments.decode(source.data, geometry, segment) if same_size and geometry.is_plain else None
        new = segment.take(samples, old)
        unchanged = np.array_equal(old, new) if old is not None else False
        if before is not None and same_size:
            unchanged = np.array_equal(segment.take(before, None), new)
        if unchanged:
            results.append((geometry.offsets[segment.index], geometry.counts[segment.index]))
        else:
            results.append(tiff_segments.encode(geometry, new))
    return _store(results, details.geometry, patch)


def _store(
    results: list[tuple[int, int] | bytes], old: Geometry | None, patch: tiff_patch.Patch
) -> tuple[list[int], list[int]]:
    assert old is not None
    kept = {result for result in results if isinstance(result, tuple)}
    patch.free([place for place in zip(old.offsets, old.counts, strict=False) if place not in kept])
    places = [result if isinstance(result, tuple) else (patch.put(result), len(result)) for result in results]
    return [offset for offset, _ in places], [count for _, count in places]
