"""The job over an album full of damaged and hostile files, and on machines that fail under it.

No crash, every file that cannot be done is named with its reason, the good photos among them are done, the exit code
is 3, and no original is touched. ``FACEFIX_TEST_DAMAGED`` sets the number of damaged files.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import re
import shutil
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest
from damaged import FAILS, WORKS, Damaged, damaged_inputs, sound
from PIL import Image
from tiny import tiny_pipeline

from facefix.files.names import printable
from facefix.report import REPORT_FOLDER

COUNT = int(os.environ.get("FACEFIX_TEST_DAMAGED", "1000"))
SEED = int(os.environ.get("FACEFIX_TEST_SEED", "20"))
MAX_MEMORY_BYTES = 3 << 30
MAX_PIXELS = 4_000_000


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with random weights."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny_pipeline(default_steps=2).save_pretrained(folder)
    return folder


@dataclass(frozen=True)
class Album:
    """A folder of files and what is to become of each."""

    root: Path
    expected: dict[Path, str]
    """fails, works or either, by path"""
    kinds: dict[Path, str]

    def digests(self) -> dict[Path, str]:
        return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in self.root.rglob("*") if path.is_file()}


def make_album(root: Path, seed: int, count: int) -> Album:
    """Damaged files by seed, and among them one good photo for every ten, two of them with a face."""
    expected, kinds = {}, {}
    for folder, damaged in damaged_inputs(seed, count):
        path = put(root, folder, damaged)
        if path is not None:
            expected[path], kinds[path] = damaged.expected, damaged.kind
    generator = random.Random(seed + 1)
    for number in range(max(3, count // 10)):
        suffix, content = sound(generator)
        path = root / f"{number % 20:02}" / f"good{number:04}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        expected[path], kinds[path] = WORKS, "good"
    for number in range(2):
        path = root / f"face{number}.jpg"
        face_photo().save(path, quality=60 + number)
        expected[path], kinds[path] = WORKS, "good, with a face"
    return Album(root, expected, kinds)


def put(root: Path, folder: bytes, damaged: Damaged) -> Path | None:
    """Write one damaged file; None where the file system takes no such name."""
    place = os.path.join(os.fsencode(root), folder)
    path = os.path.join(place, damaged.name)
    try:
        os.makedirs(place, exist_ok=True)
        with open(path, "wb") as stream:
            stream.write(damaged.content)
    except OSError:
        return None
    return Path(os.fsdecode(path))


def face_photo() -> Image.Image:
    from skimage import data

    return Image.fromarray(data.astronaut()[0:220, 120:340])


@dataclass(frozen=True)
class Finished:
    code: int
    stdout: str
    stderr: str
    peak_bytes: int
    seconds: float

    @property
    def photos(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in self.stdout.splitlines()]


def restore(*arguments: object, model: Path, wrapper: tuple[str, ...] = ()) -> Finished:
    """Run ``facefix restore`` as a process of its own."""
    command = (*wrapper, sys.executable, "-m", "facefix", "restore", *map(os.fspath, map(str, arguments)))
    options = ("--model", str(model), "--faces", "dlib", "--device", "cpu", "--threads", "2")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    environment["PYTHONIOENCODING"] = "utf-8:strict"  # as in a UTF-8 locale, whatever this machine's is
    start = time.monotonic()
    with subprocess.Popen(
        [*command, *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        text=True,
        errors="replace",
    ) as process:
        peak, ended = [0], threading.Event()
        watcher = threading.Thread(target=watch_memory, args=(process.pid, peak, ended))
        watcher.start()
        stdout, stderr = process.communicate(timeout=900)
        ended.set()
        watcher.join()
    seconds = time.monotonic() - start
    return Finished(process.returncode, stdout, stderr, peak[0], seconds)


def watch_memory(pid: int, peak: list[int], ended: threading.Event) -> None:
    """Keep the highest resident memory of a process (what wait() tells counts its parent's before the exec)."""
    while not ended.wait(0.1):
        with contextlib.suppress(OSError):
            status = Path(f"/proc/{pid}/status").read_text()
            peak[0] = max([peak[0], *(int(kib) * 1024 for kib in re.findall(r"VmHWM:\s+(\d+) kB", status))])


def no_partial_files(output: Path) -> bool:
    return not [path for path in output.rglob("*") if path.name.endswith((".tmp", ".partial", ".part"))]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, model: Path) -> tuple[Album, Path, Finished, dict[Path, str]]:
    root = tmp_path_factory.mktemp("bad")
    album = make_album(root / "album", SEED, COUNT)
    before = album.digests()
    done = restore(album.root, "-o", root / "out", "--jsonl", "-q", "--max-pixels", MAX_PIXELS, model=model)
    return album, root / "out", done, before


