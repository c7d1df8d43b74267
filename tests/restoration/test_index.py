"""Looking into a photo: faces, named regions, and what is told of failures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from marked import COLOURS, make_photos, marked_backend, picture

from facefix.errors import PhotoError
from facefix.restoration.index import look_into, why_failed


def test_faces_come_left_to_right_with_all_that_is_known(tmp_path: Path) -> None:
    (path,) = make_photos(tmp_path, both=["bob", "ann"])
    found = look_into(path, marked_backend(), 10**6)
    assert found.size == (400, 200) and found.copy_reason is None
    assert [face.key for face in found.faces] == [(str(path), 0), (str(path), 1)]
    for face, person in zip(found.faces, ("bob", "ann"), strict=True):
        colour = np.array(COLOURS[person]) - 128.0
        assert face.embedding is not None
        assert np.linalg.norm(face.embedding - colour / np.linalg.norm(colour)) < 0.05
        assert face.quality.face_px == pytest.approx(0.4 * 96 * 2.33, abs=2)


def test_the_names_in_a_photos_own_metadata_are_kept_in_upright_pixels(tmp_path: Path) -> None:
    xmp = (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        '<rdf:Description rdf:about="" xmlns:mwg-rs="http://www.metadataworkinggroup.com/schemas/regions/"'
        ' xmlns:stArea="http://ns.adobe.com/xmp/sType/Area#"><mwg-rs:Regions rdf:parseType="Resource">'
        '<mwg-rs:RegionList><rdf:Bag><rdf:li><rdf:Description mwg-rs:Type="Face" mwg-rs:Name="Ann">'
        '<mwg-rs:Area stArea:x="0.5" stArea:y="0.5" stArea:w="0.25" stArea:h="0.5" stArea:unit="normalized"/>'
        "</rdf:Description></rdf:li></rdf:Bag></mwg-rs:RegionList></mwg-rs:Regions></rdf:Description></rdf:RDF>"
        "</x:xmpmeta>"
    )
    picture("ann").save(tmp_path / "a.jpg", xmp=xmp.encode())
    (named,) = look_into(tmp_path / "a.jpg", marked_backend(), 10**6).named
    assert named.name == "Ann" and named.box == pytest.approx((150, 50, 250, 150), abs=1)
    picture("ann").save(tmp_path / "b.jpg", xmp=b"<not xmp")
    assert look_into(tmp_path / "b.jpg", marked_backend(), 10**6).named == ()


def test_a_photo_that_can_only_be_copied_is_not_searched(tmp_path: Path) -> None:
    frames = [picture("ann", seed=number) for number in range(3)]
    frames[0].save(tmp_path / "a.png", save_all=True, append_images=frames[1:])
    found = look_into(tmp_path / "a.png", marked_backend(), 10**6)
    assert found.copy_reason and found.faces == ()


def test_what_cannot_be_read_is_told_in_words(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"no picture")
    with pytest.raises(PhotoError) as raised:
        look_into(tmp_path / "a.png", marked_backend(), 10**6)
    assert why_failed(tmp_path / "a.png", raised.value) == str(raised.value)
    assert why_failed(Path("x\n.png"), KeyError("who")).endswith(": KeyError: 'who'")
    assert "\n" not in why_failed(Path("x\n.png"), KeyError("who"))
