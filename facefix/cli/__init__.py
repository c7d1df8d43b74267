"""The command line: commands parse, call the library, print, and map errors to exit codes."""

from __future__ import annotations

import sys

from facefix.cli import config as config
from facefix.cli import doctor as doctor
from facefix.cli import evaluate as evaluate
from facefix.cli import face as face
from facefix.cli import forget as forget
from facefix.cli import models as models
from facefix.cli import people as people
from facefix.cli import report as report
from facefix.cli import restore as restore
from facefix.cli import train as train
from facefix.cli import undo as undo
from facefix.cli.app import app, run

__all__ = ["app", "main", "run"]


def main() -> None:
    """Entry point of the ``facefix`` console script."""
    sys.exit(run())
