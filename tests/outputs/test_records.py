"""The records: what became of photos and faces comes back as it was."""

from __future__ import annotations

from pathlib import Path

from ledgers import ODD

from facefix.outputs.ledger import Ledger
from facefix.outputs.outcomes import FaceOutcome, PhotoOutcome, ReferenceNote

BOX = (1.0, 2.0, 3.0, 4.0)


def test_outcomes_come_back_with_any_file_name(tmp_path: Path) -> None:
    outcome = PhotoOutcome(
        ODD,
        tmp_path / ODD,
        "restored",
        sha256="aa",
        target=ODD,
        recipe="r1",
        faces=(
            FaceOutcome(
                0,
                (1, 2, 3, 4),
                "restored",
                "",
                "Ada",
                0.5,
                0.75,
                (ReferenceNote(str(tmp_path / ODD), 2, "sharpest", 0.9),),
                "m",
                2.0,
            ),
            FaceOutcome(1, (1, 2, 3, 4), "failed", "not finite", None),
        ),
        seconds=3.5,
        size=(640, 480),
        notes=("odd ICC profile",),
    )
    target = tmp_path / "x"
    target.write_bytes(b"123")
    with Ledger.open(tmp_path) as ledger:
        ledger.records.start([(ODD, tmp_path / ODD), (Path("b.jpg"), tmp_path / "b.jpg")])
        assert list(ledger.records.photos()) == [] and ledger.records.done() == {}
        ledger.records.record(outcome, portraits="p", written=target.stat())
        assert list(ledger.records.photos()) == [outcome]
        row = ledger.records.done()[ODD]
        assert (row.sha256, row.recipe, row.portraits, row.target_size) == ("aa", "r1", "p", 3)
        assert ledger.records.started() == {ODD, Path("b.jpg")}
        ledger.records.start([(ODD, tmp_path / ODD)])
        assert ledger.records.done() == {}


def test_a_confirmed_photo_is_known_under_the_new_portraits(tmp_path: Path) -> None:
    with Ledger.open(tmp_path) as ledger:
        for name in ("a.jpg", "b.jpg"):
            done = PhotoOutcome(Path(name), tmp_path / name, "left", sha256="aa", recipe="r1")
            ledger.records.record(done, portraits="before")
        ledger.records.confirm([Path("a.jpg")], "now")
        assert {str(path): row.portraits for path, row in ledger.records.done().items()} == {
            "a.jpg": "now",
            "b.jpg": "before",
        }


def test_renaming_counts_what_changed(tmp_path: Path) -> None:
    faces = tuple(FaceOutcome(number, BOX, "kept", "", name) for number, name in enumerate(("Ada", "Bob", None)))
    with Ledger.open(tmp_path) as ledger:
        ledger.records.record(PhotoOutcome(ODD, tmp_path / ODD, "left", sha256="aa", recipe="r1", faces=faces))
        assert ledger.records.rename({(ODD, 0): "Ada", (ODD, 1): "Eve", (ODD, 2): "Eve", (Path("b"), 0): "Eve"}) == 2
        assert ledger.records.rename({(ODD, 0): None}) == 1
        assert ledger.records.people() == [("Eve", 2)]
        assert [one.person for one in ledger.records.faces(ODD)] == [None, "Eve", "Eve"]


def test_a_failed_photo_is_not_done(tmp_path: Path) -> None:
    with Ledger.open(tmp_path) as ledger:
        ledger.records.record(PhotoOutcome(Path("a.jpg"), tmp_path / "a.jpg", "failed", "cannot be decoded", "aa"))
        assert ledger.records.done() == {}
        assert [photo.reason for photo in ledger.records.photos()] == ["cannot be decoded"]
