"""``facefix report``: make the HTML report of an output folder again."""

from __future__ import annotations

from pathlib import Path

import typer

from facefix.cli.app import app


@app.command()
def report(
    out: Path = typer.Argument(..., metavar="OUT", help="Output folder of facefix restore.", show_default=False),
) -> None:
    """Make the HTML report of an output folder again, and print where it is."""
    from facefix.report import write_output_report

    typer.echo(write_output_report(out, again=True))
