"""The strips and tiles of a TIFF: where they lie in the picture, how they are unpacked and packed."""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from facefix.photos.containers import libtiff
from facefix.photos.metadata import ifd
from facefix.photos.orientation import contiguous

Samples = NDArray[Any]

NONE, LZW, JPEG, DEFLATE, PACKBITS, OLD_DEFLATE, LZMA, ZSTD = 1, 5, 7, 8, 32773, 32946, 34925, 50000
FAX_RLE, FAX_GROUP_3, FAX_GROUP_4 = 2, 3, 4

_FAX_NAMES = {FAX_RLE: "tiff_ccitt", FAX_GROUP_3: "group3", FAX_GROUP_4: "group4"}

_PLAIN = frozenset({NONE, LZW, DEFLATE, PACKBITS, OLD_DEFLATE, LZMA, ZSTD})

_REVERSED = bytes(int(f"{value:08b}"[::-1], 2) for value in range(256))

_SUBSAMPLINGS = {(1, 1): 0, (2, 1): 1, (2, 2): 2}

_FIRST_QUALITY_TABLES = 2
"""JPEG streams of colour pictures have a table for luma and one for chroma."""


@dataclass(frozen=True, slots=True)
class Geometry:
    """Layout of a picture's samples in the file, from the tags."""

    width: int
    height: int
    channels: int
    bits: int
    order: str
    compression: int
    predictor: int
    planar: bool
    """every channel in segments of its own"""
    reversed_bits: bool
    tiled: bool
    columns: int
    """width of a segment"""
    rows: int
    """height of a segment"""
    offsets: tuple[int, ...]
    counts: tuple[int, ...]
    jpeg_tables: bytes = b""
    jpeg_ycbcr: bool = False
    subsampling: tuple[int, ...] = ()

    @property
    def is_plain(self) -> bool:
        """Whether the segments can be unpacked here, bit for bit."""
        predictors = (1, 2) if self.bits in (8, 16) else (1,)
        return self.compression in _PLAIN and self.predictor in predictors

    @property
    def is_fax(self) -> bool:
        """Whether this is one of CCITT's bilevel codings."""
        return self.compression in _FAX_NAMES

    @property
    def can_be_written(self) -> bool:
        """Whether changed segments can be packed."""
        if self.compression == JPEG:
            sampling = self.subsampling or ((2, 2) if self.jpeg_ycbcr else (1, 1))
            return self.bits == 8 and not self.planar and self.channels in (1, 3, 4) and sampling in _SUBSAMPLINGS
        return self.is_plain or (self.is_fax and self.bits == 1 and self.channels == 1 and not self.tiled)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the samples in memory"""
        return np.dtype(np.uint16 if self.bits == 16 else np.uint8)

    def check(self) -> None:
        """Raise ValueError where the tags contradict each other."""
        if min(self.columns, self.rows) < 1 or self.columns * self.rows > 1 << 31:
            raise ValueError(f"segments of {self.columns} x {self.rows} pixels")
        planes = self.channels if self.planar else 1
        expected = -(-self.width // self.columns) * -(-self.height // self.rows) * planes
        if len(self.offsets) < expected or len(self.counts) < expected:
            raise ValueError(f"{len(self.offsets)} offsets and {len(self.counts)} lengths for {expected} segments")

    def resized(self, width: int, height: int) -> Geometry:
        """The layout for a picture of another size: tiles stay as they are, strips as high."""
        return replace(self, width=width, height=height, columns=self.columns if self.tiled else width)

    def as_one_strip(self) -> Geometry:
        """The same picture in a single strip."""
        return replace(self, rows=self.height, tiled=False, columns=self.width)


@dataclass(frozen=True, slots=True)
class Segment:
    """One strip or tile and its place in the picture."""

    index: int
    left: int
    top: int
    width: int
    """columns in the file; those of a tile may reach past the picture"""
    height: int
    channels: slice

    def place(self, picture: Samples, samples: Samples) -> None:
        """Put the segment's ``samples`` into the picture."""
        target = picture[self.top : self.top + self.height, self.left : self.left + self.width, self.channels]
        target[...] = samples[: target.shape[0], : target.shape[1]]

    def take(self, picture: Samples, old: Samples | None) -> Samples:
        """The segment's part of the picture; what reaches past it comes from ``old``, or repeats the last pixels."""
        part = picture[self.top : self.top + self.height, self.left : self.left + self.width, self.channels]
        missing = (self.height - part.shape[0], self.width - part.shape[1])
        if missing == (0, 0):
            return part
        if old is None:
            return np.pad(part, ((0, missing[0]), (0, missing[1]), (0, 0)), mode="edge")
        whole = old.copy()
        whole[: part.shape[0], : part.shape[1]] = part
        return whole


