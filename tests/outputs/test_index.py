"""The index: what was found in photos comes back as it was."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from ledgers import face

from facefix.outputs.ledger import Ledger
from facefix.outputs.outcomes import IndexedPhoto, NamedBox


def test_faces_come_back_as_they_were(tmp_path: Path) -> None:
    vector = np.random.default_rng(0).normal(size=128).astype(np.float32)
    photo = IndexedPhoto(
        "aa", (640, 480), 5.0, None, (face(0, vector), face(1, None)), (NamedBox("Ada", (0, 1, 2, 3)),)
    )
    with Ledger.open(tmp_path) as ledger:
        ledger.index.record(photo, "dlib")
    with Ledger.open(tmp_path) as ledger:
        assert ledger.index.has("aa", "dlib") and not ledger.index.has("aa", "insightface")
        found = ledger.index.get("aa", "dlib", "new key")
        assert ledger.index.get("aa", "insightface", "x") is None
    assert found is not None
    assert (found.size, found.taken, found.named) == (photo.size, 5.0, photo.named)
    first, second = found.faces
    assert first.key == ("new key", 0) and second.embedding is None
    assert first.embedding is not None and np.array_equal(first.embedding, vector)
    assert np.array_equal(first.detection.landmarks, photo.faces[0].detection.landmarks)
    assert first.quality == photo.faces[0].quality and first.detection.box == (1.5, 2.5, 3.5, 4.5)


def test_a_second_look_takes_the_place_of_the_first(tmp_path: Path) -> None:
    photo = IndexedPhoto("aa", (9, 9), None, None, (face(0, None), face(1, None)))
    with Ledger.open(tmp_path) as ledger:
        ledger.index.record(photo, "dlib")
        ledger.index.record(replace(photo, faces=(face(0, None),), notes=("again",)), "dlib")
        found = ledger.index.get("aa", "dlib", "x")
    assert found is not None and len(found.faces) == 1 and found.notes == ("again",)


def test_the_box_of_a_face_is_found_by_its_file(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(b"content")
    with Ledger.open(tmp_path) as ledger:
        ledger.index.record(IndexedPhoto(ledger.sha256(path), (9, 9), None, None, (face(3, None),)), "dlib")
        assert ledger.index.face_box(path, 3) == (1.5, 2.5, 3.5, 4.5)
        assert ledger.index.face_box(path, 4) is None and ledger.index.face_box(tmp_path / "b.jpg", 3) is None
