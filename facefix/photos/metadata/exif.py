"""What is needed of an EXIF block: orientation and time, and the picture's size put right after enlarging.

EXIF 2.32 (CIPA DC-008-2019). A block is the TIFF structure without the ``Exif\\0\\0`` that JPEG puts before it. What
is damaged in it counts as missing: a photo is not refused for its metadata.
"""

from __future__ import annotations

import calendar
import re
import struct

from facefix.photos.metadata import ifd

_ORIENTATION, _WIDTH, _HEIGHT = 0x0112, 0x0100, 0x0101
_EXIF_DIRECTORY = 0x8769
_TIME_ORIGINAL, _OFFSET_ORIGINAL = 0x9003, 0x9011
_PIXEL_WIDTH, _PIXEL_HEIGHT = 0xA002, 0xA003

_TIME = re.compile(r"(\d{4}):(\d\d):(\d\d)[ T](\d\d):(\d\d):(\d\d)")
_OFFSET = re.compile(r"([+-])(\d\d):(\d\d)")


def orientation(block: bytes | None) -> int | None:
    """EXIF orientation 1..8; None where the block has none that is valid."""
    first = _first_directory(block)
    value = ifd.integer(block, first, _ORIENTATION) if block and first else None
    return value if value in range(1, 9) else None


def taken(block: bytes | None) -> float | None:
    """DateTimeOriginal as POSIX seconds, taken for UTC where the block gives no offset; None where it is missing."""
    details = _exif_directory(block)
    if not block or details is None:
        return None
    found = _TIME.match(ifd.text(block, details, _TIME_ORIGINAL) or "")
    if found is None:
        return None
    year, month, day, hour, minute, second = (int(part) for part in found.groups())
    if not (year and 1 <= month <= 12 and 1 <= day <= 31 and hour < 24 and minute < 60 and second < 61):
        return None
    seconds = calendar.timegm((year, month, day, hour, minute, second))
    offset = _OFFSET.match(ifd.text(block, details, _OFFSET_ORIGINAL) or "")
    if offset is None:
        return float(seconds)
    sign = 1 if offset[1] == "+" else -1
    return float(seconds - sign * (int(offset[2]) * 3600 + int(offset[3]) * 60))


def with_size(block: bytes, width: int, height: int) -> bytes:
    """``block`` with the tags of the stored picture's size, where it has them, set to ``width`` and ``height``."""
    changed = bytearray(block)
    for directory, width_tag, height_tag in (
        (_first_directory(block), _WIDTH, _HEIGHT),
        (_exif_directory(block), _PIXEL_WIDTH, _PIXEL_HEIGHT),
    ):
        if directory is not None:
            ifd.put_integer(changed, directory, width_tag, width)
            ifd.put_integer(changed, directory, height_tag, height)
    return bytes(changed)


def with_orientation(block: bytes, value: int) -> bytes:
    """``block`` with its orientation tag, where it has one, set to ``value``."""
    changed = bytearray(block)
    first = _first_directory(block)
    if first is not None:
        ifd.put_integer(changed, first, _ORIENTATION, value)
    return bytes(changed)


def _first_directory(block: bytes | None) -> ifd.Directory | None:
    if not block:
        return None
    try:
        layout, at = ifd.header(block)
        return ifd.directory(block, layout, at)
    except (ValueError, struct.error):
        return None


def _exif_directory(block: bytes | None) -> ifd.Directory | None:
    first = _first_directory(block)
    if not block or first is None:
        return None
    at = ifd.integer(block, first, _EXIF_DIRECTORY)
    try:
        return ifd.directory(block, first.layout, at) if at else None
    except (ValueError, struct.error):
        return None
