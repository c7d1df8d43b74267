"""Open a photo: its file read and looked into, its picture decoded when it is asked for."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from facefix.errors import FacefixError, PhotoError
from facefix.files.names import printable
from facefix.photos import colour, raster
from facefix.photos import orientation as turning
from facefix.photos.containers import bmp, heif, jpeg, png, raw, tiff, webp
from facefix.photos.containers.base import Container, Source
from facefix.photos.formats import RAW_SUFFIXES, missing_extra, sniff
from facefix.photos.metadata import exif
from facefix.photos.raster import Raster

MAX_PIXELS = 200_000_000
"""Default limit of width times height; more is refused before decoding."""


_BYTES_PER_PIXEL = 16


_OVERHEAD_BYTES = 64 << 20
"""A file may have as many bytes as the largest allowed photo with 16-bit samples, twice, and this much besides."""


class OpenedPhoto:
    """A photo whose file was read and looked into, its pixels decoded when they are asked for."""

    def __init__(self, path: Path, container: Container, source: Source, status: os.stat_result) -> None:
        self.path = path
        self.source = source
        self.status = status
        self._container = container
        self.orientation = orientation_of(source)
        """EXIF orientation 1..8, None where the file has none"""
        self.taken = exif.taken(source.exif)
        """EXIF time the photo was taken, in POSIX seconds"""
        self.notes: tuple[str, ...] = source.notes
        """what was ignored in reading, for the report; complete once the picture was decoded"""

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the upright photo."""
        width, height = self.source.size
        return (height, width) if turning.swaps_sides(self.orientation) else (width, height)

    @functools.cached_property
    def sha256(self) -> str:
        """Digest of the file."""
        return hashlib.sha256(self.source.data).hexdigest()

    @functools.cached_property
    def pixels(self) -> NDArray[np.uint8]:
        """(H, W, 3) upright sRGB. Raises PhotoError when the picture is damaged."""
        return self.decode()[0]

    def reduced(self, scale: float) -> tuple[NDArray[np.uint8], int]:
        """Upright sRGB pixels of at least ``scale`` times the size, and how many times smaller they are: 1, 2, 4 or 8.

        Only JPEG is decoded at a reduced size; it costs a fraction. Raises PhotoError when the picture is damaged.
        """
        reduction = max(factor for factor in (1, 2, 4, 8) if factor == 1 or factor * scale <= 1)
        if reduction == 1 or self.source.format != "JPEG":
            return self.pixels, 1
        with naming(self.path, "cannot be decoded"):
            pixels, _ = self._upright(jpeg.decode_reduced(self.source, reduction))
            return pixels, reduction

    def decode(self) -> tuple[NDArray[np.uint8], colour.Profile | None, bool]:
        """Upright pixels, the colour profile, and whether the pixels are the stored samples, turned."""
        with naming(self.path, "cannot be decoded"):
            decoded = self._container.decode(self.source)
            if decoded.size != self.source.size:
                raise ValueError(f"expected {self.source.size} pixels, decoded {decoded.size}")
            pixels, profile = self._upright(decoded)
        return pixels, profile, _is_plain(decoded, profile)

    def _upright(self, decoded: Raster) -> tuple[NDArray[np.uint8], colour.Profile | None]:
        model = decoded.model if decoded.model != "palette" else "rgb"
        profile, note = colour.load_profile(self.source.icc, model)
        self.notes = self.source.notes + ((note,) if note else ())
        pixels = turning.contiguous(turning.upright(raster.to_srgb8(decoded, profile), self.orientation))
        pixels.setflags(write=False)
        return pixels, profile


def open_photo(path: Path, max_pixels: int = MAX_PIXELS) -> OpenedPhoto:
    """Read the file at ``path`` and look into it, by its content and not its name; nothing is decoded yet.

    Raises PhotoError when it cannot be read, is no photo, or has more than ``max_pixels`` pixels.
    """
    data, status = _read_file(path, max_pixels)
    container = _container_for(path, data)
    with naming(path, "cannot be decoded"):
        source = container.open(data)
        _check_size(path, source.size, max_pixels)
        return OpenedPhoto(path, container, source, status)


