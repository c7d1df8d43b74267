"""``facefix models``: list, fetch, verify and import weights."""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer

from facefix.cli.app import app
from facefix.errors import CheckpointError, WeightsUnavailable
from facefix.files.digests import sha256_of
from facefix.methods.registry import REQUIRED, Importer, ImportOption, RestorationMethod, methods
from facefix.weights import catalogue as weights
from facefix.weights import checksums, install

models = typer.Typer(help="List, fetch, verify and import weights.", no_args_is_help=True)
app.add_typer(models, name="models")


def _complete_name(incomplete: str) -> list[str]:
    return [name for name in weights.CATALOGUE if name.startswith(incomplete)]


NAME = typer.Argument(..., help="Name in the catalogue.", autocompletion=_complete_name)
NAMES = typer.Argument(None, help="Names in the catalogue; all that are installed.", autocompletion=_complete_name)
ACCEPT = typer.Option(False, "--accept-licence", "--accept-license", help="I have read the licence and agree to it.")
GIVEN = typer.Option([], "--from", help="Take the files from this file or folder instead of the network (repeatable).")
MIRROR = typer.Option(
    None,
    "--mirror",
    envvar="FACEFIX_WEIGHTS_MIRROR",
    help="Address of a folder that holds the files under their names; checksums stay those of the catalogue.",
)
REPIN = typer.Option(False, "--repin", help="Forget the checksums pinned at an earlier fetch.")
KEEP = typer.Option(False, "--keep-downloads", help="Keep the downloaded files after installing them.")
JSON = typer.Option(False, "--json", help="Print JSON.")


@models.command("list")
def list_models(as_json: bool = JSON) -> None:
    """List the catalogue: what there is, its licence, and whether it is installed."""
    rows = [_describe(entry) for entry in weights.CATALOGUE.values()]
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    for row in rows:
        status = "installed" if row["installed"] else "not installed"
        print(f"{row['name']:<16} {status:<14} {_human_bytes(row['bytes']):>9}  {row['licence']}")
        print(f"    {row['summary']}")
        if row["note"]:
            print(f"    {row['note']}")
    print(f"weights are kept in {weights.weights_dir()}", file=sys.stderr)


def _describe(entry: weights.Weights) -> dict[str, Any]:
    folder = weights.installed_folder(entry.name)
    files = []
    for file in entry.files:
        sha256, known_from = install.known_sha256(file)
        files.append(
            {"name": file.name, "url": file.url, "size": file.size, "sha256": sha256, "sha256_known_from": known_from}
        )
    return {
        "name": entry.name,
        "summary": entry.summary,
        "licence": entry.licence,
        "licence_url": entry.licence_url,
        "non_commercial": entry.non_commercial,
        "note": entry.note,
        "installed": folder is not None,
        "folder": None if folder is None else str(folder),
        "bytes": entry.download_bytes if folder is None else _folder_bytes(folder),
        "files": files,
    }


def _folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _human_bytes(count: int | None) -> str:
    if count is None:
        return "-"
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


@models.command()
def path(name: str = NAME) -> None:
    """Print the folder where weights are installed."""
    folder = weights.installed_folder(name)
    if folder is None:
        raise WeightsUnavailable(weights.how_to_install(weights.entry(name)))
    print(folder)


@models.command()
def verify(names: list[str] = NAMES) -> None:
    """Compare installed weights with the checksums recorded when they were installed."""
    folders = {name: weights.installed_folder(name) for name in names or weights.CATALOGUE}
    damaged = []
    for name, folder in folders.items():
        if folder is None:
            if names:
                raise WeightsUnavailable(weights.how_to_install(weights.entry(name)))
            continue
        problems = checksums.verify(folder)
        print(f"{name}: {'damaged' if problems else 'sound'}")
        for problem in problems:
            print(problem, file=sys.stderr)
        if problems:
            damaged.append(name)
    if damaged:
        raise CheckpointError(
            f"damaged: {', '.join(damaged)}; pull again, or install facefix again for its own weights"
        )


@models.command()
def pull(
    name: str = NAME,
    accept_licence: bool = ACCEPT,
    given: list[Path] = GIVEN,
    mirror: str | None = MIRROR,
    repin: bool = REPIN,
    keep_downloads: bool = KEEP,
) -> None:
    """Fetch weights, check them and install them. A broken download goes on where it stopped."""
    entry = weights.entry(name)
    if entry.non_commercial:
        print(f"{name}: licence: {entry.licence}\n{name}: see {entry.licence_url}", file=sys.stderr)
    if entry.note:
        print(f"{name}: {entry.note}", file=sys.stderr)
    options = install.PullOptions(
        accept_licence=accept_licence,
        given=tuple(given),
        mirror=mirror,
        repin=repin,
        keep_downloads=keep_downloads,
    )
    with _observer() as observer:
        folder = install.pull(entry, options, observer=observer)
    print(folder)


@contextmanager
def _observer() -> Iterator[install.Observer]:
    """Messages on stderr; a progress bar only where there is a terminal."""
    if not sys.stderr.isatty():
        yield install.Observer(say=lambda message: print(message, file=sys.stderr, flush=True))
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    tasks: dict[str, TaskID] = {}
    with Progress(*columns, console=Console(stderr=True)) as bars:

        def advance(file: str, got: int, total: int | None) -> None:
            if file not in tasks:
                tasks[file] = bars.add_task(file)
            bars.update(tasks[file], completed=got, total=total)

        yield install.Observer(say=lambda message: bars.console.print(message, markup=False), progress=advance)


def _import_command(method: RestorationMethod, importer: Importer) -> Callable[..., None]:
    """The command that imports a method's published checkpoints, with an option for each thing it is told."""

    def command(to: Path, **values: Any) -> None:
        folder = importer.run(to, values)
        files = [value for value in values.values() if isinstance(value, Path) and value.is_file()]
        install.seal_installed(folder, weights.imported(method), {file.name: sha256_of(file) for file in files})
        print(folder)

    parameters = [
        inspect.Parameter(
            option.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=_parameter(option),
            annotation=option.kind if option.default == REQUIRED else option.kind | None,
        )
        for option in importer.options
    ]
    folder = typer.Option(..., "--to", help="Folder to write, in diffusers layout.")
    parameters.append(inspect.Parameter("to", inspect.Parameter.KEYWORD_ONLY, default=folder, annotation=Path))
    command.__doc__ = f"Turn published {method.name} checkpoints into a folder that facefix and diffusers load."
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # what Typer reads
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return command


def _parameter(option: ImportOption) -> Any:
    default = ... if option.default == REQUIRED else option.default
    if option.positional:
        return typer.Argument(default, help=option.help)
    return typer.Option(default, f"--{option.name.replace('_', '-')}", help=option.help)


import_models = typer.Typer(help="Turn published checkpoints into a folder that facefix and diffusers load.")
models.add_typer(import_models, name="import", no_args_is_help=True)
for _method in methods().values():
    if _method.importer is not None:
        import_models.command(_method.name)(_import_command(_method, _method.importer))
