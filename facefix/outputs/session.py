"""An output folder that one run works on: locked, its ledger open, cleaned up after a run that was killed."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from facefix.errors import OutputError
from facefix.files import atomic
from facefix.files.lock import locked
from facefix.outputs.ledger import Ledger


@contextmanager
def output_folder(output: Path, wait_seconds: float) -> Iterator[Ledger]:
    """Lock an output folder, open its ledger, and clean up after a run that was killed.

    Raises OutputError when the ledger cannot be written any more.
    """
    try:
        with locked(output, wait_seconds), Ledger.open(output) as ledger:
            if not ledger.noted("clean", True):
                atomic.remove_leftovers(output)
            ledger.note("clean", False)
            yield ledger
            ledger.note("clean", True)
    except sqlite3.Error as error:
        raise OutputError(
            f"output {output}: the ledger in it cannot be written any more: {error}; "
            "free some space or choose another output folder, then run the same again"
        ) from error
