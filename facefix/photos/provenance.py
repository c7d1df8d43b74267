"""What an output says about itself in its XMP: that faces in it were restored, by what, and where.

The vocabulary is the IPTC Photo Metadata Standard 2025.1 (DigitalSourceType, AISystemUsed, ImageRegion) beside four
properties of our own. Nothing depends on the clock or on chance: the same restoration says the same bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from lxml import etree

from facefix import __version__
from facefix.errors import PhotoError
from facefix.photos.metadata.xmp import RDF, empty_packet, parse_packet, rdf_root, serialize_packet
from facefix.photos.turned_box import Box, stored_box

if TYPE_CHECKING:
    from facefix.photos.photo import Photo
    from facefix.photos.region import Region

IPTC_EXT: Final = "http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
FACEFIX: Final = "urn:facefix:xmp:1.0/"
COMPOSITE: Final = "http://cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia"

_REGION_ID: Final = "facefix-face-"
_JPEG_LIMIT: Final = 65533 - len("http://ns.adobe.com/xap/1.0/") - 1
"""an APP1 segment less its name (XMP part 3, section 1.1.3)"""


@dataclass(frozen=True, slots=True)
class Provenance:
    """What was done to one photo."""

    model: str
    """name of the restorer, for instance "refldm\""""
    model_hash: str
    """recipe of the restorer: hash of its weights and settings"""
    regions: tuple[Box, ...]
    """left, top, right, bottom of each restored region as fractions (0..1) of the stored picture, that is with its EXIF
    orientation not applied"""
    undo_id: str | None = None
    """name of the record that holds the pixels from before; None where none is kept"""
    version: str = __version__


@dataclass(frozen=True, slots=True)
class ProvenanceFound:
    """What a photo says about having been restored."""

    version: str | None
    model: str | None
    model_hash: str | None
    undo_id: str | None


@dataclass(frozen=True, slots=True)
class Described:
    """The XMP for an output."""

    packet: bytes | None
    """the whole packet; None where nothing was restored, the format has no place for one, or the photo's own cannot be
    understood"""
    undo_id: str
    note: str | None = None
    """why there is no packet"""


def describe(photo: Photo, regions: Sequence[Region], *, model: str, recipe: str) -> Described:
    """Say what was done to a photo in its XMP.

    Args:
        photo: the original as read.
        regions: what is laid over it.
        model: name of the restorer.
        recipe: hash of the restorer's weights and settings.
    """
    width, height = photo.size
    boxes = []
    for region in regions:
        left, top, right, bottom = (edge / region.scale for edge in region.box)
        boxes.append(stored_box((left / width, top / height, right / width, bottom / height), photo.orientation or 1))
    undo_id = undo_identifier(photo.sha256, recipe, boxes)
    if not regions:
        return Described(None, undo_id)
    if photo.format == "BMP":
        return Described(None, undo_id, "BMP has no place for XMP: the restoration is not noted in the file")
    done = Provenance(model, recipe, tuple(boxes), undo_id)
    try:
        packet = merge_xmp(photo.xmp, done, max_bytes=_JPEG_LIMIT if photo.format == "JPEG" else None)
    except PhotoError as error:
        return Described(None, undo_id, f"the restoration is not noted in the file: {error}")
    return Described(packet, undo_id)


def undo_identifier(source_sha256: str, recipe: str, regions: Sequence[Box]) -> str:
    """A name for one restoration of one photo: the same photo, recipe and regions give the same name."""
    text = "\n".join([source_sha256, recipe, *(",".join(f"{edge:.6f}" for edge in box) for box in regions)])
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def merge_xmp(existing: bytes | None, provenance: Provenance, *, max_bytes: int | None = None) -> bytes:
    """Add the provenance to a photo's XMP.

    Everything in the existing packet stays but for an earlier DigitalSourceType, which is moved to
    ``facefix:PriorDigitalSourceType``, and an earlier provenance of our own, which is replaced.

    Args:
        existing: the photo's XMP packet; None or empty where it has none.
        provenance: what was done.
        max_bytes: longest packet the file format takes; the regions are left out where it would be longer.

    Returns:
        The whole new packet, UTF-8.

    Raises:
        PhotoError: the existing packet is not XMP, or too large even without the regions. What is not understood is
            neither repaired nor thrown away here.
    """
    packet = _merged(existing, provenance, provenance.regions)
    if max_bytes is not None and len(packet) > max_bytes:
        packet = _merged(existing, provenance, ())
        if len(packet) > max_bytes:
            raise PhotoError(f"XMP packet: expected at most {max_bytes} bytes for this format, found {len(packet)}")
    return packet


