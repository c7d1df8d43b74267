"""BMP: the rows of pixels are replaced where they stand; headers, masks, palette and profile stay as they are.

Microsoft, "Bitmap Storage" (BITMAPFILEHEADER, BITMAPINFOHEADER, BITMAPV4HEADER, BITMAPV5HEADER).
"""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass

import numpy as np
from PIL import BmpImagePlugin, Image

from facefix.photos.containers.base import Encoded, Source
from facefix.photos.orientation import contiguous
from facefix.photos.raster import Bytes8, Raster

_HEADER_BYTES = 14
_UNCOMPRESSED, _BITFIELDS = 0, 3
_BGRX_MASKS = (0xFF0000, 0xFF00, 0xFF)


@dataclass(frozen=True, slots=True)
class _Details:
    bits: int
    compression: int
    pixels_at: int
    top_down: bool
    header_size: int
    masks: tuple[int, ...] = _BGRX_MASKS
    """which bits of a 32-bit pixel are red, green and blue"""

    @property
    def in_place(self) -> bool:
        """Whether the rows can be written where they stand."""
        if self.bits == 32:
            return self.compression in (_UNCOMPRESSED, _BITFIELDS) and self.masks == _BGRX_MASKS
        return self.compression == _UNCOMPRESSED and self.bits in (1, 4, 8, 24)


def open(data: bytes) -> Source:
    """Look at the headers."""
    image = BmpImagePlugin.BmpImageFile(io.BytesIO(data))
    pixels_at, header_size = struct.unpack_from("<II", data, 10)
    if header_size < 40:
        details = _Details(0, -1, pixels_at, False, header_size)
    else:
        height = struct.unpack_from("<i", data, 22)[0]
        bits, compression = struct.unpack_from("<HI", data, 28)
        masks = struct.unpack_from("<3I", data, 54) if compression == _BITFIELDS else _BGRX_MASKS
        details = _Details(bits, compression, pixels_at, height < 0, header_size, masks)
    return Source("BMP", image.mode, image.size, data, icc=_profile(data, header_size), details=details)


def decode(source: Source) -> Raster:
    """Decode with Pillow."""
    image = BmpImagePlugin.BmpImageFile(io.BytesIO(source.data))
    image.load()
    if image.mode == "1":
        return Raster(np.asarray(image).astype(np.uint8)[:, :, None], "bilevel")
    if image.mode == "P":
        return Raster(np.asarray(image)[:, :, None], "palette", palette=_palette(image))
    if image.mode == "L":
        return Raster(np.asarray(image)[:, :, None], "grey")
    return Raster(np.asarray(image), "rgb", "straight" if image.mode == "RGBA" else "none")


def encode(source: Source, raster: Raster, xmp: bytes | None) -> Encoded:
    """Replace the rows; a file with compressed or packed pixels is written anew by Pillow."""
    notes = ("BMP has no place for XMP",) if xmp else ()
    details: _Details = source.details
    if not details.in_place or source.mode not in ("RGB", "RGBA", "L", "P", "1"):
        return Encoded(_by_pillow(raster), notes)
    width, height = raster.size
    rows = _packed_rows(raster, details.bits, source)
    if not details.top_down:
        rows = rows[::-1]
    old_stride = (source.size[0] * details.bits + 31) // 32 * 4
    old_end = details.pixels_at + old_stride * source.size[1]
    head = bytearray(source.data[: details.pixels_at])
    tail = source.data[old_end:]
    if raster.size != source.size:
        struct.pack_into("<ii", head, 18, width, -height if details.top_down else height)
        struct.pack_into("<I", head, 34, rows.size)
        _shift_profile(head, details.header_size, rows.size - (old_end - details.pixels_at))
    struct.pack_into("<I", head, 2, (len(head) + rows.size + len(tail)) & 0xFFFFFFFF)
    return Encoded(bytes(head) + rows.tobytes() + tail, notes)


def is_lossless(source: Source) -> bool:
    """Always."""
    return True


