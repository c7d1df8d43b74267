"""``facefix config``: the settings in force, and where each came from."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import typer

from facefix.cli.app import app
from facefix.settings import Settings
from facefix.weights import catalogue as weights

config = typer.Typer(help="Show the settings in force.", no_args_is_help=True)
app.add_typer(config, name="config")


@config.callback()
def group() -> None:
    """Show the settings in force."""


@config.command()
def show(
    file: Path | None = typer.Option(None, "--config", help="Configuration file; facefix.toml in the working folder."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON."),
) -> None:
    """Show every setting, its value and where it came from."""
    rows = [*_settings_rows(file), *_weights_rows()]
    if as_json:
        print(json.dumps({name: {"value": value, "source": source} for name, value, source in rows}, indent=1))
        return
    shown = [
        (name, "" if value is None else json.dumps(value, ensure_ascii=False), source) for name, value, source in rows
    ]
    widths = [max(len(row[column]) for row in shown) for column in (0, 1)]
    for name, value, source in shown:
        print(f"{name:<{widths[0]}}  {value:<{widths[1]}}  {source}")


def _shown(value: Any) -> str:
    return "" if value is None else json.dumps(value, ensure_ascii=False)


def _settings_rows(file: Path | None) -> list[tuple[str, Any, str]]:
    settings = Settings.load(config=file)
    values = settings.model_dump(mode="json")
    return [(name, values[name], source) for name, source in settings.sources().items()]


def _weights_rows() -> list[tuple[str, Any, str]]:
    """What weights.py reads from the environment; these are no settings of a run."""
    chosen = "FACEFIX_WEIGHTS_DIR" if os.environ.get("FACEFIX_WEIGHTS_DIR") else "default"
    mirror = os.environ.get("FACEFIX_WEIGHTS_MIRROR")
    return [
        ("weights_dir", str(weights.weights_dir()), chosen),
        ("weights_mirror", mirror, "FACEFIX_WEIGHTS_MIRROR" if mirror else "default"),
    ]
