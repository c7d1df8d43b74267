"""Names that people already gave to faces: MWG-RS and Microsoft face regions in a photo's XMP.

digiKam, Lightroom and Picasa write the regions of the Metadata Working Group ("Guidelines for handling image metadata",
version 2.0, section 5.9: centre and size as fractions of the stored picture, EXIF orientation not applied). Windows
Photo Gallery, and digiKam beside it, write ``MPReg`` ("left, top, width, height", fractions as well).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from lxml import etree

from facefix.faces.face import Face
from facefix.photos.turned_box import Box, upright_box
from facefix.photos.xmp import RDF, parse_packet

MWG_RS: Final = "http://www.metadataworkinggroup.com/schemas/regions/"
ST_AREA: Final = "http://ns.adobe.com/xmp/sType/Area#"
ST_DIM: Final = "http://ns.adobe.com/xap/1.0/sType/Dimensions#"
MP_REG: Final = "http://ns.microsoft.com/photo/1.2/t/Region#"

_MIN_OVERLAP: Final = 0.15
"""Intersection over union from which a region names a face. Regions drawn by hand hold the whole head, detectors' boxes
only the face, so the same face may overlap with itself by as little as a fifth."""


@dataclass(frozen=True, slots=True)
class NamedRegion:
    """A face that somebody gave a name."""

    name: str
    box: Box
    """left, top, right, bottom in pixels of the upright photo"""


def read_regions(packet: bytes, stored_size: tuple[int, int], orientation: int = 1) -> tuple[NamedRegion, ...]:
    """Read the named face regions of an XMP packet.

    Args:
        packet: XMP bytes.
        stored_size: width, height of the picture as stored, EXIF orientation not applied, in pixels.
        orientation: EXIF orientation, 1 to 8.

    Returns:
        The regions in the packet's order. Regions without a name, of another type than Face, without an area, or with
        numbers that are none, are left out. Where both kinds are there, MWG-RS is taken.

    Raises:
        PhotoError: the packet is not XMP.
    """
    root = parse_packet(packet)
    width, height = stored_size[::-1] if orientation in (5, 6, 7, 8) else stored_size
    turn = 1 if _drawn_upright(root, stored_size, orientation) else orientation
    regions = []
    for region in _mwg_regions(root) or _microsoft_regions(root):
        left, top, right, bottom = upright_box(region.box, turn)
        regions.append(NamedRegion(region.name, (left * width, top * height, right * width, bottom * height)))
    return tuple(regions)


def sidecar_packet(photo: Path) -> bytes | None:
    """The XMP packet beside a photo (``a.jpg.xmp`` or ``a.xmp``); None where there is none."""
    for candidate in (photo.with_name(photo.name + ".xmp"), photo.with_suffix(".xmp")):
        try:
            return candidate.read_bytes()
        except OSError:
            continue
    return None


def name_faces(faces: Sequence[Face], regions: Sequence[NamedRegion]) -> Mapping[tuple[str, int], str]:
    """Give the faces of one photo the names of the regions that lie on them.

    The best-overlapping pairs come first, and no region names two faces.

    Returns:
        Face key to name, only for faces that have a region.
    """
    pairs = sorted(
        (
            (overlap(face.detection.box, region.box), f, r)
            for f, face in enumerate(faces)
            for r, region in enumerate(regions)
        ),
        key=lambda pair: (-pair[0], pair[1], pair[2]),
    )
    named: dict[int, int] = {}
    for score, f, r in pairs:
        if score >= _MIN_OVERLAP and f not in named and r not in named.values():
            named[f] = r
    return {faces[f].key: regions[r].name for f, r in sorted(named.items())}


def overlap(a: Box, b: Box) -> float:
    """Intersection over union of two boxes (left, top, right, bottom), 0..1."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    intersection = width * height
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - intersection
    return intersection / union


def _mwg_regions(root: etree._Element) -> list[NamedRegion]:
    """MWG regions with their boxes as fractions of the stored picture."""
    regions = []
    for area in root.iter(f"{{{MWG_RS}}}Area"):
        owner = area.getparent()
        if owner is None:
            continue
        name = _property(owner, MWG_RS, "Name")
        kind = _property(owner, MWG_RS, "Type")
        numbers = [_number(_property(area, ST_AREA, key)) for key in ("x", "y", "w", "h")]
        if name and kind in (None, "Face") and None not in numbers:
            x, y, w, h = (number for number in numbers if number is not None)
            regions.append((name, (x - w / 2, y - h / 2, x + w / 2, y + h / 2)))
    return _plausible(regions)


def _microsoft_regions(root: etree._Element) -> list[NamedRegion]:
    regions = []
    for holder in root.iter(etree.Element):
        name = _property(holder, MP_REG, "PersonDisplayName")
        numbers = [_number(part) for part in (_property(holder, MP_REG, "Rectangle") or "").split(",")]
        if name and len(numbers) == 4 and None not in numbers:
            x, y, w, h = (number for number in numbers if number is not None)
            regions.append((name, (x, y, x + w, y + h)))
    return _plausible(regions)


def _plausible(regions: Sequence[tuple[str, Box]]) -> list[NamedRegion]:
    """Regions that lie, at least partly, on the picture."""
    on_picture = []
    for name, (left, top, right, bottom) in regions:
        if left < right and top < bottom and left < 1 and top < 1 and right > 0 and bottom > 0:
            on_picture.append(NamedRegion(name, (left, top, right, bottom)))
    return on_picture


def _property(element: etree._Element, namespace: str, key: str) -> str | None:
    """An XMP simple property, written as attribute or as child element, on the element or on the
    ``rdf:Description`` inside it."""
    tag = f"{{{namespace}}}{key}"
    for holder in (element, *element.findall(f"{{{RDF}}}Description")):
        text = holder.get(tag) or holder.findtext(tag)
        if text and text.strip():
            return str(text).strip()
    return None


def _number(text: str | None) -> float | None:
    try:
        number = float(text) if text is not None else math.nan
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _drawn_upright(root: etree._Element, stored_size: tuple[int, int], orientation: int) -> bool:
    """Whether the regions were drawn on the turned picture, against the guidelines: told by AppliedToDimensions."""
    if orientation not in (5, 6, 7, 8) or stored_size[0] == stored_size[1]:
        return False
    for applied in root.iter(f"{{{MWG_RS}}}AppliedToDimensions"):
        width, height = _number(_property(applied, ST_DIM, "w")), _number(_property(applied, ST_DIM, "h"))
        if width and height:
            return (width > height) != (stored_size[0] > stored_size[1])
    return False
