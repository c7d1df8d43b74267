"""``facefix forget``: no byte of a forgotten embedding is left in any file, and everybody else is still known."""

from __future__ import annotations

import json
import re
import resource
import sqlite3
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.data
from command_line import facefix
from numpy.typing import NDArray
from PIL import Image

from facefix.faces.face import Detection, Face, Quality
from facefix.files.lock import locked
from facefix.outputs.ledger import Ledger
from facefix.outputs.outcomes import FaceOutcome, IndexedPhoto, NamedBox, PhotoOutcome, ReferenceNote
from facefix.report import REPORT_FOLDER, write_output_report
from facefix.report.contact_sheet import SHEET_FOLDER, SheetFace, SheetPerson, write_contact_sheet

Vector = NDArray[np.float32]


def person_vectors(seed: int, count: int, dim: int = 128, spread: float = 0.05) -> list[Vector]:
    """Embeddings of length 1 around one direction, as the faces of one person have."""
    generator = np.random.default_rng(seed)
    centre = generator.normal(size=dim)
    vectors = centre / np.linalg.norm(centre) + generator.normal(size=(count, dim)) * spread / np.sqrt(dim)
    return [(vector / np.linalg.norm(vector)).astype(np.float32) for vector in vectors]


def face(number: int, vector: Vector | None) -> Face:
    detection = Detection((100.0 * number, 10.0, 100.0 * number + 80, 90.0), np.zeros((5, 2)), 0.9)
    return Face("", number, detection, vector, Quality(80.0, 0.5, 0.0, 0.0, 0.5))


@dataclass
class Known:
    """An output folder in which Anna and Bert are known."""

    output: Path
    anna: list[Vector]
    bert: list[Vector]

    def files_with(self, vectors: list[Vector]) -> list[str]:
        """Files that hold any 16 bytes in a row of one of the vectors, in single or double precision."""
        needles = set()
        for vector in vectors:
            for data in (vector.tobytes(), vector.astype(np.float64).tobytes()):
                needles |= {data[start : start + 16] for start in range(0, len(data) - 15, 16)}
        found = []
        for path in sorted(self.output.rglob("*")):
            if path.is_file() and any(needle in path.read_bytes() for needle in needles):
                found.append(path.name)
        return found


@pytest.fixture
def known(tmp_path: Path) -> Known:
    """Ten photos of both, two portraits of each, one photo that names Anna in its metadata, one unknown backend."""
    output = tmp_path / "out"
    anna, bert = person_vectors(1, 16), person_vectors(2, 16)
    refs = tmp_path / "refs"
    with Ledger.open(output) as ledger:
        for number in range(10):
            sha256 = f"{number:064}"
            faces = (face(0, anna[number]), face(1, bert[number]))
            ledger.record_index(IndexedPhoto(sha256, (300, 200), None, None, faces), "dlib")
            swapped = (face(0, None), face(1, None))
            ledger.record_index(IndexedPhoto(sha256, (300, 200), None, None, swapped), "insightface")
            reference = ReferenceNote(str(refs / "Anna" / "0.jpg"), 0, "portrait", 1.0)
            outcomes = (
                FaceOutcome(0, faces[0].detection.box, "restored", "", "Anna", references=(reference,)),
                FaceOutcome(1, faces[1].detection.box, "restored", "", "Bert"),
            )
            relative = Path(f"{number}.jpg")
            ledger.record_photo(
                PhotoOutcome(relative, tmp_path / "album" / relative, "restored", sha256=sha256, faces=outcomes)
            )
        for index, (name, vectors) in enumerate((("Anna", anna), ("Bert", bert))):
            for number in range(2):
                portrait = refs / name / f"{number}.jpg"
                portrait.parent.mkdir(parents=True, exist_ok=True)
                portrait.write_bytes(f"{name} {number}".encode())
                sha256 = ledger.sha256(portrait)
                portrait_face = face(0, vectors[10 + number])
                ledger.record_index(IndexedPhoto(sha256, (90, 90), None, None, (portrait_face,)), "dlib")
            stranger = person_vectors(50 + index, 1)[0]
            vectors.append(stranger)
            named = (NamedBox(name, (0.0, 0.0, 100.0, 100.0)),)
            far = IndexedPhoto(f"{name:0>64}", (300, 200), None, None, (face(0, stranger),), named)
            ledger.record_index(far, "dlib")
    del anna[12:16], bert[12:16]
    (output / "people.toml").write_text(
        'version = 1\nnext = 3\n\n[[person]]\nid = "p1"\nname = "Anna"\nfaces = ["0.jpg#0", "@refs/Anna/0.jpg#0"]\n\n'
        '[[person]]\nid = "p2"\nname = "Bert"\nfaces = ["0.jpg#1"]\n'
    )
    return Known(output, anna, bert)


