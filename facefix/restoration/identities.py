"""Who is in an album, and which faces may serve as references for whom."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from facefix.faces.face import Face, Reference
from facefix.files.digests import digest
from facefix.outputs.outcomes import IndexedPhoto
from facefix.people.corrections import CorrectedPerson, apply_corrections, with_pins
from facefix.people.groups import group_faces
from facefix.people.names import name_faces, name_groups
from facefix.people.people_file import PEOPLE_FILE, FaceLabeller, PeopleFile
from facefix.people.references import choose_references
from facefix.photos.metadata.regions import NamedRegion
from facefix.restoration.album import Album, Portrait
from facefix.restoration.choices import BackendChoice
from facefix.restoration.scan import ScannedPhoto
from facefix.settings import Settings

FaceKey = tuple[str, int]


_BEST_OF_A_TIME = 64


_TEN_YEARS = 10 * 365.25 * 86400


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


PlacedFace = tuple[Path, int]
"""place of a photo in the output tree, number of the face in it"""


def names_now(found: Found, people: People) -> dict[PlacedFace, str | None]:
    """What everybody in the album is called, for the faces whose identity is known."""
    names: dict[PlacedFace, str | None] = {}
    for photo, indexed in found.photos.items():
        for face in indexed.faces:
            if face.embedding is not None:
                owner = people.owner(face)
                names[photo.relative, face.index] = None if owner is None else owner.name
    return names
