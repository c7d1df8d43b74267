"""Which faces of a person serve as references, and why.

The choice is made for the person, not for each face: it depends on the target only through the years between them, in
steps of YEARS_PER_STEP, and through what must not be used for it. So one encoded set serves nearly every face of a
person, and where one reference has to be left out the others stay.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from facefix.faces.backends import Backend
from facefix.faces.face import Embedding, Face, Reference
from facefix.faces.quality import can_be_reference

MAX_REFERENCES = 5

FaceKey = tuple[str, int]

YEARS_PER_STEP = 10
_HALF_WEIGHT_YEARS = 20.0
"""A reference so many years from the face counts half."""
_UNDATED_WEIGHT = 0.8

_SAME_PICTURE = 0.17
_OTHER_PICTURE = 0.41
"""Distances as parts of the backend's ``join``: copies of one picture are nearer than the first; three of four pairs of
different pictures of a person are further apart than the second."""
_OTHER_YAW = 0.25

PORTRAIT_FACE_PX = 80.0
PORTRAIT_SHARPNESS = 0.30
"""Portraits were chosen by the user, so less is asked of them than of faces of the album; and where nothing better is
known of a person, any portrait serves."""

_LEAST_WEIGHT = 1e-3
"""Of a portrait that serves for want of a better one."""

_LONGLIST = 200
"""Only so many of the best faces are compared with each other."""


@dataclass(frozen=True, slots=True, eq=False)
class _Candidate:
    """A face that may serve, with what speaks for it."""

    face: Face
    portrait: bool
    weight: float
    years: float | None
    """between it and the target's step of years"""


def centroid(embeddings: Sequence[Embedding]) -> Embedding:
    """(D,) mean of embeddings of length 1, with length 1."""
    mean = np.mean(np.stack(embeddings), axis=0, dtype=np.float64)
    length = max(float(np.linalg.norm(mean)), 1e-9)
    return np.asarray(mean / length, dtype=np.float32)


def choose_references(
    album_faces: Sequence[Face],
    portraits: Sequence[Face],
    target: Face,
    backend: Backend,
    *,
    limit: int = MAX_REFERENCES,
    excluded: Collection[FaceKey] = (),
) -> tuple[Reference, ...]:
    """Up to ``limit`` references of the target's person for restoring ``target``, best first, each with the reason.

    Faces rank by quality and closeness in years; each next one also by how much it differs, in pose and look, from
    those before it (farthest-point order). Never chosen: faces of the target's own photo, ``excluded`` ones, faces
    that are too poor, faces that are not clearly this person, pictures that are the target again and no better.

    Args:
        album_faces: the person's faces in the album; may hold those of the target's photo.
        portraits: the person's faces among the portraits.
        target: the face to restore.
        backend: whose embeddings the faces have.
        limit: how many references there may be.
        excluded: keys of faces that must not serve here, for instance copies of the target's photo elsewhere.
    """
    candidates = _candidates(album_faces, portraits, target, backend)
    forbidden = {
        candidate.face.key
        for candidate in candidates
        if candidate.face.photo == target.photo
        or candidate.face.key in excluded
        or _is_target_again(candidate.face, target, backend)
    }
    chosen: list[Reference] = []
    for candidate, reason in _ranked(candidates, backend, limit + len(forbidden)):
        if candidate.face.key not in forbidden and len(chosen) < limit:
            chosen.append(Reference(candidate.face, Path(candidate.face.photo), reason, candidate.weight))
    return tuple(chosen)


def _candidates(
    album_faces: Sequence[Face], portraits: Sequence[Face], target: Face, backend: Backend
) -> list[_Candidate]:
    """Faces that are good enough and clearly this person, best first."""
    known = [face for face in portraits if face.embedding is not None]
    usable = [(face, True) for face in known if _portrait_can_serve(face)]
    usable += [
        (face, False) for face in album_faces if can_be_reference(face.quality)[0] and face.embedding is not None
    ]
    usable = usable or [(face, True) for face in known]
    middle = _middle(usable, backend)
    found = []
    for face, portrait in usable:
        if not portrait and middle is not None and _distance(face.embedding, middle) > backend.scale.join:
            continue
        years = _years_between(face.taken, target.taken)
        closeness = _UNDATED_WEIGHT if years is None else 1 / (1 + (years / _HALF_WEIGHT_YEARS) ** 2)
        found.append(_Candidate(face, portrait, max(face.quality.score * closeness, _LEAST_WEIGHT), years))
    found.sort(key=lambda candidate: (-candidate.weight, not candidate.portrait, candidate.face.key))
    return found[:_LONGLIST]


