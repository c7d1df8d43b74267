"""FFHQ-Ref-style mappings from any set of aligned faces: who is the same person, splits by person, reference order.

As ReF-LDM's data set was made: two faces whose embeddings are close are joined, connected components are people, people
are split as a whole, and a face's references are the other pictures of its person in farthest-point order.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

from facefix.errors import UsageError

Distances = NDArray[np.float64]
SPLITS = ("train", "val", "test")


@dataclass(frozen=True, slots=True)
class MappingRules:
    """How people and references are told apart."""

    same: float
    """two faces at most this far apart are one person"""
    duplicate: float
    """test references must be further than this from their face, so that no copy of it is among them"""
    fractions: tuple[float, float, float] = (0.9, 0.05, 0.05)
    """of the people, in train, val and test"""
    seed: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.duplicate < self.same:
            raise UsageError(f"expected 0 <= duplicate < same, found {self.duplicate} and {self.same}")
        if min(self.fractions) < 0 or not math.isclose(sum(self.fractions), 1):
            raise UsageError(f"fractions: expected three that add up to 1, found {self.fractions}")


def people(distances: Distances, same: float) -> NDArray[np.int64]:
    """(N,) number of each face's person: connected components of the graph of pairs at most ``same`` apart."""
    _, labels = connected_components(csr_array(distances <= same), directed=False)
    found: NDArray[np.int64] = labels.astype(np.int64)
    return found


def farthest_first(distances: Distances, start: int, candidates: Sequence[int]) -> list[int]:
    """All candidates, each the farthest from ``start`` and those before it (farthest-point sampling)."""
    remaining = list(candidates)
    if not remaining:
        return []
    nearest = distances[start, remaining].copy()
    order = []
    while remaining:
        pick = int(nearest.argmax())
        order.append(remaining.pop(pick))
        nearest = np.minimum(np.delete(nearest, pick), distances[order[-1], remaining])
    return order


def split_people(labels: NDArray[np.int64], rules: MappingRules) -> dict[str, list[int]]:
    """Faces of each split; a person is in one split only."""
    names = np.random.default_rng(rules.seed).permutation(np.unique(labels))
    bounds = np.round(np.cumsum(rules.fractions)[:-1] * len(names)).astype(int)
    parts = np.split(names, bounds)
    return {split: np.flatnonzero(np.isin(labels, part)).tolist() for split, part in zip(SPLITS, parts, strict=True)}


def references_of(
    face: int, members: Sequence[int], distances: Distances, rules: MappingRules, *, test: bool
) -> list[int]:
    """A face's references among its person's pictures, farthest first; for a test without near duplicates."""
    others = [other for other in members if other != face]
    if test:
        others = [other for other in others if distances[face, other] > rules.duplicate]
    return farthest_first(distances, face, others)


def pairwise(embeddings: NDArray[np.float32], *, cosine: bool) -> Distances:
    """(N, N) cosine or Euclidean distances of (N, D) embeddings."""
    vectors = embeddings.astype(np.float64)
    if cosine:
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        return np.clip(1 - vectors @ vectors.T, 0, 2)
    squares = np.square(vectors).sum(1)
    distances: Distances = np.sqrt(np.maximum(squares[:, None] + squares[None] - 2 * vectors @ vectors.T, 0))
    return distances


def write_mappings(folder: Path, names: Sequence[str], distances: Distances, rules: MappingRules) -> Mapping[str, int]:
    """Write FFHQ-Ref's files; return how many faces each split has.

    ``reference_mapping/{train,val,test}_references.csv`` (``gt_image``, ``ref_image``: faces with references) and
    ``id_based_ffhq_split/{train,val,test}_image.txt`` (every face of the split).
    """
    labels = people(distances, rules.same)
    splits = split_people(labels, rules)
    members = {label: np.flatnonzero(labels == label).tolist() for label in np.unique(labels).tolist()}
    for part in ("reference_mapping", "id_based_ffhq_split"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for split, faces in splits.items():
        listed = "".join(f"{names[face]}\n" for face in faces)
        (folder / "id_based_ffhq_split" / f"{split}_image.txt").write_text(listed, encoding="utf-8")
        path = folder / "reference_mapping" / f"{split}_references.csv"
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(("gt_image", "ref_image"))
            for face in faces:
                chosen = references_of(face, members[int(labels[face])], distances, rules, test=split == "test")
                if chosen:
                    writer.writerow((names[face], str([names[other] for other in chosen])))
    return {split: len(faces) for split, faces in splits.items()}


def embed_folder(images: Path, identity: str) -> tuple[list[str], NDArray[np.float32]]:
    """File names and embeddings of the aligned faces in a folder, by the network ``dlib`` or ``arcface``.

    Raises UsageError when the folder holds no pictures, WeightsUnavailable when the network has no weights.
    """
    import torch

    from facefix.datasets.faces import find_faces, load_pixels
    from facefix.datasets.sources import Faces
    from facefix.metrics.identity import identity_network
    from facefix.networks.images import to_network

    paths = [face.path for face in find_faces(Faces(images=(images,)))]
    network = identity_network(identity)
    with torch.no_grad():
        rows = [network.embed(to_network(load_pixels(path, 512))[None])[0].float().numpy() for path in paths]
    return [path.name for path in paths], np.stack(rows)
