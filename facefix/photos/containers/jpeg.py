"""JPEG: the picture is encoded anew with the file's own tables, every APPn and COM segment is put back as it was.

ITU-T T.81 (markers: annex B), JFIF 1.02, Adobe's APP14 (Technical Note 5116), Exif 2.32, XMP part 3, CIPA DC-007 (MPF).
"""

from __future__ import annotations

import io
import struct
import threading
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image, ImageFile, JpegImagePlugin

from facefix.photos.containers import jpeg_end, jpeg_scans
from facefix.photos.containers.base import Encoded, Source
from facefix.photos.containers.jpeg_segments import (
    APP0,
    APP1,
    APP13,
    DRI,
    EXIF,
    FRAMES,
    LONGEST_PAYLOAD,
    METADATA,
    PHOTOSHOP,
    PROGRESSIVE,
    SOS,
    XMP,
    Segment,
    adobe_transform,
    icc_profile,
    is_adobe,
    number_of_lines,
    parse,
    payload_of,
    pictures_of_one_work,
    with_adobe_transform_of,
    with_exif_size,
    with_shifted_pictures,
    with_xmp,
)
from facefix.photos.orientation import contiguous
from facefix.photos.raster import Raster

_PILLOWS_BUFFER = threading.Lock()
_LARGEST_BYTES_PER_SAMPLE = 2
"""An incompressible block takes less than two bytes a coefficient."""

_SUBSAMPLINGS = {(1, 1): 0, (2, 1): 1, (2, 2): 2}
"""Sampling factors of luma relative to chroma, as Pillow numbers them: 4:4:4, 4:2:2, 4:2:0."""

_MODES = {1: "L", 3: "RGB", 4: "CMYK"}


@dataclass(frozen=True, slots=True)
class _Component:
    identifier: int
    sampling: tuple[int, int]
    table: int


@dataclass(frozen=True, slots=True)
class _Details:
    metadata: tuple[Segment, ...]
    components: tuple[_Component, ...]
    progressive: bool
    restart_interval: int
    tables_at: int
    """offset of the first segment that is not metadata"""
    picture_end: int
    """offset of the first byte after the picture; what follows (previews, gain maps, videos) is kept"""
    stream: bytes
    """the picture alone, with all that its decoder needs and nothing that it might stumble over"""


def open(data: bytes) -> Source:
    """Look at the segments up to the end of the picture."""
    segments, picture_end = parse(data)
    frame = next((segment for segment in segments if segment.marker in FRAMES), None)
    if frame is None or len(frame.payload) < 6:
        raise ValueError("no frame header")
    _, height, width, count = struct.unpack_from(">BHHB", frame.payload)
    height = height or number_of_lines(segments)
    if count not in _MODES or len(frame.payload) < 6 + 3 * count:
        raise ValueError(f"{count} colour components")
    found = (struct.unpack_from("3B", frame.payload, 6 + 3 * index) for index in range(count))
    components = tuple(_Component(name, (sampling >> 4, sampling & 15), table) for name, sampling, table in found)
    restarts = [segment.payload for segment in segments if segment.marker == DRI and len(segment.payload) == 2]
    metadata = tuple(segment for segment in segments if segment.marker in METADATA)
    if data[picture_end - 2 : picture_end] != b"\xff\xd9":
        picture_end = _end_of_picture(data, segments, picture_end, height, components)
    frames = pictures_of_one_work(metadata)
    return Source(
        format="JPEG",
        mode=_MODES[count],
        size=(width, height),
        data=data,
        exif=payload_of(metadata, APP1, EXIF),
        icc=icc_profile(metadata),
        xmp=payload_of(metadata, APP1, XMP),
        frames=frames,
        copy_reason=f"multi-picture JPEG with {frames} views (stereo or panorama)" if frames > 1 else None,
        details=_Details(
            metadata,
            components,
            frame.marker in PROGRESSIVE,
            struct.unpack(">H", restarts[0])[0] if restarts else 0,
            next(segment.start for segment in segments if segment.marker not in METADATA),
            picture_end,
            _stream(data, segments, picture_end, height),
        ),
    )


def decode(source: Source) -> Raster:
    """Decode with libjpeg."""
    return _raster(_pillow(source))


