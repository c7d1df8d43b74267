"""Read a photo as upright sRGB pixels, and write it again with some regions changed and everything else kept.

Metadata is carried over byte for byte: every file format is taken apart into its segments, chunks or tags, and only the
picture is replaced. That includes the small preview inside an EXIF block, which goes on showing the photo as it was.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from facefix.errors import FacefixError, PhotoError, UsageError
from facefix.files import atomic
from facefix.files.names import printable
from facefix.photos import colour, raster
from facefix.photos import orientation as turning
from facefix.photos.containers import bmp, heif, jpeg, png, raw, tiff, webp
from facefix.photos.containers.base import Container, Source
from facefix.photos.formats import RAW_SUFFIXES, missing_extra, sniff
from facefix.photos.metadata import exif
from facefix.photos.raster import Change, Raster
from facefix.photos.region import Region, picture_part

__all__ = [
    "MAX_PIXELS",
    "Photo",
    "Region",
    "Written",
    "copy_photo",
    "read_photo",
    "stored_box",
    "stored_raster",
    "write_photo",
    "write_raster",
]

MAX_PIXELS = 200_000_000
"""Default limit of width times height; more is refused before decoding."""

_BYTES_PER_PIXEL = 16
_OVERHEAD_BYTES = 64 << 20
"""A file may have as many bytes as the largest allowed photo with 16-bit samples, twice, and this much besides."""

_LOSSY_TOLERANCE = 40.0
"""Mean distance, in 8-bit steps, that a lossy picture may have from what was to be written."""


@dataclass(frozen=True, slots=True, eq=False)
class Carrier:
    """What it takes to write a photo again."""

    source: Source
    profile: colour.Profile | None
    status: os.stat_result
    is_plain: bool
    """the upright pixels are the stored samples, turned"""


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
    """black-and-white, or toned in one colour like sepia"""
    frames: int
    copy_reason: str | None
    """why this photo can only be copied (animated, several pages); None when it can be restored"""
    notes: tuple[str, ...]
    """what was ignored in reading, for the report"""
    xmp: bytes | None
    """the photo's XMP packet"""
    carrier: Carrier
    """what write_photo needs; opaque"""

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
    """Read the photo at ``path``, by its content and not its name.

    Raises PhotoError when it cannot be read, is damaged, is no photo, or has more than ``max_pixels`` pixels; the last
    before anything is decoded.
    """
    data, status = _read_file(path, max_pixels)
    container = _container_for(path, data)
    with _naming(path, "cannot be decoded"):
        source = container.open(data)
        _check_size(path, source.size, max_pixels)
        decoded = container.decode(source)
        if decoded.size != source.size:
            raise ValueError(f"expected {source.size} pixels, decoded {decoded.size}")
        profile, note = colour.load_profile(source.icc, decoded.model if decoded.model != "palette" else "rgb")
        turn = None if source.format == "RAW" else exif.orientation(source.exif)
        pixels = turning.contiguous(turning.upright(raster.to_srgb8(decoded, profile), turn))
    pixels.setflags(write=False)
    return Photo(
        path=path,
        pixels=pixels,
        format=source.format,
        mode=source.mode,
        orientation=turn,
        taken=exif.taken(source.exif),
        sha256=hashlib.sha256(data).hexdigest(),
        is_grey=colour.is_monochrome(pixels),
        frames=source.frames,
        copy_reason=source.copy_reason,
        notes=source.notes + ((note,) if note else ()),
        xmp=source.xmp,
        carrier=Carrier(source, profile, status, _is_plain(decoded, profile)),
    )


def write_photo(
    photo: Photo, regions: Sequence[Region], target: Path, *, scale: int = 1, extra_xmp: bytes | None = None
) -> Written:
    """Write ``photo`` with ``regions`` changed to ``target``; later regions lie over earlier ones.

    Format, mode, bit depth, compression, JPEG tables and subsampling, orientation and metadata are the source's. Where
    no region lies, lossless formats keep their samples bit for bit. ``scale`` enlarges the whole photo, and the regions
    are made for the same scale. ``extra_xmp`` is a whole XMP packet that takes the place of the photo's own. The file
    is decoded again before it takes its name. A raw file is written as TIFF or JPEG, as the suffix of ``target`` says.
    Raises PhotoError, and leaves nothing behind, when it does not work out.
    """
    _check_regions(photo, regions, scale)
    with _naming(target, "cannot be encoded"):
        changes = [_as_stored(photo, region) for region in regions]
        changed = raster.apply_changes(stored_raster(photo, scale), changes, photo.carrier.profile)
    return write_raster(photo, changed, target, extra_xmp=extra_xmp)


