"""Forgetting: embeddings, names and references go from the ledger, and from every byte of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from ledgers import face

from facefix.errors import FacefixError
from facefix.outputs.forgetting import FORGOTTEN, require_gone
from facefix.outputs.ledger import Ledger
from facefix.outputs.outcomes import FaceOutcome, IndexedPhoto, NamedBox, PhotoOutcome, ReferenceNote

BOX = (0.0, 0.0, 1.0, 1.0)


def test_forgotten_embeddings_are_in_no_file(tmp_path: Path) -> None:
    vectors = np.random.default_rng(1).normal(size=(50, 128)).astype(np.float32)
    with Ledger.open(tmp_path) as ledger:
        for number, vector in enumerate(vectors):
            ledger.index.record(IndexedPhoto(f"s{number}", (9, 9), None, None, (face(0, vector),)), "dlib")
            named = FaceOutcome(0, (0, 0, 1, 1), "restored", "", "Ada" if number % 2 else "Bob")
            ledger.records.record(
                PhotoOutcome(Path(f"{number}.jpg"), Path("x"), "restored", "", f"s{number}", faces=(named,))
            )
        assert ledger.records.people() == [("Ada", 25), ("Bob", 25)]
        assert ledger.identities.forget(ledger.identities.faces_of("Ada")) == 25
        held = b"".join(path.read_bytes() for path in (tmp_path / ".facefix").iterdir())
        assert all((vector[:8].tobytes() in held) == (number % 2 == 0) for number, vector in enumerate(vectors))
        assert ledger.index.has("s1", "dlib")
        assert ledger.identities.forget() == 25


def test_a_reference_is_forgotten_where_it_was_used_for_somebody_else(tmp_path: Path) -> None:
    portrait = tmp_path / "ada.jpg"
    portrait.write_bytes(b"portrait")
    note = ReferenceNote(str(portrait), 0, "sharpest", 0.9)
    with Ledger.open(tmp_path) as ledger:
        content = ledger.sha256(portrait)
        vector = np.ones(128, np.float32)
        ledger.index.record(IndexedPhoto(content, (9, 9), None, None, (face(0, vector),)), "dlib")
        faces = (
            FaceOutcome(0, BOX, "restored", "", "Ada", 0.1, 0.2, (note,)),
            FaceOutcome(1, BOX, "restored", "", "Bob", 0.1, 0.2, (note,)),
        )
        ledger.records.record(PhotoOutcome(Path("x.jpg"), tmp_path / "x.jpg", "restored", sha256="xx", faces=faces))
        assert ledger.identities.faces_of("Ada") == sorted([(content, 0), ("xx", 0)])
        ledger.identities.forget([(content, 0)], ["Ada"])
        ada, bob = ledger.records.faces(Path("x.jpg"))
        assert (ada.person, ada.reason, ada.before, ada.references) == (None, FORGOTTEN, None, ())
        assert (bob.person, bob.reason, bob.before, bob.references) == ("Bob", "", 0.1, ())
        assert not ledger.index.has(content, "dlib"), "a portrait is not known any more"
        assert list(ledger.identities.paths()) == []


def test_names_in_metadata_are_forgotten_by_name(tmp_path: Path) -> None:
    named = (NamedBox("Ada", BOX), NamedBox("Bob", BOX))
    with Ledger.open(tmp_path) as ledger:
        ledger.index.record(IndexedPhoto("aa", (9, 9), None, None, (), named), "dlib")
        ledger.identities.forget([], ["Ada"])
        assert [(content, box.name) for content, box in ledger.identities.named_boxes()] == [("aa", "Bob")]
        ledger.identities.forget()
        assert list(ledger.identities.named_boxes()) == []


@pytest.mark.parametrize("shift", [0, 3, 7, (1 << 24) - 20])
def test_an_embedding_that_is_left_in_a_file_is_found_at_any_place(tmp_path: Path, shift: int) -> None:
    vector = np.random.default_rng(2).normal(size=128).astype(np.float32)
    with (tmp_path / "people.toml").open("wb") as file:
        file.truncate(shift + 1)
        file.seek(shift)
        file.write(vector.tobytes())
    with pytest.raises(FacefixError, match=r"people\.toml: an embedding is still in this file"):
        require_gone(tmp_path, [vector])
    assert require_gone(tmp_path, [vector + 1]) == 1
