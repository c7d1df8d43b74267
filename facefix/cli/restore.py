"""``facefix restore``: the main job."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from facefix.cli.app import app
from facefix.cli.options import with_settings
from facefix.errors import UsageError

if TYPE_CHECKING:
    from facefix.job import Request
    from facefix.photos.ledger import PhotoOutcome
    from facefix.restore import Stop

STDIN = "-"

SETTINGS = (
    "output", "refs", "refs_from", "max_references", "faces", "min_face", "restore", "no_ref", "model", "steps",
    "guidance", "sampler", "seed", "strength", "upscale", "raw_format", "only_changed", "if_exists", "recursive",
    "exclude", "max_pixels", "device", "dtype", "batch_size", "threads", "cache_mib", "wait", "report", "strict",
)  # fmt: skip

Inputs = Annotated[
    list[str] | None,
    typer.Argument(metavar="ALBUM...", help="Folders and photos; - reads names of photos from standard input."),
]
FilesFrom = Annotated[Path | None, typer.Option(metavar="FILE", help="Read names of photos from a file, one a line.")]
Nul = Annotated[bool, typer.Option("-0", "--null", help="Names in --files-from and - end with NUL, not with a line.")]
Config = Annotated[Path | None, typer.Option(metavar="FILE", help="Settings; default: facefix.toml in this folder.")]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Print only problems, as cron should mail.")]


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

    from facefix.job import Options, restore_album
    from facefix.photos.scan import printable
    from facefix.progress import open_progress
    from facefix.restore import Stop

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


def request_of(inputs: list[str], files_from: Path | None, *, null: bool) -> Request:
    """What the arguments name. Raises UsageError when that is nothing, or a list cannot be read."""
    from facefix.job import Request
    from facefix.photos.scan import read_list

    listed: list[Path] = []
    if null and STDIN not in inputs and files_from is None:
        raise UsageError("-0: expected names from --files-from FILE or -, found neither")
    if STDIN in inputs:
        listed += read_list(sys.stdin.buffer.read(), nul=null)
    if files_from is not None:
        try:
            data = sys.stdin.buffer.read() if str(files_from) == STDIN else files_from.read_bytes()
        except OSError as error:
            raise UsageError(f"--files-from {files_from}: cannot be read: {error.strerror or error}") from error
        listed += read_list(data, nul=null)
    given = tuple(Path(name) for name in inputs if name != STDIN)
    if not given and not listed and files_from is None and STDIN not in inputs:
        raise UsageError("ALBUM: expected a folder, photos, - or --files-from FILE, found nothing")
    return Request(given, tuple(listed))


def print_json(value: Any, *, one_line: bool = False) -> None:
    """Data for a program, on standard output."""
    print(json.dumps(value, ensure_ascii=True, indent=None if one_line else 1), flush=True)


def outcome_dict(outcome: PhotoOutcome) -> dict[str, Any]:
    """One photo for --jsonl."""
    return {
        "photo": str(outcome.source),
        "output": str(outcome.target) if outcome.target is not None else None,
        "status": outcome.status,
        "reason": outcome.reason,
        "seconds": round(outcome.seconds, 3),
        "notes": list(outcome.notes),
        "faces": [
            {
                "number": face.face,
                "box": [round(side, 1) for side in face.box],
                "person": face.person,
                "verdict": face.verdict,
                "reason": face.reason,
                "similarity_before": face.before,
                "similarity_after": face.after,
                "references": [
                    {"photo": note.path, "face": note.face, "reason": note.reason, "score": note.score}
                    for note in face.references
                ],
                "model": face.model,
                "seconds": round(face.seconds, 3),
            }
            for face in outcome.faces
        ],
    }


def _line(outcome: PhotoOutcome) -> str:
    """One photo for -v."""
    from facefix.photos.scan import printable

    faces = "; ".join(
        f"{face.person or 'face'}: {face.verdict}{f' ({face.reason})' if face.reason else ''}" for face in outcome.faces
    )
    return f"{printable(outcome.relative)}: {outcome.status}{f', {faces}' if faces else ''}"


def _dry_run(request: Request, settings: Any, *, as_json: bool, as_jsonl: bool, quiet: bool) -> int:
    from facefix.job import Options, survey_album
    from facefix.progress import open_progress

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


@contextmanager
def _stopping(stop: Stop) -> Iterator[None]:
    """SIGINT and SIGTERM end the run after the batch it is at; a second one ends it at once."""

    def request(number: int, frame: object) -> None:
        stop.request(number)
        signal.signal(number, signal.SIG_DFL)
        print("facefix: finishing what is under way; once more to stop at once", file=sys.stderr, flush=True)

    old = {number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