def decode_reduced(source: Source, reduction: int) -> Raster:
    """Decode 2, 4 or 8 times smaller, sides rounded up: libjpeg leaves out the frequencies that do not show there."""
    image = _pillow(source)
    width, height = source.size
    image.draft(image.mode, (width // reduction, height // reduction))
    expected = (-(-width // reduction), -(-height // reduction))
    if image.size != expected:
        raise ValueError(f"expected a reduced size of {expected}, found {image.size}")
    return _raster(image)


def _raster(image: JpegImagePlugin.JpegImageFile) -> Raster:
    image.load()
    samples = np.asarray(image)
    if image.mode == "L":
        return Raster(samples[:, :, None], "grey")
    return Raster(samples, "cmyk" if image.mode == "CMYK" else "rgb")


def encode(source: Source, raster: Raster, xmp: bytes | None) -> Encoded:
    """Encode with the tables, sampling, restart interval and progression of the source; put its segments back."""
    details: _Details = source.details
    fresh, notes = _encode_picture(source, raster)
    segments, end = parse(fresh)
    first_table = next(segment.start for segment in segments if segment.marker not in METADATA)
    kept = tuple(with_adobe_transform_of(segment, segments) for segment in details.metadata)
    if raster.size != source.size:
        kept = tuple(with_exif_size(segment, raster.size, raster.size[0] // source.size[0]) for segment in kept)
    if xmp is not None:
        kept, note = with_xmp(kept, xmp)
        notes += note
    picture_length = 2 + sum(len(segment.data) for segment in kept) + end - first_table
    kept = with_shifted_pictures(kept, details.picture_end, picture_length)
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
    for marker, prefix, payload in ((APP1, EXIF, exif), (APP1, XMP, xmp), (APP13, PHOTOSHOP, resources)):
        if not payload:
            continue
        if len(prefix) + len(payload) > LONGEST_PAYLOAD:
            name = {EXIF: "EXIF", XMP: "XMP", PHOTOSHOP: "IPTC"}[prefix]
            notes.append(f"{name} of {len(payload)} bytes is too long for a JPEG segment and was left out")
        else:
            parts.append(Segment(marker, prefix + payload, -1).data)
    segments, _ = parse(stream)
    first = next(segment.start for segment in segments if segment.marker != APP0)
    return Encoded(b"".join([stream[:first], *parts, stream[first:]]), tuple(notes))


def image_resources(source: Source) -> bytes | None:
    """Photoshop's image resources, IPTC records among them; None where the file has none."""
    details: _Details = source.details
    return payload_of(details.metadata, APP13, PHOTOSHOP)


def _pillow(source: Source) -> JpegImagePlugin.JpegImageFile:
    """Pillow's decoder itself, for Image.open would refuse large pictures by a limit of its own.

    Of the metadata it gets only what says how colours are coded: damage in the rest is nothing to it.
    """
    details: _Details = source.details
    coding = [
        segment.data
        for segment in details.metadata
        if segment.start < details.tables_at and (segment.marker == APP0 or is_adobe(segment))
    ]
    stream = b"".join([b"\xff\xd8", *coding, details.stream])
    return JpegImagePlugin.JpegImageFile(io.BytesIO(stream))


def _end_of_picture(
    data: bytes, segments: list[Segment], end: int, height: int, components: tuple[_Component, ...]
) -> int:
    """Where a picture without end marker ends. Raises ValueError where it is truncated."""
    scans = [segment for segment in segments if segment.marker == SOS]
    if not scans:
        raise ValueError("truncated: no picture")
    start = scans[-1].start + len(scans[-1].data)
    coding = [segment.data for segment in segments if segment.marker == APP0 or is_adobe(segment)]

    def stream(until: int) -> bytes:
        picture = _stream(data, segments, until, height).removesuffix(b"\xff\xd9")
        return b"".join([b"\xff\xd8", *coding, picture])

    names = [component.identifier for component in components]
    return jpeg_end.find_end(stream, start, end, names, [scan.payload for scan in scans])


def _stream(data: bytes, segments: list[Segment], picture_end: int, height: int) -> bytes:
    """From the first table to the end of the picture, without stray bytes, with the height and the end marker."""
    parts = []
    for segment in segments:
        if segment.marker == SOS:
            parts.append(data[segment.start : picture_end])
            break
        if segment.marker in FRAMES:
            payload = segment.payload[:1] + struct.pack(">H", height) + segment.payload[3:]
            parts.append(replace(segment, payload=payload).data)
        elif segment.marker not in METADATA:
            parts.append(segment.data)
    return b"".join(parts).removesuffix(b"\xff\xd9") + b"\xff\xd9"


def _encode_picture(source: Source, raster: Raster) -> tuple[bytes, tuple[str, ...]]:
    details: _Details = source.details
    samples = raster.samples[:, :, 0] if raster.model == "grey" else raster.samples
    image = Image.fromarray(contiguous(samples), mode="CMYK" if raster.model == "cmyk" else None)
    sampling = _relative_sampling(details.components)
    known = _SUBSAMPLINGS.get(sampling, 0) if sampling else 0
    keeps_rgb = source.mode == "RGB" and _is_stored_as_rgb(details)
    if raster.model == "rgb" and not keeps_rgb and sampling not in _SUBSAMPLINGS:
        return _in_scans(source, raster), ()
    options = {
        "qtables": _tables(source),
        "subsampling": 0 if raster.model == "cmyk" else known,
        "progressive": details.progressive,
        "keep_rgb": keeps_rgb,
        "restart_marker_blocks": details.restart_interval,
    }
    return _saved(image, options), ()


def _in_scans(source: Source, raster: Raster) -> bytes:
    components: tuple[_Component, ...] = source.details.components
    quantization = _pillow(source).quantization
    tables = [list(quantization[component.table]) for component in components]
    sampling = [component.sampling for component in components]
    return jpeg_scans.encode(raster.samples, tables, sampling, [component.identifier for component in components])


def _saved(image: Image.Image, options: dict[str, Any]) -> bytes:
    """What Pillow writes. Its buffer must hold a whole progressive picture; a byte a pixel is not always enough."""
    buffer = io.BytesIO()
    try:
        image.save(buffer, "JPEG", **options)
        return buffer.getvalue()
    except OSError:
        buffer = io.BytesIO()
        with _PILLOWS_BUFFER:
            usual = ImageFile.MAXBLOCK
            ImageFile.MAXBLOCK = max(usual, _LARGEST_BYTES_PER_SAMPLE * image.width * image.height * 4)
            try:
                image.save(buffer, "JPEG", **options)
            finally:
                ImageFile.MAXBLOCK = usual
        return buffer.getvalue()


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
    if any(segment.marker == APP0 and segment.payload.startswith(b"JFIF\0") for segment in details.metadata):
        return False
    transform = adobe_transform(details.metadata)
    if transform is not None:
        return transform == 0
    return [component.identifier for component in details.components] == [ord(letter) for letter in "RGB"]
