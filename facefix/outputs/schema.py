"""The ledger's tables and the steps from one version of them to the next."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from pathlib import Path

_FORGOTTEN = b""


FORGOTTEN = "forgotten"
"""reason of a face whose person was forgotten"""


def _create(connection: sqlite3.Connection) -> None:
    connection.execute("CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT)")
    connection.execute(
        "CREATE TABLE files (path BLOB PRIMARY KEY, size INTEGER, mtime_ns INTEGER, ctime_ns INTEGER, inode INTEGER,"
        " sha256 TEXT) WITHOUT ROWID"
    )
    connection.execute(
        "CREATE TABLE indexed (sha256 TEXT, backend TEXT, width INTEGER, height INTEGER, taken REAL, copy_reason TEXT,"
        " named TEXT, notes TEXT, PRIMARY KEY (sha256, backend)) WITHOUT ROWID"
    )
    connection.execute(
        "CREATE TABLE faces (sha256 TEXT, backend TEXT, number INTEGER, box TEXT, landmarks BLOB, confidence REAL,"
        " quality TEXT, embedding BLOB, PRIMARY KEY (sha256, backend, number))"
    )
    connection.execute(
        "CREATE TABLE photos (relative BLOB PRIMARY KEY, source BLOB, sha256 TEXT, recipe TEXT, portraits TEXT,"
        " status TEXT, reason TEXT, target BLOB, target_size INTEGER, target_mtime_ns INTEGER, width INTEGER,"
        " height INTEGER, scale INTEGER, notes TEXT, seconds REAL, finished REAL) WITHOUT ROWID"
    )
    connection.execute(
        "CREATE TABLE outcomes (relative BLOB, number INTEGER, box TEXT, verdict TEXT, reason TEXT, person TEXT,"
        " before REAL, after REAL, refs TEXT, model TEXT, seconds REAL, quality REAL, face_px REAL,"
        " PRIMARY KEY (relative, number)) WITHOUT ROWID"
    )
    connection.execute("CREATE INDEX outcomes_person ON outcomes (person)")


MIGRATIONS: tuple[Callable[[sqlite3.Connection], None], ...] = (_create,)
"""In order, never changed once released; `PRAGMA user_version` counts those applied."""


def _key(path: Path) -> bytes:
    """Paths are bytes: a name need not be UTF-8."""
    return os.fsencode(path)


def _path(key: bytes) -> Path:
    return Path(os.fsdecode(key))
