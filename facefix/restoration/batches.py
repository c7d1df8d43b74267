"""What goes to the device together, and what comes back: plain values that can be pickled.

A batch says everything that decides its results, so that any process that sees the same files makes the same of it.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Self

import torch

from facefix.errors import WeightsUnavailable
from facefix.faces.align import crop_matrix, warp
from facefix.faces.face import Face, Landmarks, Pixels, Reference
from facefix.methods import registry
from facefix.methods.base import LoadOptions, Restorer, SamplingSettings
from facefix.photos.photo import read_photo
from facefix.restoration.plan import FaceTask, PhotoTask

BYTES_IN_FLIGHT = 768 << 20
"""Decoded photos of one chunk, at most, unless a single one is larger."""

_BYTES_PER_PIXEL = 12
"""Decoded pixels, what the writer needs of them, and the file itself."""


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """Which model restores, and how: enough to load it in another process."""

    name: str
    folder: Path | None
    """None: a restorer that the caller made, which only this process has"""
    sampling: SamplingSettings
    dtype: torch.dtype

    def load(self, device: torch.device) -> Restorer:
        """The restorer on a device. Raises WeightsUnavailable, CheckpointError."""
        if self.folder is None:
            raise WeightsUnavailable(f"{self.name}: expected a model folder, found a restorer of another process")
        return registry.load(self.folder, LoadOptions(self.name, device, self.dtype, self.sampling))


@dataclass(frozen=True, slots=True, eq=False)
class ReferenceSource:
    """One reference of a batch: which face of which file, and how to cut it out."""

    path: Path
    number: int
    """of the face in the file"""
    landmarks: Landmarks
    max_pixels: int
    """of a file that is read"""

    @classmethod
    def of(cls, reference: Reference, max_pixels: int) -> Self:
        """Where a chosen reference is found."""
        return cls(reference.path, reference.face.index, reference.face.detection.landmarks, max_pixels)

    @property
    def key(self) -> str:
        """Tells references apart."""
        return f"{self.path}#{self.number}"

    def read(self) -> Pixels:
        """(512, 512, 3) the aligned face. Raises PhotoError when the file cannot be read."""
        return warp(read_photo(self.path, self.max_pixels).pixels, crop_matrix(self.landmarks))


@dataclass(frozen=True, slots=True, eq=False)
class FaceBatch:
    """Faces of one person with the same references."""

    crops: tuple[Pixels, ...]
    """each (512, 512, 3)"""
    seeds: tuple[int, ...]
    """of the start noise, one a face"""
    references: tuple[ReferenceSource, ...]
    """best first; none: restored without"""
    model: ModelSpec


@dataclass(frozen=True, slots=True, eq=False)
class Restored:
    """What the device made of one face: pixels, or the reason why not."""

    pixels: Pixels | None
    seconds: float
    problem: str = ""
    notes: tuple[str, ...] = ()


@dataclass(slots=True)
class DeviceStatistics:
    """What devices did; those of several batches add up."""

    faces: int = 0
    batches: int = 0
    references_encoded: int = 0
    """reference sets (or single references, where a model takes them one by one) that went through the network"""
    cache_hits: int = 0
    out_of_memory: int = 0
    fp32_retries: int = 0
    busy_seconds: float = 0.0
    encode_seconds: float = 0.0

    def __add__(self, other: DeviceStatistics) -> DeviceStatistics:
        names = [field.name for field in fields(self)]
        return DeviceStatistics(**{name: getattr(self, name) + getattr(other, name) for name in names})


@dataclass(frozen=True, slots=True, eq=False)
class BatchResult:
    """What became of a batch."""

    faces: tuple[Restored, ...]
    """in the order of the batch"""
    statistics: DeviceStatistics


@dataclass(frozen=True, slots=True, eq=False)
class Chunk:
    """Photos that are in memory together, and their faces in batches of one person each."""

    tasks: tuple[PhotoTask, ...]
    batches: tuple[tuple[FaceTask, ...], ...]


def make_chunks(tasks: Sequence[PhotoTask], batch_size: int, *, parallel: int = 1) -> Iterator[Chunk]:
    """Split photos, in their order, into chunks that fill ``parallel`` batches at a time and fit in memory."""
    most_photos = max(4, 2 * batch_size * parallel)
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


def face_seed(seed: int, sha256: str, number: int) -> int:
    """Seed of the noise for one face: the same whatever else is in the album or the batch."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{sha256}:{number}".encode()).digest()[:8], "big") >> 1
