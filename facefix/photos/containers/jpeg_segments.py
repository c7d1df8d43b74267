"""The segments of a JPEG file: found, and those that hold metadata changed.

ITU-T T.81 (markers: annex B), JFIF 1.02, Adobe's APP14 (Technical Note 5116), Exif 2.32, XMP part 3, CIPA DC-007 (MPF).
"""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace

from facefix.photos.metadata import exif as exif_block
from facefix.photos.metadata import ifd

SOI, EOI, SOS, DQT, DRI, COM, APP0, APP1, APP2, APP13, APP14 = (
    *(0xD8, 0xD9, 0xDA, 0xDB, 0xDD, 0xFE),
    *(0xE0, 0xE1, 0xE2, 0xED, 0xEE),
)
EXIF, XMP, ICC, MPF = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0", b"ICC_PROFILE\0", b"MPF\0"
FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
PROGRESSIVE = frozenset({0xC2, 0xC6, 0xCA, 0xCE})
METADATA = frozenset(range(0xE0, 0xF0)) | {COM}
_ALONE = frozenset({0x01, *range(0xD0, 0xD9)})
"""Markers without a length."""
DNL = 0xDC
_MARKER_IN_SCAN = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
PHOTOSHOP = b"Photoshop 3.0\0"
LONGEST_PAYLOAD = 65533
_STEREO_OR_PANORAMA = frozenset({0x020001, 0x020002, 0x020003})
"""Types of MPF pictures that belong together as one work: panorama frame, disparity, multi-angle (DC-007 table 4)."""


@dataclass(frozen=True, slots=True)
class Segment:
    """One marker segment, and where it stands in the file."""

    marker: int
    payload: bytes
    start: int

    @property
    def data(self) -> bytes:
        """The segment as it stands in a file."""
        return struct.pack(">BBH", 0xFF, self.marker, len(self.payload) + 2) + self.payload


def parse(data: bytes) -> tuple[list[Segment], int]:
    """Segments before and between the scans, and the offset of the first byte after the picture."""
    if data[:2] != b"\xff\xd8":
        raise ValueError("no JPEG")
    segments, at = list[Segment](), 2
    while at + 4 <= len(data):
        if data[at] != 0xFF or data[at + 1] in (0xFF, 0):  # fill bytes, or stray ones, which decoders pass over
            at += 1
            continue
        marker = data[at + 1]
        if marker == EOI:
            return segments, at + 2
        if marker in _ALONE:
            at += 2
            continue
        length = struct.unpack_from(">H", data, at + 2)[0]
        if length < 2 or at + 2 + length > len(data):
            if any(segment.marker == SOS for segment in segments):
                return segments, at  # no marker, but bytes of what follows a picture without an end marker
            raise ValueError("truncated in a segment")
        segments.append(Segment(marker, data[at + 4 : at + 2 + length], at))
        at += 2 + length
        if marker == SOS:
            found = _MARKER_IN_SCAN.search(data, at)
            if found is None:
                return segments, len(data)
            at = found.start()
    if data[at : at + 2] == b"\xff\xd9":
        return segments, at + 2
    return segments, len(data)


def payload_of(segments: tuple[Segment, ...], marker: int, prefix: bytes) -> bytes | None:
    """What follows ``prefix`` in the first segment of that marker that begins with it."""
    for segment in segments:
        if segment.marker == marker and segment.payload.startswith(prefix):
            return segment.payload[len(prefix) :]
    return None


def icc_profile(segments: tuple[Segment, ...]) -> bytes | None:
    """The profile joined from its numbered parts (ICC.1:2010 annex B.4)."""
    head = len(ICC) + 2
    parts = [
        segment.payload
        for segment in segments
        if segment.marker == APP2 and segment.payload.startswith(ICC) and len(segment.payload) > head
    ]
    return b"".join(part[head:] for part in sorted(parts, key=lambda part: part[len(ICC)])) or None


def is_adobe(segment: Segment) -> bool:
    """Whether it is the segment by which Adobe's programs say how colours are coded."""
    return segment.marker == APP14 and segment.payload.startswith(b"Adobe") and len(segment.payload) >= 12


def adobe_transform(segments: Sequence[Segment]) -> int | None:
    """The colour transform that Adobe's segment names: 0 none, 1 YCbCr, 2 YCCK."""
    return next((segment.payload[11] for segment in segments if is_adobe(segment)), None)


