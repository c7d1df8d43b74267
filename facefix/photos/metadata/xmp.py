"""XMP packets: parsed safely, written back without losing anything.

An XMP packet is RDF/XML (ISO 16684-1). It comes out of photographs from anywhere, so nothing in it is trusted: a
document type declaration, and with it every entity, is refused, and no outside address is ever read.
"""

from __future__ import annotations

from typing import Final

from lxml import etree

from facefix.errors import PhotoError

RDF: Final = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
META: Final = "adobe:ns:meta/"

_MAX_PACKET_BYTES: Final = 64 * 2**20
_HEADER: Final = b'<?xpacket begin="\xef\xbb\xbf" id="W5M0MpCehiHzreSzNTczkc9d"?>\n'
_TRAILER: Final = b'\n<?xpacket end="w"?>'
_EMPTY: Final = f'<x:xmpmeta xmlns:x="{META}"><rdf:RDF xmlns:rdf="{RDF}"/></x:xmpmeta>'.encode()


def parse_packet(packet: bytes) -> etree._Element:
    """Parse an XMP packet and return its root element.

    Args:
        packet: the bytes as they stand in the file, with or without ``<?xpacket?>`` wrapper and zero or blank padding.

    Raises:
        PhotoError: it is not well-formed XML, holds no ``rdf:RDF``, declares a document type or is absurdly large.
    """
    if len(packet) > _MAX_PACKET_BYTES:
        raise PhotoError(f"XMP packet: expected at most {_MAX_PACKET_BYTES} bytes, found {len(packet)}")
    parser = etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False, huge_tree=False)
    try:
        root = etree.fromstring(packet.strip(b"\x00 \t\r\n"), parser)
    except (etree.XMLSyntaxError, ValueError) as error:
        raise PhotoError(f"XMP packet: expected well-formed XML, found: {error}") from error
    if root.getroottree().docinfo.internalDTD is not None:
        raise PhotoError("XMP packet: expected plain RDF, found a document type declaration")
    if rdf_root(root) is None:
        raise PhotoError(f"XMP packet: expected an rdf:RDF element, found only <{root.tag}>")
    return root


def empty_packet() -> etree._Element:
    """Root element of a packet that says nothing yet."""
    return etree.fromstring(_EMPTY)


def rdf_root(root: etree._Element) -> etree._Element | None:
    """The ``rdf:RDF`` element of a packet; None where there is none."""
    rdf = f"{{{RDF}}}RDF"
    return root if root.tag == rdf else root.find(f".//{rdf}")


def serialize_packet(root: etree._Element) -> bytes:
    """The packet as UTF-8 bytes in an ``<?xpacket?>`` wrapper, without padding.

    Comments and processing instructions round the root element are kept; only the wrapper is made anew.
    """
    pieces = [etree.tostring(node, encoding="utf-8", with_tail=False) for node in _top_level(root)]
    return _HEADER + b"\n".join(pieces) + _TRAILER


def _top_level(root: etree._Element) -> list[etree._Element]:
    before = [node for node in root.itersiblings(preceding=True) if not _is_wrapper(node)]
    after = [node for node in root.itersiblings() if not _is_wrapper(node)]
    return [*reversed(before), root, *after]


def _is_wrapper(node: etree._Element) -> bool:
    return isinstance(node, etree._ProcessingInstruction) and node.target == "xpacket"