def test_a_disk_that_is_full_is_said_and_the_next_try_forgets(known: Known) -> None:
    """No file may grow; what a first try got done, the second completes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
    try:
        refused = facefix("forget", known.output, "Anna")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert refused.code == 1 and str(known.output) in refused.stderr
    assert "Traceback" not in refused.stderr and "ledger.sqlite" in known.files_with(known.anna)
    assert facefix("forget", known.output, "Anna").code == 0
    assert known.files_with(known.anna) == [] and known.files_with(known.bert) == ["ledger.sqlite"]


def test_nothing_of_a_forgotten_person_is_left_and_the_other_stays(known: Known) -> None:
    assert "ledger.sqlite" in known.files_with(known.anna)
    done = facefix("forget", known.output, "Anna", "--json")
    assert (done.code, json.loads(done.stdout)["embeddings"]) == (0, 13), done.stderr
    assert known.files_with(known.anna) == []
    with Ledger.open(known.output) as ledger:
        left = np.stack([stored.vector for stored in ledger.embeddings()])
        assert {vector.tobytes() for vector in left} == {vector.tobytes() for vector in known.bert}
        assert ledger.indexed("0" * 64, "dlib", "x") is not None
    people = (known.output / "people.toml").read_text()
    assert "Anna" not in people and "Bert" in people


def test_everybody_can_be_forgotten(known: Known) -> None:
    done = facefix("forget", known.output)
    assert done.code == 0
    assert "26 embeddings" in done.stdout
    assert known.files_with(known.anna + known.bert) == []
    assert not (known.output / "people.toml").exists()


def test_an_id_of_people_toml_names_a_person(known: Known) -> None:
    assert facefix("forget", known.output, "p2").code == 0
    assert known.files_with(known.bert) == []
    assert known.files_with(known.anna[:1]) == ["ledger.sqlite"]


def test_free_pages_and_the_write_ahead_log_are_clean_too(known: Known) -> None:
    """Embeddings deleted before, by a connection without secure_delete, are still in the file's free pages."""
    path = known.output / ".facefix" / "ledger.sqlite"
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA secure_delete = OFF")
        connection.execute("DELETE FROM faces WHERE number = 0")
    connection.close()
    assert "ledger.sqlite" in known.files_with(known.anna)
    with sqlite3.connect(path) as reader:
        reader.execute("SELECT count(*) FROM faces").fetchone()
    reader.close()
    assert facefix("forget", known.output).code == 0
    assert known.files_with(known.anna + known.bert) == []
    assert not [name for name in known.output.rglob("*-wal") if name.stat().st_size]


def test_a_copy_of_the_ledger_left_behind_is_found_and_named(known: Known) -> None:
    copy = known.output / ".facefix" / "ledger.sqlite.backup"
    copy.write_bytes((known.output / ".facefix" / "ledger.sqlite").read_bytes())
    done = facefix("forget", known.output, "Anna")
    assert done.code == 1
    assert str(copy) in done.stderr
    copy.unlink()
    assert facefix("forget", known.output).code == 0


def test_wrong_names_and_folders_are_usage_errors(known: Known, tmp_path: Path) -> None:
    unknown = facefix("forget", known.output, "Carla")
    assert unknown.code == 2
    assert "Anna, Bert" in unknown.stderr
    assert facefix("forget", tmp_path / "nowhere").code == 2
    (tmp_path / "empty").mkdir()
    assert "no .facefix/ledger.sqlite" in facefix("forget", tmp_path / "empty").stderr


