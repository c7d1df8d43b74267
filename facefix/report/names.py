"""Whose face it is by now: names and references of photos done before, after people.toml or the grouping changed."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePath

from facefix.outputs.outcomes import FaceOutcome, PhotoOutcome
from facefix.people.people_file import FaceLabeller, PeopleFile, PeopleIndex, whole_photo


def with_names_now(photos: Sequence[PhotoOutcome], people: PeopleFile) -> list[PhotoOutcome]:
    """Photos as recorded, their faces called what people.toml calls them.

    A face that the file does not list is called as the listed faces are that once had the same name. Faces of people
    that the file does not know keep their name.
    """
    if not people.persons and not people.ignored:
        return list(photos)
    index = PeopleIndex(people)
    labels = _photo_labels(photos, people)
    renamed: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for photo in photos:
        for face in photo.faces:
            owner = index.owner(f"{labels[photo.relative]}#{face.face}")
            if owner is not None and face.person is not None:
                renamed[face.person][_name(index, owner)] += 1
    names = {old: count.most_common(1)[0][0] for old, count in renamed.items()}
    return [
        replace(photo, faces=tuple(_with_name_now(face, labels[photo.relative], index, names) for face in photo.faces))
        for photo in photos
    ]


def _with_name_now(face: FaceOutcome, photo: str, index: PeopleIndex, names: Mapping[str, str]) -> FaceOutcome:
    label = f"{photo}#{face.face}"
    if index.ignores(label):
        return replace(face, person=None)
    owner = index.owner(label)
    if owner is not None:
        return replace(face, person=_name(index, owner))
    return replace(face, person=None if face.person is None else names.get(face.person, face.person))


def _name(index: PeopleIndex, owner: str) -> str:
    return index.entries[owner].name or f"Person {owner.removeprefix('p')}"


def _photo_labels(photos: Sequence[PhotoOutcome], people: PeopleFile) -> dict[Path, str]:
    """How people.toml writes each photo: by its place in the output tree, else by its path or the end of it."""
    label = FaceLabeller(Path()).photo
    places = {photo.relative: label(photo.relative) for photo in photos}
    listed = {whole_photo(face) for entry in people.persons for face in entry.faces}
    listed |= {whole_photo(face) for face in people.ignored}
    elsewhere = listed - set(places.values())
    for photo in photos:
        if places[photo.relative] not in listed:
            parts = photo.source.parts
            endings = (label(PurePath(*parts[start:])) for start in range(len(parts)))
            places[photo.relative] = next((text for text in endings if text in elsewhere), places[photo.relative])
    return places
