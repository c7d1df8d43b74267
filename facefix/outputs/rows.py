"""The rows of the ledger's tables: one dataclass a table, its fields the columns, written and read by name."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import ClassVar, Self, TypeVar

import numpy as np

from facefix.faces.face import Detection, Face, Quality
from facefix.outputs.outcomes import (
    Box,
    DoneRow,
    FaceOutcome,
    IndexedPhoto,
    NamedBox,
    PhotoOutcome,
    ReferenceNote,
    StoredEmbedding,
)

NO_EMBEDDING = b""
"""in place of the embedding of a face that has none, or whose embedding was forgotten"""


@dataclass(frozen=True, slots=True)
class FileRow:
    """A file's digest, and what its status was then."""

    table: ClassVar[str] = "files"

    path: bytes
    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int
    sha256: str

    @classmethod
    def of(cls, key: bytes, status: os.stat_result, sha256: str) -> Self:
        """The row of a file whose content has just been read."""
        return cls(key, status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, sha256)

    def is_current(self, status: os.stat_result) -> bool:
        """Whether a file with that status still has the content."""
        return self == FileRow.of(self.path, status, self.sha256)


@dataclass(frozen=True, slots=True)
class IndexedRow:
    """A content that was looked into; its faces are rows of their own."""

    table: ClassVar[str] = "indexed"

    sha256: str
    backend: str
    width: int
    height: int
    taken: float | None
    copy_reason: str | None
    named: str
    """JSON: [name, [left, top, right, bottom]] of each face that the photo's own metadata names"""
    notes: str
    """JSON: list of text"""

    @classmethod
    def of(cls, photo: IndexedPhoto, backend: str) -> Self:
        """The row of a content."""
        width, height = photo.size
        named = json.dumps([[box.name, box.box] for box in photo.named])
        return cls(photo.sha256, backend, width, height, photo.taken, photo.copy_reason, named, json.dumps(photo.notes))

    def photo(self, faces: Iterable[Face]) -> IndexedPhoto:
        """What is known of the content."""
        return IndexedPhoto(
            sha256=self.sha256,
            size=(self.width, self.height),
            taken=self.taken,
            copy_reason=self.copy_reason,
            faces=tuple(faces),
            named=named_boxes(self.named),
            notes=tuple(json.loads(self.notes)),
        )


@dataclass(frozen=True, slots=True)
class FaceRow:
    """A face in a content, as one backend found it."""

    table: ClassVar[str] = "faces"

    sha256: str
    backend: str
    number: int
    box: str
    """JSON: left, top, right, bottom"""
    landmarks: bytes
    """(5, 2) little-endian float64"""
    confidence: float
    quality: str
    """JSON: the fields of `Quality` by name"""
    embedding: bytes
    """(D,) little-endian float32, or `NO_EMBEDDING`"""

    @classmethod
    def of(cls, face: Face, sha256: str, backend: str) -> Self:
        """The row of a face."""
        vector = face.embedding
        return cls(
            sha256=sha256,
            backend=backend,
            number=face.index,
            box=box_json(face.detection.box),
            landmarks=np.asarray(face.detection.landmarks, dtype="<f8").tobytes(),
            confidence=float(face.detection.confidence),
            quality=json.dumps({name: float(value) for name, value in asdict(face.quality).items()}),
            embedding=NO_EMBEDDING if vector is None else np.asarray(vector, dtype="<f4").tobytes(),
        )

    def face(self, photo: str, taken: float | None) -> Face:
        """The face, in a photo with the key ``photo``."""
        points = np.frombuffer(self.landmarks, dtype="<f8").reshape(5, 2).astype(np.float64)
        vector = np.frombuffer(self.embedding, dtype="<f4").astype(np.float32) if self.embedding else None
        numbers = json.loads(self.quality)
        settled = bool(numbers.pop("settled", True))  # older rows have none: theirs were settled
        detection = Detection(json_box(self.box), points, self.confidence, settled)
        return Face(photo, self.number, detection, vector, Quality(**numbers, settled=settled), taken)

    def stored_embedding(self) -> StoredEmbedding:
        """The embedding as bytes in the file have it."""
        vector = np.frombuffer(self.embedding, dtype="<f4")
        return StoredEmbedding(self.sha256, self.number, self.backend, json_box(self.box), vector)