def with_adobe_transform_of(segment: Segment, fresh: list[Segment]) -> Segment:
    """Adobe's segment says how colours are coded: of that, the fresh picture's word counts (YCCK becomes CMYK)."""
    transform = adobe_transform(fresh)
    if not is_adobe(segment) or transform is None:
        return segment
    return replace(segment, payload=segment.payload[:11] + bytes([transform]) + segment.payload[12:])


def with_exif_size(segment: Segment, size: tuple[int, int], scale: int) -> Segment:
    """An EXIF segment with the picture's new size, ``scale`` times as wide; any other as it is."""
    if segment.marker != APP1 or not segment.payload.startswith(EXIF):
        return segment
    return replace(segment, payload=EXIF + exif_block.with_size(segment.payload[len(EXIF) :], *size, scale))


def with_xmp(segments: tuple[Segment, ...], xmp: bytes) -> tuple[tuple[Segment, ...], tuple[str, ...]]:
    """The packet in the place of the old one, else after the EXIF and JFIF segments that have to come first.

    Empty: no packet.
    """
    if len(XMP) + len(xmp) > LONGEST_PAYLOAD:
        return segments, (f"XMP of {len(xmp)} bytes is too long for a JPEG segment and was left out",)
    fresh = (Segment(APP1, XMP + xmp, -1),) if xmp else ()
    olds = [index for index, old in enumerate(segments) if old.marker == APP1 and old.payload.startswith(XMP)]
    if olds:
        return (*segments[: olds[0]], *fresh, *segments[olds[0] + 1 :]), ()
    leading = 0
    for index, segment in enumerate(segments):
        if segment.marker == APP0 or (segment.marker == APP1 and segment.payload.startswith(EXIF)):
            leading = index + 1
    return (*segments[:leading], *fresh, *segments[leading:]), ()


def _mpf_entries(block: bytes) -> tuple[ifd.Layout, ifd.Entry] | None:
    """Layout of an MPF block and its list of pictures, 16 bytes each (DC-007 section 5.2.3.3)."""
    try:
        layout, at = ifd.header(block)
        entry = ifd.directory(block, layout, at).entries.get(0xB002)
    except (ValueError, struct.error):
        return None
    return None if entry is None else (layout, entry)


def pictures_of_one_work(segments: tuple[Segment, ...]) -> int:
    """How many pictures make up the photo: more than 1 for stereo pairs and panoramas, not for previews."""
    block = payload_of(segments, APP2, MPF)
    found = _mpf_entries(block) if block else None
    if block is None or found is None:
        return 1
    layout, entry = found
    kinds = [
        struct.unpack_from(layout.order + "I", block, entry.value_at + 16 * index)[0] & 0xFFFFFF
        for index in range(entry.size // 16)
    ]
    return max(1, sum(kind in _STEREO_OR_PANORAMA for kind in kinds))


def with_shifted_pictures(segments: tuple[Segment, ...], picture_end: int, picture_length: int) -> tuple[Segment, ...]:
    """MPF's list of the pictures in the file, put right for a first picture of another length."""
    shifted, at = list[Segment](), 2
    for segment in segments:
        if segment.marker == APP2 and segment.payload.startswith(MPF):
            old_base, new_base = segment.start + 8, at + 8
            shift = (picture_length - picture_end) - (new_base - old_base)
            block = _shifted_mpf(segment.payload[len(MPF) :], picture_length, shift)
            segment = replace(segment, payload=MPF + block)  # noqa: PLW2901
        shifted.append(segment)
        at += len(segment.data)
    return tuple(shifted)


def _shifted_mpf(block: bytes, picture_length: int, shift: int) -> bytes:
    found = _mpf_entries(block)
    if found is None:
        return block
    layout, entry = found
    changed = bytearray(block)
    for index in range(entry.size // 16):
        at = entry.value_at + 16 * index
        size, offset = struct.unpack_from(layout.order + "II", block, at + 4)
        size, offset = (picture_length, 0) if offset == 0 else (size, (offset + shift) & 0xFFFFFFFF)
        struct.pack_into(layout.order + "II", changed, at + 4, size, offset)
    return bytes(changed)


def number_of_lines(segments: list[Segment]) -> int:
    """The height that stands after the first scan (T.81, annex B.2.5); 0 where none does."""
    found = next((segment.payload for segment in segments if segment.marker == DNL), b"")
    return int(struct.unpack(">H", found)[0]) if len(found) == 2 else 0
