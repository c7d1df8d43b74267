"""WebP: the picture's chunks are replaced, every other chunk stays as it is and where it is.

Google, "WebP Container Specification"; RFC 6386 (VP8), section 9.2 to 9.6 for the header that tells the quality.
"""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass

import numpy as np
from PIL import Image, WebPImagePlugin

from facefix.photos.containers.base import Encoded, Source
from facefix.photos.metadata import exif as exif_block
from facefix.photos.orientation import contiguous
from facefix.photos.raster import Raster

_PICTURE = frozenset({b"VP8 ", b"VP8L", b"ALPH"})
_ICC_FLAG, _ALPHA_FLAG, _EXIF_FLAG, _XMP_FLAG, _ANIMATION_FLAG = 0x20, 0x10, 0x08, 0x04, 0x02

_DEFAULT_QUALITY = 90
_LOWEST_QUALITY = 60
"""What is encoded again loses again: a file of lower quality is written with this."""


@dataclass(frozen=True, slots=True)
class _Details:
    chunks: tuple[tuple[bytes, bytes], ...]
    lossless: bool
    quality: int
    tail: bytes


def open(data: bytes) -> Source:
    """Look at the chunks."""
    chunks, tail = _parse(data)
    found = dict(reversed(chunks))
    frames = sum(kind == b"ANMF" for kind, _ in chunks)
    animated = bool(found.get(b"VP8X", b"\0")[:1] > b"\0" and found[b"VP8X"][0] & _ANIMATION_FLAG) and frames > 1
    lossless = b"VP8L" in found
    width, height, has_alpha = _size_and_alpha(found)
    exif = found.get(b"EXIF")
    return Source(
        format="WEBP",
        mode="RGBA" if has_alpha else "RGB",
        size=(width, height),
        data=data,
        exif=exif.removeprefix(b"Exif\0\0") if exif else None,
        icc=found.get(b"ICCP"),
        xmp=found.get(b"XMP "),
        frames=frames if animated else 1,
        copy_reason=f"animated WebP with {frames} frames" if animated else None,
        details=_Details(tuple(chunks), lossless, _DEFAULT_QUALITY if lossless else _quality(found.get(b"VP8 ")), tail),
    )


def decode(source: Source) -> Raster:
    """Decode with libwebp."""
    image = WebPImagePlugin.WebPImageFile(io.BytesIO(source.data))
    image.load()
    if image.mode != source.mode:
        image = image.convert(source.mode)  # type: ignore[assignment]
    return Raster(np.asarray(image), "rgb", "straight" if source.mode == "RGBA" else "none")


def encode(source: Source, raster: Raster, xmp: bytes | None) -> Encoded:
    """Encode as lossless or as lossy as the source is, and put its other chunks back."""
    details: _Details = source.details
    buffer = io.BytesIO()
    Image.fromarray(contiguous(raster.samples)).save(
        buffer, "WEBP", lossless=details.lossless, quality=details.quality, exact=True, method=4
    )
    fresh = [(kind, payload) for kind, payload in _parse(buffer.getvalue())[0] if kind in _PICTURE]
    return Encoded(_assemble(_kept_chunks(source, raster, xmp, fresh)) + details.tail)


def is_lossless(source: Source) -> bool:
    """Whether the source was."""
    details: _Details = source.details
    return details.lossless


def _parse(data: bytes) -> tuple[list[tuple[bytes, bytes]], bytes]:
    """Kind and payload of the chunks, and what follows the RIFF container."""
    if data[:4] != b"RIFF" or data[8:12] != b"WEBP":
        raise ValueError("no WebP")
    end = struct.unpack_from("<I", data, 4)[0] + 8
    if end > len(data):
        raise ValueError(f"truncated: {len(data)} of {end} bytes")
    chunks, at = list[tuple[bytes, bytes]](), 12
    while at + 8 <= end:
        kind, length = struct.unpack_from("<4sI", data, at)
        if at + 8 + length > end:
            raise ValueError(f"truncated in chunk {kind!r}")
        chunks.append((kind, data[at + 8 : at + 8 + length]))
        at += 8 + length + length % 2
    return chunks, data[max(end, at) :]


def _assemble(chunks: list[tuple[bytes, bytes]]) -> bytes:
    body = b"".join(
        struct.pack("<4sI", kind, len(payload)) + payload + b"\0" * (len(payload) % 2) for kind, payload in chunks
    )
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


def _kept_chunks(
    source: Source, raster: Raster, xmp: bytes | None, fresh: list[tuple[bytes, bytes]]
) -> list[tuple[bytes, bytes]]:
    details: _Details = source.details
    result, replaced = list[tuple[bytes, bytes]](), False
    for kind, payload in details.chunks:
        if kind in _PICTURE:
            result.extend([] if replaced else fresh)
            replaced = True
        elif kind == b"EXIF" and raster.size != source.size:
            prefix = b"Exif\0\0" if payload.startswith(b"Exif\0\0") else b""
            result.append((kind, prefix + exif_block.with_size(payload.removeprefix(prefix), *raster.size)))
        elif kind == b"VP8X":
            result.append((kind, payload[:4] + _canvas(raster.size)))
        elif not (kind == b"XMP " and xmp is not None):
            result.append((kind, payload))
    if xmp:
        result.append((b"XMP ", xmp))
    return _with_flags(result, source, raster)


