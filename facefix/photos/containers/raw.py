"""Camera raw files: developed with LibRaw, written as 16-bit TIFF or as JPEG. Needs the extra facefix[raw].

What describes the photo in its EXIF goes along; maker notes and what only makes sense for the sensor's data do not.
"""

from __future__ import annotations

import io
import zlib
from typing import Any

import numpy as np
from PIL import ExifTags, Image

from facefix.photos import exif as exif_block
from facefix.photos import ifd
from facefix.photos.containers import jpeg
from facefix.photos.containers.base import Encoded, Source
from facefix.photos.containers.tiff_patch import Patch
from facefix.photos.raster import Raster, to_8bit

_JPEG_QUALITY = 95
_EMPTY_BLOCK = b"II*\0\x08\0\0\0" + b"\0\0" + b"\0\0\0\0"
_ROWS_PER_STRIP = 64

_DESCRIPTIVE = (
    ExifTags.Base.ImageDescription,
    ExifTags.Base.Make,
    ExifTags.Base.Model,
    ExifTags.Base.DateTime,
    ExifTags.Base.Artist,
    ExifTags.Base.Copyright,
)


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
            turned = sizes.flip in (5, 6)
            size = (sizes.iwidth, sizes.iheight) if not turned else (sizes.iheight, sizes.iwidth)
            block = _exif(data, raw)
        note = "camera raw: developed with the camera's white balance; it can only be written as TIFF or JPEG"
        return Source("RAW", "RGB;16", size, data, exif=block, notes=(note,))

    def decode(self, source: Source) -> Raster:
        """Develop to 16-bit sRGB, upright."""
        import rawpy

        with rawpy.imread(io.BytesIO(source.data)) as raw:
            samples = raw.postprocess(use_camera_wb=True, output_bps=16)
        return Raster(samples, "rgb")

    def encode(self, source: Source, raster: Raster, xmp: bytes | None) -> Encoded:
        """Write a TIFF, compressed without loss, or a JPEG of high quality."""
        block = source.exif and exif_block.with_size(source.exif, *raster.size)
        return Encoded(_jpeg(raster, block, xmp) if self._as_jpeg else _tiff(raster, block, xmp))

    def is_lossless(self, source: Source) -> bool:
        """Whether it is written as TIFF."""
        return not self._as_jpeg


def _exif(data: bytes, raw: Any) -> bytes | None:
    """The descriptive part of the file's EXIF as a block of its own, with orientation 1; None where there is none."""
    try:
        found = Image.Exif()
        found.load(data if data[:4] in (b"II*\0", b"MM\0*") else _preview_exif(raw))
        kept = Image.Exif()
        for tag in _DESCRIPTIVE:
            if tag in found:
                kept[tag] = found[tag]
        kept[ExifTags.Base.Orientation] = 1
        for directory in (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo):
            values = dict(found.get_ifd(directory))
            values.pop(ExifTags.Base.MakerNote, None)
            kept.get_ifd(directory).update(values)
        return kept.tobytes().removeprefix(b"Exif\0\0")
    except Exception:  # metadata of a dozen makers: whatever is wrong with it, the picture counts
        return None


def _preview_exif(raw: Any) -> bytes:
    preview = raw.extract_thumb()
    return jpeg.open(bytes(preview.data)).exif or _EMPTY_BLOCK


def _jpeg(raster: Raster, block: bytes | None, xmp: bytes | None) -> bytes:
    options: dict[str, Any] = {"exif": b"Exif\0\0" + block} if block else {}
    buffer = io.BytesIO()
    image = Image.fromarray(to_8bit(raster.samples, raster.peak))
    image.save(buffer, "JPEG", quality=_JPEG_QUALITY, subsampling=0, xmp=xmp or b"", **options)
    return buffer.getvalue()


def _tiff(raster: Raster, block: bytes | None, xmp: bytes | None) -> bytes:
    """An EXIF block is a TIFF file without a picture: it gets one."""
    block = block or _EMPTY_BLOCK
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
    if xmp:
        patch.set_bytes(700, xmp)
    return patch.finish()


def _deflated(samples: np.ndarray[Any, np.dtype[np.uint16]], layout: ifd.Layout) -> bytes:
    """A strip with horizontal differencing (TIFF 6.0, section 14)."""
    differences = np.concatenate([samples[:, :1], samples[:, 1:] - samples[:, :-1]], axis=1)
    return zlib.compress(differences.astype(layout.order + "u2").tobytes(), 6)
