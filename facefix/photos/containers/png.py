"""PNG: the IDAT chunks are replaced, every other chunk stays as it is and where it is.

W3C Portable Network Graphics Specification, third edition (2025): chunks in section 5, filters in 9, Adam7 in 8.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin

from facefix.photos.containers.base import Encoded, Source
from facefix.photos.metadata import exif as exif_block
from facefix.photos.orientation import contiguous
from facefix.photos.raster import Bytes8, Raster

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_GREY, _RGB, _PALETTE, _GREY_ALPHA, _RGB_ALPHA = 0, 2, 3, 4, 6
_CHANNELS = {_GREY: 1, _RGB: 3, _PALETTE: 1, _GREY_ALPHA: 2, _RGB_ALPHA: 4}
_MODES = {_GREY: "L", _RGB: "RGB", _PALETTE: "P", _GREY_ALPHA: "LA", _RGB_ALPHA: "RGBA"}
_DEPTHS = {1, 2, 4, 8, 16}

_XMP_KEYWORD = b"XML:com.adobe.xmp"
_LARGEST_TEXT = 16 << 20
"""Longest metadata that is unpacked: more is a bomb."""

_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
"""First column, first row, column step, row step of the seven passes."""

_COMPRESSION_LEVEL = 6


@dataclass(frozen=True, slots=True)
class _Chunk:
    kind: bytes
    data: bytes

    def write(self) -> bytes:
        """The chunk as it stands in a file."""
        return (
            struct.pack(">I", len(self.data))
            + self.kind
            + self.data
            + struct.pack(">I", zlib.crc32(self.kind + self.data))
        )


@dataclass(frozen=True, slots=True)
class _Details:
    depth: int
    colour: int
    interlaced: bool
    chunks: tuple[_Chunk, ...]
    """all but IDAT, whose place is marked by one that is empty"""
    tail: bytes
    """what follows IEND"""


def open(data: bytes) -> Source:
    """Look at the chunks."""
    chunks, tail = _parse(data)
    if not chunks or chunks[0].kind != b"IHDR" or len(chunks[0].data) != 13:
        raise ValueError("no IHDR chunk")
    width, height, depth, colour, _, _, interlace = struct.unpack(">IIBBBBB", chunks[0].data)
    if colour not in _CHANNELS or depth not in _DEPTHS or not width or not height:
        raise ValueError(f"colour type {colour}, depth {depth}, size {width} x {height}")
    icc, note = _icc_profile(chunks)
    frames = next((struct.unpack_from(">I", chunk.data)[0] for chunk in chunks if _is_animation(chunk)), 1)
    return Source(
        format="PNG",
        mode=_mode(depth, colour),
        size=(width, height),
        data=data,
        exif=_first(chunks, b"eXIf"),
        icc=icc,
        xmp=_xmp_packet(chunks),
        frames=frames,
        copy_reason=f"animated PNG with {frames} frames" if frames > 1 else None,
        notes=(note,) if note else (),
        details=_Details(depth, colour, bool(interlace), tuple(chunks), tail),
    )


def decode(source: Source) -> Raster:
    """Decode with libpng where samples have 16 bits, else with Pillow."""
    details: _Details = source.details
    alpha = "straight" if details.colour in (_GREY_ALPHA, _RGB_ALPHA) else "none"
    model = "rgb" if details.colour in (_RGB, _RGB_ALPHA) else "grey"
    if details.depth == 16:
        samples = _decode_16bit(source)
        return Raster(samples, model, alpha, key=_transparent_colour(details))  # type: ignore[arg-type]
    image = PngImagePlugin.PngImageFile(io.BytesIO(_picture_only(source)))
    image.load()
    samples = np.asarray(image)
    samples = samples[:, :, None] if samples.ndim == 2 else samples
    if image.mode == "1":
        return Raster(samples.astype(np.uint8), "bilevel", key=_transparent_colour(details))
    if image.mode == "P":
        return Raster(samples, "palette", palette=_palette(details))
    bits = details.depth if details.depth < 8 else None
    samples = samples // np.uint8(255 // ((1 << bits) - 1)) if bits else samples
    return Raster(samples, model, alpha, key=_transparent_colour(details), bits=bits)  # type: ignore[arg-type]


def encode(source: Source, raster: Raster, xmp: bytes | None) -> Encoded:
    """Replace the picture's chunks; size and XMP too where they change."""
    details: _Details = source.details
    compressed = _compressed(raster, details)
    parts = [_SIGNATURE]
    for chunk in _with_xmp(details.chunks, xmp):
        if chunk.kind == b"IDAT":
            parts.extend(_Chunk(b"IDAT", piece).write() for piece in compressed)
        elif chunk.kind == b"IHDR" and raster.size != source.size:
            parts.append(_Chunk(b"IHDR", struct.pack(">II", *raster.size) + chunk.data[8:]).write())
        elif chunk.kind == b"eXIf" and raster.size != source.size:
            parts.append(_Chunk(b"eXIf", exif_block.with_size(chunk.data, *raster.size)).write())
        else:
            parts.append(chunk.write())
    return Encoded(b"".join(parts) + details.tail)


