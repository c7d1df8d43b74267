"""HEIC and AVIF: encoded anew, with EXIF, XMP, colour description, chroma subsampling and rotation of the source.

ISO/IEC 23008-12 (HEIF), AV1 Image File Format 1.1. HEIC through pillow-heif with 8, 10 or 12 bits a sample as the
source has them; AVIF through Pillow, which knows 8 only.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import AvifImagePlugin, Image

from facefix.photos import orientation as turning
from facefix.photos.containers.base import Encoded, Source
from facefix.photos.metadata import exif as exif_block
from facefix.photos.orientation import contiguous
from facefix.photos.raster import Raster

_QUALITY = 90
"""Neither format records the quality it was written with."""

_PREFIX = b"Exif\0\0"

_AVIF_SUBSAMPLINGS = {(1, 1): "4:2:0", (1, 0): "4:2:2", (0, 0): "4:4:4"}
_LARGEST_SIDE = 16384

_BT_601 = 6
_MATRICES = (1, 5, _BT_601, 9)
"""Matrix coefficients that turn RGB into luma and chroma (ITU-T H.273, table 4: BT.709, BT.601 twice, BT.2020)."""

_HDR_TRANSFERS = {16: "PQ", 18: "HLG"}
"""Transfer characteristics of high dynamic range (ITU-T H.273, table 3)."""


@dataclass(frozen=True, slots=True)
class _Details:
    chroma: str | int
    bit_depth: int
    nclx: dict[str, int] | None = None
    """colour description by code points (ITU-T H.273), as pillow-heif has it"""


class Heic:
    """HEIC. libheif turns the picture upright as the file says; it is turned back for writing."""

    def open(self, data: bytes) -> Source:
        """Look at the boxes."""
        image = _heif_image(data)
        info = image.info
        block = _exif_bytes(info)
        turn = info.get("original_orientation")
        if block is not None and turn is not None:
            block = exif_block.with_orientation(block, turn)
        width, height = image.size
        swapped = turning.swaps_sides(exif_block.orientation(block))
        frames = int(getattr(image, "n_frames", 1))
        notes = []
        details = _Details(info.get("chroma", 420), info.get("bit_depth", 8), info.get("nclx_profile"))
        transfer = _HDR_TRANSFERS.get((details.nclx or {}).get("transfer_characteristics", 0))
        if transfer is not None:
            notes.append(f"high dynamic range ({transfer}): faces are looked at and restored as if it were sRGB")
        if info.get("depth_images") or info.get("aux"):
            notes.append("depth and auxiliary pictures are not carried over")
        return Source(
            format="HEIF",
            mode=image.mode + (";16" if details.bit_depth > 8 else ""),
            size=(height, width) if swapped else (width, height),
            data=data,
            exif=block,
            icc=info.get("icc_profile"),
            xmp=info.get("xmp") or None,
            frames=frames,
            copy_reason=f"HEIF with {frames} pictures" if frames > 1 else None,
            notes=tuple(notes),
            details=details,
        )

    def decode(self, source: Source) -> Raster:
        """Decode with libheif."""
        details: _Details = source.details
        turn = exif_block.orientation(source.exif)
        if details.bit_depth > 8:
            return _deep_raster(source.data, turn)
        image = _heif_image(source.data)
        image.load()
        return _raster(np.asarray(image), image.mode, turn)

    def encode(self, source: Source, raster: Raster, xmp: bytes | None) -> Encoded:
        """Encode with x265."""
        details: _Details = source.details
        buffer = io.BytesIO()
        _as_heif(raster).save(
            buffer,
            format="HEIF",
            quality=_QUALITY,
            chroma=details.chroma if details.chroma in (420, 422, 444) else 420,
            bit_depth=details.bit_depth,
            **_code_points(details),
            **_metadata(source, raster, xmp),
        )
        written = _heif_image(buffer.getvalue()).info.get("bit_depth", 8)
        notes = (f"{details.bit_depth} bits per sample became {written}",) if written != details.bit_depth else ()
        return Encoded(buffer.getvalue(), notes)

    def is_lossless(self, source: Source) -> bool:
        """Never."""
        return False


class Avif:
    """AVIF."""

    def open(self, data: bytes) -> Source:
        """Look at the boxes."""
        image = AvifImagePlugin.AvifImageFile(io.BytesIO(data))
        frames = image.n_frames
        details = _avif_details(data)
        note = f"AVIF of {details.bit_depth} bits per sample: read as 8, and written as 8 where a face is restored"
        return Source(
            format="AVIF",
            mode=image.mode,
            size=image.size,
            data=data,
            exif=_exif_bytes(image.info),
            icc=image.info.get("icc_profile"),
            xmp=image.info.get("xmp"),
            frames=frames,
            copy_reason=f"animated AVIF with {frames} frames" if frames > 1 else None,
            notes=(note,) if details.bit_depth > 8 else (),
            details=details,
        )

    def decode(self, source: Source) -> Raster:
        """Decode with libavif."""
        image = AvifImagePlugin.AvifImageFile(io.BytesIO(source.data))
        image.load()
        return _raster(np.asarray(image), image.mode, None)

    def encode(self, source: Source, raster: Raster, xmp: bytes | None) -> Encoded:
        """Encode with libavif. Its orientation is the container's; the EXIF block is written without that tag."""
        details: _Details = source.details
        buffer = io.BytesIO()
        _as_image(raster).save(
            buffer, "AVIF", quality=_QUALITY, subsampling=details.chroma, **_metadata(source, raster, xmp)
        )
        return Encoded(buffer.getvalue())

    def is_lossless(self, source: Source) -> bool:
        """Never."""
        return False


