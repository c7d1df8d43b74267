"""XMP of a photo that was enlarged: everything in it that counts in pixels is multiplied.

Google Photo Sphere XMP; MWG "Guidelines for handling image metadata" 2.0, section 5.9 (AppliedToDimensions, areas in
pixels); XMP Specification part 2 (tiff and exif namespaces); IPTC Photo Metadata Standard 2025.1 (ImageRegion).
"""

from __future__ import annotations

from typing import Final

from lxml import etree

from facefix.photos.metadata.regions import ST_AREA, ST_DIM, TIFF
from facefix.photos.metadata.xmp import RDF, parse_packet, serialize_packet

_GPANO: Final = "http://ns.google.com/photos/1.0/panorama/"
_EXIF: Final = "http://ns.adobe.com/exif/1.0/"
_IPTC_EXT: Final = "http://iptc.org/std/Iptc4xmpExt/2008-02-29/"

_SIMPLE: Final = (
    *((TIFF, key) for key in ("ImageWidth", "ImageLength")),
    *((_EXIF, key) for key in ("PixelXDimension", "PixelYDimension")),
    *(
        (_GPANO, key)
        for key in (
            "CroppedAreaImageWidthPixels", "CroppedAreaImageHeightPixels", "CroppedAreaLeftPixels",
            "CroppedAreaTopPixels", "FullPanoWidthPixels", "FullPanoHeightPixels", "LargestValidInteriorRectLeft",
            "LargestValidInteriorRectTop", "LargestValidInteriorRectWidth", "LargestValidInteriorRectHeight",
        )
    ),
)  # fmt: skip
"""Properties that are one number of pixels."""

_LISTS: Final = ((_EXIF, "SubjectArea"), (_EXIF, "SubjectLocation"))
"""Properties that are a sequence of numbers of pixels."""

_STRUCTURES: Final = (
    (ST_DIM, "unit", "pixel", ("w", "h")),
    (ST_AREA, "unit", "pixel", ("x", "y", "w", "h", "d")),
    (_IPTC_EXT, "rbUnit", "pixel", ("rbX", "rbY", "rbW", "rbH", "rbRx")),
)
"""Structures that name their unit: namespace, where the unit stands, the unit, and their numbers."""


def scaled_packet(packet: bytes, scale: int) -> bytes:
    """The packet for a picture ``scale`` times as wide and high; unchanged where nothing in it counts in pixels.

    Raises PhotoError when the packet is not XMP.
    """
    root = parse_packet(packet)
    changed = 0
    for element in list(root.iter(etree.Element)):
        changed += sum(_multiply(element, namespace, key, scale) for namespace, key in _SIMPLE)
        changed += sum(_multiply_list(element, namespace, key, scale) for namespace, key in _LISTS)
        for namespace, unit, wanted, keys in _STRUCTURES:
            if _text(element, namespace, unit) == wanted:
                changed += sum(_multiply(element, namespace, key, scale) for key in keys)
    return serialize_packet(root) if changed else packet


def _text(element: etree._Element, namespace: str, key: str) -> str | None:
    tag = f"{{{namespace}}}{key}"
    text = element.get(tag) or element.findtext(tag)
    return str(text).strip() if text else None


def _multiply(element: etree._Element, namespace: str, key: str, scale: int) -> bool:
    """Multiply a property of the element, an attribute or a child; whether there was one."""
    tag = f"{{{namespace}}}{key}"
    new = _scaled(element.get(tag), scale)
    if new is not None:
        element.set(tag, new)
    children = [(child, _scaled(child.text, scale)) for child in element.findall(tag)]
    for child, text in children:
        if text is not None:
            child.text = text
    return new is not None or any(text is not None for _, text in children)


def _multiply_list(element: etree._Element, namespace: str, key: str, scale: int) -> bool:
    items = element.findall(f"{{{namespace}}}{key}//{{{RDF}}}li")
    scaled = [(item, _scaled(item.text, scale)) for item in items]
    for item, text in scaled:
        if text is not None:
            item.text = text
    return any(text is not None for _, text in scaled)


def _scaled(text: str | None, scale: int) -> str | None:
    """A whole or decimal number times ``scale``; None for anything else."""
    try:
        number = float(text or "")
    except ValueError:
        return None
    return str(round(number * scale)) if number.is_integer() else f"{number * scale:.9g}"
