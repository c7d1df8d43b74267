"""The restore phase: photos are read again, faces go to the executor in batches, results are judged and written.

Photos are taken in chunks. While the faces of one chunk are restored, the next one is read and the last one written on
CPU threads, so that the device waits for nobody and never more than three chunks are in memory. Which faces share a
batch depends on the plan alone, not on timing.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path

from facefix.errors import PhotoError
from facefix.outputs.outcomes import PhotoOutcome
from facefix.restoration.batches import (
    BatchResult,
    Chunk,
    DeviceStatistics,
    FaceBatch,
    ModelSpec,
    ReferenceSource,
    Restored,
    face_seed,
    make_chunks,
)
from facefix.restoration.executors import Executor
from facefix.restoration.finish import Finisher, outcome_of
from facefix.restoration.plan import FaceTask, PhotoTask
from facefix.restoration.reading import OpenPhoto, open_photo
from facefix.restoration.summary import Done
from facefix.settings import Settings
from facefix.stop import Stop

STOP_SECONDS = 0.1
"""A request to stop is heard within this time."""

Writing = tuple[PhotoTask, Future[PhotoOutcome]]
"""A photo that is being written."""


@dataclass(frozen=True, slots=True, eq=False)
class RestorePhase:
    """Everything that works together while faces are restored."""

    executor: Executor
    finisher: Finisher
    pool: ThreadPoolExecutor
    model: ModelSpec
    settings: Settings
    stop: Stop

    def run(self, tasks: Sequence[PhotoTask]) -> Iterator[tuple[PhotoTask, Done]]:
        """Restore photos; yields each as it is written. Raises what the writing of a photo raises beyond PhotoError."""
        meter = _Meter()
        chunks = make_chunks(tasks, self.executor.batch_size, parallel=self.executor.parallel)
        writing: deque[Writing] = deque()
        ahead = self._read(next(chunks, None))
        while ahead is not None and not self.stop:
            chunk, ahead = ahead, self._read(next(chunks, None))
            for statistics, begun in chunk.run(self):
                meter.add(statistics)
                writing.extend(begun)
                while writing and writing[0][1].done():
                    yield meter.done(*writing.popleft())
            while len(writing) > len(chunk.chunk.tasks):
                yield meter.done(*writing.popleft())
        while writing:
            yield meter.done(*writing.popleft())

    def sources(self, face: FaceTask) -> tuple[ReferenceSource, ...]:
        """The references of a face as values."""
        return tuple(ReferenceSource.of(reference, self.settings.max_pixels) for reference in face.references)

    def _read(self, chunk: Chunk | None) -> _ChunkRun | None:
        """Start reading a chunk's photos, and let the executor know of their references."""
        if chunk is None or self.stop:
            return None
        photos = {
            task.photo.relative: self.pool.submit(open_photo, task, self.settings.max_pixels) for task in chunk.tasks
        }
        for batch in chunk.batches:
            self.executor.announce(self.sources(batch[0]))
        return _ChunkRun(chunk, photos)


@dataclass(slots=True, eq=False)
class _Meter:
    """What the device did, and the time that passed, since the last photo was done."""

    _statistics: DeviceStatistics = field(default_factory=DeviceStatistics)
    _since: float = field(default_factory=time.perf_counter)

    def add(self, statistics: DeviceStatistics) -> None:
        self._statistics += statistics

    def done(self, task: PhotoTask, future: Future[PhotoOutcome]) -> tuple[PhotoTask, Done]:
        """A photo, once it is written, with what was measured until then."""
        outcome, now = outcome_of(task, future), time.perf_counter()
        measured = Done(outcome, self._statistics, now - self._since)
        self._statistics, self._since = DeviceStatistics(), now
        return task, measured


@dataclass(slots=True, eq=False)
class _ChunkRun:
    """One chunk on its way: photos being read, batches being restored, faces restored so far."""

    chunk: Chunk
    reading: dict[Path, Future[OpenPhoto]]
    _open: dict[Path, OpenPhoto] = field(default_factory=dict)
    _results: dict[Path, dict[int, Restored]] = field(default_factory=dict)
    _waiting: deque[tuple[list[FaceTask], Future[BatchResult]]] = field(default_factory=deque)

    def run(self, phase: RestorePhase) -> Iterator[tuple[DeviceStatistics, list[Writing]]]:
        """Submit the batches in order; yield what each cost, and the photos whose writing began with it."""
        tasks = {task.photo.relative: task for task in self.chunk.tasks}
        for batch in self.chunk.batches:
            if phase.stop:
                break
            yield DeviceStatistics(), self._open_photos(phase, [tasks[face.relative] for face in batch])
            faces = [face for face in batch if face.relative in self._open]
            if faces:
                self._waiting.append((faces, phase.executor.submit(self._batch(phase, faces))))
            while len(self._waiting) > phase.executor.parallel:
                yield self._take(phase, tasks)
        while self._waiting:
            yield self._take(phase, tasks)

    def _open_photos(self, phase: RestorePhase, tasks: Sequence[PhotoTask]) -> list[Writing]:
        """Wait for photos to be read; those that cannot be are done, and have failed."""
        failed = list[Writing]()
        for task in tasks:
            future = self.reading.pop(task.photo.relative, None)
            if future is None:  # by an earlier batch, or for another face of this one
                continue
            if isinstance(error := future.exception(), PhotoError):
                failed.append((task, phase.pool.submit(task.failed, str(error))))
            else:
                self._open[task.photo.relative] = future.result()
        return failed

    def _batch(self, phase: RestorePhase, faces: Sequence[FaceTask]) -> FaceBatch:
        """Faces of open photos as a value."""
        photos = [self._open[face.relative] for face in faces]
        crops = [photo.crops[face.number] for photo, face in zip(photos, faces, strict=True)]
        seeds = [
            face_seed(phase.settings.seed, photo.photo.sha256, face.number)
            for photo, face in zip(photos, faces, strict=True)
        ]
        return FaceBatch(tuple(crops), tuple(seeds), phase.sources(faces[0]), phase.model)

    def _take(self, phase: RestorePhase, tasks: dict[Path, PhotoTask]) -> tuple[DeviceStatistics, list[Writing]]:
        """Wait for the oldest batch; begin to write the photos whose last face it had."""
        faces, future = self._waiting.popleft()
        while not future.done():
            wait([future], timeout=STOP_SECONDS)
            if phase.stop:
                future.cancel()
                for _, later in self._waiting:
                    later.cancel()
        if future.cancelled():
            return DeviceStatistics(), []
        result, writing = future.result(), list[Writing]()
        for face, restored in zip(faces, result.faces, strict=True):
            done = self._results.setdefault(face.relative, {})
            done[face.number] = restored
            task = tasks[face.relative]
            if len(done) == len(task.faces):
                photo = self._open.pop(face.relative)
                writing.append((task, phase.pool.submit(phase.finisher.finish, task, photo, done)))
        return result.statistics, writing
