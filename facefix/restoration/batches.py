"""Which faces go to the device together: chunks of photos, batches of one person, seeds."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from facefix.faces.face import Face
from facefix.restoration.plan import FaceTask, PhotoTask

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


def face_seed(seed: int, sha256: str, number: int) -> int:
    """Seed of the noise for one face: the same whatever else is in the album or the batch."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{sha256}:{number}".encode()).digest()[:8], "big") >> 1
