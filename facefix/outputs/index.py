"""What was found in photos, kept per content and face backend: a photo that moves is not looked into again."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from facefix.outputs.outcomes import Box, IndexedPhoto
from facefix.outputs.rows import FaceRow, IndexedRow, json_box, path_key, read_rows, write_rows


class PhotoIndex:
    """The ledger's record of what is in photos."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def has(self, sha256: str, backend: str) -> bool:
        """Whether the content has been looked into with that backend."""
        query = "SELECT 1 FROM indexed WHERE sha256 = ? AND backend = ?"
        return self._connection.execute(query, (sha256, backend)).fetchone() is not None

    def get(self, sha256: str, backend: str, photo: str) -> IndexedPhoto | None:
        """What is known of a content; its faces are given the key ``photo``."""
        key, where = (sha256, backend), "WHERE sha256 = ? AND backend = ?"
        row = next(read_rows(self._connection, IndexedRow, where, key), None)
        if row is None:
            return None
        faces = read_rows(self._connection, FaceRow, f"{where} ORDER BY number", key)
        return row.photo(face.face(photo, row.taken) for face in faces)

    def record(self, photo: IndexedPhoto, backend: str) -> None:
        """Keep what was found in a content."""
        key = (photo.sha256, backend)
        write_rows(self._connection, [IndexedRow.of(photo, backend)])
        self._connection.execute("DELETE FROM faces WHERE sha256 = ? AND backend = ?", key)
        write_rows(self._connection, [FaceRow.of(face, *key) for face in photo.faces])

    def face_box(self, path: Path, number: int) -> Box | None:
        """Where a face of the file at ``path`` is, if that is known."""
        row = self._connection.execute(
            "SELECT box FROM faces JOIN files USING (sha256) WHERE path = ? AND number = ? LIMIT 1",
            (path_key(path.absolute()), number),
        ).fetchone()
        return None if row is None else json_box(row["box"])
