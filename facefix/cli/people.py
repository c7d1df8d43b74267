"""``facefix people``: who is in an album, and which references were chosen for whom, and why."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from facefix.cli.app import app
from facefix.cli.console import print_json
from facefix.cli.options import Config, FilesFrom, Inputs, Nul, Quiet, request_of, with_settings

if TYPE_CHECKING:
    from facefix.faces.face import Face
    from facefix.progress import Progress
    from facefix.restoration.survey import PersonRow, Survey

SETTINGS = (
    "output", "refs", "refs_from", "max_references", "faces", "min_face", "restore", "recursive", "exclude",
    "max_pixels", "threads",
)  # fmt: skip


@app.command()
@with_settings(*SETTINGS)
def people(
    flags: dict[str, Any],
    inputs: Inputs = None,
    files_from: FilesFrom = None,
    null: Nul = False,
    config: Config = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    html: Annotated[
        bool, typer.Option("--html", help="Write people.toml and a contact sheet into the output folder.")
    ] = False,
    quiet: Quiet = False,
) -> int:
    """Show who is in an album and the references chosen for each, with the reasons.

    Writes nothing without --html.
    """
    from facefix.jobs.survey import survey_album
    from facefix.progress import open_progress
    from facefix.restoration.run import Options
    from facefix.settings import Settings

    settings = Settings.load(flags, config=config)
    with open_progress(quiet=quiet) as progress:
        request = request_of(inputs or [], files_from, null=null)
        survey = survey_album(request, settings, Options(progress=progress), needs_model=False)
        for problem in survey.problems:
            progress.problem(problem.reason)
        page = write_page(survey, progress) if html else None
    if as_json:
        print_json(people_dict(survey))
    else:
        print_table(survey)
    if page is not None and not as_json:
        typer.echo(page)
    return 3 if survey.problems else 0


def write_page(survey: Survey, progress: Progress) -> Path:
    """people.toml and the contact sheet."""
    from facefix.report.contact_sheet import write_people_page

    progress.phase("writing the contact sheet", len(survey.found.photos), "photos")
    return write_people_page(survey, progress.advance)


def people_dict(survey: Survey) -> dict[str, Any]:
    """Everybody, for --json."""
    return {"people": [_row_dict(row) for row in survey.persons()]}


def _row_dict(row: PersonRow) -> dict[str, Any]:
    return {
        "id": row.person.id,
        "name": row.person.name,
        "excluded": row.person.excluded,
        "faces": [_face_dict(face) for face in row.album],
        "portraits": [_face_dict(face) for face in row.portraits],
        "references": [
            {**_face_dict(reference.face), "score": round(reference.score, 4), "reason": reference.reason}
            for reference in row.references
        ],
        "to_restore": row.to_restore,
    }


def _face_dict(face: Face) -> dict[str, Any]:
    return {
        "photo": face.photo,
        "face": face.index,
        "box": [round(side, 1) for side in face.detection.box],
        "quality": round(face.quality.score, 4),
        "width_px": round(face.quality.face_px, 1),
    }


def print_table(survey: Survey) -> None:
    """Everybody, as a table for people."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from facefix.files.names import printable

    table = Table("id", "name", "faces", "portraits", "to restore", "references", show_lines=True)
    for row in survey.persons():
        references = "\n".join(
            f"{escape(printable(reference.path.name))}#{reference.face.index}: {escape(reference.reason)}"
            for reference in row.references
        )
        table.add_row(
            row.person.id,
            escape(printable(row.person.name)) + (" (excluded)" if row.person.excluded else ""),
            str(len(row.album)),
            str(len(row.portraits)),
            str(row.to_restore),
            references or "none",
        )
    Console(soft_wrap=False).print(table)
