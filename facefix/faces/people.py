"""From photos to faces, and from faces to people. References of a person: see references.py."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from facefix.faces import align
from facefix.faces.backends import Backend
from facefix.faces.detect import turned_back
from facefix.faces.embed import IdentityScale
from facefix.faces.face import Detection, Face
from facefix.faces.grouping import Constraints, group, neighbours_below
from facefix.faces.quality import assess, roll_of
from facefix.faces.references import centroid, choose_references

__all__ = ["centroid", "choose_references", "group_faces", "index_photo"]

CLEAR_SHARPNESS = 0.40
"""Blurred faces of different people look alike to a recognition network: below sharpness 0.3, 0.1 to 10 % of different
pairs are closer than the distance that joins; from 0.4 on none of 850. Such faces are never joined with each other,
only attached to a group with a sharp one."""

SHARP = 0.60
"""Faces below this sharpness are attached beyond the distance that joins, since they are further from everybody; and
only to groups with a face above it, since two blurred faces may be alike because both are blurred. A portrait needs not
be sharp: the user says that it shows one of these people, and the face must still be clearly nearest to it."""

FaceKey = tuple[str, int]


class UprightPhoto(Protocol):
    """What index_photo needs to know of a photo."""

    @property
    def path(self) -> Path:
        """Where the photo is; its key."""
        ...

    @property
    def pixels(self) -> NDArray[np.uint8]:
        """(H, W, 3) upright RGB."""
        ...

    @property
    def taken(self) -> float | None:
        """POSIX seconds."""
        ...

    @property
    def orientation(self) -> int | None:
        """EXIF orientation, None where the file does not say."""
        ...


def index_photo(photo: UprightPhoto, backend: Backend) -> list[Face]:
    """The faces of a photo, left to right, with embedding and quality.

    Where the file does not say which way is up and no sure, upright face is found, the photo is also tried turned by
    90, 270 and 180 degrees; faces come back in coordinates of the photo as read.
    """
    detections = _detect(photo, backend)
    detections.sort(key=lambda detection: (detection.box[0] + detection.box[2], detection.box[1]))
    crops = [align.warp(photo.pixels, align.crop_matrix(detection.landmarks)) for detection in detections]
    embeddings = backend.embedder.embed(crops)
    return [
        Face(
            photo=str(photo.path),
            index=index,
            detection=detection,
            embedding=embedding,
            quality=assess(crop, detection),
            taken=photo.taken,
        )
        for index, (detection, crop, embedding) in enumerate(zip(detections, crops, embeddings, strict=True))
    ]


def _detect(photo: UprightPhoto, backend: Backend) -> list[Detection]:
    found = backend.detector.detect(photo.pixels)
    if photo.orientation is not None or _has_upright_face(found):
        return found
    height, width = photo.pixels.shape[:2]
    best, needed = found, _upright(found) + _MARGIN_OF_A_TURN
    for quarter_turns in _turns_to_try(photo.pixels, found, backend):
        turned = backend.detector.detect(np.ascontiguousarray(np.rot90(photo.pixels, quarter_turns)))
        if _upright(turned) > needed:
            best, needed = [turned_back(face, quarter_turns, width, height) for face in turned], _upright(turned)
        if _has_upright_face(turned):
            break
    return best


_MARGIN_OF_A_TURN = 0.1
"""Evidence that a turned photo must have more than the photo as it is."""

_SURE = 0.7
"""Confidence of a face that says which way is up; those of our photographs have more than 0.85 unless in profile."""

_LEAST_SIDE_TO_HALVE = 640
"""Which way is up is looked for in the photo at half its size first, unless it is smaller than this."""


def _turns_to_try(pixels: NDArray[np.uint8], found: Sequence[Detection], backend: Backend) -> tuple[int, ...]:
    """Quarter turns, the most promising one first: a look at half the size is cheap, and misses small faces only.

    Where there is an upright face already, if a doubtful one, only turns that look better at half the size are tried.
    """
    turns = (1, 3, 2)
    if min(pixels.shape[:2]) < _LEAST_SIDE_TO_HALVE:
        return turns
    small, evidence = np.asarray(Image.fromarray(pixels).reduce(2)), dict.fromkeys(turns, 0.0)
    for quarter_turns in turns:
        turned = backend.detector.detect(np.ascontiguousarray(np.rot90(small, quarter_turns)))
        evidence[quarter_turns] = _upright(turned)
        if _has_upright_face(turned):
            break
    least = _upright(found) if any(not _lies_on_its_side(face) for face in found) else -1.0
    promising = [quarter_turns for quarter_turns in turns if evidence[quarter_turns] > least]
    return tuple(sorted(promising, key=lambda quarter_turns: -evidence[quarter_turns]))


def _has_upright_face(found: Sequence[Detection]) -> bool:
    return any(face.confidence >= _SURE and not _lies_on_its_side(face) for face in found)


def _lies_on_its_side(face: Detection) -> bool:
    return abs(roll_of(face.landmarks)) > 45


def _upright(found: Sequence[Detection]) -> float:
    """Evidence that a photo is the right way up: confidence in its faces, those lying on their side counting half."""
    return sum(face.confidence * (0.5 if _lies_on_its_side(face) else 1.0) for face in found)


def group_faces(
    faces: Sequence[Face],
    backend: Backend,
    names: Mapping[FaceKey, str] | None = None,
    portraits: Collection[FaceKey] = (),
) -> list[tuple[Face, ...]]:
    """Faces by person, precision first: who is not clearly somebody else's is a person of their own.

    Average linkage of clear faces up to the backend's ``join`` distance, two faces of one photo never together; then
    groups that are clearly nearest to a named person go there, and blurred faces go to the group that is clearly
    nearest, if a sharp face or a portrait is in it. Blurred faces are never joined with each other.

    Args:
        faces: of the album and of the portraits, with embeddings of this backend. Faces without stay alone.
        backend: whose embeddings they are.
        names: face key to name where a name is known: faces of one name are one person, different names differ.
        portraits: keys of the faces that the user gave to say who is who: others are attached to them however sharp
            they are.

    Returns:
        Disjoint groups with all faces, in the order of their first face, faces in the order given.
    """
    names = names or {}
    known = [index for index, face in enumerate(faces) if face.embedding is not None]
    labels = np.arange(len(faces))
    if known:
        grouping = _Grouping([faces[index] for index in known], names, portraits, backend.scale)
        labels[known] = np.array(known)[grouping.labels()]
    groups: dict[int, list[Face]] = {}
    for face, label in zip(faces, labels.tolist(), strict=True):
        groups.setdefault(label, []).append(face)
    return [tuple(members) for members in groups.values()]


@dataclass(frozen=True, slots=True, eq=False)
class _Candidate:
    """A group that others may be attached to."""

    label: int
    mean: NDArray[np.float64]
    photos: set[int]
    named: bool
    sharp: bool = False
    """whether a face in it is sharp, or its name is known"""
    given: bool = False
    """whether a portrait is in it"""


class _Grouping:
    """The steps of group_faces on faces that all have embeddings."""

    def __init__(
        self,
        faces: Sequence[Face],
        names: Mapping[FaceKey, str],
        portraits: Collection[FaceKey],
        scale: IdentityScale,
    ) -> None:
        numbers: dict[str, int] = {}
        self._photos = np.array([numbers.setdefault(face.photo, len(numbers)) for face in faces])
        self._names = [names.get(face.key) for face in faces]
        self._named = np.array([name is not None for name in self._names])
        self._embeddings = np.stack([_unit(face) for face in faces])
        self._given = self._named | np.array([face.key in portraits for face in faces])
        self._sharpness = np.array([face.quality.sharpness for face in faces])
        self._noise = scale.turned * np.array([face.quality.yaw for face in faces]) ** 2
        self._scale = scale

    def labels(self) -> NDArray[np.int64]:
        """(N,) group of each face."""
        core = np.flatnonzero(self._named | (self._sharpness >= CLEAR_SHARPNESS))
        labels = np.arange(len(self._names))
        constraints = Constraints(self._photos[core].tolist(), [self._names[index] for index in core])
        labels[core] = core[self._joined(core, constraints)]
        candidates = self._candidates(labels, core)
        self._attach_groups(labels, candidates)
        sharp = [each for each in candidates if each.sharp and labels[each.label] == each.label]
        self._attach_blurred(labels, sharp, self._given)
        portraits = [each for each in candidates if each.given and not each.sharp and labels[each.label] == each.label]
        portraits += [each for each in self._alone(labels, self._given) if each.label not in core]
        self._attach_blurred(labels, [*sharp, *portraits], ~self._given)
        return labels

    def _joined(self, core: NDArray[np.int64], constraints: Constraints) -> NDArray[np.int64]:
        """Average linkage; how far it goes depends on how many people there are, which a first pass estimates."""
        embeddings, noise = self._embeddings[core], self._noise[core]
        graph = neighbours_below(embeddings, self._scale.join_most, noise)
        first = group(embeddings, constraints, self._scale.join, graph, noise)
        return group(embeddings, constraints, self._scale.join_limit(len(np.unique(first))), graph, noise)

    def _candidates(self, labels: NDArray[np.int64], core: NDArray[np.int64]) -> list[_Candidate]:
        members: dict[int, list[int]] = {}
        for face in core.tolist():
            members.setdefault(int(labels[face]), []).append(face)
        return [
            _Candidate(
                label=label,
                mean=self._embeddings[faces].mean(axis=0, dtype=np.float64),
                photos=set(self._photos[faces].tolist()),
                named=bool(self._named[faces].any()),
                sharp=bool(((self._sharpness[faces] >= SHARP) | self._named[faces]).any()),
                given=bool(self._given[faces].any()),
            )
            for label, faces in members.items()
        ]

    def _attach_groups(self, labels: NDArray[np.int64], candidates: Sequence[_Candidate]) -> None:
        """Give groups without a name to the named person that they are clearly nearest to."""
        named = [candidate for candidate in candidates if candidate.named]
        others = [candidate for candidate in candidates if not candidate.named]
        nearest = _clearly_nearest(others, named, self._scale.anchor, self._scale.margin)
        for _, index, owner in sorted(nearest):
            loose, person = others[index], named[owner]
            if person.photos.isdisjoint(loose.photos):
                labels[labels == loose.label] = person.label
                person.photos.update(loose.photos)

    def _alone(self, labels: NDArray[np.int64], which: NDArray[np.bool_]) -> list[_Candidate]:
        """Blurred faces without a name that are alone, of those that ``which`` (N,) says."""
        sizes = np.bincount(labels, minlength=len(labels))
        alone = np.flatnonzero(which & (sizes[labels] == 1) & ~self._named & (self._sharpness < SHARP))
        return [_Candidate(face, self._embeddings[face], {int(self._photos[face])}, False) for face in alone.tolist()]

    def _attach_blurred(
        self, labels: NDArray[np.int64], candidates: Sequence[_Candidate], which: NDArray[np.bool_]
    ) -> None:
        """Give blurred faces that are alone to the group that they are clearly nearest to."""
        faces = self._alone(labels, which)
        limit = self._scale.blurred_limit(len(candidates))
        for _, index, owner in sorted(_clearly_nearest(faces, candidates, limit, self._scale.margin)):
            face, person = faces[index], candidates[owner]
            if person.photos.isdisjoint(face.photos):
                labels[face.label] = person.label
                person.photos.update(face.photos)


def _clearly_nearest(
    seekers: Sequence[_Candidate], candidates: Sequence[_Candidate], limit: float, margin: float
) -> list[tuple[float, int, int]]:
    """Distance, seeker, candidate: those within ``limit`` and nearer than any other candidate by ``margin``.

    A seeker that is a candidate itself is not compared with itself. Distances are root mean squares over the members.
    """
    if not seekers or not candidates:
        return []
    means = np.stack([candidate.mean for candidate in candidates]).astype(np.float64)
    labels = np.array([candidate.label for candidate in candidates])
    found = []
    for index, seeker in enumerate(seekers):
        distances = np.sqrt(np.maximum(2 - 2 * (means @ seeker.mean), 0))
        distances[labels == seeker.label] = math.inf
        best = int(distances.argmin())
        nearest = float(distances[best])
        distances[best] = math.inf
        if nearest <= limit and float(distances.min()) - nearest >= margin:
            found.append((nearest, index, best))
    return found


def _unit(face: Face) -> NDArray[np.float32]:
    assert face.embedding is not None
    return np.asarray(face.embedding / max(float(np.linalg.norm(face.embedding)), 1e-9), dtype=np.float32)
