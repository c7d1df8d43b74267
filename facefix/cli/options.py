"""Command line options made from the settings, so that names, types and help stand in one place."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, Optional, get_args, get_origin, get_type_hints

import typer

from facefix.errors import UsageError
from facefix.restoration.run import Request
from facefix.settings import Settings

_DECLARATIONS: dict[str, tuple[str, ...]] = {
    "output": ("--output", "-o"),
    "report": ("--report/--no-report",),
    "recursive": ("--recursive/--no-recursive", "-r/-R"),
    "only_changed": ("--only-changed/--all-photos",),
    "strict": ("--strict/--no-strict",),
}

_METAVARS = {
    "output": "FOLDER",
    "refs": "FOLDER",
    "min_face": "PX",
    "model": "NAME|FOLDER",
    "steps": "N",
    "guidance": "X",
    "seed": "N",
    "strength": "0..1",
    "upscale": "N",
    "max_references": "1..5",
    "max_pixels": "N",
    "device": "NAME",
    "batch_size": "N",
    "threads": "N",
    "cache_mib": "N",
    "wait": "SECONDS",
    "exclude": "PATTERN",
}


def with_settings(*names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a command an option for each of these settings; it gets those that were given as ``flags``."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        hints = get_type_hints(command, include_extras=True)
        own = [
            parameter.replace(annotation=hints[name])
            for name, parameter in inspect.signature(command).parameters.items()
            if name != "flags"
        ]
        added = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=_annotation(name))
            for name in names
        ]

        @functools.wraps(command)
        def run(**values: Any) -> Any:
            flags = {name: values.pop(name) for name in names}
            return command(**values, flags={name: value for name, value in flags.items() if value not in (None, [])})

        parameters = [*own, *added]
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        del run.__wrapped__
        return run

    return decorate


def _annotation(name: str) -> Any:
    """What typer reads: the type, the option's spelling, its help with the default."""
    field = Settings.model_fields[name]
    declarations = _DECLARATIONS.get(name, (f"--{name.replace('_', '-')}",))
    text = field.description or ""
    if not isinstance(field.default, bool) and field.default not in (None, ()):
        text += f" (default: {field.default})"
    option = typer.Option(*declarations, metavar=_METAVARS.get(name), help=text, show_default=False)
    return Annotated[Optional[_plain_type(field.annotation)], option]  # noqa: UP045  (typer wants typing's own)


def _plain_type(annotation: Any) -> Any:
    """The type of one value: without None, and a list where several may be given."""
    if get_origin(annotation) is Literal:
        return annotation
    if get_origin(annotation) is tuple:
        return list[str]
    kinds = [kind for kind in get_args(annotation) if kind is not type(None)]
    return kinds[0] if kinds else annotation


STDIN = "-"


Inputs = Annotated[
    list[str] | None,
    typer.Argument(metavar="ALBUM...", help="Folders and photos; - reads names of photos from standard input."),
]


FilesFrom = Annotated[Path | None, typer.Option(metavar="FILE", help="Read names of photos from a file, one a line.")]


Nul = Annotated[bool, typer.Option("-0", "--null", help="Names in --files-from and - end with NUL, not with a line.")]


Config = Annotated[Path | None, typer.Option(metavar="FILE", help="Settings; default: facefix.toml in this folder.")]


Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Print only problems, as cron should mail.")]


def request_of(inputs: list[str], files_from: Path | None, *, null: bool) -> Request:
    """What the arguments name. Raises UsageError when that is nothing, or a list cannot be read."""
    from facefix.restoration.run import Request
    from facefix.restoration.scan import read_list

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