def _heif_image(data: bytes) -> Image.Image:
    from pillow_heif import HeifImageFile

    image: Image.Image = HeifImageFile(io.BytesIO(data))  # type: ignore[no-untyped-call]
    return image


def _exif_bytes(info: dict[str | tuple[int, int], Any]) -> bytes | None:
    block = info.get("exif")
    return block.removeprefix(_PREFIX) if block else None


def _raster(samples: NDArray[Any], mode: str, turn: int | None) -> Raster:
    """Samples of one of Pillow's modes, upright, as the file's own orientation ``turn`` has them."""
    if mode not in ("L", "LA", "RGB", "RGBA"):
        raise ValueError(f"samples of mode {mode} are not supported")
    samples = turning.stored(samples, turn)
    samples = samples if samples.ndim == 3 else samples[:, :, None]
    alpha = "straight" if mode in ("LA", "RGBA") else "none"
    return Raster(contiguous(samples), "grey" if mode in ("L", "LA") else "rgb", alpha)  # type: ignore[arg-type]


def _deep_raster(data: bytes, turn: int | None) -> Raster:
    """A picture of 10 or 12 bits, its samples shifted up to 16."""
    import pillow_heif

    image = pillow_heif.open_heif(io.BytesIO(data), convert_hdr_to_8bit=False)
    mode = image.mode.partition(";")[0]
    return _raster(np.asarray(image), "L" if mode == "I" else mode, turn)


def _as_heif(raster: Raster) -> Any:
    import pillow_heif

    if raster.samples.dtype == np.uint8:
        return pillow_heif.from_pillow(_as_image(raster))
    _check_sides(raster)
    mode = {1: "L;16", 2: "LA;16", 3: "RGB;16", 4: "RGBA;16"}[raster.samples.shape[2]]
    return pillow_heif.from_bytes(mode=mode, size=raster.size, data=contiguous(raster.samples).tobytes())


def _code_points(details: _Details) -> dict[str, int]:
    """What the source says about its colours in code points; nothing where it says nothing."""
    if details.nclx is None:
        return {}
    matrix = details.nclx["matrix_coefficients"]
    return {
        "color_primaries": details.nclx["color_primaries"],
        "transfer_characteristics": details.nclx["transfer_characteristics"],
        "matrix_coefficients": matrix if matrix in _MATRICES else _BT_601,
        "full_range_flag": details.nclx["full_range_flag"],
    }


def _as_image(raster: Raster) -> Image.Image:
    _check_sides(raster)
    channels = raster.samples.shape[2]
    samples = raster.samples[:, :, 0] if channels == 1 else raster.samples
    return Image.fromarray(contiguous(samples), mode="LA" if channels == 2 else None)


def _check_sides(raster: Raster) -> None:
    if max(raster.size) > _LARGEST_SIDE:
        raise ValueError(f"{raster.size[0]} x {raster.size[1]} pixels are more than {_LARGEST_SIDE} to a side")


def _metadata(source: Source, raster: Raster, xmp: bytes | None) -> dict[str, Any]:
    """What both encoders take by the same names."""
    block = source.exif
    if block is not None and raster.size != source.size:
        block = exif_block.with_size(block, *raster.size)
    packet = xmp if xmp is not None else source.xmp
    found = {"exif": _PREFIX + block if block else None, "icc_profile": source.icc, "xmp": packet}
    return {name: value for name, value in found.items() if value}


def _avif_details(data: bytes) -> _Details:
    """Chroma subsampling and bit depth from the first AV1 configuration box (AV1-ISOBMFF, section 2.3.3)."""
    at = data.find(b"av1C")
    flags = data[at + 6] if 0 <= at < len(data) - 6 else 0x0C
    depth = 12 if flags & 0x20 else 10 if flags & 0x40 else 8
    if flags & 0x10:
        return _Details("4:0:0", depth)
    return _Details(_AVIF_SUBSAMPLINGS.get((flags >> 3 & 1, flags >> 2 & 1), "4:2:0"), depth)