def read_provenance(packet: bytes | None) -> ProvenanceFound | None:
    """What a photo's XMP says about having been restored by facefix; None where it says nothing or is not XMP."""
    if not packet:
        return None
    try:
        root = parse_packet(packet)
    except PhotoError:
        return None
    found = {key: _find_simple(root, FACEFIX, key) for key in ("Version", "Model", "ModelHash", "UndoId")}
    if not any(found.values()):
        return None
    return ProvenanceFound(found["Version"], found["Model"], found["ModelHash"], found["UndoId"])


def strip_xmp(packet: bytes) -> bytes | None:
    """Take the provenance out of a packet again.

    Returns:
        The packet with everything else in it and the prior DigitalSourceType back in its place; None where nothing else
        is left.

    Raises:
        PhotoError: the packet is not XMP.
    """
    root = parse_packet(packet)
    prior = _find_simple(root, FACEFIX, "PriorDigitalSourceType")
    if _find_simple(root, IPTC_EXT, "DigitalSourceType") == COMPOSITE:
        _drop_property(root, IPTC_EXT, "DigitalSourceType")
    _drop_own(root)
    if prior is not None:
        _set_simple(_own_description(root), IPTC_EXT, "DigitalSourceType", prior)
    return serialize_packet(root) if _says_something(root) else None


def _merged(existing: bytes | None, provenance: Provenance, regions: Sequence[Box]) -> bytes:
    root = parse_packet(existing) if existing and existing.strip(b"\x00 \t\r\n") else empty_packet()
    prior = _find_simple(root, IPTC_EXT, "DigitalSourceType")
    if prior == COMPOSITE:
        prior = _find_simple(root, FACEFIX, "PriorDigitalSourceType")
    _drop_property(root, IPTC_EXT, "DigitalSourceType")
    _drop_own(root)
    description = _own_description(root)
    _set_simple(description, IPTC_EXT, "DigitalSourceType", COMPOSITE)
    if _find_simple(root, IPTC_EXT, "AISystemUsed") is None:
        _set_simple(description, IPTC_EXT, "AISystemUsed", "facefix")
        _set_simple(description, IPTC_EXT, "AISystemVersionUsed", provenance.version)
    _set_simple(description, FACEFIX, "Version", provenance.version)
    _set_simple(description, FACEFIX, "Model", provenance.model)
    _set_simple(description, FACEFIX, "ModelHash", provenance.model_hash)
    if provenance.undo_id is not None:
        _set_simple(description, FACEFIX, "UndoId", provenance.undo_id)
    if prior is not None:
        _set_simple(description, FACEFIX, "PriorDigitalSourceType", prior)
    if regions:
        _add_regions(root, description, regions)
    return serialize_packet(root)


def _own_description(root: etree._Element) -> etree._Element:
    """A new ``rdf:Description`` of the same subject as the packet's others (ISO 16684-1, 7.4)."""
    rdf = rdf_root(root)
    if rdf is None:  # parse_packet has seen to it that there is one
        raise PhotoError("XMP packet: expected an rdf:RDF element, found none")
    about = next((text for text in (node.get(f"{{{RDF}}}about") for node in rdf) if text), "")
    description = etree.SubElement(
        rdf, f"{{{RDF}}}Description", nsmap={"rdf": RDF, "Iptc4xmpExt": IPTC_EXT, "facefix": FACEFIX}
    )
    description.set(f"{{{RDF}}}about", about)
    return description


