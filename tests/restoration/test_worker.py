"""The device worker with restorers whose results can be computed by hand, and with a tiny real model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from facefix.errors import NotFiniteError
from facefix.methods.base import Pixels, Restorer
from facefix.restoration.worker import (
    DeviceWorker,
    FaceBatch,
    PreparedCache,
    ReferenceCrop,
    choose_batch_size,
    is_out_of_memory,
)


@dataclass(frozen=True)
class Mean:
    """References reduced to their mean colour."""

    value: float
    count: int
    nbytes: int = 100


@dataclass
class Brighten:
    """Adds the references' mean to every pixel; fails as it is told to."""

    name: str = "brighten"
    crop_size: int = 512
    recipe: str = "brighten-1"
    fits: int = 99
    """faces that fit in its memory"""
    not_finite: Callable[[Pixels], bool] = lambda crop: False
    broken: Callable[[Pixels], bool] = lambda crop: False
    fp32: Brighten | None = None
    prepared: list[int] = field(default_factory=list)
    batches: list[int] = field(default_factory=list)

    def prepare(self, references: Sequence[Pixels], sources: Sequence[str] = ()) -> Mean:
        self.prepared.append(len(references))
        return Mean(float(np.mean([crop.mean() for crop in references])), len(references))

    def restore(
        self, crops: Sequence[Pixels], references: Mean | None, seeds: Sequence[int] | None = None
    ) -> list[Pixels]:
        self.batches.append(len(crops))
        if len(crops) > self.fits:
            raise torch.OutOfMemoryError("CUDA out of memory")
        if any(self.not_finite(crop) for crop in crops):
            raise NotFiniteError("result: expected finite numbers")
        if any(self.broken(crop) for crop in crops):
            raise RuntimeError("this face cannot be")
        add = 0 if references is None else round(references.value)
        return [crop + np.uint8(add) for crop in crops]

    def in_fp32(self) -> Brighten:
        return self.fp32 or self


class BrightenEach(Brighten):
    """The same, with references that are prepared one by one and composed."""

    reference_encoding = "each"

    def compose(self, prepared: Sequence[Mean]) -> Mean:
        return Mean(float(np.mean([one.value for one in prepared])), len(prepared))


def crop(value: int) -> Pixels:
    return np.full((512, 512, 3), value, np.uint8)


def reference(value: int) -> ReferenceCrop:
    return ReferenceCrop(f"reference {value}", lambda: crop(value))


def batch(values: Sequence[int], references: Sequence[ReferenceCrop] = ()) -> FaceBatch:
    return FaceBatch([crop(value) for value in values], [0] * len(values), references)


def test_the_test_restorers_follow_the_protocol() -> None:
    assert isinstance(Brighten(), Restorer)


def test_twenty_faces_of_a_person_cost_one_encoding() -> None:
    worker = DeviceWorker(Brighten(), batch_size=4)
    references = [reference(value) for value in (10, 20, 30)]
    results = [result for _ in range(5) for result in worker.restore(batch([1, 2, 3, 4], references))]
    assert [int(result.pixels[0, 0, 0]) for result in results if result.pixels is not None] == [21, 22, 23, 24] * 5
    assert worker.restorer.prepared == [3]
    assert worker.statistics.references_encoded == 1
    assert worker.statistics.cache_hits == 4
    assert worker.statistics.faces == 20


def test_models_with_separate_references_encode_each_once_whatever_the_set() -> None:
    worker = DeviceWorker(BrightenEach(), batch_size=4)
    first = worker.restore(batch([0], [reference(10), reference(20)]))
    second = worker.restore(batch([0], [reference(20), reference(40)]))
    assert int(first[0].pixels[0, 0, 0]) == 15
    assert int(second[0].pixels[0, 0, 0]) == 30
    assert worker.statistics.references_encoded == 3


def test_the_kept_references_stay_within_their_bytes() -> None:
    cache = PreparedCache(budget_bytes=250)
    for key in ("a", "b"):
        cache.put((key,), Mean(0, 1))
    assert cache.get(("a",)) is not None
    cache.put(("c",), Mean(0, 1))
    assert ("a",) in cache and ("c",) in cache and ("b",) not in cache
    cache.put(("huge",), Mean(0, 1, nbytes=251))
    assert ("huge",) not in cache and cache.nbytes == 200


def test_an_evicted_person_is_encoded_again_with_the_same_result() -> None:
    worker = DeviceWorker(Brighten(), cache_bytes=0)
    once = worker.restore(batch([1], [reference(10)]))
    again = worker.restore(batch([1], [reference(10)]))
    assert worker.statistics.references_encoded == 2
    assert np.array_equal(once[0].pixels, again[0].pixels)


def test_out_of_memory_halves_the_batch_and_keeps_the_order() -> None:
    restorer = Brighten(fits=2)
    worker = DeviceWorker(restorer, batch_size=8)
    results = worker.restore(batch(range(9)))
    assert [int(result.pixels[0, 0, 0]) for result in results] == list(range(9))
    assert restorer.batches == [8, 4, 2, 2, 2, 2, 1]
    assert worker.batch_size == 2
    worker.restore(batch(range(3)))
    assert restorer.batches[7:] == [2, 1]


def test_a_face_that_never_fits_goes_to_the_cpu() -> None:
    cpu = Brighten()
    loads = []
    worker = DeviceWorker(Brighten(fits=0), batch_size=2, fallback=lambda: loads.append(1) or cpu)
    results = worker.restore(batch([5, 6], [reference(1)]))
    assert [int(result.pixels[0, 0, 0]) for result in results] == [6, 7]
    assert all("on the CPU" in result.notes[0] for result in results)
    assert loads == [1]
    alone = DeviceWorker(Brighten(fits=0)).restore(batch([5]))
    assert alone[0].pixels is None and "out of memory" in alone[0].problem


def test_nan_is_tried_again_in_fp32_and_only_the_bad_face_fails() -> None:
    fp32 = Brighten(not_finite=lambda face: face[0, 0, 0] == 3)
    worker = DeviceWorker(Brighten(not_finite=lambda face: face[0, 0, 0] >= 2, fp32=fp32), batch_size=3)
    results = worker.restore(batch([1, 2, 3]))
    assert [result.pixels is not None for result in results] == [True, True, False]
    assert "finite" in results[2].problem
    assert "fp32" in results[1].notes[0]
    assert worker.statistics.fp32_retries == 1


def test_a_broken_face_takes_no_other_with_it() -> None:
    worker = DeviceWorker(Brighten(broken=lambda face: face[0, 0, 0] == 2), batch_size=3)
    results = worker.restore(batch([1, 2, 3]))
    assert [result.problem for result in results] == ["", "this face cannot be", ""]


def test_references_that_cannot_be_read_fail_the_batch_only() -> None:
    def unreadable() -> Pixels:
        raise NotFiniteError("portrait.jpg: cannot be read")

    worker = DeviceWorker(Brighten())
    results = worker.restore(batch([1], [ReferenceCrop("gone", unreadable)]))
    assert results[0].pixels is None and "portrait.jpg" in results[0].problem
    assert worker.restore(batch([1]))[0].pixels is not None


def test_batch_size_by_device_and_out_of_memory_in_words() -> None:
    assert choose_batch_size(None, torch.device("cpu")) == 1
    assert choose_batch_size(None, torch.device("cuda")) > 1
    assert choose_batch_size(3, torch.device("cpu")) == 3
    assert is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate"))
    assert not is_out_of_memory(RuntimeError("shapes do not match"))
