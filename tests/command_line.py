"""Runs the command line inside the test process, as the console script would."""

from __future__ import annotations

import contextlib
import io
import sys
from dataclasses import dataclass
from unittest.mock import patch

from facefix.cli import run


@dataclass(frozen=True)
class Finished:
    code: int
    stdout: str
    stderr: str


def facefix(*arguments: object) -> Finished:
    """Run ``facefix ARGUMENTS``; its exit code and what it printed."""
    stdout, stderr = io.StringIO(), io.StringIO()
    with (
        patch.object(sys, "argv", ["facefix", *map(str, arguments)]),
        contextlib.redirect_stdout(stdout),
        contextlib.redirect_stderr(stderr),
    ):
        try:
            code = run()
        except SystemExit as leave:  # shell completion leaves this way
            code = leave.code if isinstance(leave.code, int) else 0
    return Finished(code, stdout.getvalue(), stderr.getvalue())
