"""Kill a run again and again with SIGKILL, complete it, and compare with an undisturbed run.

As a program: ``python tests/kill_test.py [KILLS [SEED]]`` (50 by default); `test_kill.py` runs fewer.
"""

from __future__ import annotations

import hashlib
import os
import random
import signal
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from albums import make_album, make_portraits
from PIL import Image
from tiny import tiny_pipeline

from facefix.faces.backends import load_backend
from facefix.jobs.restore import restore_album
from facefix.restoration.run import Options, Request
from facefix.settings import Settings

PEOPLE = ("ann", "bea", "cid", "dan")


@dataclass(frozen=True)
class Outcome:
    """What many kills did."""

    kills: int
    """runs that were killed while they worked"""
    finished_early: int
    """runs that were through before the signal"""
    partial_files: int
    """files seen under a final name that did not decode"""
    identical: bool
    originals_untouched: bool
    seconds: float


def run_once(folder: Path, model: Path, output: Path) -> int:
    """One whole run in this process; its exit code."""
    settings = Settings(
        refs=folder / "refs", output=output, model=str(model), threads=2, restore="all", min_face=20, report=False
    )
    return restore_album(Request((folder / "album",)), settings, Options(backend=load_backend("dlib"))).exit_code()


def start(folder: Path, model: Path, output: Path) -> int:
    """Start a run in a child process; its process id. The parent has imported everything, so this takes no time."""
    child = os.fork()
    if child == 0:
        try:
            os._exit(run_once(folder, model, output))
        except BaseException as error:
            print(f"run failed: {error!r}", file=sys.stderr)
            os._exit(99)
    return child


def wait(child: int) -> int:
    """Exit code of a child, negative for the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def tree(folder: Path) -> dict[str, str]:
    """Digest of every file of an output tree that is not the ledger's own or a hidden temporary one."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    }


def broken_files(folder: Path) -> int:
    """Pictures under their final names that do not decode."""
    broken = 0
    for name in tree(folder) if folder.exists() else ():
        try:
            with Image.open(folder / name) as image:
                image.load()
        except OSError:
            broken += 1
    return broken


def kill_many(folder: Path, kills: int, seed: int, photos_per_person: int = 3) -> Outcome:
    """Make an album, restore it undisturbed, then in another place with kills at random moments."""
    begin, chance = time.monotonic(), random.Random(seed)
    make_album(folder / "album", photos_per_person, PEOPLE)
    make_portraits(folder / "refs", PEOPLE)
    tiny_pipeline(default_steps=2).save_pretrained(folder / "tiny")
    originals = tree(folder / "album")
    start_time = time.monotonic()
    assert wait(start(folder, folder / "tiny", folder / "undisturbed")) == 0
    whole_run = time.monotonic() - start_time
    killed = early = partial = 0
    output = folder / "disturbed"
    while killed < kills:
        child = start(folder, folder / "tiny", output)
        time.sleep(chance.uniform(0.0, whole_run / (1 + killed % 4)))
        os.kill(child, signal.SIGKILL)
        if wait(child) == -signal.SIGKILL:
            killed += 1
        else:
            early += 1
            output = folder / f"disturbed-{early}"  # this one is through; go on with a fresh place
        partial += broken_files(output)
    outputs = [folder / "disturbed", *(folder / f"disturbed-{number}" for number in range(1, early + 1))]
    for place in outputs:
        assert wait(start(folder, folder / "tiny", place)) == 0
    expected = tree(folder / "undisturbed")
    return Outcome(
        killed,
        early,
        partial,
        all(tree(place) == expected for place in outputs) and len(expected) == len(originals),
        tree(folder / "album") == originals,
        time.monotonic() - begin,
    )


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        arguments = [int(argument) for argument in sys.argv[1:]]
        outcome = kill_many(Path(temporary), *(arguments or [50]), *([] if len(arguments) > 1 else [1]))
    print(outcome)
    sys.exit(0 if outcome.identical and outcome.originals_untouched and not outcome.partial_files else 1)
