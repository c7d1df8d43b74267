"""Read a photo as upright sRGB pixels, and write it again with some regions changed and everything else kept.

Metadata is carried over byte for byte: every file format is taken apart into its segments, chunks or tags, and only the
picture is replaced. That includes the small preview inside an EXIF block, which goes on showing the photo as it was.
"""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from facefix.errors import PhotoError, UsageError
from facefix.files import atomic
from facefix.files.dates import output_mtime_ns
from facefix.files.names import printable
from facefix.photos import agreement, colour, raster
from facefix.photos import orientation as turning
from facefix.photos.containers import raw
from facefix.photos.containers.base import Source
from facefix.photos.formats import sniff
from facefix.photos.metadata.scaled import scaled_packet
from facefix.photos.opening import CONTAINERS, MAX_PIXELS, OpenedPhoto, naming, open_photo, orientation_of
from facefix.photos.raster import Change, Raster
from facefix.photos.region import Region, picture_part

__all__ = [
    "MAX_PIXELS",
    "OpenedPhoto",
    "Photo",
    "Region",
    "Written",
    "copy_photo",
    "open_photo",
    "read_photo",
    "stored_box",
    "stored_raster",
    "write_photo",
    "write_raster",
]


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
        """Width and height of the upright photo."""
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
    opened = open_photo(path, max_pixels)
    source = opened.source
    pixels, profile, is_plain = opened.decode()
    return Photo(
        path=path,
        pixels=pixels,
        format=source.format,
        mode=source.mode,
        orientation=opened.orientation,
        taken=opened.taken,
        sha256=opened.sha256,
        is_grey=colour.is_monochrome(pixels),
        frames=source.frames,
        copy_reason=source.copy_reason,
        notes=opened.notes,
        xmp=source.xmp,
        carrier=Carrier(source, profile, opened.status, is_plain),
    )


def write_photo(
    photo: Photo,
    regions: Sequence[Region],
    target: Path,
    *,
    scale: int = 1,
    extra_xmp: bytes | None = None,
    dated_now: bool = False,
) -> Written:
    """Write ``photo`` with ``regions`` changed to ``target``; later regions lie over earlier ones.

    Format, mode, bit depth, compression, JPEG tables and subsampling, orientation and metadata are the source's. Where
    no region lies, lossless formats keep their samples bit for bit. ``scale`` enlarges the whole photo, and the regions
    are made for the same scale. ``extra_xmp`` is a whole XMP packet that takes the place of the photo's own. The file
    is decoded again before it takes its name. Its date is the photo's, as `files.dates` has it, or with ``dated_now``
    the time of writing. A raw file is written as TIFF or JPEG, as the suffix of ``target`` says.
    Raises PhotoError, and leaves nothing behind, when it does not work out.
    """
    _check_regions(photo, regions, scale)
    with naming(target, "cannot be encoded"):
        changes = [_as_stored(photo, region) for region in regions]
        changed = raster.apply_changes(stored_raster(photo, scale), changes, photo.carrier.profile)
    if scale != 1:
        extra_xmp = _scaled_xmp(extra_xmp if extra_xmp is not None else photo.xmp, scale)
    return write_raster(photo, changed, target, extra_xmp=extra_xmp, dated_now=dated_now)


def write_raster(
    photo: Photo, changed: Raster, target: Path, *, extra_xmp: bytes | None = None, dated_now: bool = False
) -> Written:
    """Write ``photo`` with other stored samples to ``target``; everything else as :func:`write_photo` does it."""
    if photo.copy_reason is not None:
        raise PhotoError(f"{printable(photo.path)}: can only be copied: {photo.copy_reason}")
    source = photo.carrier.source
    container = raw.Raw(target.suffix) if source.format == "RAW" else CONTAINERS[source.format]
    with naming(target, "cannot be encoded"):
        encoded = container.encode(source, changed, extra_xmp)
    verify = functools.partial(_verify, target, photo, changed, container.is_lossless(source))
    digest, status = hashlib.sha256(encoded.data).hexdigest(), photo.carrier.status
    date = output_mtime_ns(target, len(encoded.data), digest, status, now=dated_now)
    atomic.write_bytes(encoded.data, target, like=status, mtime_ns=date, verify=verify)
    notes = (*encoded.notes, _MANIFEST_NOTE) if _MANIFEST in encoded.data else encoded.notes
    return Written(target, digest, notes)


def stored_raster(photo: Photo, scale: int = 1) -> Raster:
    """The samples as the file stores them, not upright, enlarged ``scale`` times."""
    carrier = photo.carrier
    if carrier.is_plain:
        stored = Raster(turning.contiguous(turning.stored(photo.pixels, photo.orientation)), "rgb")
    else:
        container = CONTAINERS.get(carrier.source.format) or raw.Raw()
        with naming(photo.path, "cannot be decoded"):
            stored = container.decode(carrier.source)
    return raster.enlarged(stored, scale)


def stored_box(photo: Photo, region: Region) -> turning.Box:
    """left, top, right, bottom of a region in the stored, not upright, samples enlarged by the region's scale."""
    size = (photo.size[0] * region.scale, photo.size[1] * region.scale)
    return turning.stored_box(region.box, photo.orientation, size)


def copy_photo(source: Path | str | os.PathLike[str], target: Path) -> str:
    """Copy a photo byte for byte, checked and atomic; return its sha256. Raises PhotoError."""
    return atomic.copy_bytes(Path(source), target)


_MANIFEST = b"jumdc2pa\x00\x11\x00\x10\x80\x00\x00\xaa\x00\x38\x9b\x71"
"""How a C2PA manifest store begins in every format (C2PA Specification 2.1, section 11.1.4: JUMBF description box)."""

_MANIFEST_NOTE = "its C2PA manifest (Content Credentials) is kept but no longer fits the picture: checks will say so"

_KEEPS_EXIF = ("JPEG", "PNG", "WEBP", "HEIF", "AVIF")
"""Formats that carry EXIF as a block of bytes."""


def _scaled_xmp(packet: bytes | None, scale: int) -> bytes | None:
    """A packet with what counts in pixels multiplied; as it is where it cannot be understood."""
    try:
        return scaled_packet(packet, scale) if packet else packet
    except PhotoError:
        return packet


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
    with naming(target, "what was written cannot be decoded again"):
        container = CONTAINERS[sniff(data[:64]) or ""]
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
        if photo.format != "RAW":
            _check_kept(photo, source, expected.size)
            agreement.check(photo.carrier.source, data, stored_raster(photo), written)


def _check_kept(photo: Photo, written: Source, size: tuple[int, int]) -> None:
    """What describes the picture is as in the source. Raises ValueError."""
    source = photo.carrier.source
    is_same_size = size == source.size
    for name, before, after in (
        ("colour profile", source.icc, written.icc),
        ("orientation", photo.orientation, orientation_of(written)),
        ("number of pictures", source.frames, written.frames),
        ("EXIF", source.exif, written.exif if is_same_size and source.format in _KEEPS_EXIF else source.exif),
    ):
        if before != after:
            raise ValueError(f"its {name} is not the source's")


def _mean_distance(one: Raster, other: Raster) -> float:
    """Mean absolute difference of two rasters of the same size, in 8-bit steps, on a sample of their pixels."""
    step = max(1, min(one.size) // 256)
    first, second = (raster.to_8bit(each.samples[::step, ::step], each.peak).astype(np.int16) for each in (one, other))
    return float(np.abs(first - second).mean())