def _packed_rows(raster: Raster, bits: int, source: Source) -> Bytes8:
    """(H, stride) bytes of the rows, padded to four bytes, top row first."""
    width, height = raster.size
    if bits == 24:
        flat = raster.samples[:, :, 2::-1].reshape(height, -1)
    elif bits == 32:
        flat = np.dstack([raster.samples[:, :, 2::-1], _fourth_bytes(raster, source)]).reshape(height, -1)
    elif bits == 8:
        flat = _as_index(raster, source)
    elif bits == 4:
        index = np.pad(_as_index(raster, source), ((0, 0), (0, width % 2)))
        flat = index[:, ::2] << 4 | index[:, 1::2]
    else:
        flat = np.packbits(_as_index(raster, source), axis=1)
    stride = (width * bits + 31) // 32 * 4
    return np.pad(flat, ((0, 0), (0, stride - flat.shape[1]))).astype(np.uint8)


def _fourth_bytes(raster: Raster, source: Source) -> Bytes8:
    """(H, W) alpha, or what the file holds in its place: all of it, or for an enlarged picture its first."""
    if raster.alpha != "none":
        alpha: Bytes8 = raster.samples[:, :, 3]
        return alpha
    details: _Details = source.details
    width, height = source.size
    stored = np.frombuffer(source.data, np.uint8, 4 * width * height, details.pixels_at).reshape(height, width, 4)[
        :, :, 3
    ]
    if raster.size != source.size:
        return np.full((raster.size[1], raster.size[0]), stored[0, 0], np.uint8)
    return stored if details.top_down else stored[::-1]


def _as_index(raster: Raster, source: Source) -> Bytes8:
    """Pillow shows a palette of greys as grey: back to the indices of the file's own palette."""
    samples: Bytes8 = raster.samples[:, :, 0].astype(np.uint8)
    if raster.model == "palette":
        return samples
    details: _Details = source.details
    entries = np.frombuffer(
        source.data[_HEADER_BYTES + details.header_size : details.pixels_at].ljust(1024, b"\0")[: 4 << details.bits],
        np.uint8,
    ).reshape(-1, 4)
    grey = samples * np.uint8(255) if raster.model == "bilevel" else samples
    index = np.zeros(256, np.uint8)
    for value, entry in reversed(list(enumerate(entries[:, 0]))):
        index[entry] = value
    return index[grey]


def _palette(image: Image.Image) -> Bytes8:
    colours = np.asarray(image.getpalette("RGB"), dtype=np.uint8).reshape(-1, 3)
    return np.column_stack([colours, np.full(len(colours), 255, np.uint8)])


def _by_pillow(raster: Raster) -> bytes:
    if raster.model == "bilevel":
        image = Image.fromarray(raster.samples[:, :, 0] * np.uint8(255)).convert("1")
    elif raster.model == "palette":
        assert raster.palette is not None
        image = Image.fromarray(contiguous(raster.samples[:, :, 0]), mode="P")
        image.putpalette(raster.palette[:, :3].tobytes())
    else:
        image = Image.fromarray(contiguous(raster.samples[:, :, 0] if raster.model == "grey" else raster.samples))
    buffer = io.BytesIO()
    image.save(buffer, "BMP")
    return buffer.getvalue()


def _profile(data: bytes, header_size: int) -> bytes | None:
    """The embedded profile of a BITMAPV5HEADER."""
    if header_size < 124 or data[_HEADER_BYTES + 56 : _HEADER_BYTES + 60] != b"DEBM":
        return None
    at, size = struct.unpack_from("<II", data, _HEADER_BYTES + 112)
    return data[_HEADER_BYTES + at : _HEADER_BYTES + at + size] or None


def _shift_profile(head: bytearray, header_size: int, shift: int) -> None:
    """A profile lies after the pixels; its offset is put right for rows of another size."""
    if header_size >= 124:
        at = struct.unpack_from("<I", head, _HEADER_BYTES + 112)[0]
        if at:
            struct.pack_into("<I", head, _HEADER_BYTES + 112, at + shift)
