"""The tables and their versions: old ledgers open with all they hold, newer ones are refused."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

import numpy as np
import pytest
from ledgers import OLD_LEDGERS, old_ledger

from facefix.errors import FacefixError
from facefix.outputs.ledger import Ledger
from facefix.outputs.outcomes import NamedBox, ReferenceNote
from facefix.outputs.rows import FaceOutcomeRow, FaceRow, FileRow, IndexedRow, PhotoRow, Row, columns
from facefix.outputs.schema import MIGRATIONS, migrate

PLACE = Path(os.fsdecode(b"dir/caf\xe9.jpg"))


def test_migrations_are_applied_once_and_newer_ledgers_refused(tmp_path: Path) -> None:
    Ledger.open(tmp_path).close()
    path = tmp_path / ".facefix" / "ledger.sqlite"
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS),)
        connection.execute("PRAGMA user_version = 999")
    with pytest.raises(FacefixError, match="newer facefix"):
        Ledger.open(tmp_path)


def test_every_step_is_named_in_the_table_of_those_applied(tmp_path: Path) -> None:
    with Ledger.open(tmp_path / "new"):
        pass
    old_ledger(tmp_path / "old", 1)
    with Ledger.open(tmp_path / "old"):
        pass
    for output in ("new", "old"):
        with sqlite3.connect(tmp_path / output / ".facefix" / "ledger.sqlite") as connection:
            applied = connection.execute("SELECT number, name FROM migrations ORDER BY number").fetchall()
        assert applied == [(number, step.__name__.lstrip("_")) for number, step in enumerate(MIGRATIONS, start=1)]


@pytest.mark.parametrize("version", range(1, len(MIGRATIONS) + 1))
def test_the_tables_of_an_old_ledger_become_those_of_a_new_one(tmp_path: Path, version: int) -> None:
    assert (OLD_LEDGERS / f"version{version}.sql").is_file(), "keep a ledger of every released version"
    shapes = []
    for name, old in (("new", None), ("old", version)):
        if old is not None:
            old_ledger(tmp_path / name, old)
        Ledger.open(tmp_path / name).close()
        with sqlite3.connect(tmp_path / name / ".facefix" / "ledger.sqlite") as connection:
            tables = [row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
            shapes.append({table: connection.execute(f"PRAGMA table_info({table})").fetchall() for table in tables})
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("open_ledger", [Ledger.open, Ledger.snapshot])
def test_an_old_ledger_keeps_what_it_held(tmp_path: Path, open_ledger: object) -> None:
    old_ledger(tmp_path, 1)
    with open_ledger(tmp_path) as ledger:  # type: ignore[operator]
        found = ledger.index.get("aa" * 32, "dlib", "key")
        assert (found.size, found.taken, found.notes) == ((640, 480), 5.0, ("odd ICC profile",))
        assert found.named == (NamedBox("Ada", (0.0, 1.0, 2.0, 3.0)),)
        first, second = found.faces
        assert first.embedding.shape == (8,) and second.embedding is None and first.quality.noise == 2.0
        assert np.array_equal(first.detection.landmarks, np.arange(10).reshape(5, 2) / 4)
        assert ledger.index.get("bb" * 32, "dlib", "key").copy_reason == "a GIF with 3 frames"
        gif, failed, photo = ledger.records.photos()
        assert (gif.status, failed.reason, failed.recipe) == ("copied", "cannot be decoded", None)
        assert (photo.relative, photo.target, photo.scale, photo.finished) == (PLACE, PLACE, 2, 1_700_000_000.0)
        assert photo.faces[0].references == (ReferenceNote("/refs/ada.jpg", 0, "sharpest", 0.9),)
        assert (photo.faces[0].person, photo.faces[0].after, photo.faces[1].verdict) == ("Ada", 0.75, "kept")
        row = ledger.records.done()[PLACE]
        assert (row.recipe, row.portraits, row.target_size, row.target_mtime_ns) == (
            "r1.p1",
            "given-1",
            123,
            17_000_000_001,
        )
        assert ledger.records.started() == {PLACE, Path("b.gif"), Path("c.jpg"), Path("pending.jpg")}
        assert ledger.identities.faces_of("Ada") == [("aa" * 32, 0), ("cc" * 32, 0)]
        assert ledger.noted("seconds_per_face") == {"r": 2.5}


def test_a_step_that_fails_leaves_the_ledger_as_it_was() -> None:
    def half(connection: sqlite3.Connection) -> None:
        connection.execute("CREATE TABLE half (x)")
        raise sqlite3.OperationalError("disk full")

    connection = sqlite3.connect(":memory:")
    migrate(connection, "test")
    with pytest.raises(sqlite3.OperationalError):
        migrate(connection, "test", (*MIGRATIONS, half))
    assert connection.execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS),)
    assert connection.execute("SELECT count(*) FROM sqlite_master WHERE name = 'half'").fetchone() == (0,)


@pytest.mark.parametrize("kind", [FileRow, IndexedRow, FaceRow, PhotoRow, FaceOutcomeRow])
def test_the_fields_of_rows_are_the_columns(kind: type[Row]) -> None:
    connection = sqlite3.connect(":memory:")
    migrate(connection, "test")
    names = [row[1] for row in connection.execute(f"PRAGMA table_info({kind.table})")]
    assert names == list(columns(kind))