def is_lossless(source: Source) -> bool:
    """Always."""
    return True


def _mode(depth: int, colour: int) -> str:
    if colour == _GREY and depth == 1:
        return "1"
    return _MODES[colour] + (";16" if depth == 16 else "")


def _parse(data: bytes) -> tuple[list[_Chunk], bytes]:
    """The chunks up to IEND, the run of IDAT as one empty one, and what follows."""
    if not data.startswith(_SIGNATURE):
        raise ValueError("no PNG")
    chunks, at = list[_Chunk](), len(_SIGNATURE)
    while at + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        end = at + 12 + length
        if end > len(data):
            raise ValueError(f"truncated in chunk {kind!r}")
        if kind == b"IDAT":
            if not any(chunk.kind == b"IDAT" for chunk in chunks):
                chunks.append(_Chunk(kind, b""))
        else:
            chunks.append(_Chunk(kind, data[at + 8 : end - 4]))
        at = end
        if kind == b"IEND":
            return chunks, data[at:]
    raise ValueError("truncated: no IEND chunk")


def _first(chunks: list[_Chunk] | tuple[_Chunk, ...], kind: bytes) -> bytes | None:
    return next((chunk.data for chunk in chunks if chunk.kind == kind), None)


def _is_animation(chunk: _Chunk) -> bool:
    return chunk.kind == b"acTL" and len(chunk.data) == 8


def _inflate(data: bytes) -> bytes:
    """Unpack metadata. Raises ValueError when it is too much."""
    unpacker = zlib.decompressobj()
    result = unpacker.decompress(data, _LARGEST_TEXT)
    if unpacker.unconsumed_tail:
        raise ValueError(f"unpacks to more than {_LARGEST_TEXT} bytes")
    return result


def _icc_profile(chunks: list[_Chunk]) -> tuple[bytes | None, str | None]:
    packed = _first(chunks, b"iCCP")
    if packed is None:
        return None, None
    try:
        return _inflate(packed[packed.index(b"\0") + 2 :]), None
    except (ValueError, zlib.error) as error:
        return None, f"ICC profile ignored: {error}"


def _xmp_packet(chunks: list[_Chunk]) -> bytes | None:
    """The packet in an iTXt chunk (XMP part 3, section 1.1.5)."""
    for chunk in chunks:
        if not _is_xmp(chunk):
            continue
        flags, rest = chunk.data[len(_XMP_KEYWORD) + 1 :][:2], chunk.data[len(_XMP_KEYWORD) + 3 :]
        fields = rest.split(b"\0", 2)
        try:
            return (_inflate(fields[2]) if flags[:1] == b"\1" else fields[2]) or None
        except (IndexError, ValueError, zlib.error):
            return None
    return None


def _is_xmp(chunk: _Chunk) -> bool:
    return chunk.kind == b"iTXt" and chunk.data.startswith(_XMP_KEYWORD + b"\0")


def _with_xmp(chunks: tuple[_Chunk, ...], xmp: bytes | None) -> tuple[_Chunk, ...]:
    """The packet in the place of the old one, else before the picture; an empty one: none."""
    if xmp is None:
        return chunks
    fresh = (_Chunk(b"iTXt", _XMP_KEYWORD + b"\0\0\0\0\0" + xmp),) if xmp else ()
    place = next((index for index, chunk in enumerate(chunks) if _is_xmp(chunk)), None)
    if place is not None:
        return (*chunks[:place], *fresh, *chunks[place + 1 :])
    place = next(index for index, chunk in enumerate(chunks) if chunk.kind == b"IDAT")
    return (*chunks[:place], *fresh, *chunks[place:])


def _picture_only(source: Source) -> bytes:
    """The file without what is not the picture: damaged metadata is then nothing to the decoders.

    The chunk of a transparent colour is left out too, for libpng would make an alpha channel of it.
    """
    details: _Details = source.details
    before = [chunk.write() for chunk in details.chunks if chunk.kind in (b"IHDR", b"PLTE")]
    return _SIGNATURE + b"".join([*before, *_picture_chunks(source.data), _Chunk(b"IEND", b"").write()])


