"""JPEG: the picture is encoded anew with the file's own tables, every APPn and COM segment is put back as it was.

ITU-T T.81 (markers: annex B), JFIF 1.02, Adobe's APP14 (Technical Note 5116), Exif 2.32, XMP part 3, CIPA DC-007 (MPF).
"""

from __future__ import annotations

import io
import re
import struct
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, JpegImagePlugin

from facefix.photos.containers.base import Encoded, Source
from facefix.photos.metadata import exif as exif_block
from facefix.photos.metadata import ifd
from facefix.photos.orientation import contiguous
from facefix.photos.raster import Raster

_SOI, _EOI, _SOS, _DQT, _DRI, _COM, _APP0, _APP1, _APP2, _APP13, _APP14 = (
    *(0xD8, 0xD9, 0xDA, 0xDB, 0xDD, 0xFE),
    *(0xE0, 0xE1, 0xE2, 0xED, 0xEE),
)
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_PROGRESSIVE = frozenset({0xC2, 0xC6, 0xCA, 0xCE})
_METADATA = frozenset(range(0xE0, 0xF0)) | {_COM}

_MARKER_IN_SCAN = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")

_EXIF, _XMP, _ICC, _MPF = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0", b"ICC_PROFILE\0", b"MPF\0"
_PHOTOSHOP = b"Photoshop 3.0\0"
_LONGEST_PAYLOAD = 65533

_SUBSAMPLINGS = {(1, 1): 0, (2, 1): 1, (2, 2): 2}
"""Sampling factors of luma relative to chroma, as Pillow numbers them: 4:4:4, 4:2:2, 4:2:0."""

_MODES = {1: "L", 3: "RGB", 4: "CMYK"}

_STEREO_OR_PANORAMA = frozenset({0x020001, 0x020002, 0x020003})
"""Types of MPF pictures that belong together as one work: panorama frame, disparity, multi-angle (DC-007 table 4)."""


@dataclass(frozen=True, slots=True)
class _Segment:
    marker: int
    payload: bytes
    start: int

    @property
    def data(self) -> bytes:
        """The segment as it stands in a file."""
        return struct.pack(">BBH", 0xFF, self.marker, len(self.payload) + 2) + self.payload


@dataclass(frozen=True, slots=True)
class _Component:
    identifier: int
    sampling: tuple[int, int]
    table: int


@dataclass(frozen=True, slots=True)
class _Details:
    metadata: tuple[_Segment, ...]
    components: tuple[_Component, ...]
    progressive: bool
    restart_interval: int
    tables_at: int
    """offset of the first segment that is not metadata"""
    picture_end: int
    """offset of the first byte after the picture; what follows (previews, gain maps, videos) is kept"""


def open(data: bytes) -> Source:
    """Look at the segments up to the end of the picture."""
    segments, picture_end = _parse(data)
    frame = next((segment for segment in segments if segment.marker in _FRAMES), None)
    if frame is None or len(frame.payload) < 6:
        raise ValueError("no frame header")
    _, height, width, count = struct.unpack_from(">BHHB", frame.payload)
    if count not in _MODES or len(frame.payload) < 6 + 3 * count:
        raise ValueError(f"{count} colour components")
    found = (struct.unpack_from("3B", frame.payload, 6 + 3 * index) for index in range(count))
    components = tuple(_Component(name, (sampling >> 4, sampling & 15), table) for name, sampling, table in found)
    restarts = [segment.payload for segment in segments if segment.marker == _DRI and len(segment.payload) == 2]
    metadata = tuple(segment for segment in segments if segment.marker in _METADATA)
    frames = _pictures_of_one_work(metadata)
    return Source(
        format="JPEG",
        mode=_MODES[count],
        size=(width, height),
        data=data,
        exif=_payload(metadata, _APP1, _EXIF),
        icc=_icc_profile(metadata),
        xmp=_payload(metadata, _APP1, _XMP),
        frames=frames,
        copy_reason=f"multi-picture JPEG with {frames} views (stereo or panorama)" if frames > 1 else None,
        details=_Details(
            metadata,
            components,
            frame.marker in _PROGRESSIVE,
            struct.unpack(">H", restarts[0])[0] if restarts else 0,
            next(segment.start for segment in segments if segment.marker not in _METADATA),
            picture_end,
        ),
    )


def decode(source: Source) -> Raster:
    """Decode with libjpeg."""
    image = _pillow(source)
    image.load()
    samples = np.asarray(image)
    if image.mode == "L":
        return Raster(samples[:, :, None], "grey")
    return Raster(samples, "cmyk" if image.mode == "CMYK" else "rgb")


def encode(source: Source, raster: Raster, xmp: bytes | None) -> Encoded:
    """Encode with the tables, sampling, restart interval and progression of the source; put its segments back."""
    details: _Details = source.details
    fresh, notes = _encode_picture(source, raster)
    segments, end = _parse(fresh)
    first_table = next(segment.start for segment in segments if segment.marker not in _METADATA)
    kept = tuple(_with_adobe_transform_of(segment, segments) for segment in details.metadata)
    if raster.size != source.size:
        kept = tuple(_with_exif_size(segment, raster.size) for segment in kept)
    if xmp is not None:
        kept, note = _with_xmp(kept, xmp)
        notes += note
    picture_length = 2 + sum(len(segment.data) for segment in kept) + end - first_table
    kept = _with_shifted_pictures(kept, details, picture_length)
    parts = [b"\xff\xd8", *(segment.data for segment in kept), fresh[first_table:end]]
    return Encoded(b"".join([*parts, source.data[details.picture_end :]]), notes)


