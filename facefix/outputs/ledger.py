"""SQLite: what is known about each photo and what is done. This is how a killed run goes on and a second one rests.

Faces and embeddings are kept per content (sha256) and backend, so a photo that moves is not looked at again. A photo is
done when the row of its output names the same content and the same recipe, and the output is still as it was written.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from facefix.errors import FacefixError
from facefix.faces.face import Detection, Face, Quality
from facefix.files.digests import sha256_of
from facefix.outputs.folder import LEDGER_NAME, OUTPUT_MARKER
from facefix.outputs.outcomes import (
    DoneRow,
    FaceOutcome,
    IndexedPhoto,
    NamedBox,
    PhotoOutcome,
    ReferenceNote,
    StoredEmbedding,
)
from facefix.outputs.schema import _FORGOTTEN, FORGOTTEN, MIGRATIONS, _key, _path


class Ledger:
    """The record of one output folder. Used by one thread; `close` it, or use it as a context manager."""

    def __init__(self, connection: sqlite3.Connection, path: Path | None) -> None:
        self._connection = connection
        self.path = path
        self._migrate()

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

    def _migrate(self) -> None:
        (version,) = self._connection.execute("PRAGMA user_version").fetchone()
        if version > len(MIGRATIONS):
            raise FacefixError(
                f"ledger {self.path}: was written by a newer facefix (version {version}, this one knows"
                f" {len(MIGRATIONS)}); update facefix, or choose another output folder"
            )
        for number, migration in enumerate(MIGRATIONS[version:], start=version + 1):
            with self._connection:
                self._connection.execute("BEGIN IMMEDIATE")
                migration(self._connection)
                self._connection.execute(f"PRAGMA user_version = {number}")

    # what a file holds

    def sha256(self, path: Path) -> str:
        """The file's digest; computed only when size, times or inode differ from what is recorded. Raises OSError."""
        status = os.stat(path)
        stamp = (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
        key = _key(path.absolute())
        row = self._connection.execute(
            "SELECT size, mtime_ns, ctime_ns, inode, sha256 FROM files WHERE path = ?", (key,)
        ).fetchone()
        if row is not None and row[:4] == stamp:
            return str(row[4])
        digest = sha256_of(path)
        self._connection.execute("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?, ?)", (key, *stamp, digest))
        return digest

    # what is in a photo

    def is_indexed(self, sha256: str, backend: str) -> bool:
        """Whether the content has been looked at with that backend."""
        query = "SELECT 1 FROM indexed WHERE sha256 = ? AND backend = ?"
        return self._connection.execute(query, (sha256, backend)).fetchone() is not None

    def indexed(self, sha256: str, backend: str, photo: str) -> IndexedPhoto | None:
        """What is known of a content; its faces are given the key ``photo``."""
        row = self._connection.execute(
            "SELECT width, height, taken, copy_reason, named, notes FROM indexed WHERE sha256 = ? AND backend = ?",
            (sha256, backend),
        ).fetchone()
        if row is None:
            return None
        width, height, taken, copy_reason, named, notes = row
        faces = self._connection.execute(
            "SELECT number, box, landmarks, confidence, quality, embedding FROM faces"
            " WHERE sha256 = ? AND backend = ? ORDER BY number",
            (sha256, backend),
        )
        return IndexedPhoto(
            sha256,
            (width, height),
            taken,
            copy_reason,
            tuple(_face(photo, taken, found) for found in faces),
            tuple(NamedBox(name, (box[0], box[1], box[2], box[3])) for name, box in json.loads(named)),
            tuple(json.loads(notes)),
        )

    def record_index(self, photo: IndexedPhoto, backend: str) -> None:
        """Keep what was found in a content."""
        named = json.dumps([[box.name, box.box] for box in photo.named])
        self._connection.execute(
            "INSERT OR REPLACE INTO indexed VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (photo.sha256, backend, *photo.size, photo.taken, photo.copy_reason, named, json.dumps(photo.notes)),
        )
        self._connection.execute("DELETE FROM faces WHERE sha256 = ? AND backend = ?", (photo.sha256, backend))
        self._connection.executemany(
            "INSERT INTO faces VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            [(photo.sha256, backend, *_face_row(face)) for face in photo.faces],
        )

    # what is done

    def done_rows(self) -> dict[Path, DoneRow]:
        """Every photo whose output was decided, by its place in the output tree."""
        rows = self._connection.execute(
            "SELECT relative, source, sha256, recipe, portraits, status, target, target_size, target_mtime_ns"
            " FROM photos WHERE recipe IS NOT NULL AND sha256 IS NOT NULL"
        )
        return {
            _path(relative): DoneRow(
                _path(source), sha256, recipe, portraits or "", status, _path(target) if target else None, size, mtime
            )
            for relative, source, sha256, recipe, portraits, status, target, size, mtime in rows
        }

    def started(self) -> set[Path]:
        """Places in the output tree that this ledger has written or was about to: a file there is ours."""
        return {_path(relative) for (relative,) in self._connection.execute("SELECT relative FROM photos")}

    def start(self, photos: Iterable[tuple[Path, Path]]) -> None:
        """Note (relative, source) of photos about to be written, so that a killed run knows its outputs again."""
        with self._connection:
            self._connection.executemany(
                "INSERT INTO photos (relative, source, status) VALUES (?, ?, 'pending') ON CONFLICT (relative)"
                " DO UPDATE SET source = excluded.source, recipe = NULL, status = 'pending'",
                [(_key(relative), _key(source.absolute())) for relative, source in photos],
            )

    def confirm(self, photos: Iterable[Path], portraits: str) -> None:
        """Note that photos stand under a new digest of portraits and corrections. Commits."""
        with self._connection:
            self._connection.executemany(
                "UPDATE photos SET portraits = ? WHERE relative = ?", [(portraits, _key(photo)) for photo in photos]
            )

    def record_photo(
        self, outcome: PhotoOutcome, *, portraits: str = "", written: os.stat_result | None = None
    ) -> None:
        """Keep what became of a photo; ``written`` is the status of its output file. Commits."""
        key = _key(outcome.relative)
        size, mtime = (written.st_size, written.st_mtime_ns) if written else (None, None)
        width, height = outcome.size or (None, None)
        with self._connection:
            self._connection.execute(
                "INSERT OR REPLACE INTO photos VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    key,
                    _key(outcome.source.absolute()),
                    outcome.sha256,
                    outcome.recipe,
                    portraits,
                    outcome.status,
                    outcome.reason,
                    _key(outcome.target) if outcome.target else None,
                    size,
                    mtime,
                    width,
                    height,
                    outcome.scale,
                    json.dumps(outcome.notes),
                    outcome.seconds,
                    outcome.finished,
                ),
            )
            self._connection.execute("DELETE FROM outcomes WHERE relative = ?", (key,))
            self._connection.executemany(
                "INSERT INTO outcomes VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                [(key, *_outcome_row(face)) for face in outcome.faces],
            )

    def photos(self) -> Iterator[PhotoOutcome]:
        """Every photo that was decided, in the order of its place in the output tree."""
        rows = self._connection.execute(
            "SELECT relative, source, status, reason, sha256, target, recipe, seconds, width, height, scale, notes,"
            " finished FROM photos WHERE status != 'pending' ORDER BY relative"
        )
        for relative, source, status, reason, sha256, target, recipe, seconds, width, height, scale, notes, end in rows:
            yield PhotoOutcome(
                _path(relative),
                _path(source),
                status,
                reason or "",
                sha256,
                _path(target) if target else None,
                recipe,
                self._outcomes(relative),
                seconds or 0.0,
                (width, height) if width else None,
                scale or 1,
                tuple(json.loads(notes or "[]")),
                end or 0.0,
            )

    def faces_done(self, relative: Path) -> tuple[FaceOutcome, ...]:
        """What became of the faces of the photo at that place in the output tree."""
        return self._outcomes(_key(relative))

    def rename(self, names: Mapping[tuple[Path, int], str | None]) -> int:
        """Give faces, by place in the output tree and number, other names; return how many changed. Commits."""
        rows = self._connection.execute("SELECT relative, number, person FROM outcomes").fetchall()
        known = [((_path(relative), number), relative, person) for relative, number, person in rows]
        changed = [
            (names[face], relative, face[1]) for face, relative, person in known if names.get(face, person) != person
        ]
        with self._connection:
            self._connection.executemany("UPDATE outcomes SET person = ? WHERE relative = ? AND number = ?", changed)
        return len(changed)

    def _outcomes(self, relative: bytes) -> tuple[FaceOutcome, ...]:
        rows = self._connection.execute(
            "SELECT number, box, verdict, reason, person, before, after, refs, model, seconds, quality, face_px"
            " FROM outcomes WHERE relative = ? ORDER BY number",
            (relative,),
        )
        return tuple(_outcome(row) for row in rows)

    # notes about the whole tree

    def note(self, key: str, value: Any) -> None:
        """Keep one value (JSON) about the output tree, such as how the last run went. Commits."""
        with self._connection:
            self._connection.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, json.dumps(value)))

    def noted(self, key: str, default: Any = None) -> Any:
        """The value kept under ``key``."""
        row = self._connection.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return default if row is None else json.loads(row[0])

    # forgetting

    def forget(self, faces: Iterable[tuple[str, int]] | None = None, names: Collection[str] = ()) -> int:
        """Remove embeddings, of the given (sha256, number) or all, from the file itself; return how many.

        With them goes who the faces, and those that were taken for one of ``names``, were taken for, how alike they
        were, and which references were used. Faces of photos that have an output stay known, without identity, so
        nothing is done again because of it. Portraits are not known any more: a run that is given them looks at them
        again.
        """
        doomed = None if faces is None else set(faces)
        query = "UPDATE faces SET embedding = ? WHERE length(embedding) > 0"
        with self._connection:
            if doomed is None:
                count = self._connection.execute(query, (_FORGOTTEN,)).rowcount
            else:
                count = sum(
                    self._connection.execute(query + " AND sha256 = ? AND number = ?", (_FORGOTTEN, *face)).rowcount
                    for face in doomed
                )
        with self._connection:
            self._forget_outcomes(doomed, names)
            self._forget_named_boxes(None if doomed is None else names)
            self._connection.execute("DELETE FROM meta WHERE key = 'run'")
            gone = (
                "sha256 IN (SELECT sha256 FROM faces WHERE embedding = ?)"
                " AND sha256 NOT IN (SELECT sha256 FROM photos WHERE sha256 IS NOT NULL)"
            )
            for table in ("files", "indexed", "faces"):
                self._connection.execute(f"DELETE FROM {table} WHERE {gone}", (_FORGOTTEN,))
        self._connection.execute("VACUUM")
        self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return count

    def _forget_outcomes(self, doomed: set[tuple[str, int]] | None, names: Collection[str]) -> None:
        rows = self._connection.execute(
            "SELECT relative, outcomes.number, sha256, person, refs FROM outcomes JOIN photos USING (relative)"
        ).fetchall()
        contents = dict(self._connection.execute("SELECT path, sha256 FROM files"))
        for relative, number, sha256, person, refs in rows:
            if doomed is None or (sha256, number) in doomed or person in names:
                self._connection.execute(
                    "UPDATE outcomes SET person = NULL, before = NULL, after = NULL, refs = '[]', reason = ?"
                    " WHERE relative = ? AND number = ?",
                    (FORGOTTEN, relative, number),
                )
                continue
            notes = json.loads(refs)
            kept = [note for note in notes if (contents.get(_key(Path(note[0]).absolute())), note[1]) not in doomed]
            if len(kept) < len(notes):
                self._connection.execute(
                    "UPDATE outcomes SET refs = ? WHERE relative = ? AND number = ?",
                    (json.dumps(kept), relative, number),
                )

    def _forget_named_boxes(self, names: Collection[str] | None) -> None:
        """Take names, or all, out of what photos' own metadata was found to say."""
        rows = self._connection.execute("SELECT sha256, backend, named FROM indexed WHERE named != '[]'").fetchall()
        for sha256, backend, named in rows:
            kept = [] if names is None else [box for box in json.loads(named) if box[0] not in names]
            self._connection.execute(
                "UPDATE indexed SET named = ? WHERE sha256 = ? AND backend = ?", (json.dumps(kept), sha256, backend)
            )

    def embeddings(self) -> Iterator[StoredEmbedding]:
        """Every identity embedding there is."""
        rows = self._connection.execute(
            "SELECT sha256, number, backend, box, embedding FROM faces WHERE length(embedding) > 0"
        )
        for sha256, number, backend, box, embedding in rows:
            left, top, right, bottom = json.loads(box)
            yield StoredEmbedding(
                sha256, number, backend, (left, top, right, bottom), np.frombuffer(embedding, dtype="<f4")
            )

    def named_boxes(self) -> Iterator[tuple[str, NamedBox]]:
        """(sha256, face region) of every face that a photo's own metadata names."""
        for sha256, named in self._connection.execute("SELECT sha256, named FROM indexed WHERE named != '[]'"):
            for name, box in json.loads(named):
                yield sha256, NamedBox(name, (box[0], box[1], box[2], box[3]))

    def paths(self) -> Iterator[tuple[Path, str]]:
        """(path, sha256) of every file whose content is known."""
        for path, sha256 in self._connection.execute("SELECT path, sha256 FROM files"):
            yield _path(path), sha256

    def faces_of(self, person: str) -> list[tuple[str, int]]:
        """(sha256, number) of every face that was taken for ``person``, and of the references used for it."""
        rows = self._connection.execute(
            "SELECT photos.sha256, outcomes.number FROM outcomes JOIN photos USING (relative) WHERE person = ?",
            (person,),
        )
        found = {(sha256, number) for sha256, number in rows if sha256}
        for (refs,) in self._connection.execute("SELECT refs FROM outcomes WHERE person = ?", (person,)):
            for path, number, *_ in json.loads(refs):
                row = self._connection.execute(
                    "SELECT sha256 FROM files WHERE path = ?", (_key(Path(path).absolute()),)
                ).fetchone()
                if row is not None:
                    found.add((row[0], number))
        return sorted(found)

    def face_box(self, path: Path, number: int) -> tuple[float, float, float, float] | None:
        """left, top, right, bottom of a face of the file at ``path``, in pixels of the upright photo, where known."""
        row = self._connection.execute(
            "SELECT box FROM faces JOIN files USING (sha256) WHERE path = ? AND number = ? LIMIT 1",
            (_key(path.absolute()), number),
        ).fetchone()
        if row is None:
            return None
        left, top, right, bottom = json.loads(row[0])
        return (left, top, right, bottom)

    def people(self) -> list[tuple[str, int]]:
        """Names of the people in the outputs, and how many faces of each."""
        query = "SELECT person, count(*) FROM outcomes WHERE person IS NOT NULL GROUP BY person ORDER BY person"
        return [(name, count) for name, count in self._connection.execute(query)]


