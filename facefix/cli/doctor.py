"""``facefix doctor``: is this installation fit to work?"""

from __future__ import annotations

import json

import typer

from facefix.cli.app import app

MARKS = {"ok": "ok", "note": "note", "problem": "PROBLEM"}


@app.command()
def doctor(
    face: bool = typer.Option(True, "--face/--no-face", help="Time one face with the model that a run would use."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON."),
) -> None:
    """Check devices, number formats, disk, weights, face backends and photo formats, and time one face.

    Exits with 1 on a problem.
    """
    from facefix.jobs import doctor as library

    findings = []
    for finding in library.examine(face):
        findings.append(finding)
        if not as_json:
            print(f"{MARKS[finding.state]:<8} {finding.area:<9} {finding.name:<16} {finding.text}", flush=True)
    if as_json:
        print(json.dumps(library.as_json(findings), indent=1))
    if not library.healthy(findings):
        raise typer.Exit(1)