def is_lossless(source: Source) -> bool:
    """Never."""
    return False


def tables_and_sampling(data: bytes) -> tuple[list[list[int]], tuple[int, int] | None]:
    """Quantisation tables by component, and luma's sampling factors over chroma's (None for grey), of a JPEG stream."""
    source = open(data)
    image = _pillow(source)
    tables = [list(image.quantization[component.table]) for component in source.details.components]
    return tables, _relative_sampling(source.details.components)


def with_metadata(stream: bytes, *, exif: bytes | None, xmp: bytes | None, resources: bytes | None) -> Encoded:
    """A JPEG stream without metadata, given an EXIF block, an XMP packet and Photoshop's image resources.

    What is too long for a segment is left out, and said so.
    """
    parts, notes = list[bytes](), list[str]()
    for marker, prefix, payload in ((_APP1, _EXIF, exif), (_APP1, _XMP, xmp), (_APP13, _PHOTOSHOP, resources)):
        if not payload:
            continue
        if len(prefix) + len(payload) > _LONGEST_PAYLOAD:
            name = {_EXIF: "EXIF", _XMP: "XMP", _PHOTOSHOP: "IPTC"}[prefix]
            notes.append(f"{name} of {len(payload)} bytes is too long for a JPEG segment and was left out")
        else:
            parts.append(_Segment(marker, prefix + payload, -1).data)
    segments, _ = _parse(stream)
    first = next(segment.start for segment in segments if segment.marker != _APP0)
    return Encoded(b"".join([stream[:first], *parts, stream[first:]]), tuple(notes))


def image_resources(source: Source) -> bytes | None:
    """Photoshop's image resources, IPTC records among them; None where the file has none."""
    details: _Details = source.details
    return _payload(details.metadata, _APP13, _PHOTOSHOP)


def _pillow(source: Source) -> JpegImagePlugin.JpegImageFile:
    """Pillow's decoder itself, for Image.open would refuse large pictures by a limit of its own.

    Of the metadata it gets only what says how colours are coded: damage in the rest is nothing to it.
    """
    details: _Details = source.details
    coding = [
        segment.data
        for segment in details.metadata
        if segment.start < details.tables_at and (segment.marker == _APP0 or _is_adobe(segment))
    ]
    stream = b"".join([b"\xff\xd8", *coding, source.data[details.tables_at :]])
    return JpegImagePlugin.JpegImageFile(io.BytesIO(stream))


def _parse(data: bytes) -> tuple[list[_Segment], int]:
    """Segments before and between the scans, and the offset of the first byte after the picture."""
    if data[:2] != b"\xff\xd8":
        raise ValueError("no JPEG")
    segments, at = list[_Segment](), 2
    while at + 4 <= len(data):
        if data[at] != 0xFF:
            raise ValueError(f"expected a marker at byte {at}")
        marker = data[at + 1]
        if marker == 0xFF:
            at += 1
            continue
        if marker == _EOI:
            return segments, at + 2
        length = struct.unpack_from(">H", data, at + 2)[0]
        if length < 2 or at + 2 + length > len(data):
            raise ValueError("truncated in a segment")
        segments.append(_Segment(marker, data[at + 4 : at + 2 + length], at))
        at += 2 + length
        if marker == _SOS:
            found = _MARKER_IN_SCAN.search(data, at)
            if found is None:
                return segments, len(data)
            at = found.start()
    if data[at : at + 2] == b"\xff\xd9":
        return segments, at + 2
    return segments, len(data)


def _payload(segments: tuple[_Segment, ...], marker: int, prefix: bytes) -> bytes | None:
    for segment in segments:
        if segment.marker == marker and segment.payload.startswith(prefix):
            return segment.payload[len(prefix) :]
    return None


def _icc_profile(segments: tuple[_Segment, ...]) -> bytes | None:
    """The profile joined from its numbered parts (ICC.1:2010 annex B.4)."""
    head = len(_ICC) + 2
    parts = [
        segment.payload
        for segment in segments
        if segment.marker == _APP2 and segment.payload.startswith(_ICC) and len(segment.payload) > head
    ]
    return b"".join(part[head:] for part in sorted(parts, key=lambda part: part[len(_ICC)])) or None


