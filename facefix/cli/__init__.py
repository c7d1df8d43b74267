"""The command line: commands parse, call the library, print, and map errors to exit codes."""

from __future__ import annotations

import sys

from facefix.cli import (
    face,  # noqa: F401 (registers its command)
)
from facefix.cli.app import app, run

__all__ = ["app", "main"]


def main() -> None:
    """Entry point of the ``facefix`` console script."""
    sys.exit(run())
