"""XMP provenance: said in full, merged without loss, taken out again; tested against exiftool where it is installed."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from lxml import etree
from PIL import Image

from facefix.errors import PhotoError
from facefix.photos.metadata.xmp import parse_packet
from facefix.photos.provenance import (
    COMPOSITE,
    Provenance,
    merge_xmp,
    read_provenance,
    strip_xmp,
    undo_identifier,
)
from facefix.photos.turned_box import stored_box, upright_box

RICH = (
    b"""<?xpacket begin="\xef\xbb\xbf" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/" x:xmptk="Adobe XMP Core 5.6"><!-- kept -->
 <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
  <rdf:Description rdf:about="" xmlns:xmp="http://ns.adobe.com/xap/1.0/" xmlns:odd="http://example.invalid/odd/1.0/"
    xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" xmp:CreatorTool="Camera 1" odd:line="a&#xA;b"
    Iptc4xmpExt:DigitalSourceType="http://cv.iptc.org/newscodes/digitalsourcetype/digitalCapture">
   <dc:title xmlns:dc="http://purl.org/dc/elements/1.1/"><rdf:Alt><rdf:li xml:lang="x-default">G\xc3\xa4rten &lt;1&gt;
</rdf:li></rdf:Alt></dc:title>
   <Iptc4xmpExt:ImageRegion><rdf:Bag><rdf:li rdf:parseType="Resource"><Iptc4xmpExt:rId>mine</Iptc4xmpExt:rId>
   </rdf:li></rdf:Bag></Iptc4xmpExt:ImageRegion>
  </rdf:Description>
 </rdf:RDF>
