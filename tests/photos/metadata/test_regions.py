"""Face regions as digiKam, Lightroom, Picasa and Windows write them."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from facefix.errors import PhotoError
from facefix.faces.face import Detection, Face, Quality
from facefix.people.names import name_faces, overlap
from facefix.photos.metadata.regions import NamedRegion, read_regions, upright_packet

HEAD = '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
TAIL = "</rdf:RDF></x:xmpmeta>"
MWG = (
    'xmlns:mwg-rs="http://www.metadataworkinggroup.com/schemas/regions/" xmlns:stArea="http://ns.adobe.com/xmp/sType/Area#"'
    ' xmlns:stDim="http://ns.adobe.com/xap/1.0/sType/Dimensions#"'
)


def lightroom(width: int, height: int, *regions: str) -> bytes:
    """Properties as attributes, on an rdf:Description inside each list item."""
    items = "".join(f"<rdf:li>{region}</rdf:li>" for region in regions)
    return (
        f'{HEAD}<rdf:Description rdf:about="" {MWG}><mwg-rs:Regions rdf:parseType="Resource">'
        f'<mwg-rs:AppliedToDimensions stDim:w="{width}" stDim:h="{height}" stDim:unit="pixel"/>'
        f"<mwg-rs:RegionList><rdf:Bag>{items}</rdf:Bag></mwg-rs:RegionList></mwg-rs:Regions></rdf:Description>{TAIL}"
    ).encode()


def region(name: str, x: str, y: str, w: str, h: str, kind: str = "Face") -> str:
    return (
        f'<rdf:Description mwg-rs:Type="{kind}" mwg-rs:Name="{name}">'
        f'<mwg-rs:Area stArea:x="{x}" stArea:y="{y}" stArea:w="{w}" stArea:h="{h}" stArea:unit="normalized"/>'
        "</rdf:Description>"
    )


DIGIKAM = (
    f'{HEAD}<rdf:Description rdf:about="" {MWG}><mwg-rs:Regions rdf:parseType="Resource"><mwg-rs:RegionList><rdf:Bag>'
    '<rdf:li rdf:parseType="Resource"><mwg-rs:Name>Zoë</mwg-rs:Name><mwg-rs:Type>Face</mwg-rs:Type>'
    '<mwg-rs:Area rdf:parseType="Resource"><stArea:x>0.5</stArea:x><stArea:y>0.25</stArea:y><stArea:w>0.2</stArea:w>'
    "<stArea:h>0.1</stArea:h><stArea:unit>normalized</stArea:unit></mwg-rs:Area></rdf:li>"
    "</rdf:Bag></mwg-rs:RegionList></mwg-rs:Regions></rdf:Description>" + TAIL
).encode()

WINDOWS = (
    f'{HEAD}<rdf:Description rdf:about="" xmlns:MP="http://ns.microsoft.com/photo/1.2/"'
    ' xmlns:MPRI="http://ns.microsoft.com/photo/1.2/t/RegionInfo#" xmlns:MPReg="http://ns.microsoft.com/photo/1.2/t/Region#">'
    '<MP:RegionInfo rdf:parseType="Resource"><MPRI:Regions><rdf:Bag><rdf:li><rdf:Description '
    'MPReg:Rectangle="0.1, 0.2, 0.3, 0.4" MPReg:PersonDisplayName="Eva"/></rdf:li></rdf:Bag></MPRI:Regions>'
    f"</MP:RegionInfo></rdf:Description>{TAIL}"
).encode()


def boxes(regions: tuple[NamedRegion, ...]) -> dict[str, tuple[float, ...]]:
    return {region.name: region.box for region in regions}


def test_lightroom_digikam_and_windows() -> None:
    packet = lightroom(200, 100, region("Anna &amp; co", "0.5", "0.5", "0.1", "0.2"))
    assert boxes(read_regions(packet, (200, 100))) == {"Anna & co": pytest.approx((90, 40, 110, 60))}
    assert boxes(read_regions(DIGIKAM, (1000, 400))) == {"Zoë": pytest.approx((400, 80, 600, 120))}
    assert boxes(read_regions(WINDOWS, (100, 100))) == {"Eva": pytest.approx((10, 20, 40, 60))}


def test_what_is_not_a_named_face_is_left_out() -> None:
    packet = lightroom(
        200,
        100,
        region("Rex", "0.5", "0.5", "0.1", "0.2", kind="Pet"),
        region("", "0.5", "0.5", "0.1", "0.2"),
        region("Nan", "nan", "0.5", "0.1", "0.2"),
        region("Word", "left", "0.5", "0.1", "0.2"),
        region("Flat", "0.5", "0.5", "0", "0.2"),
        region("Outside", "3", "0.5", "0.1", "0.2"),
        region("Good", "0.2", "0.5", "0.1", "0.2"),
    )
    assert set(boxes(read_regions(packet, (200, 100)))) == {"Good"}


@pytest.mark.parametrize("orientation", range(1, 9))
def test_regions_turn_with_the_photo(orientation: int) -> None:
    """The guidelines count in the stored picture; Pillow says where that lies in the upright one."""
    from PIL import ImageOps

    stored = Image.new("L", (200, 100))
    stored.paste(255, (20, 10, 60, 40))
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.info["exif"] = exif.tobytes()
    stored.getexif().load(exif.tobytes())
    upright = ImageOps.exif_transpose(stored)
    packet = lightroom(200, 100, region("A", "0.2", "0.25", "0.2", "0.3"))
    assert boxes(read_regions(packet, (200, 100), orientation))["A"] == pytest.approx(upright.getbbox())


def test_regions_drawn_on_the_turned_picture_are_noticed() -> None:
    packet = lightroom(100, 200, region("A", "0.5", "0.25", "0.2", "0.1"))
    assert boxes(read_regions(packet, (200, 100), 6))["A"] == pytest.approx((40, 40, 60, 60))


def test_not_xmp() -> None:
    with pytest.raises(PhotoError, match="XMP packet"):
        read_regions(b"<html/>", (10, 10))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_packet_for_a_picture_that_was_turned_names_the_same_places(orientation: int) -> None:
    size = (200, 100)
    upright_size = size[::-1] if orientation >= 5 else size
    tiff = b'<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="%d"/>' % orientation
    for packet in (lightroom(*size, region("A", "0.2", "0.25", "0.2", "0.3")), DIGIKAM, WINDOWS):
        told = packet.replace(b"</rdf:RDF>", tiff + b"</rdf:RDF>")
        turned = upright_packet(told, size, orientation)
        expected = boxes(read_regions(packet, size, orientation))
        assert set(boxes(read_regions(turned, upright_size))) == set(expected)
        for name, box in boxes(read_regions(turned, upright_size)).items():
            assert box == pytest.approx(expected[name], abs=1e-3)
        assert b'Orientation="1"' in turned
        assert orientation > 1 or turned == told


def test_regions_drawn_on_the_turned_picture_stay_when_it_is_turned() -> None:
    packet = lightroom(100, 200, region("A", "0.5", "0.25", "0.2", "0.1"))
    assert boxes(read_regions(upright_packet(packet, (200, 100), 6), (100, 200)))["A"] == pytest.approx(
        (40, 40, 60, 60)
    )


def test_overlap() -> None:
    assert overlap((0, 0, 2, 2), (1, 0, 3, 2)) == pytest.approx(1 / 3)
    assert overlap((0, 0, 1, 1), (2, 2, 3, 3)) == 0


def test_names_go_to_the_faces_they_lie_on() -> None:
    def face(index: int, box: tuple[float, float, float, float]) -> Face:
        return Face("p.jpg", index, Detection(box, np.zeros((5, 2)), 1.0), None, Quality(10, 1, 0, 0, 1))

    faces = [face(0, (10, 10, 20, 20)), face(1, (18, 10, 28, 20)), face(2, (80, 80, 90, 90))]
    regions = [
        NamedRegion("Right", (17, 8, 30, 24)),
        NamedRegion("Left", (6, 4, 22, 24)),
        NamedRegion("X", (50, 0, 60, 9)),
    ]
    assert name_faces(faces, regions) == {("p.jpg", 0): "Left", ("p.jpg", 1): "Right"}


@pytest.mark.skipif(shutil.which("exiftool") is None, reason="exiftool is not installed")
def test_regions_written_by_exiftool(tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    Image.new("RGB", (200, 100)).save(path)
    info = (
        "-RegionInfo={AppliedToDimensions={W=200,H=100,Unit=pixel},RegionList=[{Area={X=0.5,Y=0.5,W=0.1,H=0.2,"
        "Unit=normalized},Name=Jane Doe,Type=Face}]}"
    )
    subprocess.run(["exiftool", "-q", info, str(path)], check=True)
    packet = Image.open(path).info["xmp"]
    assert boxes(read_regions(packet, (200, 100))) == {"Jane Doe": pytest.approx((90, 40, 110, 60))}
