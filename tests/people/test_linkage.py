"""Average linkage under constraints: the same as scipy's on a full matrix, and the constraints hold."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import pdist

from facefix.people import linkage as grouping
from facefix.people.linkage import Constraints, group


def made_up(people: int, faces: int, spread: float, seed: int) -> NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(people, 32))
    embeddings = np.repeat(centres, faces, axis=0) + rng.normal(size=(people * faces, 32)) * spread
    return (embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)).astype(np.float32)


def free(count: int) -> Constraints:
    return Constraints(list(range(count)), [None] * count)


def partition(labels: NDArray[np.int64]) -> set[frozenset[int]]:
    return {frozenset(np.flatnonzero(labels == label).tolist()) for label in np.unique(labels)}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("threshold", [0.5, 0.9, 1.2])
def test_equals_average_linkage_of_squared_distances(seed: int, threshold: float) -> None:
    embeddings = made_up(people=20, faces=6, spread=0.5, seed=seed)
    tree = linkage(pdist(embeddings.astype(np.float64), "sqeuclidean"), "average")
    expected = fcluster(tree, threshold**2, "distance")
    assert partition(group(embeddings, free(120), threshold)) == partition(expected)
    assert 1 < len(np.unique(expected)) < 120


@pytest.mark.parametrize("seed", range(3))
def test_noise_is_taken_off_every_pair(seed: int) -> None:
    embeddings = made_up(people=15, faces=6, spread=0.9, seed=seed)
    noise = np.random.default_rng(seed).uniform(0, 0.3, 90) * (np.arange(90) % 3 == 0)
    distances = pdist(embeddings.astype(np.float64), "sqeuclidean")
    first, second = np.triu_indices(90, 1)
    tree = linkage(np.maximum(distances - noise[first] - noise[second], 0), "average")
    expected = partition(fcluster(tree, 0.9**2, "distance"))
    assert partition(group(embeddings, free(90), 0.9, noise=noise)) == expected
    assert partition(group(embeddings, free(90), 0.9)) != expected


def test_blocks_do_not_change_the_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    embeddings = made_up(people=10, faces=5, spread=0.5, seed=1)
    whole = grouping.neighbours_below(embeddings, 0.9).toarray()
    monkeypatch.setattr(grouping, "_BLOCK_BYTES", 4 * 50 * 7)  # seven rows at a time
    np.testing.assert_array_equal(grouping.neighbours_below(embeddings, 0.9).toarray(), whole)
    distances = np.linalg.norm(embeddings[:, None] - embeddings[None], axis=2)
    np.fill_diagonal(distances, 9)
    np.testing.assert_array_equal(whole, distances < 0.9)


def test_more_faces_than_neighbours_still_come_together() -> None:
    embeddings = made_up(people=2, faces=5 * grouping.NEIGHBOURS, spread=0.1, seed=2)
    graph = grouping.neighbours_below(embeddings, 0.6)
    assert graph.nnz <= 2 * len(embeddings) * grouping.NEIGHBOURS
    assert sorted(len(members) for members in partition(group(embeddings, free(len(embeddings)), 0.6))) == [320, 320]


def test_two_faces_of_one_photo_are_never_together() -> None:
    embeddings = made_up(people=1, faces=12, spread=0.05, seed=3)
    photos = [0, 0, 1, 1, 2, 3, 4, 5, 5, 5, 6, 7]
    labels = group(embeddings, Constraints(photos, [None] * 12), 0.8)
    for members in partition(labels):
        assert len({photos[face] for face in members}) == len(members)
    assert len(np.unique(labels)) == 3  # photo 5 has three faces, and nothing else keeps the rest apart


def test_names_join_and_keep_apart() -> None:
    embeddings = made_up(people=2, faces=4, spread=0.05, seed=4)
    names = ["Ada", None, "Bo", None, "Ada", None, None, None]
    labels = group(embeddings, Constraints(list(range(8)), names), 0.5)
    assert labels[0] == labels[4]
    assert labels[0] != labels[2]


def test_a_name_outweighs_one_photo() -> None:
    embeddings = made_up(people=1, faces=2, spread=0.05, seed=5)
    assert len(np.unique(group(embeddings, Constraints([0, 0], ["Ada", "Ada"]), 0.5))) == 1


def test_no_and_one_face() -> None:
    assert group(np.zeros((0, 8), np.float32), free(0), 0.5).shape == (0,)
    assert group(made_up(1, 1, 0, 0), free(1), 0.5).tolist() == [0]
