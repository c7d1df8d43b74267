"""The restore phase: in chunks, in order, never with too much in memory, and quick to stop."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from marked import Checkered, make_photos, marked_backend
from PIL import Image

from facefix.faces.face import Reference
from facefix.methods.base import SamplingSettings
from facefix.outputs.outcomes import PhotoOutcome
from facefix.restoration.batches import BatchResult, DeviceStatistics, FaceBatch, ModelSpec, ReferenceSource, Restored
from facefix.restoration.choices import BackendChoice
from facefix.restoration.executors import LocalExecutor
from facefix.restoration.finish import Finisher
from facefix.restoration.index import look_into
from facefix.restoration.phase import RestorePhase
from facefix.restoration.plan import FaceTask, PhotoTask
from facefix.restoration.reading import OpenPhoto, ReferenceReader
from facefix.restoration.scan import ScannedPhoto
from facefix.restoration.worker import DeviceWorker
from facefix.settings import Settings
from facefix.stop import Stop

MODEL = ModelSpec("checkered", None, SamplingSettings(), torch.float32)


def tasks_of(folder: Path, **photos: Sequence[str]) -> list[PhotoTask]:
    """Photos all of whose faces are to be restored, with a portrait each."""
    backend = marked_backend()
    portraits = dict(zip("abc", make_photos(folder / "refs", ann=["ann"], bob=["bob"], cid=["cid"]), strict=True))
    tasks = []
    for path in make_photos(folder / "album", **photos):
        found = look_into(path, backend, 10**6)
        place, faces = Path(path.name), []
        for face, person in zip(found.faces, photos[path.stem], strict=True):
            portrait = portraits[person[0]]
            (reference,) = look_into(portrait, backend, 10**6).faces
            faces.append(FaceTask(place, face, person, (Reference(reference, portrait, "", 1.0),), reference.embedding))
        tasks.append(PhotoTask(ScannedPhoto(path, place), found, "r.x", tuple(faces)))
    return tasks


@dataclass
class Bench:
    """Everything a phase needs, with an output folder of its own."""

    output: Path
    pool: ThreadPoolExecutor
    restorer: Checkered = field(default_factory=Checkered)
    stop: Stop = field(default_factory=Stop)

    def phase(self, executor: object) -> RestorePhase:
        backend = BackendChoice("marked", marked_backend)
        settings = Settings(restore="all")
        finisher = Finisher(self.output, backend, settings, "checkered", "recipe")
        return RestorePhase(executor, finisher, self.pool, MODEL, settings, self.stop)  # type: ignore[arg-type]

    def run(self, tasks: Sequence[PhotoTask], batch_size: int = 1) -> tuple[list[PhotoOutcome], DeviceStatistics]:
        worker = DeviceWorker(self.restorer, ReferenceReader(self.pool), batch_size)
        outcomes, statistics = [], DeviceStatistics()
        with LocalExecutor(worker) as executor:
            for task, done in self.phase(executor).run(tasks):
                assert done.outcome.relative == task.photo.relative and done.restore_seconds > 0
                outcomes.append(done.outcome)
                statistics += done.device
        return outcomes, statistics


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with ThreadPoolExecutor(2) as pool:
        yield Bench(tmp_path / "out", pool)


def tree(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.png")}


ALBUM = {
    "p0": ["ann"], "p1": ["ann", "bob"], "p2": ["bob"], "p3": ["cid", "ann"], "p4": ["ann"], "p5": ["bob", "cid"],
}  # fmt: skip


def test_every_photo_comes_out_once_and_every_face_is_counted(bench: Bench, tmp_path: Path) -> None:
    outcomes, statistics = bench.run(tasks_of(tmp_path, **ALBUM))
    assert sorted(str(outcome.relative) for outcome in outcomes) == [f"p{number}.png" for number in range(6)]
    assert {outcome.status for outcome in outcomes} == {"restored"} and len(tree(bench.output)) == 6
    assert (statistics.faces, statistics.batches, statistics.references_encoded) == (9, 9, 3)
    assert statistics.busy_seconds > 0


def test_outputs_do_not_depend_on_the_size_of_batches(bench: Bench, tmp_path: Path) -> None:
    tasks = tasks_of(tmp_path, **ALBUM)
    bench.run(tasks)
    other = replace(bench, output=tmp_path / "other", restorer=Checkered())
    _, statistics = other.run(tasks, batch_size=4)
    assert statistics.batches < 9 and statistics.faces == 9
    assert tree(bench.output) == tree(other.output)


def test_photos_that_are_gone_fail_and_take_no_other_with_them(bench: Bench, tmp_path: Path) -> None:
    tasks = tasks_of(tmp_path, **ALBUM)
    tasks[1].photo.path.unlink()
    Image.new("RGB", (9, 9)).save(tasks[4].photo.path)
    outcomes, statistics = bench.run(tasks, batch_size=4)
    failed = {str(outcome.relative): outcome.reason for outcome in outcomes if outcome.status == "failed"}
    assert failed.keys() == {"p1.png", "p4.png"} and "changed" in failed["p4.png"]
    assert len(outcomes) == 6 and statistics.faces == 6


def test_no_photos_no_batches(bench: Bench) -> None:
    assert bench.run([]) == ([], DeviceStatistics())


@dataclass
class Delayed:
    """An executor that restores nothing until it is let, several batches at once; results are the crops themselves."""

    parallel: int
    batch_size: int = 1
    announced: list[str] = field(default_factory=list)
    submitted: list[tuple[FaceBatch, Future[BatchResult]]] = field(default_factory=list)
    seen: threading.Condition = field(default_factory=threading.Condition)

    def announce(self, references: Sequence[ReferenceSource]) -> None:
        self.announced += [reference.path.stem for reference in references]

    def submit(self, batch: FaceBatch) -> Future[BatchResult]:
        future: Future[BatchResult] = Future()
        with self.seen:
            self.submitted.append((batch, future))
            self.seen.notify()
        return future

    def wait_for(self, count: int) -> None:
        with self.seen:
            assert self.seen.wait_for(lambda: len(self.submitted) >= count, timeout=20)

    def complete(self, number: int) -> None:
        batch, future = self.submitted[number]
        faces = tuple(Restored(np.asarray(crop), 0.0) for crop in batch.crops)
        if future.set_running_or_notify_cancel():
            future.set_result(BatchResult(faces, DeviceStatistics(faces=len(faces))))


def in_thread(phase: RestorePhase, tasks: Sequence[PhotoTask]) -> tuple[threading.Thread, list[str]]:
    done: list[str] = []
    thread = threading.Thread(target=lambda: done.extend(str(task.photo.relative) for task, _ in phase.run(tasks)))
    thread.start()
    return thread, done


def test_as_many_batches_wait_as_the_executor_can_use_and_any_may_be_done_first(bench: Bench, tmp_path: Path) -> None:
    executor = Delayed(parallel=3)
    thread, done = in_thread(bench.phase(executor), tasks_of(tmp_path, **{f"p{n}": ["ann"] for n in range(5)}))
    executor.wait_for(4)
    assert len(executor.submitted) == 4 and set(executor.announced) == {"ann"}
    for number in (3, 1, 2):
        executor.complete(number)
    executor.complete(0)
    executor.wait_for(5)
    executor.complete(4)
    thread.join(20)
    assert sorted(done) == [f"p{n}.png" for n in range(5)]


def test_batches_are_values_with_all_that_decides_the_result(bench: Bench, tmp_path: Path) -> None:
    executor = Delayed(parallel=2)
    tasks = tasks_of(tmp_path, one=["ann"], two=["bob"])
    thread, _ = in_thread(bench.phase(executor), tasks)
    executor.wait_for(2)
    for number, (batch, _) in enumerate(executor.submitted):
        assert batch.model == MODEL and len(batch.crops) == len(batch.seeds) == 1
        assert [reference.path.stem for reference in batch.references] == [["ann", "bob"][number]]
        executor.complete(number)
    assert executor.submitted[0][0].seeds != executor.submitted[1][0].seeds
    thread.join(20)
    assert not thread.is_alive()


def test_a_request_to_stop_ends_after_the_batch_at_hand(bench: Bench, tmp_path: Path) -> None:
    executor = Delayed(parallel=1)
    thread, done = in_thread(bench.phase(executor), tasks_of(tmp_path, **{f"p{n}": ["ann"] for n in range(4)}))
    executor.wait_for(2)
    running, waiting = executor.submitted[0][1], executor.submitted[1][1]
    running.set_running_or_notify_cancel()
    bench.stop.request(15)
    for _ in range(200):
        if waiting.cancelled():
            break
        threading.Event().wait(0.02)
    assert waiting.cancelled() and not running.done(), "it waits for the one, and lets the other go"
    batch = executor.submitted[0][0]
    running.set_result(BatchResult((Restored(np.asarray(batch.crops[0]), 0.0),), DeviceStatistics(faces=1)))
    thread.join(20)
    assert done == ["p0.png"] and len(executor.submitted) == 2


def test_never_more_than_three_chunks_are_in_memory(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held, most = set[int](), 0
    original = OpenPhoto.__init__

    def counted(self: OpenPhoto, *arguments: object) -> None:
        nonlocal most
        original(self, *arguments)  # type: ignore[arg-type]
        held.add(id(self))
        most = max(most, len(held))

    finish = Finisher.finish

    def freed(self: Finisher, task: PhotoTask, opened: OpenPhoto, results: object) -> PhotoOutcome:
        outcome = finish(self, task, opened, results)  # type: ignore[arg-type]
        held.discard(id(opened))
        return outcome

    monkeypatch.setattr(OpenPhoto, "__init__", counted)
    monkeypatch.setattr(Finisher, "finish", freed)
    bench.run(tasks_of(tmp_path, **{f"p{n:02}": ["ann"] for n in range(24)}))
    assert 4 < most <= 12 and not held
