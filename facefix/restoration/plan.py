"""From what was found in the photos to what will be done: people, their references, and a task for every photo."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from facefix.faces.face import Embedding, Face, Reference
from facefix.files.digests import digest
from facefix.outputs.outcomes import FaceOutcome, IndexedPhoto, PhotoOutcome, ReferenceNote
from facefix.people.references import centroid
from facefix.restoration.identities import People
from facefix.restoration.scan import ScannedPhoto
from facefix.restoration.verdicts import KEPT, why_left_alone


@dataclass(frozen=True, slots=True, eq=False)
class FaceTask:
    """One face to restore, and with what."""

    relative: Path
    """place of its photo in the output tree"""
    face: Face
    person: str
    references: tuple[Reference, ...]
    centroid: Embedding | None
    """mean embedding of the references; None without"""

    @property
    def number(self) -> int:
        """Number of the face in its photo."""
        return self.face.index

    def outcome(self, verdict: str, reason: str, *, model: str | None = None, seconds: float = 0.0) -> FaceOutcome:
        """What became of the face."""
        return face_outcome(
            self.face, verdict, reason, self.person, references=_notes(self.references), model=model, seconds=seconds
        )


@dataclass(frozen=True, slots=True, eq=False)
class PhotoTask:
    """What is to be done with one photo."""

    photo: ScannedPhoto
    found: IndexedPhoto
    recipe: str
    faces: tuple[FaceTask, ...] = ()
    """to restore"""
    settled: tuple[FaceOutcome, ...] = ()
    """left as they are, with the reason"""
    scale: int = 1

    def outcome(
        self,
        status: str,
        faces: Iterable[FaceOutcome] = (),
        *,
        target: Path | None = None,
        seconds: float = 0.0,
        notes: Iterable[str] = (),
    ) -> PhotoOutcome:
        """What became of the photo; ``faces`` are those that were to be restored."""
        return PhotoOutcome(
            self.photo.relative,
            self.photo.path,
            status,
            self.found.copy_reason or "",
            self.found.sha256,
            target,
            self.recipe,
            tuple(sorted((*self.settled, *faces), key=lambda face: face.face)),
            seconds,
            self.found.size,
            self.scale if status == "restored" else 1,
            tuple(dict.fromkeys((*self.found.notes, *notes))),
        )

    def failed(self, reason: str) -> PhotoOutcome:
        """The photo could not be done; it has no recipe, so the next run tries again."""
        return PhotoOutcome(self.photo.relative, self.photo.path, "failed", reason, self.found.sha256)


def make_task(photo: ScannedPhoto, found: IndexedPhoto, people: People, recipe: str) -> PhotoTask:
    """Decide about every face of a photo. ``recipe`` is that of the run; what was given for its people is added."""
    settings = people.settings
    owners = [people.owner(face) for face in found.faces]
    recipe = f"{recipe}.{digest([people.given(owner) for owner in owners])}"
    tasks, settled = [], []
    for face, owner in zip(found.faces, owners, strict=True):
        name = owner.name if owner is not None else None
        reason = why_left_alone(face.quality, settings, excluded=owner is not None and owner.excluded)
        references = people.references(owner, face) if owner is not None and reason is None else ()
        if reason is None and not references and settings.no_ref == "skip":
            reason = "no references of this person (--no-ref skip)"
        if reason is not None:
            settled.append(face_outcome(face, KEPT, reason, name))
        else:
            embeddings = [ref.face.embedding for ref in references if ref.face.embedding is not None]
            middle = centroid(embeddings) if embeddings else None
            tasks.append(FaceTask(photo.relative, face, name or "", references, middle))
    return PhotoTask(photo, found, recipe, tuple(tasks), tuple(settled), settings.upscale)


def in_working_order(tasks: Iterable[PhotoTask]) -> list[PhotoTask]:
    """Photos of one person after another, so that batches are full and references are encoded once."""

    def order(task: PhotoTask) -> tuple[str, bytes]:
        main = max(task.faces, key=lambda face: face.face.quality.face_px, default=None)
        return (main.person if main is not None else "", bytes(task.photo.relative))

    return sorted(tasks, key=order)


def face_outcome(
    face: Face,
    verdict: str,
    reason: str,
    person: str | None,
    *,
    references: tuple[ReferenceNote, ...] = (),
    model: str | None = None,
    seconds: float = 0.0,
) -> FaceOutcome:
    """What became of a face, with what is known about it."""
    return FaceOutcome(
        face.index,
        face.detection.box,
        verdict,
        reason,
        person,
        references=references,
        model=model,
        seconds=seconds,
        quality=face.quality.score,
        face_px=face.quality.face_px,
    )


def _notes(references: Sequence[Reference]) -> tuple[ReferenceNote, ...]:
    return tuple(
        ReferenceNote(str(reference.path), reference.face.index, reference.reason, reference.score)
        for reference in references
    )


def references_stand(task: PhotoTask, recorded: Iterable[FaceOutcome], people: People) -> bool:
    """Whether a photo's faces were restored with references that still are their people's.

    A correction by hand may have moved a face, or a reference, to somebody else; and a face that had no references may
    have got some by a merge.

    Args:
        task: what would be done with the photo now.
        recorded: what was done with its faces.
        people: everybody.
    """
    owners = {(os.path.abspath(face.photo), face.index): one.id for one in people.persons for face in one.faces}
    before = {outcome.face: outcome for outcome in recorded}
    for face in task.faces:
        owner, outcome = people.owner(face.face), before.get(face.number)
        if owner is None or outcome is None:
            continue
        used = {owners.get((os.path.abspath(note.path), note.face), owner.id) for note in outcome.references}
        if used - {owner.id} or (owner.is_merged and face.references and not outcome.references):
            return False
    return True
