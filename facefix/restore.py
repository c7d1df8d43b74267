"""The restore phase: photos are read again, faces go through the device in batches, results are judged and written.

Photos are taken in chunks. While one chunk is on the device, the next one is read and the last one written on CPU
threads, so that the device waits for nobody and never more than three chunks are in memory. Which faces share a batch
depends on the plan alone, not on timing.
"""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from facefix.errors import PhotoError
from facefix.faces.align import crop_matrix, warp
from facefix.faces.face import Face, Reference
from facefix.finish import Finisher, OpenPhoto, settled
from facefix.photos.ledger import PhotoOutcome
from facefix.photos.photo import read_photo
from facefix.plan import FaceTask, PhotoTask
from facefix.settings import Settings
from facefix.worker import DeviceWorker, FaceBatch, ReferenceCrop, Restored

Crop = NDArray[np.uint8]

BYTES_IN_FLIGHT = 768 << 20
"""Decoded photos of one chunk, at most, unless a single one is larger."""

_BYTES_PER_PIXEL = 12
"""Decoded pixels, what the writer needs of them, and the file itself."""


@dataclass(frozen=True, slots=True, eq=False)
class Chunk:
    """Photos that are in memory together, and their faces in batches of one person each."""

    tasks: tuple[PhotoTask, ...]
    batches: tuple[tuple[FaceTask, ...], ...]


def make_chunks(tasks: Sequence[PhotoTask], batch_size: int) -> Iterator[Chunk]:
    """Split photos, in their order, into chunks that fill batches and fit in memory."""
    most_photos = max(4, 2 * batch_size)
    held: list[PhotoTask] = []
    held_bytes = 0
    for task in tasks:
        needed = task.found.size[0] * task.found.size[1] * _BYTES_PER_PIXEL
        if held and (len(held) >= most_photos or held_bytes + needed > BYTES_IN_FLIGHT):
            yield Chunk(tuple(held), _batches(held, batch_size))
            held, held_bytes = [], 0
        held.append(task)
        held_bytes += needed
    if held:
        yield Chunk(tuple(held), _batches(held, batch_size))


def _batches(tasks: Sequence[PhotoTask], batch_size: int) -> tuple[tuple[FaceTask, ...], ...]:
    """Faces with the same references together."""
    groups: OrderedDict[tuple[str, ...], list[FaceTask]] = OrderedDict()
    for task in tasks:
        for face in task.faces:
            groups.setdefault(tuple(reference_key(reference.face) for reference in face.references), []).append(face)
    return tuple(
        tuple(group[start : start + batch_size])
        for group in groups.values()
        for start in range(0, len(group), batch_size)
    )


def reference_key(face: Face) -> str:
    """Identity of a reference: which face of which file."""
    return f"{face.photo}#{face.index}"


def open_photo(task: PhotoTask, max_pixels: int) -> OpenPhoto:
    """Read a photo and cut out its faces. Raises PhotoError, also when it is not the photo that was looked at."""
    photo = read_photo(task.photo.path, max_pixels)
    if photo.sha256 != task.found.sha256:
        raise PhotoError(f"{task.photo.path}: changed while the run went on; the next run will take it")
    matrices = {face.number: crop_matrix(face.face.detection.landmarks) for face in task.faces}
    return OpenPhoto(photo, matrices, {number: warp(photo.pixels, matrix) for number, matrix in matrices.items()})


class ReferenceReader:
    """Reads the crops of references on CPU threads, ahead of the device; the last few are kept."""

    def __init__(self, pool: ThreadPoolExecutor, max_pixels: int, keep: int = 64) -> None:
        self._pool = pool
        self._max_pixels = max_pixels
        self._keep = keep
        self._futures: OrderedDict[str, Future[Crop]] = OrderedDict()

    def start(self, reference: Reference) -> Future[Crop]:
        """The crop of a reference, perhaps still being read."""
        key = reference_key(reference.face)
        if key not in self._futures:
            self._futures[key] = self._pool.submit(_read_crop, reference.path, reference.face, self._max_pixels)
        self._futures.move_to_end(key)
        while len(self._futures) > self._keep:
            self._futures.popitem(last=False)
        return self._futures[key]

    def is_readable(self, reference: Reference) -> bool:
        """Whether the reference can be read (waits for it)."""
        return not isinstance(self.start(reference).exception(), PhotoError)


def _read_crop(path: Path, face: Face, max_pixels: int) -> Crop:
    return warp(read_photo(path, max_pixels).pixels, crop_matrix(face.detection.landmarks))


class Stop:
    """Set from a signal handler: the run ends after the batch it is at."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def __bool__(self) -> bool:
        return self.signal is not None

    def request(self, number: int) -> None:
        """Ask the run to end."""
        self.signal = number


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


def face_seed(seed: int, sha256: str, number: int) -> int:
    """Seed of the noise for one face: the same whatever else is in the album or the batch."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{sha256}:{number}".encode()).digest()[:8], "big") >> 1
