"""A contact sheet of the people of an album: their faces, and the references chosen for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from markupsafe import Markup

from facefix import __version__
from facefix.files import atomic
from facefix.files.lock import locked
from facefix.people.corrections import as_entries
from facefix.people.people_file import PEOPLE_FILE, FaceLabeller, write_people_file
from facefix.report.model import Box
from facefix.report.page import THUMBS, asset, environment, file_state, policy, text_of
from facefix.report.thumbnails import Cut, Sheet, in_units, make_thumbnails, remove_others

if TYPE_CHECKING:
    from facefix.faces.face import Face
    from facefix.restoration.survey import PersonRow, Survey

SHEET_FOLDER: Final = "facefix-people"


@dataclass(frozen=True, slots=True)
class SheetFace:
    """A face to show."""

    path: Path
    box: Box
    """left, top, right, bottom in pixels of the upright photo"""
    label: str
    """as people.toml writes it"""
    note: str = ""


@dataclass(frozen=True, slots=True)
class SheetPerson:
    """A person to show."""

    id: str
    name: str
    faces: tuple[SheetFace, ...]
    references: tuple[tuple[SheetFace, str], ...] = ()
    """each with the reason it was chosen"""
    excluded: bool = False


def sheet_persons(rows: Sequence[PersonRow], label: FaceLabeller) -> tuple[SheetPerson, ...]:
    """The people of a survey, as the sheet shows them."""
    return tuple(
        SheetPerson(
            id=row.person.id,
            name=row.person.name,
            faces=tuple(_sheet_face(face, label) for face in (*row.portraits, *row.album)),
            references=tuple((_sheet_face(ref.face, label), ref.reason) for ref in row.references),
            excluded=row.person.excluded,
        )
        for row in rows
    )


def write_contact_sheet(
    persons: Sequence[SheetPerson],
    folder: Path,
    *,
    title: str,
    people_file: Path,
    progress: Callable[[int], None] | None = None,
) -> Path:
    """Write the sheet.

    Args:
        persons: whom to show, in this order.
        folder: where; everything in it is ours.
        title: of the page.
        people_file: the people.toml that the page says to edit.
        progress: called as small pictures are made, with steps that add up to the number of photos with faces.

    Returns:
        The page.

    Raises:
        PhotoError: it cannot be written.
    """
    faces = {face for person in persons for face in (*person.faces, *(ref for ref, _ in person.references))}
    cuts: dict[Path, list[Cut]] = {}
    for face in sorted(faces, key=lambda face: face.label):
        cuts.setdefault(face.path, []).append(_cut(face))
    sheets = [Sheet(path, tuple(wanted)) for path, wanted in cuts.items()]
    told = None if progress is None else in_units(progress, len(sheets))
    there = make_thumbnails(sheets, folder / THUMBS, progress=told)
    style = asset("people.css")
    page = (
        environment()
        .get_template("people.html.jinja")
        .render(
            title=text_of(title),
            version=__version__,
            policy=policy(styles=(style,)),
            style=Markup(style),
            people_file=text_of(people_file),
            face_count=sum(len(person.faces) for person in persons),
            persons=[_shown(person, number, there) for number, person in enumerate(persons)],
        )
    )
    atomic.write_bytes(page.encode(), folder / "index.html")
    remove_others(folder / THUMBS, {cut.file for sheet in sheets for cut in sheet.cuts})
    return folder / "index.html"


def write_people_page(survey: Survey, progress: Callable[[int], None] | None = None) -> Path:
    """Write people.toml and the contact sheet of a survey into its output folder; return the page.

    Args:
        survey: who is in the album.
        progress: called as small pictures are made, with steps that add up to the number of photos.

    Raises:
        UsageError: the people.toml that is there cannot be understood.
        PhotoError: something cannot be written.
        LockHeld: a run works on the output folder.
    """
    album = survey.album
    label = FaceLabeller(album.root, album.refs)
    people_file = album.output / PEOPLE_FILE
    with locked(album.output):
        write_people_file(people_file, as_entries(survey.people.persons, label))
        return write_contact_sheet(
            sheet_persons(list(survey.persons()), label),
            album.output / SHEET_FOLDER,
            title=f"People of {album.root.absolute().name or album.root}",
            people_file=people_file,
            progress=progress,
        )


def _sheet_face(face: Face, label: FaceLabeller) -> SheetFace:
    quality = f"{face.quality.face_px:.0f} px, quality {face.quality.score:.2f}"
    return SheetFace(Path(face.photo), face.detection.box, label(face), quality)


def _cut(face: SheetFace) -> Cut:
    return Cut(file_state(face.path), face.box)


def _shown(person: SheetPerson, number: int, there: set[str]) -> dict[str, Any]:
    return {
        "anchor": f"person-{number}",
        "id": text_of(person.id),
        "name": text_of(person.name),
        "excluded": person.excluded,
        "faces": [_shown_face(face, there) for face in person.faces],
        "references": [_shown_face(face, there) | {"reason": text_of(why)} for face, why in person.references],
    }


def _shown_face(face: SheetFace, there: set[str]) -> dict[str, Any]:
    file = _cut(face).file
    return {"thumb": file if file in there else None, "label": text_of(face.label), "note": face.note}
