"""people.toml: who is who, written by facefix, corrected by hand, kept stable between runs.

The file lists every person with the faces found for them. What stands in it holds: a face belongs to the person it is
listed under, whatever the grouping says, and only faces that it does not list are placed by the grouping. Writing it
again adds what is new and leaves ids, order, edits and comments alone.

A face is written ``path#number``: the photo's path relative to the album (``@refs/...`` for portraits) and the number
of the face in it, from 0, left to right. Bytes of a name that are not UTF-8, and ``%``, are percent-encoded.
"""

from __future__ import annotations

import re
import tomllib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import Any, Final

import tomlkit
from tomlkit.items import AoT, Array, Table

from facefix.errors import UsageError
from facefix.faces.face import Face
from facefix.files import atomic
from facefix.files.names import readable

FORMAT_VERSION: Final = 1

_PERSON_KEYS: Final = frozenset({"id", "name", "merge", "exclude", "pin", "ban", "faces"})
_TOP_KEYS: Final = frozenset({"version", "next", "person", "ignore"})
_PORTRAITS: Final = "@refs/"
_HEADER: Final = """\
Who is who in this album. Edit it freely: facefix keeps your edits and your comments, and only adds what is new.

  name     what this person is called
  merge    ids of other entries that are this person too:      merge = ["p7"]
  exclude  true: leave this person's faces as they are
  pin      faces always used as references (at most five):     pin = ["2019/beach.jpg#0"]
  ban      faces, or whole photos, never used as references:   ban = ["blurred.jpg#1", "carnival.jpg"]
  faces    the faces of this person. Split a person by moving faces to a new [[person]] entry without id.

A face is "photo#number", numbered from 0, left to right. "@refs/" stands for the folder of portraits.
Faces that are nobody's (statues, strangers) go under [ignore]."""


@dataclass(frozen=True, slots=True)
class PersonEntry:
    """One ``[[person]]`` of the file."""

    id: str | None
    name: str | None = None
    merge: tuple[str, ...] = ()
    exclude: bool = False
    pin: tuple[str, ...] = ()
    ban: tuple[str, ...] = ()
    faces: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PeopleFile:
    """What people.toml says."""

    persons: tuple[PersonEntry, ...] = ()
    ignored: tuple[str, ...] = ()
    next_number: int = 1
    """number of the next new person; ids of persons that are gone are not used again"""

    @classmethod
    def read(cls, path: Path) -> PeopleFile:
        """Read people.toml; a file that is not there says nothing.

        Raises:
            UsageError: it cannot be read, is not TOML, has unknown keys or contradicts itself; the message names the
                entry.
        """
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return cls()
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"{path}: expected a people.toml in UTF-8, found: {error}") from error
        try:
            people = _parse(tomllib.loads(text))
            _check(people)
        except (tomllib.TOMLDecodeError, _Malformed) as error:
            raise UsageError(f"{path}: {error}; correct it, or move it away to begin anew") from error
        return people


@dataclass(frozen=True, slots=True)
class FaceLabeller:
    """Writes faces as people.toml does."""

    album: Path
    """folder that paths of photos are relative to"""
    portraits: Path | None = None
    """folder of portraits, if there is one"""

    def __call__(self, face: Face) -> str:
        """Label of a face."""
        return self.of(face.photo, face.index)

    def of(self, photo: str | PurePath, index: int) -> str:
        """Label of face number ``index`` of ``photo``."""
        return f"{self.photo(photo)}#{index}"

    def photo(self, photo: str | PurePath) -> str:
        """Label of a whole photo."""
        path = PurePath(photo)
        if self.portraits is not None and path.is_relative_to(self.portraits):
            return _PORTRAITS + _text(path.relative_to(self.portraits))
        return _text(path.relative_to(self.album) if path.is_relative_to(self.album) else path)


class PeopleIndex:
    """people.toml by label: whose a face is, following merges."""

    def __init__(self, people: PeopleFile) -> None:
        self.ids = _ids(people)
        """id of each entry of the file, in its order; entries added by hand without one get the next free"""
        self.entries = {key: replace(entry, id=key) for key, entry in zip(self.ids, people.persons, strict=True)}
        self._into = {other: key for key, entry in self.entries.items() for other in entry.merge}
        self._owners = {face: key for key, entry in self.entries.items() for face in entry.faces}
        self._ignored = frozenset(people.ignored)
        numbers = [int(key[1:]) for key in self.ids if re.fullmatch(r"p[0-9]+", key)]
        self.next_number = max([people.next_number, *(number + 1 for number in numbers)])
        """number of the next new person"""

    def owner(self, face: str) -> str | None:
        """Id of the person that ``face`` is listed under, itself or as a whole photo."""
        listed = self._owners.get(face) or self._owners.get(whole_photo(face))
        return None if listed is None else self.merged(listed)

    def ignores(self, face: str) -> bool:
        """Whether ``face`` is nobody's."""
        return face in self._ignored or (whole_photo(face) in self._ignored and face not in self._owners)

    def merged(self, key: str) -> str:
        """Id of the person that the entry ``key`` belongs to."""
        while key in self._into:
            key = self._into[key]
        return key

    def parts(self, key: str) -> list[PersonEntry]:
        """The entry ``key`` and all that are merged into it."""
        return [entry for part, entry in self.entries.items() if self.merged(part) == key]


