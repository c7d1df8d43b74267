"""Names that people already gave to faces: MWG-RS and Microsoft face regions in a photo's XMP.

digiKam, Lightroom and Picasa write the regions of the Metadata Working Group ("Guidelines for handling image metadata",
version 2.0, section 5.9: centre and size as fractions of the stored picture, EXIF orientation not applied). Windows
Photo Gallery, and digiKam beside it, write ``MPReg`` ("left, top, width, height", fractions as well).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from lxml import etree

from facefix.photos.metadata.xmp import RDF, parse_packet, serialize_packet
from facefix.photos.turned_box import Box, upright_box

MWG_RS: Final = "http://www.metadataworkinggroup.com/schemas/regions/"
ST_AREA: Final = "http://ns.adobe.com/xmp/sType/Area#"
ST_DIM: Final = "http://ns.adobe.com/xap/1.0/sType/Dimensions#"
MP_REG: Final = "http://ns.microsoft.com/photo/1.2/t/Region#"
TIFF: Final = "http://ns.adobe.com/tiff/1.0/"


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


def upright_packet(packet: bytes, stored_size: tuple[int, int], orientation: int) -> bytes:
    """The packet for a picture that was turned upright for good: ``tiff:Orientation`` 1, the face regions turned along.

    Args:
        packet: XMP bytes.
        stored_size: width, height of the picture before it was turned, in pixels.
        orientation: EXIF orientation that was applied, 1 to 8; with 1 the packet comes back as it is.

    Raises:
        PhotoError: the packet is not XMP.
    """
    if orientation not in range(2, 9):
        return packet
    root = parse_packet(packet)
    for holder in root.iter(etree.Element):
        if _property_here(holder, TIFF, "Orientation") is not None:
            _set_property(holder, TIFF, "Orientation", "1")
    if not _drawn_upright(root, stored_size, orientation):
        _turn_regions(root, orientation)
    return serialize_packet(root)


def _turn_regions(root: etree._Element, orientation: int) -> None:
    for area in root.iter(f"{{{MWG_RS}}}Area"):
        box = _area_box(area)
        if box is not None:
            left, top, right, bottom = upright_box(box, orientation)
            turned = {"x": (left + right) / 2, "y": (top + bottom) / 2, "w": right - left, "h": bottom - top}
            for key, value in turned.items():
                _set_property(area, ST_AREA, key, f"{value:.6g}")
    for holder in root.iter(etree.Element):
        box = _rectangle_box(_property_here(holder, MP_REG, "Rectangle"))
        if box is not None:
            left, top, right, bottom = upright_box(box, orientation)
            edges = (left, top, right - left, bottom - top)
            _set_property(holder, MP_REG, "Rectangle", ", ".join(f"{edge:.6g}" for edge in edges))
    if orientation >= 5:
        for applied in root.iter(f"{{{MWG_RS}}}AppliedToDimensions"):
            width, height = _property(applied, ST_DIM, "w"), _property(applied, ST_DIM, "h")
            if width and height:
                _set_property(applied, ST_DIM, "w", height)
                _set_property(applied, ST_DIM, "h", width)


def _mwg_regions(root: etree._Element) -> list[NamedRegion]:
    """MWG regions with their boxes as fractions of the stored picture."""
    regions = []
    for area in root.iter(f"{{{MWG_RS}}}Area"):
        owner = area.getparent()
        if owner is None:
            continue
        name = _property(owner, MWG_RS, "Name")
        kind = _property(owner, MWG_RS, "Type")
        box = _area_box(area)
        if name and kind in (None, "Face") and box is not None:
            regions.append((name, box))
    return _plausible(regions)


def _microsoft_regions(root: etree._Element) -> list[NamedRegion]:
    regions = []
    for holder in root.iter(etree.Element):
        name = _property(holder, MP_REG, "PersonDisplayName")
        box = _rectangle_box(_property(holder, MP_REG, "Rectangle"))
        if name and box is not None:
            regions.append((name, box))
    return _plausible(regions)


def _area_box(area: etree._Element) -> Box | None:
    """left, top, right, bottom of an area, which gives centre and size."""
    numbers = [_number(_property(area, ST_AREA, key)) for key in ("x", "y", "w", "h")]
    if None in numbers:
        return None
    x, y, w, h = (number for number in numbers if number is not None)
    return (x - w / 2, y - h / 2, x + w / 2, y + h / 2)


def _rectangle_box(rectangle: str | None) -> Box | None:
    """left, top, right, bottom of Microsoft's "left, top, width, height"."""
    numbers = [_number(part) for part in (rectangle or "").split(",")]
    if len(numbers) != 4 or None in numbers:
        return None
    x, y, w, h = (number for number in numbers if number is not None)
    return (x, y, x + w, y + h)


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
    for holder in (element, *element.findall(f"{{{RDF}}}Description")):
        text = _property_here(holder, namespace, key)
        if text:
            return text
    return None


def _property_here(element: etree._Element, namespace: str, key: str) -> str | None:
    """An XMP simple property of the element itself; None where it is missing or blank."""
    tag = f"{{{namespace}}}{key}"
    text = element.get(tag) or element.findtext(tag)
    return str(text).strip() or None if text else None


def _set_property(element: etree._Element, namespace: str, key: str, text: str) -> None:
    """Overwrite a property that `_property` finds, where it stands."""
    tag = f"{{{namespace}}}{key}"
    for holder in (element, *element.findall(f"{{{RDF}}}Description")):
        if tag in holder.attrib:
            holder.set(tag, text)
        for child in holder.findall(tag):
            child.text = text


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