Run = tuple[Album, Path, Finished, dict[Path, str]]


def test_nothing_crashes_and_the_exit_code_says_that_some_failed(finished: Run) -> None:
    _, _, done, _ = finished
    assert "Traceback" not in done.stderr, done.stderr[-3000:]
    assert done.code == 3, done.stderr[-3000:]


def test_every_file_is_accounted_for(finished: Run) -> None:
    """Done, or named with a reason; what cannot work is named, what must work is done."""
    album, output, done, _ = finished
    named = {os.fsencode(str(row["photo"])): row for row in done.photos}
    wrong = []
    tally: Counter[tuple[str, str]] = Counter()
    for path, expected in album.expected.items():
        row = named.get(os.fsencode(path))
        status = "not named" if row is None else str(row["status"])
        tally[album.kinds[path], status] += 1
        failed = status == "failed"
        if failed and not (row and str(row["reason"]).startswith(f"{printable(path)}: ")):
            wrong.append((path, f"a reason that is not about this file: {row and row['reason']}"))
        if not failed and not (output / path.relative_to(album.root)).is_file():
            wrong.append((path, f"{status}, but no output"))
        if (failed and expected == WORKS) or (not failed and expected == FAILS):
            wrong.append((path, f"{album.kinds[path]}: {status}: {row and row['reason']}"))
    print(*(f"{count:5} {kind}: {status}" for (kind, status), count in sorted(tally.items())), sep="\n")
    print(f"{done.seconds:.1f} s, {done.peak_bytes / 2**20:.0f} MiB")
    assert wrong == []


def test_every_failure_is_on_stderr_with_its_file(finished: Run) -> None:
    """What cron mails: one line each, no control characters, no line that is not about a file."""
    _, _, done, _ = finished
    failures = [row for row in done.photos if row["status"] == "failed"]
    lines = [line for line in done.stderr.splitlines() if line.startswith("facefix: ")]
    assert len(lines) >= len(failures) > 0
    assert set(done.stderr.splitlines()) == set(lines), "nothing that decoders print by themselves"
    assert not [
        line for line in done.stderr.splitlines() if any(ord(letter) < 32 and letter != "\t" for letter in line)
    ]


def test_no_original_is_touched_and_nothing_half_written_is_left(finished: Run) -> None:
    album, output, _, before = finished
    assert album.digests() == before
    assert no_partial_files(output)
    assert not Path("pwned").exists()


def test_faces_among_the_damage_are_found(finished: Run) -> None:
    _, _, done, _ = finished
    rows = [row for row in done.photos if "face" in Path(str(row["photo"])).name]
    assert len(rows) == 2
    assert all(row["faces"] for row in rows)


def test_bombs_do_not_fill_the_memory(finished: Run) -> None:
    _, _, done, _ = finished
    assert 0 < done.peak_bytes < MAX_MEMORY_BYTES


def test_the_report_shows_every_file(finished: Run) -> None:
    album, output, _, _ = finished
    page = (output / REPORT_FOLDER / "index.html").read_text("utf-8")
    photos = json.loads(page.split('id="data">')[1].split("</script>")[0])["photos"]
    assert len(photos) == len(album.expected)


def test_a_second_run_tries_only_the_failures_again(finished: Run, model: Path) -> None:
    album, output, done, _ = finished
    again = restore(album.root, "-o", output, "--jsonl", "-q", "--max-pixels", MAX_PIXELS, model=model)
    assert again.code == 3
    assert {row["status"] for row in again.photos} == {"failed"}
    failed = {row["photo"] for row in done.photos if row["status"] == "failed"}
    assert {row["photo"] for row in again.photos} == failed


def good_photos(root: Path, count: int = 6) -> list[Path]:
    root.mkdir(parents=True, exist_ok=True)
    paths = []
    for number in range(count):
        path = root / f"good{number}.png"
        Image.frombytes("RGB", (64, 64), random.Random(number).randbytes(64 * 64 * 3)).save(path)
        paths.append(path)
    return paths


def test_what_is_no_regular_file_or_may_not_be_read_is_skipped_or_named(tmp_path: Path, model: Path) -> None:
    """Pipes, sockets, devices, folders with photo names, links to nowhere, in circles and out of the album; files and
    folders without permission (who knows how many photos are in a folder that cannot be read?)."""
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
