"""From photos to faces, and from faces to people. References of a person: see references.py."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from facefix.faces.backends import Backend
from facefix.faces.embed import IdentityScale
from facefix.faces.face import Face
from facefix.faces.index import index_photo
from facefix.people.linkage import Constraints, group, neighbours_below
from facefix.people.references import centroid, choose_references

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