def _with_flags(chunks: list[tuple[bytes, bytes]], source: Source, raster: Raster) -> list[tuple[bytes, bytes]]:
    """A file with more than a picture begins with a VP8X chunk that says what there is."""
    kinds = {kind for kind, _ in chunks}
    if b"VP8X" not in kinds and not kinds & {b"XMP ", b"ALPH"}:
        return chunks
    flags = _ALPHA_FLAG if source.mode == "RGBA" else 0
    flags |= _XMP_FLAG if b"XMP " in kinds else 0
    if b"VP8X" not in kinds:
        return [(b"VP8X", bytes([flags, 0, 0, 0]) + _canvas(raster.size)), *chunks]
    kind, payload = chunks[0]
    if kind != b"VP8X":
        return chunks
    if source.xmp is not None and len(kinds) == 2 and kinds & {b"VP8 ", b"VP8L"}:
        return chunks[1:]  # only the packet that is gone needed it
    return [(kind, bytes([payload[0] & ~_XMP_FLAG | flags & _XMP_FLAG]) + payload[1:]), *chunks[1:]]


def _canvas(size: tuple[int, int]) -> bytes:
    return b"".join(struct.pack("<I", side - 1)[:3] for side in size)


def _size_and_alpha(chunks: dict[bytes, bytes]) -> tuple[int, int, bool]:
    """Width, height and whether there is an alpha channel, from the first header that says so."""
    if b"VP8X" in chunks and len(chunks[b"VP8X"]) >= 10:
        header = chunks[b"VP8X"]
        width, height = (int.from_bytes(header[at : at + 3], "little") + 1 for at in (4, 7))
        return width, height, bool(header[0] & _ALPHA_FLAG)
    if b"VP8L" in chunks and len(chunks[b"VP8L"]) >= 5:
        bits = struct.unpack_from("<I", chunks[b"VP8L"], 1)[0]
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1, bool(bits >> 28 & 1)
    if b"VP8 " in chunks and len(chunks[b"VP8 "]) >= 10:
        width, height = struct.unpack_from("<HH", chunks[b"VP8 "], 6)
        return width & 0x3FFF, height & 0x3FFF, False
    raise ValueError("no picture")


def _quality(frame: bytes | None) -> int:
    """The quality setting of libwebp that gives the quantiser of a VP8 key frame; a default where it cannot be read."""
    if frame is None:
        return _DEFAULT_QUALITY
    quantiser = _finest_quantiser(frame)
    compression = (1 - quantiser / 127) ** 3  # libwebp, src/enc/quant_enc.c, QualityToCompression
    quality = compression * 1.5 if compression < 0.5 else (compression + 1) / 2
    return max(_LOWEST_QUALITY, min(100, round(quality * 100)))


def _finest_quantiser(frame: bytes) -> int:
    """Smallest quantiser index, 0..127, of the segments of a VP8 key frame (RFC 6386, sections 9.2 to 9.6)."""
    bits = _BoolDecoder(frame[10:])
    bits.literal(2)  # colour space, clamping
    segments, relative = list[int](), True
    if bits.literal(1):
        updates_map, updates_data = bits.literal(1), bits.literal(1)
        if updates_data:
            relative = not bits.literal(1)
            segments = [bits.optional(7) for _ in range(4)]
            for _ in range(4):
                bits.optional(6)
        for _ in range(3 if updates_map else 0):
            if bits.literal(1):
                bits.literal(8)
    bits.literal(10)  # filter type, level, sharpness
    if bits.literal(1) and bits.literal(1):
        for _ in range(8):
            bits.optional(6)
    bits.literal(2)  # partitions
    base = bits.literal(7)
    found = [base + segment if relative else segment for segment in segments] or [base]
    return min(max(min(found), 0), 127)


class _BoolDecoder:
    """The arithmetic decoder of RFC 6386, section 7.3, for values of even probability."""

    def __init__(self, data: bytes) -> None:
        self._data = data.ljust(64, b"\0")
        self._at, self._range, self._bits = 2, 255, 0
        self._value = int.from_bytes(self._data[:2], "big")

    def literal(self, count: int) -> int:
        """An unsigned number of ``count`` bits."""
        value = 0
        for _ in range(count):
            value = value << 1 | self._bit()
        return value

    def optional(self, count: int) -> int:
        """0, or a number of ``count`` bits with a sign after it, as a flag says."""
        if not self.literal(1):
            return 0
        value = self.literal(count)
        return -value if self.literal(1) else value

    def _bit(self) -> int:
        split = 1 + ((self._range - 1) * 128 >> 8)
        bit = self._value >= split << 8
        if bit:
            self._range -= split
            self._value -= split << 8
        else:
            self._range = split
        while self._range < 128:
            self._value <<= 1
            self._range <<= 1
            self._bits += 1
            if self._bits == 8:
                self._bits = 0
                self._value |= self._data[self._at] if self._at < len(self._data) else 0
                self._at += 1
        return int(bit)
