"""Values to put into ledgers."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from facefix.faces.face import Detection, Face, Quality
from facefix.outputs.folder import LEDGER_NAME, OUTPUT_MARKER

ODD = Path(os.fsdecode(b"dir/caf\xe9 '\n\" \xf0\x9f\x98\x80.jpg"))
"""A name that is not UTF-8 and needs quoting everywhere."""

OLD_LEDGERS = Path(__file__).parent / "data" / "ledgers"
"""``versionN.sql``: what a ledger of that version held, written by the facefix of its time."""


def face(number: int, embedding: NDArray[np.float32] | None) -> Face:
    """A face with values that are exact in float32 and float64."""
    points = np.arange(10, dtype=float).reshape(5, 2) / 3
    detection = Detection((1.5, 2.5, 3.5, 4.5), points, 0.75)
    return Face("old key", number, detection, embedding, Quality(40.0, 0.5, 0.1, -3.0, 0.4), taken=5.0)


def old_ledger(output: Path, version: int) -> Path:
    """Lay an old ledger into an output folder; returns its file."""
    path = output / OUTPUT_MARKER / LEDGER_NAME
    path.parent.mkdir(parents=True)
    connection = sqlite3.connect(path)
    connection.executescript((OLD_LEDGERS / f"version{version}.sql").read_text())
    connection.close()
    return path
