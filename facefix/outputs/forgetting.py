"""Who is known in an output folder, and taking that knowledge out of every file of it."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Collection, Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from facefix.errors import FacefixError
from facefix.outputs.folder import OUTPUT_MARKER
from facefix.outputs.outcomes import ContentFace, NamedBox, StoredEmbedding
from facefix.outputs.rows import NO_EMBEDDING, FaceRow, key_path, named_boxes, path_key, read_rows

FORGOTTEN = "forgotten"
"""reason of a face whose person was forgotten"""

_SEARCHED_AT_ONCE = 1 << 24
"""bytes"""

_SEARCHED_SUFFIXES = frozenset({".sqlite", ".toml", ".html", ".json", ".js", ".npz", ".npy", ".tmp"})


class Identities:
    """The ledger's record of who is in photos: embeddings, names, references."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def embeddings(self) -> Iterator[StoredEmbedding]:
        """Every identity embedding there is."""
        for row in read_rows(self._connection, FaceRow, "WHERE length(embedding) > 0"):
            yield row.stored_embedding()

    def named_boxes(self) -> Iterator[tuple[str, NamedBox]]:
        """(sha256, face region) of every face that a photo's own metadata names."""
        for row in self._connection.execute("SELECT sha256, named FROM indexed WHERE named != '[]'"):
            for box in named_boxes(row["named"]):
                yield row["sha256"], box

    def paths(self) -> Iterator[tuple[Path, str]]:
        """(path, sha256) of every file whose content is known."""
        for row in self._connection.execute("SELECT path, sha256 FROM files"):
            yield key_path(row["path"]), row["sha256"]

    def faces_of(self, person: str) -> list[ContentFace]:
        """Every face that was taken for ``person``, and the references used for it."""
        rows = self._connection.execute(
            "SELECT photos.sha256, outcomes.number FROM outcomes JOIN photos USING (relative) WHERE person = ?",
            (person,),
        )
        found = {(row["sha256"], row["number"]) for row in rows if row["sha256"]}
        for row in self._connection.execute("SELECT refs FROM outcomes WHERE person = ?", (person,)):
            for path, number, *_ in json.loads(row["refs"]):
                known = self._connection.execute("SELECT sha256 FROM files WHERE path = ?", (_reference_key(path),))
                found.update((content["sha256"], number) for content in known)
        return sorted(found)

    def forget(self, faces: Iterable[ContentFace] | None = None, names: Collection[str] = ()) -> int:
        """Remove embeddings, of the given faces or all, from the file itself; return how many.

        With them goes who the faces, and those that were taken for one of ``names``, were taken for, how alike they
        were, and which references were used. Faces of photos that have an output stay known, without identity, so
        nothing is done again because of it. Portraits are not known any more: a run that is given them looks at them
        again.
        """
        doomed = None if faces is None else set(faces)
        with self._connection:
            count = self._forget_embeddings(doomed)
        with self._connection:
            self._forget_outcomes(doomed, names)
            self._forget_named_boxes(None if doomed is None else names)
            self._connection.execute("DELETE FROM meta WHERE key = 'run'")
            self._forget_portraits()
        self._connection.execute("VACUUM")
        self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return count

    def _forget_embeddings(self, doomed: AbstractSet[ContentFace] | None) -> int:
        query = "UPDATE faces SET embedding = ? WHERE length(embedding) > 0"
        if doomed is None:
            return self._connection.execute(query, (NO_EMBEDDING,)).rowcount
        one = f"{query} AND sha256 = ? AND number = ?"
        return sum(self._connection.execute(one, (NO_EMBEDDING, *face)).rowcount for face in doomed)

    def _forget_outcomes(self, doomed: AbstractSet[ContentFace] | None, names: Collection[str]) -> None:
        rows = self._connection.execute(
            "SELECT relative, outcomes.number, sha256, person, refs FROM outcomes JOIN photos USING (relative)"
        ).fetchall()
        contents = {
            row["path"]: row["sha256"] for row in self._connection.execute("SELECT path, sha256 FROM files").fetchall()
        }
        for row in rows:
            place = (row["relative"], row["number"])
            if doomed is None or (row["sha256"], row["number"]) in doomed or row["person"] in names:
                self._connection.execute(
                    "UPDATE outcomes SET person = NULL, before = NULL, after = NULL, refs = '[]', reason = ?"
                    " WHERE relative = ? AND number = ?",
                    (FORGOTTEN, *place),
                )
                continue
            notes = json.loads(row["refs"])
            kept = [note for note in notes if (contents.get(_reference_key(note[0])), note[1]) not in doomed]
            if len(kept) < len(notes):
                self._connection.execute(
                    "UPDATE outcomes SET refs = ? WHERE relative = ? AND number = ?", (json.dumps(kept), *place)
                )

    def _forget_named_boxes(self, names: Collection[str] | None) -> None:
        """Take names, or all, out of what photos' own metadata was found to say."""
        rows = self._connection.execute("SELECT sha256, backend, named FROM indexed WHERE named != '[]'").fetchall()
        for row in rows:
            kept = [] if names is None else [box for box in json.loads(row["named"]) if box[0] not in names]
            self._connection.execute(
                "UPDATE indexed SET named = ? WHERE sha256 = ? AND backend = ?",
                (json.dumps(kept), row["sha256"], row["backend"]),
            )

    def _forget_portraits(self) -> None:
        """Everything about contents without an output that hold a face without an embedding."""
        gone = (
            "sha256 IN (SELECT sha256 FROM faces WHERE embedding = ?)"
            " AND sha256 NOT IN (SELECT sha256 FROM photos WHERE sha256 IS NOT NULL)"
        )
        for table in ("files", "indexed", "faces"):
            self._connection.execute(f"DELETE FROM {table} WHERE {gone}", (NO_EMBEDDING,))


def _reference_key(path: str) -> bytes:
    return path_key(Path(path).absolute())


def require_gone(output: Path, vectors: Sequence[NDArray[np.float32]]) -> int:
    """Search facefix's own files for the embeddings' bytes; return how many files were searched."""
    # any 16 bytes of an embedding identify it
    needles = {vector.tobytes()[start : start + 16] for vector in vectors for start in (0, 64)}
    words = np.sort(np.array([int.from_bytes(needle[:8], "little") for needle in needles], np.uint64))
    searched = 0
    for path in _own_files(output):
        searched += 1
        if _contains(path, needles, words):
            raise FacefixError(f"{path}: an embedding is still in this file; remove it, or run facefix forget again")
    return searched


def _own_files(output: Path) -> Iterator[Path]:
    for folder, _, names in os.walk(output):
        for name in names:
            path = Path(folder, name)
            if OUTPUT_MARKER in path.parts or path.suffix in _SEARCHED_SUFFIXES or "-wal" in name:
                yield path


def _contains(path: Path, needles: AbstractSet[bytes], words: NDArray[np.uint64]) -> bool:
    """Whether a file holds one of the needles at any place; ``words`` are their first 8 bytes, sorted."""
    size = path.stat().st_size
    if not needles or size < 16:
        return False
    content = np.memmap(path, np.uint8, "r")
    for start in range(0, size, _SEARCHED_AT_ONCE):
        part = content[start : start + _SEARCHED_AT_ONCE + 16]
        for shift in range(8):
            there = part[shift : shift + (len(part) - shift) // 8 * 8].view("<u8")
            near = words[np.minimum(np.searchsorted(words, there), len(words) - 1)]
            for place in shift + 8 * np.flatnonzero(near == there):
                if part[place : place + 16].tobytes() in needles:
                    return True
    return False
