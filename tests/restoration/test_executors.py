"""Executors: batches in order on one device, references read ahead, the same bytes from another process."""

from __future__ import annotations

import multiprocessing
import pickle
import threading
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from marked import Checkered, make_photos, marked_backend
from tiny import tiny_guided

from facefix.errors import CheckpointError, WeightsUnavailable
from facefix.faces.face import Reference
from facefix.methods.base import SamplingSettings
from facefix.restoration.batches import BatchResult, FaceBatch, ModelSpec, ReferenceSource
from facefix.restoration.executors import LocalExecutor, restore_batch
from facefix.restoration.index import look_into
from facefix.restoration.reading import ReferenceReader
from facefix.restoration.worker import DeviceWorker

CPU = torch.device("cpu")
ALONE = ModelSpec("checkered", None, SamplingSettings(), torch.float32)


def crop(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (512, 512, 3), dtype=np.uint8)


def batch_of(folder: Path, model: ModelSpec, faces: int = 2) -> FaceBatch:
    """Faces with two references that lie in files."""
    paths = make_photos(folder, one=["ann"], two=["ann", "bob"])
    found = [look_into(path, marked_backend(), 10**6).faces[0] for path in paths]
    references = [
        ReferenceSource.of(Reference(face, path, "", 1.0), 10**6) for face, path in zip(found, paths, strict=True)
    ]
    return FaceBatch(tuple(crop(seed) for seed in range(faces)), tuple(range(faces)), tuple(references), model)


def restored_here(batch: FaceBatch, batch_size: int) -> BatchResult:
    with ThreadPoolExecutor(1) as pool:
        worker = DeviceWorker(batch.model.load(CPU), ReferenceReader(pool), batch_size)
        with LocalExecutor(worker) as executor:
            return executor.submit(batch).result()


def restored_from_bytes(pickled: bytes) -> bytes:
    """In another process: a batch in, its results out."""
    return pickle.dumps(restore_batch(pickle.loads(pickled), "cpu"))


def test_a_pickled_batch_gives_the_same_bytes_in_another_process(tmp_path: Path) -> None:
    tiny_guided(crop_size=96, default_steps=2).save_pretrained(tmp_path / "tiny")
    model = ModelSpec("tiny", tmp_path / "tiny", SamplingSettings(steps=2), torch.float32)
    batch = batch_of(tmp_path / "refs", model)
    here = restored_here(batch, 1)
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as processes:
        there: BatchResult = pickle.loads(processes.submit(restored_from_bytes, pickle.dumps(batch)).result())
    assert len(here.faces) == len(there.faces) == 2
    for mine, other in zip(here.faces, there.faces, strict=True):
        assert mine.problem == other.problem == "" and mine.pixels is not None and other.pixels is not None
        assert mine.pixels.tobytes() == other.pixels.tobytes()
    assert there.statistics.faces == 2 and there.statistics.references_encoded == here.statistics.references_encoded


def test_a_process_keeps_its_model_and_the_encoded_references(tmp_path: Path) -> None:
    tiny_guided(crop_size=96, default_steps=2).save_pretrained(tmp_path / "tiny")
    model = ModelSpec("tiny", tmp_path / "tiny", SamplingSettings(steps=1), torch.float32)
    batch = batch_of(tmp_path / "refs", model, faces=1)
    assert restore_batch(batch, "cpu").statistics.references_encoded == 2
    again = restore_batch(pickle.loads(pickle.dumps(batch)), "cpu").statistics
    assert (again.references_encoded, again.cache_hits) == (0, 2)


def test_a_model_that_is_not_on_this_machine_is_named(tmp_path: Path) -> None:
    model = ModelSpec("gone", tmp_path / "gone", SamplingSettings(), torch.float32)
    with pytest.raises((WeightsUnavailable, CheckpointError), match="gone"):
        restore_batch(batch_of(tmp_path / "refs", model), "cpu")


@dataclass
class Held(Checkered):
    """Restores when it is let, and says in which thread."""

    go: threading.Event = field(default_factory=threading.Event)
    threads: set[str] = field(default_factory=set)

    def restore(self, crops, references, seeds=None):  # type: ignore[no-untyped-def]
        self.go.wait(20)
        self.threads.add(threading.current_thread().name)
        return super().restore(crops, references, seeds)


def test_batches_are_done_in_order_in_one_thread_and_those_that_wait_can_be_cancelled(tmp_path: Path) -> None:
    restorer = Held()
    with ThreadPoolExecutor(1) as pool, LocalExecutor(DeviceWorker(restorer, ReferenceReader(pool))) as executor:
        futures = [executor.submit(FaceBatch((crop(n),), (n,), (), ALONE)) for n in range(4)]
        assert not futures[0].done()
        assert futures[3].cancel()
        restorer.go.set()
        results = [future.result().faces[0].pixels for future in futures[:3]]
    for number, pixels in enumerate(results):
        assert pixels is not None and np.array_equal(pixels, Checkered().restore([crop(number)], None)[0])
    assert restorer.batches == [1, 1, 1] and restorer.threads == {"facefix-device_0"}


def test_leaving_ends_after_the_batch_at_hand() -> None:
    restorer = Held()
    with ThreadPoolExecutor(1) as pool, LocalExecutor(DeviceWorker(restorer, ReferenceReader(pool))) as executor:
        futures = [executor.submit(FaceBatch((crop(n),), (n,), (), ALONE)) for n in range(3)]
        threading.Timer(0.2, restorer.go.set).start()
    assert futures[0].result().faces[0].pixels is not None
    assert futures[1].cancelled() and futures[2].cancelled()


def test_announced_references_are_read_ahead_unless_they_are_encoded(tmp_path: Path) -> None:
    batch = batch_of(tmp_path, ALONE)
    with ThreadPoolExecutor(2) as pool:
        reader = ReferenceReader(pool)
        worker = DeviceWorker(Checkered(), reader)
        with LocalExecutor(worker) as executor:
            executor.announce(batch.references)
            waiting = [reader.start(reference) for reference in batch.references]
            for path in tmp_path.glob("*.png"):
                assert all(future.result().shape == (512, 512, 3) for future in waiting)
                path.unlink()
            assert executor.submit(batch).result().faces[0].notes == (), "they had been read before they went"
            fresh = ReferenceReader(pool)
            worker.reader = fresh
            executor.announce(batch.references)
            assert executor.submit(batch).result().faces[0].notes == (), "they are encoded"
