"""Rows: values to columns and back, by name."""

from __future__ import annotations

import sqlite3
from dataclasses import fields
from pathlib import Path

import numpy as np
from ledgers import ODD, face

from facefix.faces.face import Face
from facefix.outputs.outcomes import FaceOutcome, IndexedPhoto, NamedBox, PhotoOutcome, ReferenceNote
from facefix.outputs.rows import (
    FaceOutcomeRow,
    FaceRow,
    FileRow,
    IndexedRow,
    PhotoRow,
    key_path,
    path_key,
    read_rows,
    write_rows,
)
from facefix.outputs.schema import migrate


def database() -> sqlite3.Connection:
    connection = sqlite3.connect(":memory:")
    connection.row_factory = sqlite3.Row
    migrate(connection, "test")
    return connection


def test_rows_are_found_by_name_whatever_the_order_of_columns() -> None:
    connection = database()
    connection.execute("DROP TABLE files")
    connection.execute(
        "CREATE TABLE files (sha256 TEXT, more TEXT, inode INTEGER, size INTEGER, mtime_ns INTEGER, ctime_ns INTEGER,"
        " path BLOB PRIMARY KEY)"
    )
    row = FileRow(b"a", 1, 2, 3, 4, "digest")
    write_rows(connection, [row])
    assert list(read_rows(connection, FileRow)) == [row]
    write_rows(connection, [FileRow(b"a", 1, 2, 3, 4, "other")])
    assert [found.sha256 for found in read_rows(connection, FileRow, "WHERE path = ?", (b"a",))] == ["other"]
    assert list(read_rows(connection, FileRow, "WHERE path = ?", (b"b",))) == []


def test_a_file_is_current_until_its_status_changes(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"one")
    row = FileRow.of(b"a", path.stat(), "digest")
    assert row.is_current(path.stat())
    path.write_bytes(b"more")
    assert not row.is_current(path.stat())


def test_outcomes_survive_with_every_field() -> None:
    note = ReferenceNote("/refs/a.jpg", 2, "sharpest", 0.9)
    one = FaceOutcome(3, (1.0, 2.0, 3.0, 4.0), "flagged", "why", "Ada", 0.25, 0.5, (note,), "small", 2.0, 0.75, 40.0)
    assert len({getattr(one, field.name) for field in fields(one)}) == len(fields(one)), "fields that can be told apart"
    assert FaceOutcomeRow.of(one, b"x").outcome() == one
    photo = PhotoOutcome(
        ODD,
        Path("/album") / ODD,
        "restored",
        "why",
        "aa",
        Path("other.jpg"),
        "r1",
        (one,),
        3.5,
        (640, 480),
        2,
        ("n",),
        7.0,
    )
    row = PhotoRow.of(photo, "given", None)
    assert row.outcome([one]) == photo
    assert (row.done().portraits, row.done().target, row.done().target_size) == ("given", Path("other.jpg"), None)


def test_what_was_found_survives_with_every_field() -> None:
    vector = np.arange(4, dtype=np.float32)
    one = face(1, vector)
    photo = IndexedPhoto("aa", (4, 5), 6.0, "GIF", (one,), (NamedBox("Ada", (0.0, 1.0, 2.0, 3.0)),), ("note",))
    again = IndexedRow.of(photo, "dlib").photo([one])
    assert all(getattr(again, field.name) == getattr(photo, field.name) for field in fields(photo))
    back = FaceRow.of(one, "aa", "dlib").face("old key", 5.0)
    plain = [field.name for field in fields(Face) if field.name not in ("detection", "embedding")]
    assert all(getattr(back, name) == getattr(one, name) for name in plain)
    assert back.detection.box == one.detection.box and back.detection.confidence == one.detection.confidence
    assert np.array_equal(back.detection.landmarks, one.detection.landmarks)
    assert back.embedding is not None and np.array_equal(back.embedding, vector)
    assert FaceRow.of(face(1, None), "aa", "dlib").face("k", None).embedding is None


def test_paths_are_kept_as_bytes() -> None:
    assert key_path(path_key(ODD)) == ODD