@dataclass(frozen=True, slots=True)
class PhotoRow:
    """What became of a photo; its faces are rows of their own. Only the first fields of a pending one are filled."""

    table: ClassVar[str] = "photos"

    relative: bytes
    source: bytes
    sha256: str | None
    recipe: str | None
    portraits: str | None
    status: str
    reason: str | None
    target: bytes | None
    target_size: int | None
    target_mtime_ns: int | None
    width: int | None
    height: int | None
    scale: int | None
    notes: str | None
    """JSON: list of text"""
    seconds: float | None
    finished: float | None
    target_sha256: str | None

    @classmethod
    def of(cls, outcome: PhotoOutcome, portraits: str, written: os.stat_result | None) -> Self:
        """The row of a photo that was decided; ``written`` is the status of its output file."""
        width, height = outcome.size or (None, None)
        return cls(
            relative=path_key(outcome.relative),
            source=path_key(outcome.source.absolute()),
            sha256=outcome.sha256,
            recipe=outcome.recipe,
            portraits=portraits,
            status=outcome.status,
            reason=outcome.reason,
            target=None if outcome.target is None else path_key(outcome.target),
            target_size=None if written is None else written.st_size,
            target_mtime_ns=None if written is None else written.st_mtime_ns,
            width=width,
            height=height,
            scale=outcome.scale,
            notes=json.dumps(outcome.notes),
            seconds=outcome.seconds,
            finished=outcome.finished,
            target_sha256=outcome.target_sha256,
        )

    def outcome(self, faces: Iterable[FaceOutcome]) -> PhotoOutcome:
        """What became of the photo."""
        return PhotoOutcome(
            relative=key_path(self.relative),
            source=key_path(self.source),
            status=self.status,
            reason=self.reason or "",
            sha256=self.sha256,
            target=None if self.target is None else key_path(self.target),
            recipe=self.recipe,
            faces=tuple(faces),
            seconds=self.seconds or 0.0,
            size=None if self.width is None or self.height is None else (self.width, self.height),
            scale=self.scale or 1,
            notes=tuple(json.loads(self.notes or "[]")),
            finished=self.finished or 0.0,
            target_sha256=self.target_sha256,
        )

    def done(self) -> DoneRow:
        """What decides whether the output is current; only for a row with content and recipe."""
        return DoneRow(
            source=key_path(self.source),
            sha256=self.sha256 or "",
            recipe=self.recipe or "",
            portraits=self.portraits or "",
            status=self.status,
            target=None if self.target is None else key_path(self.target),
            target_size=self.target_size,
            target_mtime_ns=self.target_mtime_ns,
            target_sha256=self.target_sha256,
        )


@dataclass(frozen=True, slots=True)
class FaceOutcomeRow:
    """What became of a face."""

    table: ClassVar[str] = "outcomes"

    relative: bytes
    number: int
    box: str
    """JSON: left, top, right, bottom"""
    verdict: str
    reason: str
    person: str | None
    before: float | None
    after: float | None
    refs: str
    """JSON: [path, face, reason, score] of each reference"""
    model: str | None
    seconds: float
    quality: float
    face_px: float

    @classmethod
    def of(cls, face: FaceOutcome, relative: bytes) -> Self:
        """The row of a face of the photo at ``relative``."""
        notes = [[os.path.abspath(note.path), note.face, note.reason, note.score] for note in face.references]
        return cls(
            relative=relative,
            number=face.face,
            box=box_json(face.box),
            verdict=face.verdict,
            reason=face.reason,
            person=face.person,
            before=face.before,
            after=face.after,
            refs=json.dumps(notes),
            model=face.model,
            seconds=face.seconds,
            quality=face.quality,
            face_px=face.face_px,
        )

    def outcome(self) -> FaceOutcome:
        """What became of the face."""
        return FaceOutcome(
            face=self.number,
            box=json_box(self.box),
            verdict=self.verdict,
            reason=self.reason,
            person=self.person,
            before=self.before,
            after=self.after,
            references=tuple(ReferenceNote(*note) for note in json.loads(self.refs)),
            model=self.model,
            seconds=self.seconds,
            quality=self.quality,
            face_px=self.face_px,
        )


Row = FileRow | IndexedRow | FaceRow | PhotoRow | FaceOutcomeRow
AnyRow = TypeVar("AnyRow", FileRow, IndexedRow, FaceRow, PhotoRow, FaceOutcomeRow)


def columns(kind: type[Row]) -> tuple[str, ...]:
    """The columns of a table: the fields of its rows."""
    return tuple(field.name for field in fields(kind))


def write_rows(connection: sqlite3.Connection, rows: Iterable[Row]) -> None:
    """Insert rows; one with the same key is replaced."""
    for row in rows:
        names = columns(type(row))
        places = ", ".join("?" * len(names))
        connection.execute(
            f"INSERT OR REPLACE INTO {row.table} ({', '.join(names)}) VALUES ({places})",
            [getattr(row, name) for name in names],
        )


def read_rows(
    connection: sqlite3.Connection, kind: type[AnyRow], condition: str = "", values: Sequence[object] = ()
) -> Iterator[AnyRow]:
    """Rows of a table; ``condition`` is what follows the table's name in SQL, with ``values`` for its places."""
    for row in connection.execute(f"SELECT {', '.join(columns(kind))} FROM {kind.table} {condition}", values):
        yield kind(**row)


def path_key(path: Path) -> bytes:
    """Paths are kept as bytes: a name need not be UTF-8."""
    return os.fsencode(path)


def key_path(key: bytes) -> Path:
    """The path that `path_key` made bytes of."""
    return Path(os.fsdecode(key))


def box_json(box: Box) -> str:
    """A box as it is kept."""
    return json.dumps([float(side) for side in box])


def json_box(text: str) -> Box:
    """The box that `box_json` wrote."""
    left, top, right, bottom = json.loads(text)
    return (left, top, right, bottom)


def named_boxes(text: str) -> tuple[NamedBox, ...]:
    """The faces that a photo's own metadata names, from the column ``named``."""
    return tuple(NamedBox(name, (left, top, right, bottom)) for name, (left, top, right, bottom) in json.loads(text))
