"""Read a photo as upright sRGB pixels and write it again with some regions changed and everything else kept."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from facefix.errors import PhotoError, UsageError
from facefix.photos import atomic, orientation
from facefix.photos.formats import sniff
from facefix.photos.region import Region

__all__ = ["MAX_PIXELS", "Photo", "Region", "Written", "copy_photo", "read_photo", "write_photo"]

MAX_PIXELS = 200_000_000
"""Default limit of width times height; more is refused before decoding."""

_GREY_SPREAD = 6


@dataclass(frozen=True, slots=True, eq=False)
class Photo:
    """One photo as read from disk."""

    path: Path
    pixels: NDArray[np.uint8]
    """(H, W, 3) upright sRGB"""
    format: str
    """JPEG, PNG, TIFF, WEBP, BMP, HEIF, AVIF or RAW"""
    mode: str
    """how the file stores a pixel, in Pillow's words, with ;16 for 16 bits per sample: 1 L LA P RGB RGBA CMYK RGB;16"""
    orientation: int | None
    """EXIF orientation 1..8, None where the file has none"""
    taken: float | None
    """EXIF time the photo was taken, in POSIX seconds (as UTC where the file gives no offset)"""
    sha256: str
    is_grey: bool
    """every pixel is (nearly) without colour"""
    frames: int
    copy_reason: str | None
    """why this photo can only be copied (animated, several pages); None when it can be restored"""
    notes: tuple[str, ...]
    """what was ignored in reading, for the report"""
    xmp: bytes | None
    """the photo's XMP packet"""
    carrier: Any
    """what write_photo needs to write the file again; opaque"""

    @property
    def size(self) -> tuple[int, int]:
        """width, height of the upright photo"""
        return self.pixels.shape[1], self.pixels.shape[0]

    @property
    def animated(self) -> bool:
        """Whether the file holds more than one picture."""
        return self.frames > 1


@dataclass(frozen=True, slots=True)
class Written:
    """What was written."""

    path: Path
    sha256: str
    notes: tuple[str, ...] = ()


def read_photo(path: Path, max_pixels: int = MAX_PIXELS) -> Photo:
    """Read the photo at ``path``. Raises PhotoError when it cannot be read or has more than ``max_pixels`` pixels."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise PhotoError(f"{path}: cannot be read: {error.strerror or error}") from error
    kind = sniff(data[:32])
    if kind is None:
        raise PhotoError(f"{path}: expected a photo, found no known format")
    try:
        image = Image.open(io.BytesIO(data), formats=[kind, "MPO"] if kind == "JPEG" else [kind])
        if image.width * image.height > max_pixels:
            raise PhotoError(f"{path}: {image.width} x {image.height} pixels are more than --max-pixels {max_pixels}")
        turn = image.getexif().get(0x0112)
        stored = np.asarray(image.convert("RGB"))
    except PhotoError:
        raise
    except Exception as error:
        raise PhotoError(f"{path}: cannot be decoded: {error}") from error
    pixels = orientation.contiguous(orientation.upright(stored, turn))
    grey = int(np.ptp(pixels, axis=2).max(initial=0)) <= _GREY_SPREAD
    frames = getattr(image, "n_frames", 1)
    return Photo(
        path=path,
        pixels=pixels,
        format=image.format or kind,
        mode=image.mode,
        orientation=turn,
        taken=None,
        sha256=hashlib.sha256(data).hexdigest(),
        is_grey=grey,
        frames=frames,
        copy_reason=f"{frames} frames" if frames > 1 else None,
        notes=(),
        xmp=image.info.get("xmp"),
        carrier=data,
    )


def write_photo(
    photo: Photo, regions: Sequence[Region], target: Path, *, scale: int = 1, extra_xmp: bytes | None = None
) -> Written:
    """Write ``photo`` with ``regions`` changed to ``target``; later regions lie over earlier ones.

    ``scale`` enlarges the whole photo; the regions are made for the same scale. ``extra_xmp`` is a whole XMP packet that
    takes the place of the photo's own. Raises PhotoError, and leaves nothing behind, when it does not work out.
    """
    if any(region.scale != scale for region in regions):
        raise UsageError(f"regions: expected all made for scale {scale}")
    image = Image.fromarray(photo.pixels)
    if scale > 1:
        image = image.resize((image.width * scale, image.height * scale), Image.Resampling.LANCZOS)
    pixels = np.asarray(image).astype(np.float32) / 255
    for region in regions:
        left, top, right, bottom = region.box
        alpha = region.alpha[:, :, None]
        pixels[top:bottom, left:right] = pixels[top:bottom, left:right] * (1 - alpha) + region.rgb * alpha
    stored = orientation.stored(np.rint(pixels * 255).astype(np.uint8), photo.orientation)
    source = Image.open(io.BytesIO(photo.carrier))
    result = Image.fromarray(orientation.contiguous(stored)).convert(photo.mode)
    buffer = io.BytesIO()
    options: dict[str, Any] = {"exif": source.getexif().tobytes(), "icc_profile": source.info.get("icc_profile")}
    if photo.format == "JPEG":
        options |= {"qtables": source.quantization, "subsampling": 0}  # type: ignore[attr-defined]
    result.save(buffer, photo.format, **options)
    atomic.write_bytes(buffer.getvalue(), target, like=photo.path.stat() if photo.path.exists() else None)
    return Written(target, hashlib.sha256(buffer.getvalue()).hexdigest())


def copy_photo(source: Path | str | os.PathLike[str], target: Path) -> str:
    """Copy a photo byte for byte, checked and atomic; return its sha256. Raises PhotoError."""
    return atomic.copy_bytes(Path(source), target)
