"""Folders and disks that fail: what is no file, no permission, what vanishes or changes, full and read-only disks."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from hostile_albums import (
    no_partial_files,
    restore,
)
from PIL import Image


def good_photos(root: Path, count: int = 6) -> list[Path]:
    root.mkdir(parents=True, exist_ok=True)
    paths = []
    for number in range(count):
        path = root / f"good{number}.png"
        Image.frombytes("RGB", (64, 64), random.Random(number).randbytes(64 * 64 * 3)).save(path)
        paths.append(path)
    return paths


def test_what_is_no_regular_file_or_may_not_be_read_is_skipped_or_named(tmp_path: Path, model: Path) -> None:
    """Pipes, sockets, folders with photo names, links to nowhere, in circles and out of it; no permission."""
    album = tmp_path / "album"
    good = good_photos(album, 3)
    os.mkfifo(album / "pipe.jpg")
    with socket.socket(socket.AF_UNIX) as listener, contextlib.chdir(album):
        listener.bind("socket.jpg")
    (album / "nowhere.jpg").symlink_to(tmp_path / "nothing")
    (album / "endless.jpg").symlink_to("/dev/zero")
    (album / "itself.jpg").symlink_to("itself.jpg")
    (album / "folder.jpg").mkdir()
    (album / "folder.jpg" / "loop").symlink_to(album)
    (album / "link.png").symlink_to(good[0])
    (album / "secret.jpg").write_bytes(b"\xff\xd8")
    (album / "secret.jpg").chmod(0)
    good_photos(album / "locked", 2)
    (album / "locked").chmod(0)
    try:
        done = restore(album, "-o", tmp_path / "out", "--jsonl", "-q", "-v", model=model, wrapper=unprivileged())
    finally:
        (album / "locked").chmod(0o755)
    assert "Traceback" not in done.stderr, done.stderr[-2000:]
    assert done.code == 3, done.stderr[-2000:]
    rows = {Path(str(row["photo"])).name: row for row in done.photos}
    assert {name for name, row in rows.items() if row["status"] == "copied"} == {
        "good0.png", "good1.png", "good2.png", "link.png"
    }  # fmt: skip
    for name in ("pipe.jpg", "socket.jpg", "nowhere.jpg", "endless.jpg", "itself.jpg"):
        assert name not in rows or rows[name]["status"] == "failed"
        assert not (tmp_path / "out" / name).exists()
    assert rows["secret.jpg"]["status"] == "failed"
    assert "ermission denied" in str(rows["secret.jpg"]["reason"])
    assert f"{album / 'locked'}: folder cannot be read: Permission denied" in done.stderr


def unprivileged() -> tuple[str, ...]:
    """Command prefix that gives up root's right to read everything; empty for other users."""
    if os.geteuid() != 0:
        return ()
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        pytest.skip("running as root, and setpriv is not there to give up its rights")
    return (setpriv, "--bounding-set=-all", "--inh-caps=-all", "--ambient-caps=-all", "--")


CHILD = """
import sys
from pathlib import Path
from facefix.jobs.restore import restore_album
from facefix.restoration.run import Options, Request
from facefix.errors import FacefixError
from facefix.settings import Settings

album, output, model = map(Path, sys.argv[1:4])
settings = Settings.load(dict(output=output, model=str(model), faces="dlib", device="cpu", threads=2, report=False))
options = Options()
{prelude}
try:
    summary = restore_album(Request((album,)), settings, options)
except FacefixError as error:
    print(error, file=sys.stderr)
    sys.exit(error.exit_code)
for path, reason in summary.problems:
    print(path.name, reason)
sys.exit(summary.exit_code())
"""


