"""Camera raw files: developed with LibRaw, written as 16-bit TIFF or as JPEG. Needs the extra facefix[raw].

What describes the photo goes along (EXIF, XMP, IPTC); maker notes and what only makes sense for the sensor's data do
not.
"""

from __future__ import annotations

import contextlib
import io
import zlib
from dataclasses import replace
from typing import Any

import numpy as np
from PIL import Image

from facefix.errors import PhotoError
from facefix.photos.containers import jpeg, raw_metadata
from facefix.photos.containers.base import Encoded, Source
from facefix.photos.containers.raw_metadata import Described
from facefix.photos.containers.tiff_patch import Patch
from facefix.photos.metadata import exif as exif_block
from facefix.photos.metadata import ifd
from facefix.photos.metadata.regions import upright_packet
from facefix.photos.raster import Raster, to_8bit

_JPEG_QUALITY = 95
_EMPTY_BLOCK = b"II*\0\x08\0\0\0" + b"\0\0" + b"\0\0\0\0"
_ROWS_PER_STRIP = 64


class Raw:
    """Any camera raw file that LibRaw knows; ``suffix`` of the output chooses TIFF or JPEG."""

    def __init__(self, suffix: str = ".tif") -> None:
        self._as_jpeg = suffix.lower() in (".jpg", ".jpeg")

    def open(self, data: bytes) -> Source:
        """Read the file's headers."""
        import rawpy

        with rawpy.RawPy() as raw:
            raw.open_buffer(io.BytesIO(data))
            sizes = raw.sizes
            turned = sizes.flip & 4  # LibRaw's bits: 1 and 2 mirror, 4 transposes
            size = (sizes.iwidth, sizes.iheight) if not turned else (sizes.iheight, sizes.iwidth)
            described = _upright(_described(data, raw), size)
        note = "camera raw: developed with the camera's white balance; it can only be written as TIFF or JPEG"
        return Source(
            "RAW", "RGB;16", size, data, exif=described.exif, xmp=described.xmp, notes=(note,), details=described
        )

    def decode(self, source: Source) -> Raster:
        """Develop to 16-bit sRGB, upright."""
        import rawpy

        with rawpy.imread(io.BytesIO(source.data)) as raw:
            samples = raw.postprocess(use_camera_wb=True, output_bps=16)
        return Raster(samples, "rgb")

    def encode(self, source: Source, raster: Raster, xmp: bytes | None) -> Encoded:
        """Write a TIFF, compressed without loss, or a JPEG of high quality."""
        described: Described = source.details
        block = described.exif and exif_block.with_size(described.exif, *raster.size)
        described = replace(described, exif=block, xmp=described.xmp if xmp is None else xmp)
        return _jpeg(raster, described) if self._as_jpeg else Encoded(_tiff(raster, described))

    def is_lossless(self, source: Source) -> bool:
        """Whether it is written as TIFF."""
        return not self._as_jpeg


def _described(data: bytes, raw: Any) -> Described:
    """What the file says about the photo, or its preview where the file itself cannot be read; nothing if neither."""
    try:
        if raw_metadata.looks_like_tiff(data):
            return raw_metadata.of_tiff(data)
        return raw_metadata.of_preview(bytes(raw.extract_thumb().data))
    except Exception:  # metadata of a dozen makers: whatever is wrong with it, the picture counts
        return Described()


def _upright(described: Described, size: tuple[int, int]) -> Described:
    """XMP that fits the developed picture of that size, which LibRaw turned upright; as it is where it is no XMP."""
    if described.xmp is None:
        return described
    stored_size = size[::-1] if described.orientation >= 5 else size
    with contextlib.suppress(PhotoError):
        return replace(described, xmp=upright_packet(described.xmp, stored_size, described.orientation))
    return described


def _jpeg(raster: Raster, described: Described) -> Encoded:
    buffer = io.BytesIO()
    image = Image.fromarray(to_8bit(raster.samples, raster.peak))
    image.save(buffer, "JPEG", quality=_JPEG_QUALITY, subsampling=0)
    return jpeg.with_metadata(
        buffer.getvalue(), exif=described.exif, xmp=described.xmp, resources=described.all_resources
    )


def _tiff(raster: Raster, described: Described) -> bytes:
    """An EXIF block is a TIFF file without a picture: it gets one."""
    block = described.exif or _EMPTY_BLOCK
    layout, at = ifd.header(block)
    first = ifd.directory(block, layout, at)
    patch = Patch(block, ifd.Directory(layout, first.entries, 0, first.link_at))
    width, height = raster.size
    strips = [
        _deflated(raster.samples[top : top + _ROWS_PER_STRIP], layout) for top in range(0, height, _ROWS_PER_STRIP)
    ]
    offsets = [patch.put(strip) for strip in strips]
    tags = {256: width, 257: height, 259: 8, 262: 2, 274: 1, 277: 3, 278: _ROWS_PER_STRIP, 284: 1, 317: 2}
    for tag, value in tags.items():
        patch.set(tag, [value])
    patch.set(258, [16, 16, 16])
    patch.set(273, offsets)
    patch.set(279, [len(strip) for strip in strips])
    named = {
        raw_metadata.XMP: described.xmp,
        raw_metadata.IPTC: described.iptc,
        raw_metadata.RESOURCES: described.resources,
    }
    for tag, packet in named.items():
        if packet:
            patch.set_bytes(tag, packet)
    return patch.finish()


def _deflated(samples: np.ndarray[Any, np.dtype[np.uint16]], layout: ifd.Layout) -> bytes:
    """A strip with horizontal differencing (TIFF 6.0, section 14)."""
    differences = np.concatenate([samples[:, :1], samples[:, 1:] - samples[:, :-1]], axis=1)
    return zlib.compress(differences.astype(layout.order + "u2").tobytes(), 6)
