"""``facefix undo``: give outputs the original pixels of their restored faces back."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import typer

from facefix.cli.app import app


@app.command()
def undo(
    paths: list[Path] = typer.Argument(
        ..., metavar="PHOTO|OUT...", help="Outputs, or whole output folders.", show_default=False
    ),
    stores: list[Path] = typer.Option(
        [], "--from", metavar="OUT", help="Output folder that an output came from, if it was moved out (repeatable)."
    ),
    output: Path | None = typer.Option(None, "-o", "--output", metavar="FILE", help="Write here; default: in place."),
    force: bool = typer.Option(False, "--force", help="Also take back what was edited since it was written."),
    wait: float = typer.Option(0.0, "--wait", metavar="S", help="Seconds to wait for a run on the output folder."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON."),
) -> int:
    """Give outputs the original pixels of their restored faces back. The next run leaves them so."""
    from facefix.files.names import printable
    from facefix.jobs.undo import take_back

    done, failed = [], 0
    for result in take_back(paths, stores=stores, target=output, force=force, wait_seconds=wait):
        if result.undone is None:
            failed += 1
            print(f"facefix: {result.problem}", file=sys.stderr)
        else:
            done.append(result.undone)
            if not as_json:
                how = "the original" if result.undone.exact else f"{result.undone.regions} regions"
                typer.echo(f"{printable(result.undone.written)}: {how} put back")
    if as_json:
        rows = [
            {"photo": str(one.path), "written": str(one.written), "regions": one.regions, "original": one.exact}
            for one in done
        ]
        typer.echo(json.dumps({"undone": rows, "failed": failed}))
    return 3 if failed else 0
