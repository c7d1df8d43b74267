"""From what was found in the photos to what will be done: people, their references, and a task for every photo."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from facefix.album import PEOPLE_FILE, Album, Portrait, digest
from facefix.choices import BackendChoice
from facefix.corrections import CorrectedPerson, apply_corrections, name_groups, with_pins
from facefix.faces.face import Embedding, Face, Reference
from facefix.faces.people import centroid, choose_references, group_faces
from facefix.people_file import FaceLabeller, PeopleFile
from facefix.photos.ledger import FaceOutcome, IndexedPhoto, PhotoOutcome, ReferenceNote
from facefix.photos.regions_xmp import NamedRegion, name_faces
from facefix.photos.scan import ScannedPhoto
from facefix.settings import Settings
from facefix.verdicts import KEPT, why_left_alone

FaceKey = tuple[str, int]

_BEST_OF_A_TIME = 64
_TEN_YEARS = 10 * 365.25 * 86400


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


@dataclass(frozen=True, slots=True)
class Found:
    """Everything that was looked at."""

    photos: Mapping[ScannedPhoto, IndexedPhoto]
    portraits: Mapping[Portrait, IndexedPhoto]


@dataclass(frozen=True, slots=True, eq=False)
class People:
    """Who is in the album, and who of them may serve as a reference for whom."""

    persons: tuple[CorrectedPerson, ...]
    portrait_digests: Mapping[str, str]
    """sha256 of each portrait, by the key of its faces"""
    album_digests: Mapping[str, str]
    settings: Settings
    backend: BackendChoice
    _owners: Mapping[FaceKey, CorrectedPerson]
    _candidates: dict[str, Candidates] = field(default_factory=dict)
    """by the person's id; filled once"""

    def owner(self, face: Face) -> CorrectedPerson | None:
        """Whose face it is; None for one that people.toml ignores."""
        return self._owners.get(face.key)

    def is_portrait(self, face: Face) -> bool:
        """Whether the face is in a portrait that the user gave."""
        return face.photo in self.portrait_digests

    def album_faces(self, person: CorrectedPerson) -> tuple[Face, ...]:
        """The person's faces in the album."""
        return tuple(face for face in person.faces if not self.is_portrait(face))

    def portraits(self, person: CorrectedPerson) -> tuple[Face, ...]:
        """The person's faces in the portraits."""
        return tuple(face for face in person.faces if self.is_portrait(face))

    def references(self, person: CorrectedPerson, target: Face | None = None) -> tuple[Reference, ...]:
        """The references for one face of the person, best first; never from the same photo, nor from a copy of it.

        ``target`` None: those for a face that is in no photo of the album, to show.
        """
        limit = self.settings.max_references
        candidates = self._candidates[person.id]
        chosen = choose_references(
            candidates.album,
            candidates.portraits,
            target or _nowhere(person.faces),
            self.backend.load(),
            limit=limit,
            excluded=candidates.by_content.get(self._content(target), frozenset()) if target else frozenset(),
        )
        return with_pins(chosen, person, target or _nowhere(person.faces), limit)

    def given(self, person: CorrectedPerson | None) -> str:
        """Digest of what the user gave for a person: portraits and corrections."""
        if person is None:
            return ""
        portraits = sorted(f"{self._content(face)}#{face.index}" for face in self.portraits(person))
        pinned = [f"{self._content(face)}#{face.index}" for face in person.pinned]
        banned = sorted(f"{self.album_digests.get(photo, photo)}#{number}" for photo, number in person.banned)
        return digest([portraits, pinned, banned, person.excluded])

    def _content(self, face: Face) -> str:
        return self.portrait_digests.get(face.photo) or self.album_digests.get(face.photo, face.photo)

    def candidates(self, person: CorrectedPerson) -> Candidates:
        """Who may serve: one face per content that is not banned, and of the album only the best of each time."""
        unique: dict[tuple[str, int], Face] = {}
        by_content: dict[str, set[FaceKey]] = {}
        for face in (*self.portraits(person), *self.album_faces(person)):  # a portrait wins over a copy in the album
            by_content.setdefault(self._content(face), set()).add(face.key)
            if face.key not in person.banned:
                unique.setdefault((self._content(face), face.index), face)
        wanted = self.settings.refs_from
        portraits = [face for face in unique.values() if self.is_portrait(face)]
        album = [face for face in unique.values() if not self.is_portrait(face)]
        return Candidates(
            () if wanted == "portraits" else tuple(_best_of_each_time(album)),
            () if wanted == "album" else tuple(portraits),
            {content: frozenset(keys) for content, keys in by_content.items()},
        )


@dataclass(frozen=True, slots=True, eq=False)
class Candidates:
    """Faces of a person that may serve as references."""

    album: tuple[Face, ...]
    portraits: tuple[Face, ...]
    by_content: Mapping[str, frozenset[FaceKey]]
    """all faces of the person in photos with the same sha256"""


def _best_of_each_time(faces: Sequence[Face]) -> Iterator[Face]:
    """The best faces of each ten years and of the undated ones, so that a choice among thousands stays quick."""
    taken: dict[int | None, int] = {}
    for face in sorted(faces, key=lambda face: -face.quality.score):
        time = None if face.taken is None else int(face.taken // _TEN_YEARS)
        taken[time] = taken.get(time, 0) + 1
        if taken[time] <= _BEST_OF_A_TIME:
            yield face


def _nowhere(faces: Sequence[Face]) -> Face:
    """A face of a person that is in no photo."""
    return replace(faces[0], photo="", index=-1, embedding=None)


def find_people(found: Found, album: Album, settings: Settings, backend: BackendChoice) -> People:
    """Group every face of album and portraits; names and corrections given by the user hold."""
    faces = [face for photo in (*found.photos.values(), *found.portraits.values()) for face in photo.faces]
    names = _given_names(found)
    portraits = {face.key for photo in found.portraits.values() for face in photo.faces}
    groups = name_groups(group_faces(faces, backend.load(), names, portraits), names) if faces else ()
    corrections = PeopleFile.read(album.output / PEOPLE_FILE)
    persons = apply_corrections(groups, corrections, FaceLabeller(album.root, album.refs))
    people = People(
        persons,
        {str(portrait.path): portrait.sha256 for portrait in found.portraits},
        {str(photo.path): indexed.sha256 for photo, indexed in found.photos.items()},
        settings,
        backend,
        {face.key: person for person in persons for face in person.faces},
    )
    people._candidates.update((person.id, people.candidates(person)) for person in persons)
    return people


def _given_names(found: Found) -> dict[FaceKey, str]:
    """Names that are known before any grouping: subfolders of portraits, face regions in the photos' own XMP."""
    names: dict[FaceKey, str] = {}
    for photo in (*found.photos.values(), *found.portraits.values()):
        regions = tuple(NamedRegion(named.name, named.box) for named in photo.named)
        names.update(name_faces(photo.faces, regions))
    for portrait, photo in found.portraits.items():
        if portrait.person is not None and photo.faces:
            largest = max(photo.faces, key=lambda face: face.quality.face_px)
            names[largest.key] = portrait.person
    return names


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
