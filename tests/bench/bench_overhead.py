"""What the pipeline costs beside its parts: overhead, device utilisation, memory, a second run.

python tests/bench/bench_overhead.py overhead [PHOTOS]   no-op model against a straight loop, on one core
python tests/bench/bench_overhead.py person SHARED       20 faces, 5 references: encoded once, and for every face
python tests/bench/bench_overhead.py busy [PHOTOS]       part of the restore phase in which the device works
python tests/bench/bench_overhead.py memory [PHOTOS]     peak memory of PHOTOS and of a tenth of them; a second run
"""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from albums import PEOPLE, landscape, old_photo

from facefix.faces.align import crop_matrix, warp
from facefix.faces.backends import Backend, load_backend
from facefix.faces.face import Detection
from facefix.jobs.restore import restore_album
from facefix.methods.base import Pixels
from facefix.photos.photo import read_photo
from facefix.restoration.run import Options, Request
from facefix.restoration.summary import Summary
from facefix.settings import Settings


@dataclass(frozen=True)
class Nothing:
    """References that cost nothing."""

    count: int = 1
    nbytes: int = 0


@dataclass
class NoOp:
    """A model that returns its input, after ``seconds`` a face in which the processor is free, as with a GPU."""

    seconds: float = 0.0
    name: str = "no-op"
    crop_size: int = 512
    recipe: str = "no-op"

    def prepare(self, references: Sequence[Pixels], sources: Sequence[str] = ()) -> Nothing:
        return Nothing(len(references))

    def restore(self, crops: Sequence[Pixels], references: Any, seeds: Any = None) -> list[Pixels]:
        time.sleep(self.seconds * len(crops))
        return list(crops)

    def in_fp32(self) -> NoOp:
        return self


@dataclass
class Timed:
    """A detector or embedder that adds up the processor time of its calls."""

    inner: Any
    seconds: float = 0.0
    name: str = field(init=False)

    def __post_init__(self) -> None:
        self.name = self.inner.name

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def detect(self, rgb: np.ndarray) -> Any:
        return self._timed(self.inner.detect, rgb)

    def embed(self, crops: Any) -> Any:
        return self._timed(self.inner.embed, crops)

    def _timed(self, function: Any, argument: Any) -> Any:
        start = time.thread_time()
        try:
            return function(argument)
        finally:
            self.seconds += time.thread_time() - start


@dataclass(frozen=True)
class OneFace:
    """Stands for a detector and an embedder where only bookkeeping is measured: a face in every tenth photo."""

    name: str = "one-face"
    dim: int = 128
    scale: Any = None

    def detect(self, rgb: np.ndarray) -> list[Detection]:
        if int(rgb.sum(dtype=np.int64)) % 10:  # the same for a photo that is turned
            return []
        points = np.array([[130, 90], [190, 90], [160, 125], [135, 155], [185, 155]], float)
        return [Detection((100, 50, 220, 180), points, 0.9)]

    def embed(self, crops: Sequence[Pixels]) -> np.ndarray:
        vectors = [np.random.default_rng(int(crop.sum())).normal(size=self.dim) for crop in crops]
        return np.array([vector / np.linalg.norm(vector) for vector in vectors], np.float32).reshape(-1, self.dim)


def settings(output: Path, threads: int) -> Settings:
    return Settings(output=output, threads=threads, report=False, restore="all", min_face=10)


def make_photos(folder: Path, count: int, side: int, *, says_up: bool = True) -> None:
    """Photos of one person in a landscape, ``side`` px, the face about a sixth of that.

    They are upright, and ``says_up`` writes that into EXIF, as cameras do.
    """
    folder.mkdir()
    upright = Image.Exif()
    if says_up:
        upright[0x0112] = 1
    for number in range(count):
        picture = landscape(number).resize((side, side), Image.Resampling.BICUBIC)
        person = old_photo(PEOPLE[number % len(PEOPLE)], number)
        width = round(0.37 * side)
        picture.paste(person.resize((width, width), Image.Resampling.BICUBIC), (side // 3, side // 4))
        picture.save(folder / f"{number:04}.jpg", quality=90, exif=upright)


def straight_loop(folder: Path, output: Path, backend: Backend) -> None:
    """Decode, detect, embed, encode: what nobody can do without."""
    output.mkdir()
    for path in sorted(folder.iterdir()):
        photo = read_photo(path)
        found = backend.detector.detect(photo.pixels)
        backend.embedder.embed([warp(photo.pixels, crop_matrix(face.landmarks)) for face in found])
        Image.fromarray(photo.pixels).save(output / path.name, quality=90)


def overhead(folder: Path, count: int, side: int, *, says_up: bool = True) -> None:
    """The pipeline with a no-op model against the straight loop, both on one core."""
    os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[0]})
    torch.set_num_threads(1)
    make_photos(folder / "album", count, side, says_up=says_up)
    plain = load_backend("dlib")
    straight_loop(folder / "album", folder / "warm", plain)
    wall, cpu = time.perf_counter(), time.process_time()
    straight_loop(folder / "album", folder / "loop", plain)
    loop = (time.perf_counter() - wall, time.process_time() - cpu)
    timed = replace(plain, detector=Timed(plain.detector), embedder=Timed(plain.embedder))
    wall, cpu = time.perf_counter(), time.process_time()
    summary = restore_album(
        Request((folder / "album",)), settings(folder / "out", 1), Options(backend=timed, restorer=NoOp())
    )
    run = (time.perf_counter() - wall, time.process_time() - cpu)
    assert summary.statuses["restored"] == count, summary.statuses
    kind = "" if says_up else ", EXIF does not say which way is up"
    print(f"{count} photos of {side} x {side} px, one face each, one core{kind}")
    print(f"straight loop  {count / loop[0]:.3f} photos/s wall, {loop[1] / count * 1000:.0f} ms processor time a photo")
    print(f"pipeline       {count / run[0]:.3f} photos/s wall, {run[1] / count * 1000:.0f} ms processor time a photo")
    print(f"ratio          {loop[0] / run[0]:.3f} wall, {loop[1] / run[1]:.3f} processor time")
    parts = {"detect": timed.detector.seconds, "embed (index and guard)": timed.embedder.seconds}  # type: ignore[attr-defined]
    parts["all else: read twice, cut out, blend, write, verify, undo record, ledger"] = run[1] - sum(parts.values())
    for name, seconds in parts.items():
        print(f"  {seconds / count * 1000:6.0f} ms  {name}")


