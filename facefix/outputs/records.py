"""What became of photos and faces. A photo is done when its row names the same content and the same recipe."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from facefix.outputs.outcomes import DoneRow, FaceOutcome, PhotoOutcome, PlacedFace
from facefix.outputs.rows import FaceOutcomeRow, PhotoRow, key_path, path_key, read_rows, write_rows


class Records:
    """The ledger's record of what was done. What changes it commits."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def done(self) -> dict[Path, DoneRow]:
        """Every photo whose output was decided, by its place in the output tree."""
        rows = read_rows(self._connection, PhotoRow, "WHERE recipe IS NOT NULL AND sha256 IS NOT NULL")
        return {key_path(row.relative): row.done() for row in rows}

    def started(self) -> set[Path]:
        """Places in the output tree that this ledger has written or was about to: a file there is ours."""
        return {key_path(row["relative"]) for row in self._connection.execute("SELECT relative FROM photos")}

    def start(self, photos: Iterable[tuple[Path, Path]]) -> None:
        """Note (relative, source) of photos about to be written, so that a killed run knows its outputs again."""
        with self._connection:
            self._connection.executemany(
                "INSERT INTO photos (relative, source, status) VALUES (?, ?, 'pending') ON CONFLICT (relative)"
                " DO UPDATE SET source = excluded.source, recipe = NULL, status = 'pending'",
                [(path_key(relative), path_key(source.absolute())) for relative, source in photos],
            )

    def confirm(self, photos: Iterable[Path], portraits: str) -> None:
        """Note that photos are current under a new digest of portraits and corrections."""
        with self._connection:
            self._connection.executemany(
                "UPDATE photos SET portraits = ? WHERE relative = ?", [(portraits, path_key(photo)) for photo in photos]
            )

    def record(self, outcome: PhotoOutcome, *, portraits: str = "", written: os.stat_result | None = None) -> None:
        """Keep what became of a photo; ``written`` is the status of its output file."""
        row = PhotoRow.of(outcome, portraits, written)
        with self._connection:
            write_rows(self._connection, [row])
            self._connection.execute("DELETE FROM outcomes WHERE relative = ?", (row.relative,))
            write_rows(self._connection, [FaceOutcomeRow.of(face, row.relative) for face in outcome.faces])

    def photos(self) -> Iterator[PhotoOutcome]:
        """Every photo that was decided, in the order of its place in the output tree."""
        for row in read_rows(self._connection, PhotoRow, "WHERE status != 'pending' ORDER BY relative"):
            yield row.outcome(self._faces(row.relative))

    def faces(self, relative: Path) -> tuple[FaceOutcome, ...]:
        """What became of the faces of the photo at that place in the output tree."""
        return self._faces(path_key(relative))

    def drop(self, photos: Iterable[Path]) -> None:
        """Forget photos by place in the output tree, as if they had never been done."""
        keys = [(path_key(photo),) for photo in photos]
        with self._connection:
            self._connection.executemany("DELETE FROM photos WHERE relative = ?", keys)
            self._connection.executemany("DELETE FROM outcomes WHERE relative = ?", keys)

    def rename(self, names: Mapping[PlacedFace, str | None]) -> int:
        """Give faces other names; return how many changed."""
        changed = []
        for row in self._connection.execute("SELECT relative, number, person FROM outcomes"):
            name = names.get((key_path(row["relative"]), row["number"]), row["person"])
            if name != row["person"]:
                changed.append((name, row["relative"], row["number"]))
        with self._connection:
            self._connection.executemany("UPDATE outcomes SET person = ? WHERE relative = ? AND number = ?", changed)
        return len(changed)

    def people(self) -> list[tuple[str, int]]:
        """Names of the people in the outputs, and how many faces of each."""
        query = (
            "SELECT person, count(*) AS faces FROM outcomes WHERE person IS NOT NULL GROUP BY person ORDER BY person"
        )
        return [(row["person"], row["faces"]) for row in self._connection.execute(query)]

    def _faces(self, relative: bytes) -> tuple[FaceOutcome, ...]:
        rows = read_rows(self._connection, FaceOutcomeRow, "WHERE relative = ? ORDER BY number", (relative,))
        return tuple(row.outcome() for row in rows)
