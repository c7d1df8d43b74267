"""The restore phase: photos are read again, faces go through the device in batches, results are judged and written.

Photos are taken in chunks. While one chunk is on the device, the next one is read and the last one written on CPU
threads, so that the device waits for nobody and never more than three chunks are in memory. Which faces share a batch
depends on the plan alone, not on timing.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from facefix.errors import PhotoError
from facefix.faces.face import Reference
from facefix.outputs.outcomes import PhotoOutcome
from facefix.restoration.batches import Chunk, face_seed, make_chunks, reference_key
from facefix.restoration.finish import Finisher, settled
from facefix.restoration.plan import FaceTask, PhotoTask
from facefix.restoration.reading import Crop, OpenPhoto, ReferenceReader, open_photo
from facefix.restoration.worker import DeviceWorker, FaceBatch, ReferenceCrop, Restored
from facefix.settings import Settings
from facefix.stop import Stop


@dataclass(slots=True, eq=False)
class RestorePhase:
    """Everything that works together while faces are restored."""

    worker: DeviceWorker
    finisher: Finisher
    pool: ThreadPoolExecutor
    settings: Settings
    stop: Stop
    seconds: float = 0.0
    """wall time of the phase so far"""
    _references: ReferenceReader = field(init=False)

    def __post_init__(self) -> None:
        self._references = ReferenceReader(self.pool, self.settings.max_pixels)

    def run(self, tasks: Sequence[PhotoTask]) -> Iterator[tuple[PhotoTask, PhotoOutcome]]:
        """Restore photos; yields each as it is written. Raises what the writing of a photo raises beyond PhotoError."""
        start = time.perf_counter()
        chunks = make_chunks(tasks, self.worker.batch_size)
        writing: deque[tuple[PhotoTask, Future[PhotoOutcome]]] = deque()
        ahead = self._read(next(chunks, None))
        while ahead is not None and not self.stop:
            reading, ahead = ahead, self._read(next(chunks, None))
            for outcome in reading.run(self):
                writing.append(outcome)
                while writing and writing[0][1].done():
                    self.seconds = time.perf_counter() - start
                    yield _settled(*writing.popleft())
            while len(writing) > len(reading.chunk.tasks):
                yield _settled(*writing.popleft())
        while writing:
            yield _settled(*writing.popleft())
        self.seconds = time.perf_counter() - start

    def _read(self, chunk: Chunk | None) -> _ChunkRun | None:
        """Start reading a chunk's photos and the references that are not encoded yet."""
        if chunk is None or self.stop:
            return None
        photos = {
            task.photo.relative: self.pool.submit(open_photo, task, self.settings.max_pixels) for task in chunk.tasks
        }
        for batch in chunk.batches:
            crops = self.reference_crops(batch[0].references)
            for reference, crop in zip(batch[0].references, crops, strict=True):
                if not self.worker.holds(crop, crops):
                    self._references.start(reference)
        return _ChunkRun(chunk, photos)

    def reference_crops(self, references: Sequence[Reference]) -> list[ReferenceCrop]:
        """References as the device worker takes them."""
        return [
            ReferenceCrop(
                reference_key(reference.face),
                lambda reference=reference: self._references.start(reference).result(),  # type: ignore[misc]
                reference.path.name,
            )
            for reference in references
        ]

    def usable(self, references: Sequence[Reference]) -> list[Reference]:
        """The references without those that cannot be read any more."""
        crops = self.reference_crops(references)
        return [
            reference
            for reference, crop in zip(references, crops, strict=True)
            if self.worker.holds(crop, crops) or self._references.is_readable(reference)
        ]

    def restore_batch(self, crops: Sequence[Crop], seeds: Sequence[int], faces: Sequence[FaceTask]) -> list[Restored]:
        """One batch of faces with the same references through the device."""
        references = self.usable(faces[0].references)
        results = self.worker.restore(FaceBatch(crops, seeds, self.reference_crops(references)))
        missing = [reference.path.name for reference in faces[0].references if reference not in references]
        if not missing:
            return results
        note = f"without {', '.join(missing)}, which cannot be read any more"
        return [Restored(result.pixels, result.seconds, result.problem, (*result.notes, note)) for result in results]


@dataclass(slots=True, eq=False)
class _ChunkRun:
    """One chunk on its way: photos being read, faces restored so far."""

    chunk: Chunk
    reading: dict[Path, Future[OpenPhoto]]
    _open: dict[Path, OpenPhoto] = field(default_factory=dict)
    _results: dict[Path, dict[int, Restored]] = field(default_factory=dict)

    def run(self, phase: RestorePhase) -> Iterator[tuple[PhotoTask, Future[PhotoOutcome]]]:
        """Take the batches through the device; yield each photo's writing once its last face is done."""
        tasks = {task.photo.relative: task for task in self.chunk.tasks}
        for batch in self.chunk.batches:
            if phase.stop:
                return
            for face in batch:
                if (problem := self._ensure_open(face.relative)) is not None:
                    yield tasks[face.relative], phase.pool.submit(tasks[face.relative].failed, problem)
            faces = [face for face in batch if face.relative in self._open]
            for face, result in zip(faces, self._restore(phase, faces), strict=True):
                done = self._results.setdefault(face.relative, {})
                done[face.number] = result
                if len(done) == len(tasks[face.relative].faces):
                    task, photo = tasks[face.relative], self._open.pop(face.relative)
                    yield task, phase.pool.submit(phase.finisher.finish, task, photo, done)

    def _ensure_open(self, relative: Path) -> str | None:
        """Wait for the photo to be read, the first time; the problem if it cannot be."""
        future = self.reading.pop(relative, None)
        if future is None:
            return None
        if isinstance(error := future.exception(), PhotoError):
            return str(error)
        self._open[relative] = future.result()
        return None

    def _restore(self, phase: RestorePhase, faces: Sequence[FaceTask]) -> list[Restored]:
        if not faces:
            return []
        photos = [self._open[face.relative] for face in faces]
        crops = [photo.crops[face.number] for photo, face in zip(photos, faces, strict=True)]
        seeds = [
            face_seed(phase.settings.seed, photo.photo.sha256, face.number)
            for photo, face in zip(photos, faces, strict=True)
        ]
        return phase.restore_batch(crops, seeds, faces)


def _settled(task: PhotoTask, future: Future[PhotoOutcome]) -> tuple[PhotoTask, PhotoOutcome]:
    return task, settled(task, future)