def _middle(usable: Sequence[tuple[Face, bool]], backend: Backend) -> Embedding | None:
    """Who the person is: the mean of the portraits, or where there are none of the faces."""
    trusted = [face for face, portrait in usable if portrait] or [face for face, _ in usable]
    embeddings = [face.embedding for face in trusted if face.embedding is not None]
    return centroid(embeddings) if embeddings else None


def _ranked(candidates: Sequence[_Candidate], backend: Backend, count: int) -> list[tuple[_Candidate, str]]:
    """The first ``count`` candidates in the order in which they add most, with the reason; copies are left out."""
    if not candidates:
        return []
    weights = np.array([candidate.weight for candidate in candidates])
    embeddings = np.stack(
        [candidate.face.embedding for candidate in candidates if candidate.face.embedding is not None]
    )
    yaws = np.array([candidate.face.quality.yaw for candidate in candidates])
    novelty = np.ones(len(candidates))
    ranked: list[tuple[_Candidate, str]] = []
    while len(ranked) < count and (weights * novelty).max() > 0:
        best = int(np.argmax(weights * novelty))
        ranked.append((candidates[best], _reason(candidates[best], first=not ranked)))
        difference = _difference(embeddings, yaws, best, backend)
        novelty = np.minimum(novelty, difference)
        novelty[best] = 0
    return ranked


def _difference(embeddings: Embedding, yaws: NDArray[np.float64], chosen: int, backend: Backend) -> NDArray[np.float64]:
    """(N,) 0..1: how much each candidate differs from a chosen one. 0: the same picture. 1: another one."""
    distances = np.linalg.norm(embeddings - embeddings[chosen], axis=1) / backend.scale.join
    look = (distances - _SAME_PICTURE) / (_OTHER_PICTURE - _SAME_PICTURE)
    pose = np.abs(yaws - yaws[chosen]) / _OTHER_YAW
    both = np.clip(0.7 * np.clip(look, 0, 1) + 0.3 * np.clip(pose, 0, 1), 0.05, 1)
    return np.where(distances < _SAME_PICTURE, 0.0, both)


def _is_target_again(face: Face, target: Face, backend: Backend) -> bool:
    """Whether a face is the target's picture again (copied, scaled) without being better.

    A sharper version of the same picture is the best reference there is, and is used.
    """
    if target.embedding is None or face.embedding is None:
        return False
    same = _distance(face.embedding, target.embedding) < _SAME_PICTURE * backend.scale.join
    return same and face.quality.score <= 1.2 * target.quality.score


def _portrait_can_serve(face: Face) -> bool:
    return face.quality.face_px >= PORTRAIT_FACE_PX and face.quality.sharpness >= PORTRAIT_SHARPNESS


def _distance(first: Embedding | None, second: Embedding | None) -> float:
    return math.inf if first is None or second is None else float(np.linalg.norm(first - second))


def _years_between(taken: float | None, target_taken: float | None) -> float | None:
    """Years from a face to the middle of the target's step of years; None without dates."""
    if taken is None or target_taken is None:
        return None
    year = 365.25 * 86400
    step = (math.floor(target_taken / year / YEARS_PER_STEP) + 0.5) * YEARS_PER_STEP
    return max(0.0, abs(taken / year - step) - YEARS_PER_STEP / 2)


def _reason(candidate: _Candidate, *, first: bool) -> str:
    quality = candidate.face.quality
    parts = ["portrait" if candidate.portrait else "album"]
    parts.append(f"{quality.face_px:.0f} px wide, sharpness {quality.sharpness:.2f}")
    parts.append("the best" if first else f"adds another picture (yaw {quality.yaw:+.2f})")
    if candidate.years is not None:
        parts.append("same years" if candidate.years < 1 else f"about {candidate.years:.0f} years apart")
    return "; ".join(parts)
