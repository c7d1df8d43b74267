"""SQLite: what is known about each photo and what is done. This is how a killed run goes on and a second one rests.

Faces and embeddings are kept per content (sha256) and backend, so a photo that moves is not looked at again. A photo is
done when the row of its output names the same content and the same recipe, and the output is still as it was written.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
from pathlib import Path
from types import TracebackType
from typing import Any

from facefix.errors import FacefixError
from facefix.files.digests import sha256_of
from facefix.outputs.folder import LEDGER_NAME, OUTPUT_MARKER
from facefix.outputs.forgetting import Identities
from facefix.outputs.index import PhotoIndex
from facefix.outputs.records import Records
from facefix.outputs.rows import FileRow, path_key, read_rows, write_rows
from facefix.outputs.schema import migrate


class Ledger:
    """The record of one output folder. Used by one thread; `close` it, or use it as a context manager."""

    def __init__(self, connection: sqlite3.Connection, path: Path | None) -> None:
        connection.row_factory = sqlite3.Row
        migrate(connection, str(path))
        self._connection = connection
        self.path = path
        self.index = PhotoIndex(connection)
        """what is in photos"""
        self.records = Records(connection)
        """what became of photos and faces"""
        self.identities = Identities(connection)
        """who is in photos, and forgetting it"""

    @classmethod
    def open(cls, output: Path) -> Ledger:
        """Open or create the ledger below an output folder. Raises FacefixError when it cannot be."""
        folder = output / OUTPUT_MARKER
        path = folder / LEDGER_NAME
        try:
            folder.mkdir(parents=True, exist_ok=True)
            connection = sqlite3.connect(path, timeout=30)
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.execute("PRAGMA secure_delete = ON")
            return cls(connection, path)
        except (OSError, sqlite3.Error) as error:
            raise FacefixError(
                f"output {output}: expected a folder to keep the ledger in, but {path} cannot be used: {error}"
            ) from error

    @classmethod
    def snapshot(cls, output: Path | None) -> Ledger:
        """A copy in memory of the ledger below ``output``, empty where there is none: nothing on disk is changed.

        Raises FacefixError when it cannot be read.
        """
        memory = sqlite3.connect(":memory:")
        path = output / OUTPUT_MARKER / LEDGER_NAME if output is not None else None
        try:
            if path is not None and path.is_file():
                with contextlib.closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as disk:
                    disk.backup(memory)
            return cls(memory, None)
        except (OSError, sqlite3.Error) as error:
            raise FacefixError(
                f"{path}: expected the ledger of an output folder, but it cannot be read: {error}"
            ) from error

    def close(self) -> None:
        """Commit and close."""
        self._connection.commit()
        self._connection.close()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def commit(self) -> None:
        """Make what was recorded last beyond a crash."""
        self._connection.commit()

    # what a file holds

    def sha256(self, path: Path) -> str:
        """The file's digest; computed only when size, times or inode differ from what is recorded. Raises OSError."""
        status, key = os.stat(path), path_key(path.absolute())
        known = next(read_rows(self._connection, FileRow, "WHERE path = ?", (key,)), None)
        if known is not None and known.is_current(status):
            return known.sha256
        digest = sha256_of(path)
        write_rows(self._connection, [FileRow.of(key, status, digest)])
        return digest

    # notes about the whole tree

    def note(self, key: str, value: Any) -> None:
        """Keep one value (JSON) about the output tree, such as how the last run went. Commits."""
        with self._connection:
            self._connection.execute("INSERT OR REPLACE INTO meta (key, value) VALUES (?, ?)", (key, json.dumps(value)))

    def noted(self, key: str, default: Any = None) -> Any:
        """The value kept under ``key``."""
        row = self._connection.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return default if row is None else json.loads(row["value"])
