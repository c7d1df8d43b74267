"""Albums of damaged files, and facefix run over them in a process of its own."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import re
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from damaged import WORKS, Damaged, damaged_inputs, sound
from PIL import Image

COUNT = int(os.environ.get("FACEFIX_TEST_DAMAGED", "1000"))


SEED = int(os.environ.get("FACEFIX_TEST_SEED", "20"))


MAX_MEMORY_BYTES = 3 << 30


MAX_PIXELS = 4_000_000


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
