"""Batches are values: they say all that decides a result, survive pickling, and depend on the plan alone."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from marked import make_face, make_photos, marked_backend

from facefix.errors import PhotoError
from facefix.faces.face import Reference
from facefix.methods.base import SamplingSettings
from facefix.outputs.outcomes import IndexedPhoto
from facefix.restoration import batches
from facefix.restoration.batches import (
    DeviceStatistics,
    FaceBatch,
    ModelSpec,
    ReferenceSource,
    face_seed,
    make_chunks,
)
from facefix.restoration.index import look_into
from facefix.restoration.plan import FaceTask, PhotoTask
from facefix.restoration.scan import ScannedPhoto

MODEL = ModelSpec("tiny", Path("/models/tiny"), SamplingSettings(steps=4, seed=7), torch.bfloat16)


def task(name: str, people: Sequence[str], side: int = 100) -> PhotoTask:
    """A photo whose faces have one reference of their person each."""
    place = Path(name)
    faces = [make_face(name, number, "ann") for number in range(len(people))]
    found = IndexedPhoto(name, (side, side), None, None, tuple(faces))
    references = [Reference(make_face(f"refs/{person}.jpg"), Path(f"refs/{person}.jpg"), "", 1.0) for person in people]
    tasks = [
        FaceTask(place, face, person, (reference,), None)
        for face, person, reference in zip(faces, people, references, strict=True)
    ]
    return PhotoTask(ScannedPhoto(Path("/album") / name, place), found, "r", tuple(tasks))


def test_a_batch_comes_back_from_pickling_as_it_was() -> None:
    crop = np.random.default_rng(0).integers(0, 256, (512, 512, 3), dtype=np.uint8)
    source = ReferenceSource.of(Reference(make_face("refs/a.jpg", 2), Path("refs/a.jpg"), "why", 0.5), 10**6)
    batch = FaceBatch((crop,), (2**62,), (source,), MODEL)
    again: FaceBatch = pickle.loads(pickle.dumps(batch))
    assert np.array_equal(again.crops[0], crop) and again.seeds == (2**62,) and again.model == MODEL
    assert again.references[0].key == source.key == "refs/a.jpg#2"
    assert np.array_equal(again.references[0].landmarks, source.landmarks) and again.references[0].max_pixels == 10**6


def test_a_reference_is_cut_out_by_its_landmarks(tmp_path: Path) -> None:
    (path,) = make_photos(tmp_path, a=["ann", "bob"])
    bob = look_into(path, marked_backend(), 10**6).faces[1]
    source = ReferenceSource.of(Reference(bob, path, "", 1.0), 10**6)
    crop = source.read()
    assert crop.shape == (512, 512, 3) and crop[256, 256, 1] > 150 > crop[256, 256, 0]
    with pytest.raises(PhotoError):
        ReferenceSource(tmp_path / "gone.png", 0, source.landmarks, 10**6).read()


def test_faces_with_the_same_references_share_batches_of_one_chunk() -> None:
    tasks = [task("0.jpg", ["ann", "bob", "ann"]), task("1.jpg", ["ann"]), task("2.jpg", ["bob"])]
    (chunk,) = make_chunks(tasks, 2)
    assert [[(str(face.relative), face.number) for face in batch] for batch in chunk.batches] == [
        [("0.jpg", 0), ("0.jpg", 2)],
        [("1.jpg", 0)],
        [("0.jpg", 1), ("2.jpg", 0)],
    ]
    assert chunk.tasks == tuple(tasks)


def test_chunks_hold_so_many_photos_and_so_many_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = [task(f"{number}.jpg", ["ann"]) for number in range(13)]
    assert [len(chunk.tasks) for chunk in make_chunks(tasks, 1)] == [4, 4, 4, 1]
    assert [len(chunk.tasks) for chunk in make_chunks(tasks, 2, parallel=3)] == [12, 1]
    assert list(make_chunks([], 1)) == []
    monkeypatch.setattr(batches, "BYTES_IN_FLIGHT", 12 * 10_000 * 2)
    large = [task("0.jpg", ["ann"]), task("1.jpg", ["ann"], 1000), task("2.jpg", ["ann"]), task("3.jpg", ["ann"])]
    assert [len(chunk.tasks) for chunk in make_chunks(large, 1)] == [1, 1, 2], "a photo above the limit is alone"


def test_a_face_has_the_same_noise_wherever_it_is() -> None:
    seeds = {face_seed(seed, content, number) for seed in (1, 2) for content in ("aa", "bb") for number in (0, 1)}
    assert len(seeds) == 8 and all(0 <= seed < 2**63 for seed in seeds)
    assert face_seed(2024, "aa", 0) == 787139455499353540, "another value restores every album otherwise"


def test_statistics_add_up_field_by_field() -> None:
    names = [field.name for field in fields(DeviceStatistics)]
    one = DeviceStatistics(**{name: number for number, name in enumerate(names)})
    both = one + one
    assert [getattr(both, name) for name in names] == [2 * number for number in range(len(names))]
    assert [getattr(one, name) for name in names] == list(range(len(names)))