def _add_regions(root: etree._Element, description: etree._Element, regions: Sequence[Box]) -> None:
    bag = root.find(f".//{{{IPTC_EXT}}}ImageRegion/{{{RDF}}}Bag")
    if bag is None:
        bag = etree.SubElement(etree.SubElement(description, f"{{{IPTC_EXT}}}ImageRegion"), f"{{{RDF}}}Bag")
    for number, (left, top, right, bottom) in enumerate(regions, start=1):
        item = etree.SubElement(bag, f"{{{RDF}}}li", nsmap={"Iptc4xmpExt": IPTC_EXT})
        item.set(f"{{{RDF}}}parseType", "Resource")
        _set_simple(item, IPTC_EXT, "rId", f"{_REGION_ID}{number}")
        boundary = etree.SubElement(item, f"{{{IPTC_EXT}}}RegionBoundary")
        boundary.set(f"{{{RDF}}}parseType", "Resource")
        _set_simple(boundary, IPTC_EXT, "rbShape", "rectangle")
        _set_simple(boundary, IPTC_EXT, "rbUnit", "relative")
        for key, value in (("rbX", left), ("rbY", top), ("rbW", right - left), ("rbH", bottom - top)):
            _set_simple(boundary, IPTC_EXT, key, f"{value:.6f}")


def _drop_own(root: etree._Element) -> None:
    """Take out what an earlier restoration said."""
    own_ai_system = _find_simple(root, IPTC_EXT, "AISystemUsed") == "facefix"
    for key in ("Version", "Model", "ModelHash", "UndoId", "PriorDigitalSourceType"):
        _drop_property(root, FACEFIX, key)
    if own_ai_system:
        _drop_property(root, IPTC_EXT, "AISystemUsed")
        _drop_property(root, IPTC_EXT, "AISystemVersionUsed")
    for item in root.findall(f".//{{{IPTC_EXT}}}ImageRegion/{{{RDF}}}Bag/{{{RDF}}}li"):
        if (_simple(item, IPTC_EXT, "rId") or "").startswith(_REGION_ID):
            _remove(item)
    for region in root.findall(f".//{{{IPTC_EXT}}}ImageRegion"):
        if region.find(f".//{{{RDF}}}li") is None:
            _remove(region)
    for description in _descriptions(root):
        only_about = set(description.attrib) <= {f"{{{RDF}}}about"}
        if only_about and len(description) == 0 and FACEFIX in description.nsmap.values():
            _remove(description)


def _descriptions(root: etree._Element) -> list[etree._Element]:
    rdf = rdf_root(root)
    return [] if rdf is None else rdf.findall(f"{{{RDF}}}Description")


def _says_something(root: etree._Element) -> bool:
    about = f"{{{RDF}}}about"
    return any(len(node) or set(node.attrib) - {about} for node in _descriptions(root))


def _simple(holder: etree._Element, namespace: str, key: str) -> str | None:
    tag = f"{{{namespace}}}{key}"
    text = holder.get(tag)
    if text is None:
        text = holder.findtext(tag)
    return None if text is None else str(text).strip()


def _find_simple(root: etree._Element, namespace: str, key: str) -> str | None:
    """A simple property of the photo itself, written as attribute or as element."""
    found = (_simple(description, namespace, key) for description in _descriptions(root))
    return next((text for text in found if text), None)


def _drop_property(root: etree._Element, namespace: str, key: str) -> None:
    tag = f"{{{namespace}}}{key}"
    for description in _descriptions(root):
        if tag in description.attrib:
            del description.attrib[tag]
        for child in description.findall(tag):
            _remove(child)


def _remove(element: etree._Element) -> None:
    """Remove an element but not the text after it."""
    parent = element.getparent()
    if parent is None:
        return
    if element.tail and element.tail.strip():
        before = element.getprevious()
        if before is None:
            parent.text = (parent.text or "") + element.tail
        else:
            before.tail = (before.tail or "") + element.tail
    parent.remove(element)


def _set_simple(holder: etree._Element, namespace: str, key: str, text: str) -> None:
    etree.SubElement(holder, f"{{{namespace}}}{key}").text = text
