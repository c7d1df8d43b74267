"""Who is who: the grouping, corrected by names that are known already and by people.toml. Pure functions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from facefix.faces.face import Face, FaceKey, Reference
from facefix.people.names import Group, fill_in
from facefix.people.people_file import FaceLabeller, PeopleFile, PeopleIndex, PersonEntry, whole_photo

PINNED_REASON: Final = "pinned in people.toml"


@dataclass(frozen=True, slots=True)
class CorrectedPerson:
    """One person after the corrections by hand."""

    id: str
    name: str
    faces: tuple[Face, ...]
    """in the order of the groups; of the album and of the portraits"""
    excluded: bool = False
    """leave these faces as they are"""
    pinned: tuple[Face, ...] = ()
    banned: frozenset[FaceKey] = field(default_factory=frozenset)
    unused: tuple[str, ...] = ()
    """pins and bans that name none of these faces"""
    is_merged: bool = False
    """several entries of people.toml were put together by hand"""


def apply_corrections(groups: Sequence[Group], people: PeopleFile, label: FaceLabeller) -> tuple[CorrectedPerson, ...]:
    """Turn groups of faces into persons, as people.toml has it.

    A listed face goes to the person it is listed under. A face that is not listed goes where the listed faces of its
    group are; where the file has split that group, to the person with the most similar listed face of the group. A
    group without a listed face is a new person, called by the group's name or "Person N". Ignored faces are nobody's.

    Args:
        groups: disjoint groups of faces.
        people: what the file says.
        label: how the file writes faces.

    Returns:
        Persons that have at least one face: those of the file in its order, then the new ones in the order of the
        groups. Persons merged into another are not there any more.
    """
    index = PeopleIndex(people)
    placed: dict[str, list[Face]] = {}
    names: dict[str, str] = {}
    number = index.next_number
    for group in groups:
        faces = [face for face in group.faces if not index.ignores(label(face))]
        owners = [index.owner(label(face)) for face in faces]
        if faces and not any(owners):
            owners = [f"p{number}"] * len(faces)
            number += 1
        for face, owner in zip(faces, fill_in(faces, owners), strict=True):
            placed.setdefault(owner, []).append(face)
            if group.name:
                names.setdefault(owner, group.name)
    order = [*index.entries, *(key for key in placed if key not in index.entries)]
    return tuple(_person(key, placed[key], names.get(key), index, label) for key in order if key in placed)


def allowed(candidates: Iterable[Face], person: CorrectedPerson) -> tuple[Face, ...]:
    """The candidates for references that are not banned."""
    return tuple(face for face in candidates if face.key not in person.banned)


def with_pins(
    references: Sequence[Reference], person: CorrectedPerson, target: Face | None, limit: int = 5
) -> tuple[Reference, ...]:
    """Put the pinned references of a person before the chosen ones.

    Args:
        references: as chosen, best first.
        person: whose they are.
        target: the face they are for; None for one in no photo of the album. A photo is never its own reference,
            pinned or not.
        limit: how many references there may be.
    """
    pinned = [
        Reference(face, Path(face.photo), PINNED_REASON, face.quality.score)
        for face in person.pinned
        if target is None or face.photo != target.photo
    ]
    keys = {reference.face.key for reference in pinned}
    return tuple([*pinned, *(reference for reference in references if reference.face.key not in keys)][:limit])


def _person(
    key: str, faces: Sequence[Face], name: str | None, index: PeopleIndex, label: FaceLabeller
) -> CorrectedPerson:
    parts = index.parts(key)
    entry = index.entries.get(key, PersonEntry(key))
    pins = {pin for part in parts for pin in part.pin}
    bans = {ban for part in parts for ban in part.ban}
    labels = [(label(face), face) for face in faces]
    pinned = tuple(face for text, face in labels if text in pins or whole_photo(text) in pins)
    banned = {face.key for text, face in labels if text in bans or whole_photo(text) in bans}
    known = {text for label_, _ in labels for text in (label_, whole_photo(label_))}
    return CorrectedPerson(
        id=key,
        name=entry.name or name or f"Person {key.removeprefix('p')}",
        faces=tuple(faces),
        excluded=any(part.exclude for part in parts),
        pinned=pinned,
        banned=frozenset(banned - {face.key for face in pinned}),
        unused=tuple(sorted((pins | bans) - known)),
        is_merged=len(parts) > 1,
    )


def as_entries(persons: Iterable[CorrectedPerson], label: FaceLabeller) -> tuple[PersonEntry, ...]:
    """The persons as people.toml writes them."""
    return tuple(
        PersonEntry(person.id, person.name, faces=tuple(label(face) for face in person.faces)) for person in persons
    )
