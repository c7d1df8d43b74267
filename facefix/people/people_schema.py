"""What may stand in people.toml, and what is said about a file that has something else in it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StrictBool, ValidationError
from pydantic.dataclasses import dataclass
from pydantic_core import ErrorDetails

FORMAT_VERSION: Final = 1

_ONLY_KNOWN: Final = ConfigDict(extra="forbid")

Text = Annotated[str | None, AfterValidator(lambda text: text or None)]
"""text; nothing where it is empty"""

Texts = tuple[str, ...]


class Malformed(Exception):
    """people.toml is TOML but not what it should be."""


@dataclass(frozen=True, slots=True, config=_ONLY_KNOWN)
class PersonEntry:
    """One ``[[person]]`` of the file."""

    id: Text
    name: Text = None
    merge: Texts = ()
    exclude: StrictBool = False
    pin: Texts = ()
    ban: Texts = ()
    faces: Texts = ()


class Ignored(BaseModel):
    """``[ignore]``: faces that are nobody's."""

    model_config = _ONLY_KNOWN
    faces: Texts = ()


class Document(BaseModel):
    """The whole file."""

    model_config = _ONLY_KNOWN
    version: Literal[1] = FORMAT_VERSION
    next: int = Field(1, ge=1, strict=True)
    person: tuple[PersonEntry, ...] = ()
    ignore: Ignored = Ignored()


_EXPECTED: Final = {
    "version": f"version = {FORMAT_VERSION}",
    "next": "a whole number from 1 for next",
    "person": "[[person]] entries (in double brackets)",
    "ignore": "a table [ignore] with a list of faces",
    "exclude": "true or false for exclude",
    "id": "text for id",
    "name": "text for name",
}


def parse(data: Mapping[str, Any]) -> Document:
    """What the tables of people.toml say. Raises Malformed that names the first mistake and its entry."""
    entries = data.get("person")
    if isinstance(entries, list):  # an entry that was added by hand has no id yet
        data = {**data, "person": [{"id": None, **entry} if isinstance(entry, dict) else entry for entry in entries]}
    try:
        document = Document.model_validate(data)
    except ValidationError as error:
        raise Malformed(_explain(error.errors()[0], data)) from None
    _check(document.person, document.ignore.faces)
    return document


def _explain(problem: ErrorDetails, data: Mapping[str, Any]) -> str:
    """A mistake in words: where, what was expected, what was found."""
    place = problem["loc"]
    where, known, depth = _place(place, data)
    prefix = f"{where}: " if where else ""
    if problem["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        return f"{where or 'the file'}: unknown key {place[-1]!r}, expected one of {', '.join(sorted(known))}"
    key = str(place[depth]) if len(place) > depth else ""
    expected = _EXPECTED.get(key, f"a list of texts for {key}" if key else "a table")
    found = problem["input"] if len(place) <= depth + 1 else _at(data, place[: depth + 1])
    return f"{prefix}expected {expected}, found {found!r}"


def _place(place: tuple[int | str, ...], data: Mapping[str, Any]) -> tuple[str, Sequence[str], int]:
    """The table that a mistake is in: its name, its keys, and how deep it lies."""
    if place[:1] == ("ignore",) and len(place) > 1:
        return "[ignore]", list(Ignored.model_fields), 1
    if place[:1] == ("person",) and len(place) > 1:
        number = int(place[1])
        entry = data["person"][number]
        where = f"[[person]] number {number + 1}"
        if isinstance(entry, Mapping):
            where += f" ({entry.get('name') or entry.get('id') or 'without name'})"
        return where, list(PersonEntry.__dataclass_fields__), 2
    return "", list(Document.model_fields), 0


def _at(data: Any, place: tuple[int | str, ...]) -> Any:
    for key in place:
        data = data[key]
    return data


def _check(persons: Sequence[PersonEntry], ignored: Sequence[str]) -> None:
    """Refuse what contradicts itself."""
    ids = [entry.id for entry in persons if entry.id is not None]
    for entry_id, count in Counter(ids).items():
        if count > 1:
            raise Malformed(f"the id {entry_id!r} stands at {count} persons (a new entry needs none)")
    faces = Counter(face for entry in persons for face in set(entry.faces))
    faces.update(set(ignored))
    for face, count in faces.items():
        if count > 1:
            raise Malformed(f"the face {face!r} is listed under {count} persons; leave it under one")
    into: dict[str, str | None] = {}
    for entry in persons:
        for other in entry.merge:
            if other not in ids or other == entry.id or other in into:
                raise Malformed(
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
            raise Malformed(f"merge: {start!r} is merged into itself by way of {at!r}")
        seen.add(at)
        at = into[at]