</x:xmpmeta>
<?xpacket end="w"?>"""
    + b" " * 2000
)
DONE = Provenance("refldm", "ab12", ((0.25, 0.25, 0.5, 0.75), (0.6, 0.1, 0.7, 0.2)), "0123abcd", version="9.9")

needs_exiftool = pytest.mark.skipif(shutil.which("exiftool") is None, reason="exiftool is not installed")


def canonical(packet: bytes) -> str:
    parser = etree.XMLParser(remove_blank_text=True)
    return etree.tostring(etree.fromstring(packet.strip(), parser), method="c14n2").decode()


def exiftool(path: Path) -> dict[str, object]:
    command = ["exiftool", "-j", "-struct", "-G1", "-XMP:all", str(path)]
    return dict(json.loads(subprocess.run(command, capture_output=True, check=True).stdout)[0])


def test_says_everything_in_an_empty_photo() -> None:
    packet = merge_xmp(None, DONE)
    found = read_provenance(packet)
    assert found is not None
    assert (found.version, found.model, found.model_hash, found.undo_id) == ("9.9", "refldm", "ab12", "0123abcd")
    assert COMPOSITE.encode() in packet
    assert packet == merge_xmp(None, DONE), "nothing depends on the clock or on chance"
    assert packet.startswith(b"<?xpacket begin=")
    assert packet.endswith(b'<?xpacket end="w"?>')


def test_merge_keeps_everything_that_was_there() -> None:
    packet = merge_xmp(RICH, DONE)
    root = parse_packet(packet)
    assert b"<!-- kept -->" in packet
    assert b'x:xmptk="Adobe XMP Core 5.6"' in packet
    text = "".join(root.itertext())
    assert "Gärten <1>" in text
    odd = next(node for node in root.iter() if node.get("{http://example.invalid/odd/1.0/}line"))
    assert odd.get("{http://example.invalid/odd/1.0/}line") == "a\nb"
    assert odd.get("{http://ns.adobe.com/xap/1.0/}CreatorTool") == "Camera 1"
    assert packet.count(b"digitalsourcetype/digitalCapture") == 1, "kept as the prior source type"
    assert packet.count(COMPOSITE.encode()) == 1
    assert packet.count(b"<Iptc4xmpExt:ImageRegion>") == 1
    assert packet.count(b"rId>mine<") == 1
    assert packet.count(b"rId>facefix-face-") == 2


def test_merging_twice_replaces_the_first() -> None:
    again = Provenance("other", "cd34", ((0.0, 0.0, 1.0, 1.0),), None, version="10")
    packet = merge_xmp(merge_xmp(RICH, DONE), again)
    assert canonical(packet) == canonical(merge_xmp(RICH, again))
    found = read_provenance(packet)
    assert found is not None
    assert found.undo_id is None


def test_strip_gives_the_packet_back() -> None:
    stripped = strip_xmp(merge_xmp(RICH, DONE))
    assert stripped is not None
    assert read_provenance(stripped) is None
    assert COMPOSITE.encode() not in stripped
    # The source type stood as an attribute and stands as an element now, which in XMP is the same.
    assert b"digitalCapture</Iptc4xmpExt:DigitalSourceType>" in stripped
    assert b"rId>mine<" in stripped
    assert strip_xmp(merge_xmp(None, DONE)) is None


def test_another_ai_system_is_not_overwritten() -> None:
    other = RICH.replace(b'xmp:CreatorTool="Camera 1"', b'xmp:CreatorTool="C" Iptc4xmpExt:AISystemUsed="Painter"')
    packet = merge_xmp(other, DONE)
    assert b'AISystemUsed="Painter"' in packet
    assert packet.count(b"AISystemUsed") == 1


def test_regions_give_way_to_the_size_limit() -> None:
    whole = merge_xmp(RICH, DONE)
    shorter = merge_xmp(RICH, DONE, max_bytes=len(whole) - 1)
    assert b"facefix-face-" not in shorter
    assert read_provenance(shorter) == read_provenance(whole)
    with pytest.raises(PhotoError, match="at most 100 bytes"):
        merge_xmp(RICH, DONE, max_bytes=100)


@pytest.mark.parametrize(
    "packet",
    [
        b"not xml",
        b"<a/>",
        b'<!DOCTYPE a [<!ENTITY e "x">]><x:xmpmeta xmlns:x="adobe:ns:meta/">&e;</x:xmpmeta>',
        b'<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><rdf:RDF '
        b'xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">&b;</rdf:RDF>',
        b"<x:xmpmeta xmlns:x='adobe:ns:meta/'><rdf:RDF xmlns:rdf='http",
        b"\xff\xfe\x00<",
    ],
)
def test_hostile_packets_are_refused(packet: bytes) -> None:
    with pytest.raises(PhotoError, match="XMP packet"):
        merge_xmp(packet, DONE)
    assert read_provenance(packet) is None


def test_entity_bomb_is_refused_at_once() -> None:
    entities = "".join(f'<!ENTITY l{i} "{f"&l{i - 1};" * 10}">' for i in range(1, 12))
    bomb = f'<!DOCTYPE b [<!ENTITY l0 "lol">{entities}]><b>&l11;</b>'.encode()
    with pytest.raises(PhotoError, match="XMP packet"):
        parse_packet(bomb)


def test_undo_identifier_tells_restorations_apart() -> None:
    boxes = ((0.1, 0.1, 0.2, 0.2),)
    name = undo_identifier("aa", "recipe", boxes)
    assert name == undo_identifier("aa", "recipe", boxes)
    others = {undo_identifier("ab", "recipe", boxes), undo_identifier("aa", "other", boxes)}
    assert len(others | {undo_identifier("aa", "recipe", ((0.1, 0.1, 0.2, 0.3),)), name}) == 4


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_agrees_with_pillow_and_inverts(orientation: int) -> None:
    from PIL import ImageOps

    picture = Image.new("L", (40, 20))
    picture.paste(255, (4, 2, 12, 6))
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture.info["exif"] = exif.tobytes()
    picture.getexif().load(exif.tobytes())
    turned = ImageOps.exif_transpose(picture)
    box = (4 / 40, 2 / 20, 12 / 40, 6 / 20)
    expected = turned.getbbox()
    assert expected is not None
    left, top, right, bottom = upright_box(box, orientation)
    assert (left * turned.width, top * turned.height) == pytest.approx(expected[:2])
    assert (right * turned.width, bottom * turned.height) == pytest.approx(expected[2:])
    assert stored_box(upright_box(box, orientation), orientation) == pytest.approx(box)


@needs_exiftool
@pytest.mark.parametrize("existing", [None, RICH], ids=["without", "with"])
def test_exiftool_reads_it(tmp_path: Path, existing: bytes | None) -> None:
    before, after = tmp_path / "before.jpg", tmp_path / "after.jpg"
    picture = Image.new("RGB", (64, 48), "grey")
    picture.save(before, **({"xmp": existing} if existing else {}))
    picture.save(after, xmp=merge_xmp(existing, DONE))
    old, new = exiftool(before), exiftool(after)
    assert str(new["XMP-iptcExt:DigitalSourceType"]).endswith("compositeWithTrainedAlgorithmicMedia")
    assert str(new["XMP-facefix:ModelHash"]) == "ab12"
    regions = new["XMP-iptcExt:ImageRegion"]
    assert isinstance(regions, list)
    own = [region for region in regions if region["RId"].startswith("facefix-face-")]
    assert own[0]["RegionBoundary"]["RbX"] == 0.25
    assert own[0]["RegionBoundary"]["RbH"] == 0.5
    changed = {"SourceFile", "XMP-iptcExt:DigitalSourceType", "XMP-iptcExt:ImageRegion"}
    assert {key: new[key] for key in old if key not in changed} == {k: v for k, v in old.items() if k not in changed}
