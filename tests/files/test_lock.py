"""A lock has one holder, names it, and is free again when the holder ends, however it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from facefix.errors import LockHeld
from facefix.files.lock import exclusive

HOLD = """
import sys, time
from pathlib import Path
from facefix.files.lock import exclusive
with exclusive(Path(sys.argv[1]), "a test"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_the_second_is_told_who_holds_it(tmp_path: Path) -> None:
    with exclusive(tmp_path / "x", "a run"):
        said = rf"^b run \(process {os.getpid()}\) holds .*x; go away$"
        with pytest.raises(LockHeld, match=said), exclusive(tmp_path / "x", "b run", advice="go away"):
            pass
        with exclusive(tmp_path / "y", "another place"):
            pass
    with exclusive(tmp_path / "x", "b run"):
        pass
    assert not (tmp_path / "x.pid").exists()


def test_an_exception_frees_it(tmp_path: Path) -> None:
    with pytest.raises(KeyError), exclusive(tmp_path / "x", "a run"):
        raise KeyError
    with exclusive(tmp_path / "x", "a run"):
        pass


def test_waiting_is_bounded(tmp_path: Path) -> None:
    with exclusive(tmp_path / "x", "a run"):
        start = time.monotonic()
        with pytest.raises(LockHeld), exclusive(tmp_path / "x", "a run", wait_seconds=0.3):
            pass
        assert 0.3 <= time.monotonic() - start < 5


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL here")
def test_a_killed_holder_leaves_it_free(tmp_path: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / "x")], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    with pytest.raises(LockHeld, match=rf"process {holder.pid}"), exclusive(tmp_path / "x", "a run"):
        pass
    holder.kill()
    holder.communicate()
    with exclusive(tmp_path / "x", "a run"):
        assert (tmp_path / "x.pid").read_text() == str(os.getpid())


def test_a_place_that_cannot_be_written_is_an_os_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"), exclusive(tmp_path / "file" / "x", "a run"):
        pass