def whole_photo(face: str) -> str:
    """Label of the photo that a face label names."""
    photo, hash_sign, number = face.rpartition("#")
    return photo if hash_sign and number.isdigit() else face


def write_people_file(path: Path, persons: Sequence[PersonEntry]) -> bool:
    """Add persons and faces that people.toml does not have yet; leave everything else in it as it is.

    Args:
        path: the file; made where it is not there.
        persons: everybody, with ids from :class:`PeopleIndex` over this same file, names and faces.

    Returns:
        Whether anything was written.

    Raises:
        UsageError: the file that is there cannot be understood.
        PhotoError: it cannot be written.
    """
    people = PeopleFile.read(path)
    index = PeopleIndex(people)
    found = {person.id: [face for face in person.faces if not index.owner(face)] for person in persons}
    unnumbered = any(entry.id is None for entry in people.persons)
    if path.exists() and not unnumbered and not any(found.values()):
        return False
    document = tomlkit.parse(path.read_text(encoding="utf-8")) if path.exists() else _new_document()
    tables = _person_tables(document)
    by_id = dict(zip(index.ids, list(tables), strict=True))
    for key, table in by_id.items():
        if "id" not in table:
            table["id"] = key
    for person in persons:
        if person.id in by_id:
            _add_faces(by_id[person.id], found[person.id])
        elif person.faces:
            tables.append(_new_table(person))
    numbered = tuple(replace(person, faces=()) for person in (*index.entries.values(), *persons))
    document["next"] = PeopleIndex(_unique(numbered, people.next_number)).next_number
    atomic.write_bytes(tomlkit.dumps(document).encode("utf-8"), path)
    return True


def forget_person(path: Path, who: str | None) -> int:
    """Take a person, by id or name, out of people.toml with all that is merged into them; everybody for None.

    Returns:
        How many entries were taken out; 0 also where there is no such file.

    Raises:
        UsageError: the file cannot be understood.
    """
    if not path.exists():
        return 0
    people = PeopleFile.read(path)
    if who is None:
        path.unlink()
        return len(people.persons)
    index = PeopleIndex(people)
    meant = {index.merged(key) for key, entry in index.entries.items() if who in (key, entry.name)}
    gone = [place for place, key in enumerate(index.ids) if index.merged(key) in meant]
    if gone:
        document = tomlkit.parse(path.read_text(encoding="utf-8"))
        tables = _person_tables(document)
        for place in reversed(gone):
            del tables[place]
        atomic.write_bytes(tomlkit.dumps(document).encode("utf-8"), path)
    return len(gone)


class _Malformed(Exception):
    """people.toml is TOML but not what it should be."""


def _ids(people: PeopleFile) -> list[str]:
    taken = {entry.id for entry in people.persons}
    number = people.next_number
    ids = []
    for entry in people.persons:
        while entry.id is None and f"p{number}" in taken:
            number += 1
        ids.append(entry.id if entry.id is not None else f"p{number}")
        taken.add(ids[-1])
    return ids


def _unique(persons: Sequence[PersonEntry], next_number: int) -> PeopleFile:
    return PeopleFile(tuple({person.id: person for person in persons}.values()), (), next_number)


def _text(path: PurePath) -> str:
    """A path as TOML can hold it: slashes, and percent signs and bytes that are not UTF-8 percent-encoded."""
    return readable(path.as_posix().replace("%", "%25"))


def _parse(data: Mapping[str, Any]) -> PeopleFile:
    _only_known(data, _TOP_KEYS, "the file")
    version = data.get("version", FORMAT_VERSION)
    if version != FORMAT_VERSION:
        raise _Malformed(f"expected version = {FORMAT_VERSION}, found {version!r}")
    tables = data.get("person", [])
    if not isinstance(tables, list):
        raise _Malformed("expected [[person]] entries, found a single value named person (write it in double brackets)")
    ignore = data.get("ignore", {})
    if not isinstance(ignore, Mapping):
        raise _Malformed("expected a table [ignore] with a list of faces")
    _only_known(ignore, frozenset({"faces"}), "[ignore]")
    following = data.get("next", 1)
    if not isinstance(following, int) or following < 1:
        raise _Malformed(f"expected a whole number from 1 for next, found {following!r}")
    return PeopleFile(
        persons=tuple(_parse_person(table, i) for i, table in enumerate(tables, start=1)),
        ignored=_strings(ignore, "faces", "[ignore]"),
        next_number=following,
    )


