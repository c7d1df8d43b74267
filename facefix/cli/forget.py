"""``facefix forget``: take identity embeddings out of an output folder."""

from __future__ import annotations

import json
from pathlib import Path

import typer

from facefix.cli.app import app


@app.command()
def forget(
    output: Path = typer.Argument(..., metavar="OUT", help="An output folder of facefix restore."),
    person: str | None = typer.Argument(
        None, metavar="[PERSON]", help="Name, or id in people.toml; everybody if left out."
    ),
    as_json: bool = typer.Option(False, "--json", help="Print JSON."),
) -> None:
    """Delete the face embeddings of a person, or of everybody, and search the files for them afterwards.

    The name, and the small pictures of the faces, go from people.toml and the report too. Restored photos stay. A later
    run over the same photos and portraits makes embeddings again.
    """
    from facefix.jobs.forget import forget as forget_embeddings

    done = forget_embeddings(output, person)
    if as_json:
        values = {
            "embeddings": done.embeddings,
            "people": done.people_entries,
            "searched_files": done.searched_files,
            "pages": [str(page) for page in done.pages],
        }
        print(json.dumps(values))
        return
    who = "everybody" if person is None else person
    print(f"{who}: {done.embeddings} embeddings and {done.people_entries} entries of people.toml deleted")
    for page in done.pages:
        print(
            f"{page}: {'made again without them' if page.exists() else 'removed; facefix people --html makes it again'}"
        )
    print(f"{done.searched_files} files searched by bytes: none of these embeddings is left")