def segments(geometry: Geometry) -> Iterator[Segment]:
    """All segments in the order of their offsets."""
    planes = [slice(plane, plane + 1) for plane in range(geometry.channels)] if geometry.planar else [slice(None)]
    index = 0
    for plane in planes:
        for top in range(0, geometry.height, geometry.rows):
            for left in range(0, geometry.width, geometry.columns):
                height = geometry.rows if geometry.tiled else min(geometry.rows, geometry.height - top)
                yield Segment(index, left, top, geometry.columns, height, plane)
                index += 1


def decode(data: bytes, geometry: Geometry, segment: Segment) -> Samples:
    """(h, w, channels) samples of a segment of a plain geometry. Raises ValueError when there are too few."""
    offset, count = geometry.offsets[segment.index], geometry.counts[segment.index]
    packed = data[offset : offset + count]
    if len(packed) < count:
        raise ValueError(f"truncated: segment {segment.index} ends after {len(packed)} of {count} bytes")
    if geometry.reversed_bits and geometry.bits < 8:
        packed = packed.translate(_REVERSED)
    channels = 1 if geometry.planar else geometry.channels
    row_bytes = (segment.width * channels * geometry.bits + 7) // 8
    unpacked = _unpack(packed, geometry.compression, row_bytes * geometry.rows)
    expected = row_bytes * segment.height
    if len(unpacked) < expected:
        raise ValueError(f"truncated: segment {segment.index} unpacks to {len(unpacked)} of {expected} bytes")
    rows = np.frombuffer(unpacked, np.uint8, expected).reshape(segment.height, row_bytes)
    samples = _to_samples(rows, geometry, segment.width * channels).reshape(segment.height, segment.width, channels)
    if geometry.predictor == 2:
        return np.add.accumulate(samples, axis=1, dtype=samples.dtype)
    return samples


def encode(geometry: Geometry, samples: Samples) -> bytes:
    """Pack (h, w, channels) samples of one segment."""
    if geometry.compression == JPEG:
        return _jpeg(geometry, samples)
    if geometry.is_fax:
        packed = _fax(geometry, samples)
        return packed.translate(_REVERSED) if geometry.reversed_bits else packed
    if geometry.predictor == 2:
        samples = np.concatenate([samples[:, :1], samples[:, 1:] - samples[:, :-1]], axis=1)
    rows = _to_rows(samples, geometry)
    packed = _pack(rows, geometry.compression)
    return packed.translate(_REVERSED) if geometry.reversed_bits and geometry.bits < 8 else packed


def _to_samples(rows: NDArray[np.uint8], geometry: Geometry, count: int) -> Samples:
    """(h, count) samples of packed rows."""
    if geometry.bits == 8:
        return rows
    if geometry.bits == 16:
        return contiguous(rows).view(geometry.order + "u2").astype(np.uint16)
    bits = np.unpackbits(rows, axis=1)[:, : count * geometry.bits]
    return (bits.reshape(len(rows), count, geometry.bits) @ (1 << np.arange(geometry.bits)[::-1])).astype(np.uint8)


def _to_rows(samples: Samples, geometry: Geometry) -> NDArray[np.uint8]:
    """(h, row bytes): the inverse of _to_samples."""
    flat = contiguous(samples).reshape(len(samples), -1)
    if geometry.bits == 8:
        return flat
    if geometry.bits == 16:
        return flat.astype(geometry.order + "u2").view(np.uint8)
    bits = np.unpackbits(flat[:, :, None], axis=2)[:, :, 8 - geometry.bits :]
    return np.packbits(bits.reshape(len(flat), -1), axis=1)