def run_child(prelude: str, *arguments: Path, wrapper: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """A run in a process of its own, with something that happens after each photo."""
    program = CHILD.format(prelude=textwrap.dedent(prelude))
    command = [*wrapper, sys.executable, "-c", program, *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=environment)


def test_files_that_vanish_or_change_during_the_run_are_named(tmp_path: Path, model: Path) -> None:
    album, output = tmp_path / "album", tmp_path / "out"
    good_photos(album, 40)
    prelude = """
        left = sorted(album.iterdir())
        def on_photo(outcome):
            for path in left[-5:]:
                path.unlink(missing_ok=True)
            left[-6].write_bytes(b"overwritten")
        options = Options(on_photo=on_photo)
    """
    done = run_child(prelude, album, output, model)
    assert done.returncode == 3, done.stderr
    assert "Traceback" not in done.stderr
    named = {line.split(" ")[0] for line in done.stdout.splitlines()}
    outputs = {path.name for path in output.iterdir() if path.suffix == ".png"}
    everything = {f"good{number}.png" for number in range(40)}
    assert named | outputs == everything
    assert named.isdisjoint(outputs)
    assert len(named) >= 5
    for path in output.glob("*.png"):
        Image.open(path).load()


def test_files_that_change_while_they_are_looked_into_are_named(tmp_path: Path, model: Path) -> None:
    album, output = tmp_path / "album", tmp_path / "out"
    good_photos(album, 6)
    prelude = """
        from facefix.progress import Silent
        class Meddler(Silent):
            def phase(self, name, total, unit):
                (album / "good1.png").write_bytes((album / "good0.png").read_bytes())
                (album / "good2.png").write_bytes(b"not a photo any more")
                (album / "good3.png").unlink(missing_ok=True)
        options = Options(progress=Meddler())
    """
    done = run_child(prelude, album, output, model)
    assert "Traceback" not in done.stderr, done.stderr
    assert done.returncode == 3
    named = {line.split(" ")[0]: line for line in done.stdout.splitlines()}
    assert set(named) == {"good1.png", "good2.png", "good3.png"}
    assert "changed while the run went on" in named["good1.png"]
    assert all(name in line.split(" ", 1)[1] for name, line in named.items())
    assert {path.name for path in output.glob("*.png")} == {"good0.png", "good4.png", "good5.png"}


def test_a_full_disk_ends_the_run_and_a_later_one_completes_it(tmp_path: Path, model: Path) -> None:
    """No file may grow beyond a limit that the first photos fit and the last do not."""
    album, output = tmp_path / "album", tmp_path / "out"
    paths = good_photos(album, 8)
    large = album / "large.bmp"
    Image.effect_noise((380, 380), 90).convert("RGB").save(large)
    prelude = """
        import resource
        resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000))
    """
    done = run_child(prelude, album, output, model)
    assert "Traceback" not in done.stderr, done.stderr
    assert done.returncode in {1, 3}
    assert "large.bmp" in done.stdout + done.stderr
    assert not (output / "large.bmp").exists()
    assert no_partial_files(output)
    later = run_child("", album, output, model)
    assert later.returncode == 0, later.stderr
    for path in (*paths, large):
        assert (output / path.name).read_bytes() == path.read_bytes()


def mounted(folder: Path, size: str) -> tuple[str, ...]:
    """Command prefix for a process that sees a small disk of its own at `folder`; skips where that is not allowed."""
    unshare = shutil.which("unshare")
    if unshare is None or sys.platform != "linux":
        pytest.skip("no unshare here to make a small disk with")
    folder.mkdir(parents=True, exist_ok=True)
    script = f'mount -t tmpfs -o size={size} tmpfs "$0" && "$@"; code=$?; cp -a "$0" "$0.after"; exit $code'
    prefix = (unshare, "--map-root-user", "--mount", "sh", "-c", script, str(folder))
    if subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("mounting a small disk is not allowed here")
    shutil.rmtree(f"{folder}.after")
    return prefix


def test_a_disk_that_fills_up_ends_the_run_with_a_reason(tmp_path: Path, model: Path) -> None:
    album, output = tmp_path / "album", tmp_path / "out"
    paths = good_photos(album, 60)
    before = {path: path.read_bytes() for path in paths}
    done = run_child("", album, output, model, wrapper=mounted(output, "600k"))
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert "No space left" in done.stderr or "disk is full" in done.stderr
    left = Path(f"{output}.after")
    assert no_partial_files(left)
    written = list(left.glob("*.png"))
    assert 0 < len(written) < len(paths)
    for path in written:
        assert path.read_bytes() == before[album / path.name]
    assert {path: path.read_bytes() for path in paths} == before

    later = run_child("", album, left, model)
    assert later.returncode == 0, later.stderr
    assert {path.name for path in left.glob("*.png")} == {path.name for path in paths}


def test_an_output_that_turns_read_only_ends_the_run_with_a_reason(tmp_path: Path, model: Path) -> None:
    album, output = tmp_path / "album", tmp_path / "out"
    paths = good_photos(album, 40)
    prelude = """
        import subprocess
        seen = []
        def on_photo(outcome):
            seen.append(outcome)
            if len(seen) == 5:
                here = str(output)
                subprocess.run(["mount", "--bind", here, here], check=True)
                subprocess.run(["mount", "-o", "remount,ro,bind", here], check=True)
        options = Options(on_photo=on_photo)
    """
    done = run_child(prelude, album, output, model, wrapper=mounted(output, "20m"))
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert "ead-only" in done.stderr
    left = Path(f"{output}.after")
    assert no_partial_files(left)
    later = run_child("", album, left, model)
    assert later.returncode == 0, later.stderr
    assert {path.name for path in left.glob("*.png")} == {path.name for path in paths}


def test_an_output_that_cannot_be_made_is_said_at_once(tmp_path: Path, model: Path) -> None:
    album = tmp_path / "album"
    good_photos(album, 1)
    (tmp_path / "file").write_text("in the way")
    done = restore(album, "-o", tmp_path / "file" / "out", "-q", model=model)
    assert done.code in {1, 2}
    assert "Traceback" not in done.stderr
    assert str(tmp_path / "file") in done.stderr
