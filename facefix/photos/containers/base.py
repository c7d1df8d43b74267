"""What every file format offers: find out about a file, decode its samples, write it again with other samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from facefix.photos.raster import Raster


@dataclass(frozen=True, slots=True, eq=False)
class Source:
    """A photo's file, looked into but not decoded."""

    format: str
    mode: str
    """Pillow's name of the stored pixel layout, followed by ;16 where samples have 16 bits"""
    size: tuple[int, int]
    """width, height as stored"""
    data: bytes
    """the whole file"""
    exif: bytes | None = None
    """the EXIF block from its TIFF header on"""
    icc: bytes | None = None
    xmp: bytes | None = None
    """the XMP packet"""
    frames: int = 1
    copy_reason: str | None = None
    """why the file can be shown but not be written again"""
    notes: tuple[str, ...] = ()
    orientation: int | None = None
    """EXIF's number for how the container itself turns the picture, in formats that do not leave that to EXIF"""
    details: Any = None
    """what the format's own module needs for decoding and writing"""


@dataclass(frozen=True, slots=True)
class Encoded:
    """A file as written."""

    data: bytes
    notes: tuple[str, ...] = ()


class Container(Protocol):
    """One file format. Damaged files may raise any exception; the caller gives them a name and a reason."""

    def open(self, data: bytes) -> Source:
        """Look into the file without decoding the picture."""

    def decode(self, source: Source) -> Raster:
        """Decode the first picture."""

    def encode(self, source: Source, raster: Raster, xmp: bytes | None) -> Encoded:
        """The file with the picture replaced; all else is kept but what depends on the picture's size.

        ``xmp`` takes the place of the XMP packet; None keeps it, and empty bytes leave the file without one.
        """

    def is_lossless(self, source: Source) -> bool:
        """Whether decoding what ``encode`` gives yields the raster bit for bit."""