def _encode_picture(source: Source, raster: Raster) -> tuple[bytes, tuple[str, ...]]:
    details: _Details = source.details
    samples = raster.samples[:, :, 0] if raster.model == "grey" else raster.samples
    image = Image.fromarray(contiguous(samples), mode="CMYK" if raster.model == "cmyk" else None)
    sampling = _relative_sampling(details.components)
    known = _SUBSAMPLINGS.get(sampling, 0) if sampling else 0
    notes = () if sampling is None or sampling in _SUBSAMPLINGS else ("unusual chroma subsampling became 4:4:4",)
    keeps_rgb = source.mode == "RGB" and _is_stored_as_rgb(details)
    buffer = io.BytesIO()
    image.save(
        buffer,
        "JPEG",
        qtables=_tables(source),
        subsampling=0 if raster.model == "cmyk" else known,
        progressive=details.progressive,
        keep_rgb=keeps_rgb,
        restart_marker_blocks=details.restart_interval,
    )
    return buffer.getvalue(), notes


def _tables(source: Source) -> list[list[int]]:
    """Quantisation tables in the order of the components; the last one serves all that follow."""
    components: tuple[_Component, ...] = source.details.components
    quantization = _pillow(source).quantization
    tables = [list(quantization[component.table]) for component in components]
    if source.mode == "CMYK":
        return tables[:1]
    while len(tables) > 1 and tables[-1] == tables[-2]:
        tables.pop()
    return tables


def _relative_sampling(components: tuple[_Component, ...]) -> tuple[int, int] | None:
    if len(components) == 1:
        return None
    (width, height), chroma = components[0].sampling, {component.sampling for component in components[1:3]}
    across, down = max(side[0] for side in chroma) or 1, max(side[1] for side in chroma) or 1
    return (width // across, height // down)


def _is_stored_as_rgb(details: _Details) -> bool:
    """Whether three components are RGB: libjpeg's rules, jdapimin.c default_decompress_parms."""
    if any(segment.marker == _APP0 and segment.payload.startswith(b"JFIF\0") for segment in details.metadata):
        return False
    transform = _adobe_transform(details.metadata)
    if transform is not None:
        return transform == 0
    return [component.identifier for component in details.components] == [ord(letter) for letter in "RGB"]


def _is_adobe(segment: _Segment) -> bool:
    return segment.marker == _APP14 and segment.payload.startswith(b"Adobe") and len(segment.payload) >= 12


def _adobe_transform(segments: tuple[_Segment, ...] | list[_Segment]) -> int | None:
    return next((segment.payload[11] for segment in segments if _is_adobe(segment)), None)


def _with_adobe_transform_of(segment: _Segment, fresh: list[_Segment]) -> _Segment:
    """Adobe's segment says how colours are coded: of that, the fresh picture's word counts (YCCK becomes CMYK)."""
    transform = _adobe_transform(fresh)
    if not _is_adobe(segment) or transform is None:
        return segment
    return replace(segment, payload=segment.payload[:11] + bytes([transform]) + segment.payload[12:])


def _with_exif_size(segment: _Segment, size: tuple[int, int]) -> _Segment:
    if segment.marker != _APP1 or not segment.payload.startswith(_EXIF):
        return segment
    return replace(segment, payload=_EXIF + exif_block.with_size(segment.payload[len(_EXIF) :], *size))


def _with_xmp(segments: tuple[_Segment, ...], xmp: bytes) -> tuple[tuple[_Segment, ...], tuple[str, ...]]:
    """The packet in the place of the old one, else after the EXIF and JFIF segments that have to come first.

    Empty: no packet.
    """
    if len(_XMP) + len(xmp) > _LONGEST_PAYLOAD:
        return segments, (f"XMP of {len(xmp)} bytes is too long for a JPEG segment and was left out",)
    fresh = (_Segment(_APP1, _XMP + xmp, -1),) if xmp else ()
    olds = [index for index, old in enumerate(segments) if old.marker == _APP1 and old.payload.startswith(_XMP)]
    if olds:
        return (*segments[: olds[0]], *fresh, *segments[olds[0] + 1 :]), ()
    leading = 0
    for index, segment in enumerate(segments):
        if segment.marker == _APP0 or (segment.marker == _APP1 and segment.payload.startswith(_EXIF)):
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


def _pictures_of_one_work(segments: tuple[_Segment, ...]) -> int:
    """How many pictures make up the photo: more than 1 for stereo pairs and panoramas, not for previews."""
    block = _payload(segments, _APP2, _MPF)
    found = _mpf_entries(block) if block else None
    if block is None or found is None:
        return 1
    layout, entry = found
    kinds = [
        struct.unpack_from(layout.order + "I", block, entry.value_at + 16 * index)[0] & 0xFFFFFF
        for index in range(entry.size // 16)
    ]
    return max(1, sum(kind in _STEREO_OR_PANORAMA for kind in kinds))


def _with_shifted_pictures(
    segments: tuple[_Segment, ...], details: _Details, picture_length: int
) -> tuple[_Segment, ...]:
    """MPF's list of the pictures in the file, put right for a first picture of another length."""
    shifted, at = list[_Segment](), 2
    for segment in segments:
        if segment.marker == _APP2 and segment.payload.startswith(_MPF):
            old_base, new_base = segment.start + 8, at + 8
            shift = (picture_length - details.picture_end) - (new_base - old_base)
            block = _shifted_mpf(segment.payload[len(_MPF) :], picture_length, shift)
            segment = replace(segment, payload=_MPF + block)  # noqa: PLW2901
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
