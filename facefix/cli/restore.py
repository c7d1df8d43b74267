"""``facefix restore``: the main job."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from facefix.cli.app import app
from facefix.cli.console import _line, outcome_dict, print_json
from facefix.cli.options import Config, FilesFrom, Inputs, Nul, Quiet, request_of, with_settings
from facefix.stop import _stopping

if TYPE_CHECKING:
    from facefix.outputs.outcomes import PhotoOutcome
    from facefix.restoration.run import Request


SETTINGS = (
    "output", "refs", "refs_from", "max_references", "faces", "min_face", "restore", "no_ref", "model", "steps",
    "guidance", "sampler", "seed", "strength", "upscale", "raw_format", "only_changed", "if_exists", "recursive",
    "exclude", "max_pixels", "device", "dtype", "batch_size", "threads", "cache_mib", "wait", "report", "strict",
)  # fmt: skip


@app.command()
@with_settings(*SETTINGS)
def restore(
    flags: dict[str, Any],
    inputs: Inputs = None,
    files_from: FilesFrom = None,
    null: Nul = False,
    config: Config = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be done and how long it would take; write nothing.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object about the run at its end.")] = False,
    as_jsonl: Annotated[bool, typer.Option("--jsonl", help="Print a JSON object a line for each photo.")] = False,
    quiet: Quiet = False,
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="Say more about each photo.")] = False,
) -> int:
    """Restore the faces in an album so that they look like those people."""
    from facefix.settings import Settings

    settings = Settings.load(flags, config=config)
    request = request_of(inputs or [], files_from, null=null)
    if dry_run:
        return _dry_run(request, settings, as_json=as_json, as_jsonl=as_jsonl, quiet=quiet)

    from facefix.files.names import printable
    from facefix.jobs.restore import restore_album
    from facefix.progress import open_progress
    from facefix.restoration.run import Options
    from facefix.stop import Stop

    stop = Stop()
    with open_progress(quiet=quiet) as progress, _stopping(stop):

        def tell(outcome: PhotoOutcome) -> None:
            if as_jsonl:
                print_json(outcome_dict(outcome), one_line=True)
            if verbose:
                progress.say(_line(outcome))

        summary = restore_album(request, settings, Options(progress=progress, on_photo=tell, stop=stop))
        if verbose:
            for path, reason in summary.left_out:
                progress.say(f"{printable(path)}: skipped: {reason}")
    if as_json:
        print_json(summary.as_dict())
    elif not quiet and not as_jsonl:
        print("\n".join(summary.lines()))
    return summary.exit_code(strict=settings.strict)


def _dry_run(request: Request, settings: Any, *, as_json: bool, as_jsonl: bool, quiet: bool) -> int:
    from facefix.jobs.survey import survey_album
    from facefix.progress import open_progress
    from facefix.restoration.run import Options

    with open_progress(quiet=quiet) as progress:
        survey = survey_album(request, settings, Options(progress=progress))
        for problem in survey.problems:
            progress.problem(problem.reason)
    if as_json:
        print_json(survey.as_dict())
    elif as_jsonl:
        for row in survey.photo_dicts():
            print_json(row, one_line=True)
    else:
        print("\n".join(survey.lines()))
    return 3 if survey.problems else 0
