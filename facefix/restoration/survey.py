"""What a run would do: faces, people, references, an estimate of the time. For --dry-run and `facefix people`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from facefix.faces.face import Face, Reference
from facefix.people.corrections import CorrectedPerson
from facefix.progress import duration
from facefix.restoration.album import Album, Problem
from facefix.restoration.identities import Found, People
from facefix.restoration.plan import PhotoTask
from facefix.restoration.work import Work


@dataclass(frozen=True, slots=True, eq=False)
class PersonRow:
    """One person, the references chosen for them, and why."""

    person: CorrectedPerson
    album: tuple[Face, ...]
    portraits: tuple[Face, ...]
    references: tuple[Reference, ...]
    to_restore: int


@dataclass(frozen=True, slots=True, eq=False)
class Survey:
    """What a run would do."""

    album: Album
    work: Work
    found: Found
    people: People
    tasks: tuple[PhotoTask, ...]
    problems: tuple[Problem, ...]
    seconds_per_face: float | None
    """None: not known, or nothing to restore"""

    @property
    def faces_to_restore(self) -> int:
        """Faces that would go through the model."""
        return sum(len(task.faces) for task in self.tasks)

    @property
    def seconds(self) -> float | None:
        """Estimate for the restore phase."""
        return None if self.seconds_per_face is None else self.seconds_per_face * self.faces_to_restore

    def persons(self) -> Iterator[PersonRow]:
        """Everybody, those with most faces in the album first."""
        pending: dict[str, int] = {}
        for task in self.tasks:
            for face in task.faces:
                pending[face.person] = pending.get(face.person, 0) + 1
        rows = [
            PersonRow(
                person,
                self.people.album_faces(person),
                self.people.portraits(person),
                self.people.references(person),
                pending.get(person.name, 0),
            )
            for person in self.people.persons
        ]
        return iter(sorted(rows, key=lambda row: (-len(row.album), row.person.name)))

    def as_dict(self) -> dict[str, Any]:
        """For --json."""
        statuses = [bool(task.faces) for task in self.tasks]
        return {
            "output": str(self.album.output),
            "photos": {
                "found": len(self.album.photos),
                "already_done": len(self.work.done),
                "in_the_way": len(self.work.occupied),
                "to_restore": sum(statuses),
                "to_copy": len(statuses) - sum(statuses),
            },
            "skipped": [{"path": str(skipped.path), "reason": skipped.reason} for skipped in self.album.skipped],
            "people": len(self.people.persons),
            "faces": {
                "found": sum(len(photo.faces) for photo in self.found.photos.values()),
                "to_restore": self.faces_to_restore,
            },
            "problems": [{"path": str(problem.path), "reason": problem.reason} for problem in self.problems],
            "seconds": self.seconds,
        }

    def photo_dicts(self) -> Iterator[dict[str, Any]]:
        """For --jsonl: what would become of each photo."""
        for task in self.tasks:
            faces: list[dict[str, Any]] = [
                {"number": face.number, "person": face.person, "restore": True, "references": len(face.references)}
                for face in task.faces
            ]
            faces += [
                {"number": face.face, "person": face.person, "restore": False, "reason": face.reason}
                for face in task.settled
            ]
            yield {
                "photo": str(task.photo.path),
                "faces": sorted(faces, key=lambda face: int(face["number"])),
                "reason": task.found.copy_reason or "",
            }

    def lines(self) -> list[str]:
        """For people."""
        numbers = self.as_dict()
        photos = numbers["photos"]
        lines = [
            f"{photos['found']} photos: {photos['to_restore']} with faces to restore, {photos['to_copy']} to copy,"
            f" {photos['already_done']} done before",
            f"{numbers['faces']['found']} faces of {numbers['people']} people, {self.faces_to_restore} to restore",
        ]
        if self.seconds is not None:
            lines.append(f"about {duration(self.seconds)} ({self.seconds_per_face:.1f} s a face)")
        lines.append(f"results would be in {self.album.output}; nothing was written")
        return lines