def _unpack(packed: bytes, compression: int, expected: int) -> bytes:
    """At most ``expected`` bytes."""
    if compression == NONE:
        return packed
    if compression in (DEFLATE, OLD_DEFLATE):
        return zlib.decompressobj().decompress(packed, expected)
    decoders: dict[int, Callable[..., Any]] = {
        LZW: imagecodecs.lzw_decode,
        PACKBITS: imagecodecs.packbits_decode,
        LZMA: imagecodecs.lzma_decode,
        ZSTD: imagecodecs.zstd_decode,
    }
    return bytes(decoders[compression](packed, out=expected))


def _pack(rows: NDArray[np.uint8], compression: int) -> bytes:
    data = rows.tobytes()
    if compression == NONE:
        return data
    if compression in (DEFLATE, OLD_DEFLATE):
        return zlib.compress(data, 6)
    if compression == PACKBITS:  # every row by itself (TIFF 6.0, section 9)
        return b"".join(imagecodecs.packbits_encode(row.tobytes()) for row in rows)
    encoders: dict[int, Callable[..., Any]] = {
        LZW: imagecodecs.lzw_encode,
        LZMA: imagecodecs.lzma_encode,
        ZSTD: imagecodecs.zstd_encode,
    }
    return bytes(encoders[compression](data))


def _fax(geometry: Geometry, samples: Samples) -> bytes:
    """A single strip as libtiff codes it. The bits are passed on as they are: 1 is whatever the file says it is."""
    image = Image.fromarray(contiguous(samples[:, :, 0]).astype(bool))
    buffer = io.BytesIO()
    libtiff.silence()
    image.save(buffer, "TIFF", compression=_FAX_NAMES[geometry.compression], strip_size=1 << 30)
    written = buffer.getvalue()
    layout, at = ifd.header(written)
    found = ifd.directory(written, layout, at)
    (offset,) = ifd.integers(written, layout, found.entries[273])
    (count,) = ifd.integers(written, layout, found.entries[279])
    return written[offset : offset + count]


def _jpeg(geometry: Geometry, samples: Samples) -> bytes:
    """A whole JPEG stream with the tables that the file uses."""
    sampling = geometry.subsampling or ((2, 2) if geometry.jpeg_ycbcr else (1, 1))
    if geometry.channels == 4:
        image = Image.fromarray(255 - contiguous(samples), mode="CMYK")  # Pillow inverts, as Adobe does outside TIFF
    else:
        image = Image.fromarray(contiguous(samples.squeeze(2) if geometry.channels == 1 else samples))
    options: dict[str, Any] = (
        {"qtables": tables} if (tables := _quantisation(geometry.jpeg_tables)) else {"quality": 95}
    )
    if geometry.channels == 3:
        options |= {"subsampling": _SUBSAMPLINGS[sampling], "keep_rgb": not geometry.jpeg_ycbcr}  # type: ignore[index]
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **options)
    return buffer.getvalue()


def _quantisation(tables: bytes) -> list[list[int]]:
    """The 8-bit quantisation tables of an abbreviated JPEG stream, in natural order."""
    found, at = dict[int, list[int]](), 2
    while at + 4 <= len(tables) and tables[at] == 0xFF:
        marker, length = tables[at + 1], int.from_bytes(tables[at + 2 : at + 4], "big")
        body = tables[at + 4 : at + 2 + length]
        if marker == 0xDB and len(body) % 65 == 0:
            for start in range(0, len(body), 65):
                found[body[start] & 15] = _natural_order(body[start + 1 : start + 65])
        at += 2 + length
    return [found[key] for key in sorted(found)][:_FIRST_QUALITY_TABLES]


def _natural_order(zigzag: bytes) -> list[int]:
    """The 64 values of a table row by row (T.81, figure A.6)."""
    places = sorted(range(64), key=lambda place: ((s := place // 8 + place % 8), place // 8 if s % 2 else place % 8))
    table = [0] * 64
    for value, place in zip(zigzag, places, strict=True):
        table[place] = value
    return table