def test_a_running_job_is_not_disturbed(known: Known) -> None:
    with locked(known.output):
        assert facefix("forget", known.output).code == 75
    assert "ledger.sqlite" in known.files_with(known.anna)


@pytest.fixture
def shown(known: Known) -> Known:
    """The same with real pictures, a report and a contact sheet."""
    for folder in (known.output.parent / "album", known.output):
        folder.mkdir(exist_ok=True)
        for number in range(10):
            Image.fromarray(skimage.data.astronaut()[number : 200 + number, :300]).save(folder / f"{number}.jpg")
    for number in range(2):
        face_picture = Image.fromarray(skimage.data.astronaut()[:150, :150])
        face_picture.save(known.output.parent / "refs" / "Anna" / f"{number}.jpg")
    write_output_report(known.output)
    people = (
        SheetPerson("p1", "Anna", (SheetFace(known.output / "0.jpg", (0.0, 10.0, 80.0, 90.0), "0.jpg#0"),)),
        SheetPerson("p2", "Bert", (SheetFace(known.output / "0.jpg", (100.0, 10.0, 180.0, 90.0), "0.jpg#1"),)),
    )
    sheet = known.output / SHEET_FOLDER
    write_contact_sheet(people, sheet, title="People", people_file=known.output / "people.toml")
    return known


def own_files(output: Path) -> list[Path]:
    """Everything but the photos."""
    return [path for path in output.rglob("*") if path.is_file() and path.parent != output] + [output / "people.toml"]


@pytest.mark.parametrize("person", ["Anna", None])
def test_no_name_and_no_small_picture_is_left(shown: Known, person: str | None) -> None:
    page = shown.output / REPORT_FOLDER / "index.html"
    assert any(b"Anna" in path.read_bytes() for path in own_files(shown.output))
    before = shown_faces(page)
    assert sum(face["person"] is not None and face["thumbBefore"] is not None for face in before) == 20
    thumbs = set((page.parent / "thumbs").iterdir())

    done = facefix("forget", shown.output, *([person] if person else []), "--json")
    assert done.code == 0, done.stderr
    gone = (b"Anna",) if person else (b"Anna", b"Bert")
    for path in own_files(shown.output):
        assert not path.exists() or not any(name in path.read_bytes() for name in gone), path
    after = shown_faces(page)
    assert len(after) == 20
    for was, face in zip(before, after, strict=True):
        if was["person"] == 0 or person is None:  # Anna
            assert (face["person"], face["before"], face["references"]) == (None, None, [])
            assert (face["thumbBefore"], face["thumbAfter"], face["why"]) == (None, None, "forgotten")
        else:
            assert (face["person"], face["thumbBefore"]) == (0, was["thumbBefore"])
    left = set((page.parent / "thumbs").iterdir())
    removed = [was["thumbBefore"] for was in before if was["person"] == 0 or person is None]
    assert len(removed) >= 10 and left < thumbs and not {path.name for path in left} & set(removed)
    assert not (shown.output / SHEET_FOLDER).exists()
    with Ledger.snapshot(shown.output) as ledger:
        assert [name for name, _ in ledger.people()] == ([] if person is None else ["Bert"])


def shown_faces(page: Path) -> list[dict[str, Any]]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page.read_text(), re.DOTALL)
    assert found
    return [face for photo in json.loads(found[1])["photos"] for face in photo["faces"]]


@pytest.mark.parametrize("place", [0, 3, 15, 16, (1 << 24) - 5, (1 << 24) + 1])
def test_the_search_finds_an_embedding_at_any_place(known: Known, place: int) -> None:
    """Also on the border between two parts that are read one after the other."""
    odd = known.output / ".facefix" / "left.json"
    odd.write_bytes(b"\1" * place + known.anna[3].tobytes() + b"\1" * 11)
    done = facefix("forget", known.output)
    assert (done.code, str(odd) in done.stderr) == (1, True)