CONTAINERS: dict[str, Container] = {
    "JPEG": jpeg,
    "PNG": png,
    "TIFF": tiff,
    "WEBP": webp,
    "BMP": bmp,
    "HEIF": heif.Heic(),
    "AVIF": heif.Avif(),
}


def _read_file(path: Path, max_pixels: int) -> tuple[bytes, os.stat_result]:
    limit = max_pixels * _BYTES_PER_PIXEL + _OVERHEAD_BYTES
    name = printable(path)
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise PhotoError(f"{name}: expected a photo, found something that is not a file")
        if status.st_size > limit:
            raise PhotoError(
                f"{name}: {status.st_size} bytes are more than a photo of --max-pixels {max_pixels} can have"
            )
        data = path.read_bytes()
    except OSError as error:
        raise PhotoError(f"{name}: cannot be read: {error.strerror or error}") from error
    except MemoryError as error:
        raise PhotoError(f"{name}: cannot be read: not enough memory for {status.st_size} bytes") from error
    if not data:
        raise PhotoError(f"{name}: expected a photo, found an empty file")
    return data, status


def _container_for(path: Path, data: bytes) -> Container:
    """The format by the file's first bytes; of those that look like TIFF, raw files by their suffix."""
    kind = sniff(data[:64])
    suffix = path.suffix.lower()
    is_raw = suffix in RAW_SUFFIXES and kind in (None, "TIFF")
    needed = suffix if is_raw else ".heic" if kind == "HEIF" else ""
    if needed and (extra := missing_extra(needed)) is not None:
        raise PhotoError(f"{printable(path)}: needs the extra facefix[{extra}], which is not installed")
    if is_raw:
        return raw.Raw()
    if kind is None:
        raise PhotoError(f"{printable(path)}: expected a photo (JPEG, PNG, TIFF, WebP, BMP ...), found another format")
    return CONTAINERS[kind]


def _check_size(path: Path, size: tuple[int, int], max_pixels: int) -> None:
    if min(size) < 1:
        raise PhotoError(f"{printable(path)}: expected a picture, found one of {size[0]} x {size[1]} pixels")
    if size[0] * size[1] > max_pixels:
        raise PhotoError(
            f"{printable(path)}: {size[0]} x {size[1]} = {size[0] * size[1]} pixels are more than the limit of "
            f"{max_pixels}; raise --max-pixels if the photo can be trusted"
        )


def orientation_of(source: Source) -> int | None:
    """How the stored picture lies. In HEIF and AVIF only the container says so (ISO/IEC 23008-12, annex A.1)."""
    if source.format in ("HEIF", "AVIF"):
        return source.orientation
    return None if source.format == "RAW" else exif.orientation(source.exif)


def _is_plain(decoded: Raster, profile: colour.Profile | None) -> bool:
    is_rgb8 = decoded.model == "rgb" and decoded.samples.dtype == np.uint8 and decoded.samples.shape[2] == 3
    return is_rgb8 and profile is None and decoded.key is None


@contextlib.contextmanager
def naming(path: Path, failure: str) -> Iterator[None]:
    """Turn whatever goes wrong in decoders and encoders into a PhotoError that names the file."""
    try:
        yield
    except FacefixError:
        raise
    except Exception as error:  # the decoders of a dozen formats raise all there is
        raise PhotoError(f"{printable(path)}: {failure}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    if isinstance(error, MemoryError):
        return "not enough memory"
    lines = str(error).strip().splitlines() or [""]
    text = lines[0] if lines[0].isprintable() else ascii(lines[0])
    return text if text and isinstance(error, ValueError | OSError) else f"{text} ({type(error).__name__})".strip()
