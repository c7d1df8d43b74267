"""The ledger: what goes in comes out, what it holds survives, and one run at a time."""

from __future__ import annotations

import multiprocessing
import os
import sqlite3
import time
from pathlib import Path

import numpy as np
import pytest
from command_line import facefix

from facefix.errors import FacefixError, LockHeld
from facefix.faces.face import Detection, Face, Quality
from facefix.files.lock import locked
from facefix.outputs.ledger import Ledger
from facefix.outputs.outcomes import FaceOutcome, IndexedPhoto, NamedBox, PhotoOutcome, ReferenceNote
from facefix.outputs.schema import MIGRATIONS

ODD = Path(os.fsdecode(b"dir/caf\xe9 '\n\" \xf0\x9f\x98\x80.jpg"))


def face(number: int, embedding: np.ndarray | None) -> Face:
    points = np.arange(10, dtype=float).reshape(5, 2) / 3
    detection = Detection((1.5, 2.5, 3.5, 4.5), points, 0.75)
    return Face("old key", number, detection, embedding, Quality(40.0, 0.5, 0.1, -3.0, 0.4), taken=5.0)


def test_faces_come_back_as_they_were(tmp_path: Path) -> None:
    vector = np.random.default_rng(0).normal(size=128).astype(np.float32)
    photo = IndexedPhoto(
        "aa", (640, 480), 5.0, None, (face(0, vector), face(1, None)), (NamedBox("Ada", (0, 1, 2, 3)),)
    )
    with Ledger.open(tmp_path) as ledger:
        ledger.record_index(photo, "dlib")
    with Ledger.open(tmp_path) as ledger:
        assert ledger.is_indexed("aa", "dlib") and not ledger.is_indexed("aa", "insightface")
        found = ledger.indexed("aa", "dlib", "new key")
        assert ledger.indexed("aa", "insightface", "x") is None
    assert found is not None
    assert (found.size, found.taken, found.named) == (photo.size, 5.0, photo.named)
    first, second = found.faces
    assert first.key == ("new key", 0) and second.embedding is None
    assert first.embedding is not None and np.array_equal(first.embedding, vector)
    assert np.array_equal(first.detection.landmarks, photo.faces[0].detection.landmarks)
    assert first.quality == photo.faces[0].quality and first.detection.box == (1.5, 2.5, 3.5, 4.5)


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
        ledger.start([(ODD, tmp_path / ODD), (Path("b.jpg"), tmp_path / "b.jpg")])
        assert list(ledger.photos()) == [] and ledger.done_rows() == {}
        ledger.record_photo(outcome, portraits="p", written=target.stat())
        assert list(ledger.photos()) == [outcome]
        row = ledger.done_rows()[ODD]
        assert (row.sha256, row.recipe, row.portraits, row.target_size) == ("aa", "r1", "p", 3)
        assert ledger.started() == {ODD, Path("b.jpg")}
        ledger.start([(ODD, tmp_path / ODD)])
        assert ledger.done_rows() == {}


def test_digests_are_computed_again_only_when_the_file_changes(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(b"one")
    with Ledger.open(tmp_path) as ledger:
        first = ledger.sha256(path)
        old = path.stat()
        with path.open("r+b") as file:
            file.write(b"two")
        os.utime(path, ns=(old.st_atime_ns, old.st_mtime_ns))
        assert ledger.sha256(path) != first, "same size and mtime, other content"
        path.unlink()
        with pytest.raises(FileNotFoundError):
            ledger.sha256(path)


def test_a_snapshot_changes_nothing_on_disk(tmp_path: Path) -> None:
    with Ledger.open(tmp_path) as ledger:
        ledger.note("summary", {"restored": 3})
    before = sorted((path, path.stat().st_mtime_ns) for path in (tmp_path / ".facefix").glob("ledger.sqlite"))
    copy = Ledger.snapshot(tmp_path)
    assert copy.noted("summary") == {"restored": 3}
    copy.note("summary", None)
    assert sorted((path, path.stat().st_mtime_ns) for path in (tmp_path / ".facefix").glob("ledger.sqlite")) == before
    assert Ledger.snapshot(tmp_path / "none").noted("summary", 1) == 1
    assert not (tmp_path / "none").exists()


def test_forgotten_embeddings_are_in_no_file(tmp_path: Path) -> None:
    vectors = np.random.default_rng(1).normal(size=(50, 128)).astype(np.float32)
    with Ledger.open(tmp_path) as ledger:
        for number, vector in enumerate(vectors):
            ledger.record_index(IndexedPhoto(f"s{number}", (9, 9), None, None, (face(0, vector),)), "dlib")
            named = FaceOutcome(0, (0, 0, 1, 1), "restored", "", "Ada" if number % 2 else "Bob")
            ledger.record_photo(
                PhotoOutcome(Path(f"{number}.jpg"), Path("x"), "restored", "", f"s{number}", faces=(named,))
            )
        assert ledger.people() == [("Ada", 25), ("Bob", 25)]
        assert ledger.forget(ledger.faces_of("Ada")) == 25
        held = b"".join(path.read_bytes() for path in (tmp_path / ".facefix").iterdir())
        assert all((vector[:8].tobytes() in held) == (number % 2 == 0) for number, vector in enumerate(vectors))
        assert ledger.is_indexed("s1", "dlib")
        assert ledger.forget() == 25


def test_migrations_are_applied_once_and_newer_ledgers_refused(tmp_path: Path) -> None:
    Ledger.open(tmp_path).close()
    path = tmp_path / ".facefix" / "ledger.sqlite"
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS),)
        connection.execute("PRAGMA user_version = 999")
    with pytest.raises(FacefixError, match="newer facefix"):
        Ledger.open(tmp_path)


def test_a_damaged_ledger_is_named(tmp_path: Path) -> None:
    (tmp_path / ".facefix").mkdir()
    (tmp_path / ".facefix" / "ledger.sqlite").write_bytes(b"not a database" * 1000)
    with pytest.raises(FacefixError, match=r"ledger\.sqlite cannot be used"):
        Ledger.open(tmp_path)


def _hold(output: Path, seconds: float, ready: str) -> None:
    with locked(output):
        Path(ready).touch()
        time.sleep(seconds)


@pytest.mark.parametrize("command", ["report", "undo", "forget"])
def test_commands_name_a_damaged_ledger(tmp_path: Path, command: str) -> None:
    with Ledger.open(tmp_path) as ledger:
        path = ledger.path
    assert path is not None
    for damaged in (b"garbage" * 100, path.read_bytes()[:5000]):
        path.write_bytes(damaged)
        done = facefix(command, tmp_path)
        assert done.code == 1 and str(path) in done.stderr and "Traceback" not in done.stderr


def test_one_run_at_a_time_unless_one_waits(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    holder = multiprocessing.get_context("spawn").Process(target=_hold, args=(tmp_path, 1.0, str(ready)))
    holder.start()
    while not ready.exists():
        time.sleep(0.02)
    with pytest.raises(LockHeld, match=rf"process {holder.pid}"), locked(tmp_path):
        pass
    start = time.monotonic()
    with locked(tmp_path, wait_seconds=20):
        assert 0.1 < time.monotonic() - start < 10
    holder.join()
    with locked(tmp_path):
        pass
