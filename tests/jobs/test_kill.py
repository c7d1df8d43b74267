"""A run that is killed goes on where it stopped, and nothing shows that it ever was."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def test_killed_runs_end_as_if_undisturbed() -> None:
    kills = os.environ.get("FACEFIX_TEST_KILLS", "4")
    script = Path(__file__).with_name("kill_test.py")
    done = subprocess.run([sys.executable, str(script), kills], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "identical=True" in done.stdout