def _face_row(face: Face) -> tuple[Any, ...]:
    numbers = {name: float(value) for name, value in asdict(face.quality).items()}
    return (
        face.index,
        json.dumps([float(side) for side in face.detection.box]),
        np.asarray(face.detection.landmarks, dtype="<f8").tobytes(),
        float(face.detection.confidence),
        json.dumps(numbers),
        _FORGOTTEN if face.embedding is None else np.asarray(face.embedding, dtype="<f4").tobytes(),
    )


def _face(photo: str, taken: float | None, row: Sequence[Any]) -> Face:
    number, box, landmarks, confidence, quality, embedding = row
    left, top, right, bottom = json.loads(box)
    points = np.frombuffer(landmarks, dtype="<f8").reshape(5, 2).astype(np.float64)
    vector = np.frombuffer(embedding, dtype="<f4").astype(np.float32) if embedding else None
    detection = Detection((left, top, right, bottom), points, confidence)
    return Face(photo, number, detection, vector, Quality(**json.loads(quality)), taken)


def _outcome_row(face: FaceOutcome) -> tuple[Any, ...]:
    return (
        face.face,
        json.dumps([float(side) for side in face.box]),
        face.verdict,
        face.reason,
        face.person,
        face.before,
        face.after,
        json.dumps([[os.path.abspath(note.path), note.face, note.reason, note.score] for note in face.references]),
        face.model,
        face.seconds,
        face.quality,
        face.face_px,
    )


def _outcome(row: Sequence[Any]) -> FaceOutcome:
    number, box, verdict, reason, person, before, after, refs, model, seconds, quality, face_px = row
    left, top, right, bottom = json.loads(box)
    notes = tuple(ReferenceNote(*note) for note in json.loads(refs))
    return FaceOutcome(
        number,
        (left, top, right, bottom),
        verdict,
        reason,
        person,
        before,
        after,
        notes,
        model,
        seconds,
        quality,
        face_px,
    )
