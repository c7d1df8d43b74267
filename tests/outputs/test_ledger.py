"""The ledger as a file: digests, snapshots, damage, and one run at a time."""

from __future__ import annotations

import multiprocessing
import os
import time
from pathlib import Path

import pytest
from command_line import facefix

from facefix.errors import FacefixError, LockHeld
from facefix.outputs.ledger import Ledger
from facefix.outputs.lock import locked


def test_digests_are_computed_again_only_when_the_file_changes(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(b"one")
    with Ledger.open(tmp_path) as ledger:
        first = ledger.sha256(path)
        old = path.stat()
        with path.open("r+b") as file:
            file.write(b"two")
        os.utime(path, ns=(old.st_atime_ns, old.st_mtime_ns))
        assert ledger.sha256(path) != first, "same size and mtime, other content"
        path.unlink()
        with pytest.raises(FileNotFoundError):
            ledger.sha256(path)


def test_a_snapshot_changes_nothing_on_disk(tmp_path: Path) -> None:
    with Ledger.open(tmp_path) as ledger:
        ledger.note("summary", {"restored": 3})
    before = sorted((path, path.stat().st_mtime_ns) for path in (tmp_path / ".facefix").glob("ledger.sqlite"))
    copy = Ledger.snapshot(tmp_path)
    assert copy.noted("summary") == {"restored": 3}
    copy.note("summary", None)
    assert sorted((path, path.stat().st_mtime_ns) for path in (tmp_path / ".facefix").glob("ledger.sqlite")) == before
    assert Ledger.snapshot(tmp_path / "none").noted("summary", 1) == 1
    assert not (tmp_path / "none").exists()


def test_a_damaged_ledger_is_named(tmp_path: Path) -> None:
    (tmp_path / ".facefix").mkdir()
    (tmp_path / ".facefix" / "ledger.sqlite").write_bytes(b"not a database" * 1000)
    with pytest.raises(FacefixError, match=r"ledger\.sqlite cannot be used"):
        Ledger.open(tmp_path)


def _hold(output: Path, seconds: float, ready: str) -> None:
    with locked(output):
        Path(ready).touch()
        time.sleep(seconds)


@pytest.mark.parametrize("command", ["report", "undo", "forget"])
def test_commands_name_a_damaged_ledger(tmp_path: Path, command: str) -> None:
    with Ledger.open(tmp_path) as ledger:
        path = ledger.path
    assert path is not None
    for damaged in (b"garbage" * 100, path.read_bytes()[:5000]):
        path.write_bytes(damaged)
        done = facefix(command, tmp_path)
        assert done.code == 1 and str(path) in done.stderr and "Traceback" not in done.stderr


def test_one_run_at_a_time_unless_one_waits(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    holder = multiprocessing.get_context("spawn").Process(target=_hold, args=(tmp_path, 1.0, str(ready)))
    holder.start()
    while not ready.exists():
        time.sleep(0.02)
    with pytest.raises(LockHeld, match=rf"process {holder.pid}"), locked(tmp_path):
        pass
    start = time.monotonic()
    with locked(tmp_path, wait_seconds=20):
        assert 0.1 < time.monotonic() - start < 10
    holder.join()
    with locked(tmp_path):
        pass