def _decode_16bit(source: Source) -> NDArray[np.uint16]:
    """(H, W, C)"""
    details: _Details = source.details
    decoded = imagecodecs.png_decode(_picture_only(source))
    expected = (source.size[1], source.size[0], _CHANNELS[details.colour])
    samples: NDArray[np.uint16] = decoded.reshape(expected)
    if samples.dtype != np.uint16:
        raise ValueError(f"expected 16-bit samples, found {samples.dtype}")
    return samples


def _picture_chunks(data: bytes) -> Iterator[bytes]:
    at = len(_SIGNATURE)
    while at + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        if kind == b"IDAT":
            yield data[at : at + 12 + length]
        at += 12 + length


def _transparent_colour(details: _Details) -> tuple[int, ...] | None:
    """The colour of a tRNS chunk in the raster's own samples."""
    data = _first(details.chunks, b"tRNS")
    count = _CHANNELS[details.colour]
    if data is None or details.colour not in (_GREY, _RGB) or len(data) < 2 * count:
        return None
    return struct.unpack_from(f">{count}H", data)


def _palette(details: _Details) -> Bytes8:
    colours = np.frombuffer(_first(details.chunks, b"PLTE") or b"\0\0\0", np.uint8)
    colours = colours[: colours.size // 3 * 3].reshape(-1, 3)
    opacity = np.full(len(colours), 255, np.uint8)
    given = np.frombuffer(_first(details.chunks, b"tRNS") or b"", np.uint8)[: len(colours)]
    opacity[: len(given)] = given
    return np.column_stack([colours, opacity])


def _compressed(raster: Raster, details: _Details) -> list[bytes]:
    """The data of the new IDAT chunks."""
    if details.depth == 8 and not details.interlaced:
        return _chunks_by_pillow(raster)
    if details.depth == 16 and not details.interlaced and details.colour != _GREY_ALPHA:
        encoded = imagecodecs.png_encode(contiguous(raster.samples).squeeze(), level=_COMPRESSION_LEVEL)
        return [chunk[8:-4] for chunk in _picture_chunks(bytes(encoded))]
    passes = _ADAM7 if details.interlaced else ((0, 0, 1, 1),)
    rows = b"".join(
        _filtered(raster.samples[top::down, left::across], details)
        for left, top, across, down in passes
        if left < raster.size[0] and top < raster.size[1]
    )
    return [zlib.compress(rows, _COMPRESSION_LEVEL)]


def _chunks_by_pillow(raster: Raster) -> list[bytes]:
    samples = contiguous(raster.samples.squeeze(2) if raster.samples.shape[2] == 1 else raster.samples)
    image = Image.fromarray(samples, mode="LA" if raster.samples.shape[2] == 2 else None)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=_COMPRESSION_LEVEL)
    return [chunk[8:-4] for chunk in _picture_chunks(buffer.getvalue())]


def _filtered(samples: NDArray[np.uint8 | np.uint16], details: _Details) -> bytes:
    """Scan lines of one pass, each after its filter byte: none for less than 8 bits (section 12.7), else Paeth."""
    height, width = samples.shape[:2]
    if details.depth < 8:
        return np.column_stack([np.zeros(height, np.uint8), _packed(samples[:, :, 0], details)]).tobytes()
    lines = samples.astype(">u2").view(np.uint8) if details.depth == 16 else samples
    lines = contiguous(lines).reshape(height, width, -1).astype(np.int16)
    left, above = np.zeros_like(lines), np.zeros_like(lines)
    corner = np.zeros_like(lines)
    left[:, 1:], above[1:], corner[1:, 1:] = lines[:, :-1], lines[:-1], lines[:-1, :-1]
    to_left, to_above, to_corner = np.abs(above - corner), np.abs(left - corner), np.abs(left + above - 2 * corner)
    is_left = (to_left <= to_above) & (to_left <= to_corner)
    predicted = np.where(is_left, left, np.where(to_above <= to_corner, above, corner))
    residual = ((lines - predicted) & 0xFF).astype(np.uint8).reshape(height, -1)
    return np.column_stack([np.full(height, 4, np.uint8), residual]).tobytes()


def _packed(samples: NDArray[np.uint8 | np.uint16], details: _Details) -> Bytes8:
    """(H, bytes): samples of 1, 2 or 4 bits, the leftmost in the highest bits."""
    depth = details.depth
    bits = np.unpackbits(samples.astype(np.uint8)[:, :, None], axis=2)[:, :, 8 - depth :]
    return np.packbits(bits.reshape(len(samples), -1), axis=1)
