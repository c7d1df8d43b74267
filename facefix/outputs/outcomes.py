"""The values that the ledger keeps: photos looked into, and what became of photos and faces."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from facefix.faces.face import Face


@dataclass(frozen=True, slots=True)
class NamedBox:
    """A face that the photo's own metadata names."""

    name: str
    box: tuple[float, float, float, float]
    """left, top, right, bottom in pixels of the upright photo"""


@dataclass(frozen=True, slots=True, eq=False)
class IndexedPhoto:
    """What is known about one photo's content once it has been looked at. Holds no pixels."""

    sha256: str
    size: tuple[int, int]
    """width, height of the upright photo"""
    taken: float | None
    """EXIF time in POSIX seconds"""
    copy_reason: str | None
    """why the photo can only be copied; None when its faces can be restored"""
    faces: tuple[Face, ...]
    named: tuple[NamedBox, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class StoredEmbedding:
    """An identity embedding as it lies in the ledger."""

    sha256: str
    """of the photo's content"""
    number: int
    """of the face in it"""
    backend: str
    box: tuple[float, float, float, float]
    """left, top, right, bottom in pixels of the upright photo"""
    vector: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class ReferenceNote:
    """A reference as it was used, and why it was chosen."""

    path: str
    face: int
    reason: str
    score: float


@dataclass(frozen=True, slots=True)
class FaceOutcome:
    """What became of one face."""

    face: int
    """number in its photo, from 0"""
    box: tuple[float, float, float, float]
    """left, top, right, bottom in pixels of the upright photo"""
    verdict: str
    """restored, kept, flagged or failed"""
    reason: str
    person: str | None
    before: float | None = None
    """similarity of the face as it was to the references' centroid"""
    after: float | None = None
    """the same of the restored face"""
    references: tuple[ReferenceNote, ...] = ()
    model: str | None = None
    seconds: float = 0.0
    quality: float = 0.0
    """0..1, of the face as it was"""
    face_px: float = 0.0
    """width of the face in pixels of the photo"""


@dataclass(frozen=True, slots=True)
class PhotoOutcome:
    """What became of one photo."""

    relative: Path
    """place in the output tree"""
    source: Path
    status: str
    """restored, enlarged (only that), copied, left (nothing to do and --only-changed) or failed"""
    reason: str = ""
    sha256: str | None = None
    target: Path | None = None
    """output as written, relative to the output folder"""
    recipe: str | None = None
    faces: tuple[FaceOutcome, ...] = ()
    seconds: float = 0.0
    size: tuple[int, int] | None = None
    """width, height of the upright photo, before --upscale"""
    scale: int = 1
    notes: tuple[str, ...] = ()
    finished: float = field(default_factory=time.time)


@dataclass(frozen=True, slots=True)
class DoneRow:
    """What decides whether a photo's output still stands."""

    source: Path
    sha256: str
    recipe: str
    portraits: str
    """digest of all portraits and corrections the run was given"""
    status: str
    target: Path | None
    target_size: int | None
    target_mtime_ns: int | None
