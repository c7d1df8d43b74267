"""Which date an output gets, so that tools that compare size and date notice that it is another file."""

from __future__ import annotations

import os
import time
from pathlib import Path

from facefix.files.digests import sha256_of

STEP_NS = 1_000_000_000
"""The smallest step that every tool sees: rsync, archives and cloud folders compare whole seconds."""

_LONG_AGO_NS = 86_400 * STEP_NS
"""A date further than this from the original's is not one of our steps."""


def output_mtime_ns(target: Path, size: int, sha256: str, original: os.stat_result, *, now: bool = False) -> int:
    """Modification time for an output about to be written.

    It is the original's, unless a file with other content and that very date would be mistaken for this one: the
    original itself where the output is as long, or the output that stood there before. Then it is a step later.

    Args:
        target: where the output goes.
        size: bytes of the output.
        sha256: of the output.
        original: status of the photo it was made from.
        now: the time of writing instead.

    Returns:
        Nanoseconds since 1970.
    """
    if now:
        return time.time_ns()
    date = original.st_mtime_ns
    if size == original.st_size:
        date += STEP_NS
    try:
        before = target.stat().st_mtime_ns
        if not 0 <= before - original.st_mtime_ns < _LONG_AGO_NS:
            return date
        return before if sha256_of(target) == sha256 else max(date, before + STEP_NS)
    except OSError:
        return date
