"""Average linkage of embeddings under constraints, in memory that grows with the faces and not with their pairs.

For embeddings of length 1 the mean squared distance between two groups is 2 - 2 m_A . m_B, with m the groups' means
(UPGMA on squared distances). So a group needs its sum only, and two groups can come below the threshold only if two of
their members are: candidates are found once, in blocks. The result equals that of a full distance matrix as long as no
face has more than ``NEIGHBOURS`` others below the threshold.

A face may have ``noise``: what its own doubtful embedding adds to its squared distance to every other, and what is
taken off again: |a - b|^2 - noise_a - noise_b. Its mean over pairs of faces is that of the groups less the groups'
means of noise, so everything above holds.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse

Vectors = NDArray[np.float32]
"""(N, D) embeddings of length 1."""

Noise = NDArray[np.float64]
"""(N,) expected part of a face's squared distances that comes from the face itself."""

NEIGHBOURS = 64
"""Nearest others that a face can be joined through; bounds memory where one person has thousands of faces."""

_BLOCK_BYTES = 96 << 20


@dataclass(frozen=True, slots=True, eq=False)
class Constraints:
    """What is known about N faces before they are compared."""

    photos: Sequence[int]
    """number of the photo a face is in: two faces in one photo are two people"""
    names: Sequence[str | None]
    """faces of one name are one person, faces of different names are not"""


def group(
    embeddings: Vectors,
    constraints: Constraints,
    threshold: float,
    graph: sparse.csr_array | None = None,
    noise: Noise | None = None,
) -> NDArray[np.int64]:
    """(N,) group of each face: joined, nearest first, while groups are closer than ``threshold`` on average.

    Deterministic. A name outweighs the rule that two faces of one photo differ. ``graph`` is that of neighbours_below
    for this or a larger threshold and the same noise, where it is known already.
    """
    if graph is None:
        graph = neighbours_below(embeddings, threshold, noise)
    clusters = _Clusters(embeddings, constraints, graph, np.zeros(len(embeddings)) if noise is None else noise)
    clusters.join_names()
    clusters.join_nearest(threshold**2)
    return clusters.labels


def neighbours_below(embeddings: Vectors, threshold: float, noise: Noise | None = None) -> sparse.csr_array:
    """(N, N) sparse, symmetric: which pairs are closer than ``threshold``; of each face the nearest NEIGHBOURS."""
    count = len(embeddings)
    least = 1 - threshold**2 / 2
    vectors = torch.from_numpy(np.ascontiguousarray(embeddings, dtype=np.float32))
    gain = torch.zeros(count) if noise is None else torch.from_numpy(np.asarray(noise, dtype=np.float32) / 2)
    step = max(1, _BLOCK_BYTES // (4 * max(count, 1)))
    found = [np.zeros((2, 0), np.int64)]
    for start in range(0, count, step):
        cosines = vectors[start : start + step] @ vectors.T  # (step, N)
        cosines += gain[start : start + step, None] + gain
        cosines[torch.arange(len(cosines)), torch.arange(start, start + len(cosines))] = -2.0
        crowded = (cosines >= least).sum(dim=1) > NEIGHBOURS
        if crowded.any():
            floor = cosines[crowded].topk(NEIGHBOURS, dim=1).values[:, -1:]
            cosines[crowded] = cosines[crowded].masked_fill(cosines[crowded] < floor, -2.0)
        rows, columns = torch.nonzero(cosines >= least, as_tuple=True)
        found.append(np.stack([rows.numpy() + start, columns.numpy()]))
    pairs = np.concatenate(found, axis=1)
    ones = np.ones(pairs.shape[1], np.bool_)
    graph = sparse.coo_array((ones, (pairs[0], pairs[1])), shape=(count, count)).tocsr()
    return (graph + graph.T).tocsr()


class _Clusters:
    """Groups while they are being joined. A group is called by the number of one of its faces."""

    def __init__(self, embeddings: Vectors, constraints: Constraints, graph: sparse.csr_array, noise: Noise) -> None:
        count = len(embeddings)
        self.labels = np.arange(count)
        self._sums = embeddings.astype(np.float64)
        self._noise = noise.astype(np.float64)
        """summed over the faces of a group"""
        self._sizes = np.ones(count)
        self._members: list[list[int]] = [[face] for face in range(count)]
        self._photos: list[set[int]] = [{photo} for photo in constraints.photos]
        self._names = list(constraints.names)
        self._neighbours = [graph.indices[graph.indptr[i] : graph.indptr[i + 1]] for i in range(count)]
        self._version = np.zeros(count, np.int64)
        self._alive = np.ones(count, np.bool_)

    def join_names(self) -> None:
        """Join the faces of each name."""
        first: dict[str, int] = {}
        for face, name in enumerate(self._names):
            if name is not None and first.setdefault(name, face) != face:
                self._join(first[name], face)

    def join_nearest(self, limit: float) -> None:
        """Join the two nearest groups again and again, while their mean squared distance is below ``limit``.

        A join never brings a third group nearer than the nearer of the two was, so a distance in the queue that has
        become stale is a lower bound, and is computed again when its turn comes.
        """
        queue: list[tuple[float, int, int, int, int]] = []

        def put(cluster: int) -> None:
            distance, partner = self._nearest(cluster, limit)
            if partner >= 0:
                versions = (int(self._version[cluster]), int(self._version[partner]))
                heapq.heappush(queue, (distance, cluster, partner, *versions))

        for cluster in np.flatnonzero(self._alive).tolist():
            put(cluster)
        while queue:
            _, cluster, partner, version, partner_version = heapq.heappop(queue)
            if not self._alive[cluster] or self._version[cluster] != version:
                continue
            if self._alive[partner] and self._version[partner] == partner_version:
                put(self._join(cluster, partner))
            else:
                put(cluster)

    def _nearest(self, cluster: int, limit: float) -> tuple[float, int]:
        """The nearest group that may be joined with this one, and its mean squared distance; -1 when there is none."""
        others = np.unique(self.labels[self._neighbours[cluster]])
        others = others[others != cluster]
        if not len(others):
            return math.inf, -1
        mean = self._sums[cluster] / self._sizes[cluster]
        squared = 2 - (2 * (self._sums[others] @ mean) + self._noise[others]) / self._sizes[others]
        squared -= self._noise[cluster] / self._sizes[cluster]
        for index in np.argsort(squared, kind="stable").tolist():
            if squared[index] >= limit:
                break
            if self._may_join(cluster, int(others[index])):
                return float(squared[index]), int(others[index])
        return math.inf, -1

    def _may_join(self, first: int, second: int) -> bool:
        names = {self._names[first], self._names[second]} - {None}
        return len(names) < 2 and self._photos[first].isdisjoint(self._photos[second])

    def _join(self, first: int, second: int) -> int:
        """Join two groups; return the one that remains."""
        keep, gone = (first, second) if len(self._members[first]) >= len(self._members[second]) else (second, first)
        self.labels[self._members[gone]] = keep
        self._members[keep] += self._members[gone]
        self._sums[keep] += self._sums[gone]
        self._sizes[keep] += self._sizes[gone]
        self._noise[keep] += self._noise[gone]
        self._photos[keep] |= self._photos[gone]
        self._names[keep] = self._names[keep] or self._names[gone]
        joined = np.concatenate([self._neighbours[keep], self._neighbours[gone]])
        self._neighbours[keep] = np.unique(self.labels[joined])
        self._members[gone], self._photos[gone], self._neighbours[gone] = [], set(), joined[:0]
        self._alive[gone] = False
        self._version[keep] += 1
        return keep
