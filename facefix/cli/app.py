"""The Typer application and the mapping from errors to exit codes. Commands live in the modules beside this one."""

from __future__ import annotations

import io
import logging
import sqlite3
import sys
import warnings
from typing import Any

import typer

from facefix.errors import FacefixError
from facefix.version import __version__

app = typer.Typer(
    name="facefix",
    help="Restore the faces in an album of photos so that they look like those people.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

COMMAND_LINE_ERROR: Any = typer.BadParameter.__mro__[2]
"""click's ClickException; Typer carries a click of its own since 0.20 or so and names only its subclass"""


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"facefix {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: bool = typer.Option(False, "--version", callback=_print_version, is_eager=True, help="Print the version."),
) -> None:
    """Restore the faces in an album of photos so that they look like those people."""


def run() -> int:
    """Run the command line on ``sys.argv``; return its exit code (DESIGN: 0, 1, 2, 3, 4, 69, 75, 130, 143)."""
    # a damaged photo is named with its reason; that is enough
    warnings.filterwarnings("ignore", module="PIL")
    logging.getLogger("imagecodecs").addHandler(logging.NullHandler())
    if isinstance(sys.stdout, io.TextIOWrapper):  # names of files go out as the bytes they are, in every locale
        sys.stdout.reconfigure(errors="surrogateescape")
    try:
        code = app(prog_name="facefix", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except FacefixError as error:
        print(f"facefix: error: {error}", file=sys.stderr)
        return error.exit_code
    except COMMAND_LINE_ERROR as error:
        error.show()
        return int(error.exit_code)
    except typer.Exit as leave:
        return leave.exit_code
    except (OSError, sqlite3.Error) as error:  # a disk that is full or fails where nobody could know more about it
        print(f"facefix: error: {error}", file=sys.stderr)
        return FacefixError.exit_code
    except (KeyboardInterrupt, typer.Abort):
        print("facefix: interrupted", file=sys.stderr)
        return 130
