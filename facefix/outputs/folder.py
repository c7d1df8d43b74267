"""What lies where in an output folder."""

from __future__ import annotations

from pathlib import Path


def is_output_folder(path: Path) -> bool:
    """Whether ``facefix restore`` has written into the folder."""
    return (path / OUTPUT_MARKER / LEDGER_NAME).is_file()


OUTPUT_MARKER = ".facefix"
"""Folder or file in the root of every output tree; a folder that holds it is not scanned."""


REPORT_FOLDER = "facefix-report"


LEDGER_NAME = "ledger.sqlite"