def _parse_person(table: Any, number: int) -> PersonEntry:
    where = f"[[person]] number {number}"
    if not isinstance(table, Mapping):
        raise _Malformed(f"{where}: expected a table, found {table!r}")
    where = f"{where} ({table.get('name') or table.get('id') or 'without name'})"
    _only_known(table, _PERSON_KEYS, where)
    exclude = table.get("exclude", False)
    if not isinstance(exclude, bool):
        raise _Malformed(f"{where}: expected true or false for exclude, found {exclude!r}")
    return PersonEntry(
        id=_string(table, "id", where),
        name=_string(table, "name", where),
        merge=_strings(table, "merge", where),
        exclude=exclude,
        pin=_strings(table, "pin", where),
        ban=_strings(table, "ban", where),
        faces=_strings(table, "faces", where),
    )


def _only_known(table: Mapping[str, Any], known: frozenset[str], where: str) -> None:
    for key in table:
        if key not in known:
            raise _Malformed(f"{where}: unknown key {key!r}, expected one of {', '.join(sorted(known))}")


def _string(table: Mapping[str, Any], key: str, where: str) -> str | None:
    value = table.get(key)
    if value is not None and not isinstance(value, str):
        raise _Malformed(f"{where}: expected text for {key}, found {value!r}")
    return value or None


def _strings(table: Mapping[str, Any], key: str, where: str) -> tuple[str, ...]:
    value = table.get(key, [])
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise _Malformed(f"{where}: expected a list of texts for {key}, found {value!r}")
    return tuple(value)


def _check(people: PeopleFile) -> None:
    """Refuse what contradicts itself."""
    ids = [entry.id for entry in people.persons if entry.id is not None]
    for entry_id, count in Counter(ids).items():
        if count > 1:
            raise _Malformed(f"the id {entry_id!r} stands at {count} persons (a new entry needs none)")
    faces = Counter(face for entry in people.persons for face in set(entry.faces))
    faces.update(set(people.ignored))
    for face, count in faces.items():
        if count > 1:
            raise _Malformed(f"the face {face!r} is listed under {count} persons; leave it under one")
    into: dict[str, str | None] = {}
    for entry in people.persons:
        for other in entry.merge:
            if other not in ids or other == entry.id or other in into:
                raise _Malformed(
                    f"merge = [{other!r}] at {entry.name or entry.id!r}: expected the id of another person, "
                    "merged into no third"
                )
            into[other] = entry.id
    for start in into:
        _check_ends(start, into)


def _check_ends(start: str, into: Mapping[str, str | None]) -> None:
    seen = {start}
    at = into.get(start)
    while at is not None and at in into:
        if at in seen:
            raise _Malformed(f"merge: {start!r} is merged into itself by way of {at!r}")
        seen.add(at)
        at = into[at]


def _new_document() -> tomlkit.TOMLDocument:
    document = tomlkit.document()
    for line in _HEADER.splitlines():
        document.add(tomlkit.comment(line) if line else tomlkit.comment(""))
    document.add(tomlkit.nl())
    document["version"] = FORMAT_VERSION
    document["next"] = 1
    ignore = tomlkit.table()
    ignore["faces"] = _lines([])
    ignore.add(tomlkit.nl())
    document["ignore"] = ignore
    return document


def _person_tables(document: tomlkit.TOMLDocument) -> AoT:
    tables = document.get("person")
    if tables is None:
        document["person"] = tomlkit.aot()
        tables = document["person"]
    if not isinstance(tables, AoT):
        converted = tomlkit.aot()
        for entry in tables:
            table = tomlkit.table()
            table.update(entry)
            converted.append(table)
        document["person"] = converted
        tables = document["person"]
    return tables


def _new_table(person: PersonEntry) -> Table:
    table = tomlkit.table()
    table["id"] = person.id
    table["name"] = person.name
    table["merge"] = tomlkit.array()
    table["exclude"] = False
    table["pin"] = tomlkit.array()
    table["ban"] = tomlkit.array()
    table["faces"] = _lines(person.faces)
    table.add(tomlkit.nl())
    return table


def _add_faces(table: Table, faces: Sequence[str]) -> None:
    if not faces:
        return
    listed = table.get("faces")
    if isinstance(listed, Array):
        for face in faces:
            listed.add_line(face)
    else:
        table["faces"] = _lines(faces)


def _lines(faces: Sequence[str]) -> Array:
    array = tomlkit.array()
    for face in faces:
        array.add_line(face)
    if faces:
        array.add_line(indent="")
    return array


PEOPLE_FILE = "people.toml"
