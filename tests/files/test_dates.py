"""Outputs with other content get another date, so that tools that compare size and date take them."""

from __future__ import annotations

import os
import time
from pathlib import Path

from facefix.files.dates import STEP_NS, output_mtime_ns
from facefix.files.digests import sha256_of

DATE = 1_600_000_000 * 10**9 + 123


def test_the_date_moves_only_where_it_would_hide_other_content(tmp_path: Path) -> None:
    original, target = tmp_path / "original", tmp_path / "output"
    original.write_bytes(b"photo")
    os.utime(original, ns=(DATE, DATE))
    status = original.stat()
    assert output_mtime_ns(target, 7, "new", status) == DATE
    assert output_mtime_ns(target, 5, "new", status) == DATE + STEP_NS, "as long as the original"
    target.write_bytes(b"results")
    os.utime(target, ns=(DATE, DATE))
    assert output_mtime_ns(target, 7, sha256_of(target), status) == DATE, "nothing new"
    assert output_mtime_ns(target, 7, "new", status) == DATE + STEP_NS
    os.utime(target, ns=(DATE, DATE + STEP_NS))
    assert output_mtime_ns(target, 7, "newer", status) == DATE + 2 * STEP_NS
    os.utime(target, ns=(DATE, 1_000_000_000 * 10**9))
    assert output_mtime_ns(target, 7, "new", status) == DATE, "an older file is not mistaken for this one"
    before = time.time_ns()
    assert before <= output_mtime_ns(target, 7, "new", status, now=True) <= time.time_ns()