def busy(folder: Path, count: int) -> None:
    """Device utilisation in the restore phase, for devices of several speeds."""
    make_photos(folder / "album", count, 1000)
    backend = load_backend("dlib")
    for seconds in (2.0, 1.0, 0.5, 0.25):
        options = Options(backend=backend, restorer=NoOp(seconds))
        summary = restore_album(
            Request((folder / "album",)), settings(folder / f"out{seconds}", len(os.sched_getaffinity(0))), options
        )
        print(f"device at {seconds} s a face: busy {summary.device_busy:.3f} of {summary.restore_seconds:.1f} s")


def person(folder: Path, shared: Path) -> None:
    """20 degraded photos of one person and 5 portraits through the shipped model, with and without kept references."""
    pictures = sorted((shared / "data" / "eval_public").glob("lisa_*.jpg"))
    portraits, others = pictures[:5], pictures[5:]
    (folder / "refs" / "lisa").mkdir(parents=True)
    (folder / "album").mkdir()
    for path in portraits:
        shutil.copy(path, folder / "refs" / "lisa" / path.name)
    for number in range(20):
        picture = Image.open(others[number % len(others)]).convert("RGB")
        small = picture.resize((150 + 4 * number,) * 2, Image.Resampling.BICUBIC)
        small.resize((512, 512), Image.Resampling.BICUBIC).save(folder / "album" / f"{number:02}.jpg", quality=80)
    backend = load_backend("dlib")
    for cache_mib, name in ((1024, "encoded once"), (0, "encoded for every face")):
        run = settings(folder / f"out{cache_mib}", len(os.sched_getaffinity(0))).model_copy(
            update={"refs": folder / "refs", "refs_from": "portraits", "cache_mib": cache_mib, "model": "small"}
        )
        summary = restore_album(Request((folder / "album",)), run, Options(backend=backend))
        device = summary.device
        print(
            f"{device.faces} faces of one person, {len(portraits)} references, {name}: {device.references_encoded} "
            f"reference encodings in {device.encode_seconds:.1f} s, {device.busy_seconds:.1f} s on the device in all"
        )


def memory(folder: Path, count: int) -> None:
    """Peak memory of a large and a small album, each in a process of its own, and the time of a second run."""
    for number in (count // 10, count):
        album = folder / f"album{number}"
        album.mkdir()
        for photo in range(number):
            landscape(photo).resize((320, 240)).save(album / f"{photo:05}.png", compress_level=1)
        for run in ("first", "second"):
            command = [sys.executable, __file__, "one", str(album)]
            subprocess.run(command, check=True, env={**os.environ, "FACEFIX_BENCH_RUN": run})


def one(album: Path) -> None:
    """One run over bookkeeping stand-ins; prints its time and its peak memory."""
    real = load_backend("dlib")
    fake = OneFace(scale=real.scale)
    start = time.perf_counter()
    summary: Summary = restore_album(
        Request((album,)),
        settings(album.with_name(album.name + "-out"), 2),
        Options(backend=Backend("one-face", fake, fake), restorer=NoOp()),
    )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"{summary.photos} photos, {os.environ['FACEFIX_BENCH_RUN']} run: {time.perf_counter() - start:.1f} s,"
        f" peak {peak:.0f} MiB, {dict(summary.statuses)}, {summary.already_done} done before",
        flush=True,
    )


if __name__ == "__main__":
    what, *rest = sys.argv[1:]
    with tempfile.TemporaryDirectory() as temporary:
        if what == "overhead":
            for side, says_up in ((1000, True), (2000, True), (1000, False)):
                place = Path(temporary) / f"{side}{says_up}"
                place.mkdir()
                overhead(place, int(rest[0]) if rest else 12, side, says_up=says_up)
        elif what == "person":
            person(Path(temporary), Path(rest[0]))
        elif what == "busy":
            busy(Path(temporary), int(rest[0]) if rest else 16)
        elif what == "memory":
            memory(Path(temporary), int(rest[0]) if rest else 3000)
        else:
            one(Path(rest[0]))