def write_raster(photo: Photo, changed: Raster, target: Path, *, extra_xmp: bytes | None = None) -> Written:
    """Write ``photo`` with other stored samples to ``target``; everything else as :func:`write_photo` does it."""
    if photo.copy_reason is not None:
        raise PhotoError(f"{printable(photo.path)}: can only be copied: {photo.copy_reason}")
    source = photo.carrier.source
    container = raw.Raw(target.suffix) if source.format == "RAW" else _CONTAINERS[source.format]
    with _naming(target, "cannot be encoded"):
        encoded = container.encode(source, changed, extra_xmp)
    verify = functools.partial(_verify, target, photo, changed, container.is_lossless(source))
    atomic.write_bytes(encoded.data, target, like=photo.carrier.status, verify=verify)
    return Written(target, hashlib.sha256(encoded.data).hexdigest(), encoded.notes)


def stored_raster(photo: Photo, scale: int = 1) -> Raster:
    """The samples as the file stores them, not upright, enlarged ``scale`` times."""
    carrier = photo.carrier
    if carrier.is_plain:
        stored = Raster(turning.contiguous(turning.stored(photo.pixels, photo.orientation)), "rgb")
    else:
        container = _CONTAINERS.get(carrier.source.format) or raw.Raw()
        with _naming(photo.path, "cannot be decoded"):
            stored = container.decode(carrier.source)
    return raster.enlarged(stored, scale)


def stored_box(photo: Photo, region: Region) -> turning.Box:
    """left, top, right, bottom of a region in the stored, not upright, samples enlarged by the region's scale."""
    size = (photo.size[0] * region.scale, photo.size[1] * region.scale)
    return turning.stored_box(region.box, photo.orientation, size)


def copy_photo(source: Path | str | os.PathLike[str], target: Path) -> str:
    """Copy a photo byte for byte, checked and atomic; return its sha256. Raises PhotoError."""
    return atomic.copy_bytes(Path(source), target)


_CONTAINERS: dict[str, Container] = {
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
    return _CONTAINERS[kind]


def _check_size(path: Path, size: tuple[int, int], max_pixels: int) -> None:
    if min(size) < 1:
        raise PhotoError(f"{printable(path)}: expected a picture, found one of {size[0]} x {size[1]} pixels")
    if size[0] * size[1] > max_pixels:
        raise PhotoError(
            f"{printable(path)}: {size[0]} x {size[1]} = {size[0] * size[1]} pixels are more than the limit of "
            f"{max_pixels}; raise --max-pixels if the photo can be trusted"
        )


def _is_plain(decoded: Raster, profile: colour.Profile | None) -> bool:
    is_rgb8 = decoded.model == "rgb" and decoded.samples.dtype == np.uint8 and decoded.samples.shape[2] == 3
    return is_rgb8 and profile is None and decoded.key is None


def _check_regions(photo: Photo, regions: Sequence[Region], scale: int) -> None:
    width, height = photo.size[0] * scale, photo.size[1] * scale
    for region in regions:
        if region.scale != scale:
            raise UsageError(f"regions: expected them made for scale {scale}, found scale {region.scale}")
        if region.box[2] > width or region.box[3] > height:
            raise UsageError(f"regions: {region.box} reaches past the {width} x {height} pixels of the photo")


def _as_stored(photo: Photo, region: Region) -> Change:
    """A region of the upright photo as a change of the stored one."""
    base = picture_part(photo.pixels, region.box, region.scale)
    stored_left, stored_top, _, _ = stored_box(photo, region)
    rgb, base, alpha = (
        turning.contiguous(turning.stored(layer, photo.orientation)) for layer in (region.rgb, base, region.alpha)
    )
    return Change(stored_left, stored_top, rgb, base, alpha)


def _verify(target: Path, photo: Photo, expected: Raster, exact: bool, temporary: Path) -> None:
    """Decode what was written: it has the right format, mode and size, and shows what it should."""
    data = temporary.read_bytes()
    with _naming(target, "what was written cannot be decoded again"):
        container = _CONTAINERS[sniff(data[:64]) or ""]
        source = container.open(data)
        if photo.format != "RAW" and (source.format, source.mode) != (photo.format, photo.mode):
            raise ValueError(f"expected {photo.format} {photo.mode}, found {source.format} {source.mode}")
        written = container.decode(source)
        if written.size != expected.size:
            raise ValueError(f"expected {expected.size} pixels, found {written.size}")
        if exact and not np.array_equal(written.samples, expected.samples):
            raise ValueError("its samples differ from what was to be written")
        if not exact and _mean_distance(written, expected) > _LOSSY_TOLERANCE:
            raise ValueError("its picture is far from what was to be written")


def _mean_distance(one: Raster, other: Raster) -> float:
    """Mean absolute difference of two rasters of the same size, in 8-bit steps, on a sample of their pixels."""
    step = max(1, min(one.size) // 256)
    first, second = (raster.to_8bit(each.samples[::step, ::step], each.peak).astype(np.int16) for each in (one, other))
    return float(np.abs(first - second).mean())


@contextlib.contextmanager
def _naming(path: Path, failure: str) -> Iterator[None]:
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
