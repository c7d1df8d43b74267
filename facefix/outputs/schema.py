"""The ledger's tables, and the steps from one version of them to the next."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable

from facefix.errors import FacefixError

Migration = Callable[[sqlite3.Connection], None]

_APPLIED = "CREATE TABLE IF NOT EXISTS migrations (number INTEGER PRIMARY KEY, name TEXT, applied REAL)"
_HAS_APPLIED = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'migrations'"


def _m001_create_tables(connection: sqlite3.Connection) -> None:
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


def _m002_add_digest_of_output(connection: sqlite3.Connection) -> None:
    connection.execute("ALTER TABLE photos ADD COLUMN target_sha256 TEXT")


MIGRATIONS: tuple[Migration, ...] = (_m001_create_tables, _m002_add_digest_of_output)
"""In order, never changed once released. The table ``migrations`` names those applied; ``PRAGMA user_version`` counts
them, and in ledgers made before that table it is all there is."""


def migrate(connection: sqlite3.Connection, name: str, migrations: tuple[Migration, ...] = MIGRATIONS) -> None:
    """Bring a ledger to the newest version, each step in a transaction of its own.

    Args:
        connection: to the ledger, of any version, or to an empty database.
        name: what to call the ledger in an error.
        migrations: all there are.

    Raises:
        FacefixError: the ledger was written by a newer facefix.
    """
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > len(migrations):
        raise FacefixError(
            f"ledger {name}: was written by a newer facefix (version {version}, this one knows {len(migrations)});"
            " update facefix, or choose another output folder"
        )
    if version == len(migrations) and connection.execute(_HAS_APPLIED).fetchone() is not None:
        return
    with connection:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute(_APPLIED)
        known = [(number, _name(step)) for number, step in enumerate(migrations[:version], start=1)]
        connection.executemany("INSERT OR IGNORE INTO migrations (number, name) VALUES (?, ?)", known)
    for number, step in enumerate(migrations[version:], start=version + 1):
        with connection:
            connection.execute("BEGIN IMMEDIATE")
            step(connection)
            connection.execute("INSERT INTO migrations VALUES (?, ?, ?)", (number, _name(step), time.time()))
            connection.execute(f"PRAGMA user_version = {number}")


def _name(step: Migration) -> str:
    return step.__name__.lstrip("_")
