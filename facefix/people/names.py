"""Names for faces and groups that are known from portraits and from the photos' own metadata."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from facefix.faces.face import Face, FaceKey
from facefix.photos.metadata.regions import NamedRegion
from facefix.photos.turned_box import Box

_MIN_OVERLAP: Final = 0.15
"""Intersection over union from which a region names a face. Regions drawn by hand hold the whole head, detectors' boxes
only the face, so the same face may overlap with itself by as little as a fifth."""


def name_faces(faces: Sequence[Face], regions: Sequence[NamedRegion]) -> Mapping[tuple[str, int], str]:
    """Give the faces of one photo the names of the regions that lie on them.

    The best-overlapping pairs come first, and no region names two faces.

    Returns:
        Face key to name, only for faces that have a region.
    """
    pairs = sorted(
        (
            (overlap(face.detection.box, region.box), f, r)
            for f, face in enumerate(faces)
            for r, region in enumerate(regions)
        ),
        key=lambda pair: (-pair[0], pair[1], pair[2]),
    )
    named: dict[int, int] = {}
    for score, f, r in pairs:
        if score >= _MIN_OVERLAP and f not in named and r not in named.values():
            named[f] = r
    return {faces[f].key: regions[r].name for f, r in sorted(named.items())}


def overlap(a: Box, b: Box) -> float:
    """Intersection over union of two boxes (left, top, right, bottom), 0..1."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    intersection = width * height
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - intersection
    return intersection / union


@dataclass(frozen=True, slots=True)
class Group:
    """Faces that the grouping takes for one person: of the album and of the portraits."""

    faces: tuple[Face, ...]
    name: str | None = None
    """what the folder of portraits or a region in the photo calls them"""


def name_groups(groups: Iterable[Sequence[Face]], names: Mapping[FaceKey, str]) -> tuple[Group, ...]:
    """Let names that are known already (folders of portraits, face regions in XMP) decide about identity.

    Faces of one name are one person, whatever groups they are in; faces of different names are different people, even
    in one group. A face without a name goes with the most similar named face of its group.

    Args:
        groups: disjoint groups of faces.
        names: face key to name, for the faces whose name is known.

    Returns:
        The groups in their order; of those with the same name the first holds all.
    """
    named: dict[str, list[Face]] = {}
    order: list[str | Group] = []
    for group in groups:
        owners = [names.get(face.key) for face in group]
        if not any(owners):
            order.append(Group(tuple(group)))
            continue
        for face, name in zip(group, fill_in(group, owners), strict=True):
            if name not in named:
                named[name] = []
                order.append(name)
            named[name].append(face)
    return tuple(Group(tuple(named[item]), item) if isinstance(item, str) else item for item in order)


def fill_in(faces: Sequence[Face], owners: Sequence[str | None]) -> list[str]:
    """Give faces without an owner that of the most similar face that has one; at least one has."""
    known = [(face, owner) for face, owner in zip(faces, owners, strict=True) if owner is not None]
    frequent = Counter(owner for _, owner in known).most_common(1)[0][0] if known else ""
    return [
        _most_similar(face, known, frequent) if owner is None else owner
        for face, owner in zip(faces, owners, strict=True)
    ]


def _most_similar(face: Face, known: Sequence[tuple[Face, str]], otherwise: str) -> str:
    if len({owner for _, owner in known}) == 1 or face.embedding is None:
        return otherwise
    distances = [
        (float(np.linalg.norm(face.embedding - other.embedding)), place)
        for place, (other, _) in enumerate(known)
        if other.embedding is not None
    ]
    return known[min(distances)[1]][1] if distances else otherwise
