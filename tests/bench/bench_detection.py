"""How fast photos are looked into, and which faces are found: the fast detector beside dlib's network, in one run.

    taskset -c 0 python tests/bench/bench_detection.py speed [--sizes 1 4 12 24]     photos with 0, 1, 5 and 30 faces
    taskset -c 0 python tests/bench/bench_detection.py recall SHARED [--sheet F.png] photos_public and turned copies
    taskset -c 0 python tests/bench/bench_detection.py tilted SHARED                 heads tilted by 0 to 60 degrees

Both detectors are timed on processor time, one after the other for every photo, so that other work on the machine
weighs on both alike. Large photos are the people of a group photo laid out on a landscape.
"""

from __future__ import annotations

import argparse
import csv
import sys
import tempfile
import time
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from albums import PEOPLE, landscape, portrait

from facefix.faces import align
from facefix.faces.backends import Backend, load_backend
from facefix.faces.detect import turned_back
from facefix.faces.face import Detection
from facefix.photos.photo import MAX_PIXELS, read_photo
from facefix.restoration.index import look_into

COMPARED = ("dlib", "mtcnn")
FACES = (0, 1, 5, 30)


@dataclass(frozen=True)
class Spent:
    """Processor seconds for one photo."""

    detecting: float
    looking: float
    found: int


def make_photo(path: Path, megapixels: float, faces: int) -> None:
    """A landscape of 4 : 3 with people in a grid; as cameras do, EXIF says that it is upright."""
    width, height = round((megapixels * 1e6 * 4 / 3) ** 0.5), round((megapixels * 1e6 * 3 / 4) ** 0.5)
    photo = landscape(faces).resize((width, height), Image.Resampling.BICUBIC)
    columns = {0: 1, 1: 1, 5: 3, 30: 6}[faces]
    rows = -(-faces // columns)
    for number in range(faces):
        cell = (width // columns, height // rows)
        side = round(min(*cell, 0.4 * height) * 0.9)
        person = portrait(PEOPLE[number % len(PEOPLE)]).resize((side, side), Image.Resampling.BICUBIC)
        photo.paste(person, (number % columns * cell[0], number // columns * cell[1]))
    exif = Image.Exif()
    exif[0x0112] = 1
    photo.save(path, quality=90, exif=exif)


def spend(path: Path, backend: Backend) -> Spent:
    """Time to detect in decoded pixels, and to look into the file: decode, detect, align, embed, judge."""
    pixels = read_photo(path).pixels
    start = time.process_time()
    found = backend.detector.detect(pixels)
    detecting = time.process_time() - start
    start = time.process_time()
    look_into(path, backend, MAX_PIXELS)
    return Spent(detecting, time.process_time() - start, len(found))


def measure_speed(sizes: list[float], repeats: int) -> None:
    """The table: detection alone, and all of looking into a photo."""
    backends = {name: load_backend(name) for name in COMPARED}
    totals: dict[tuple[str, str], float] = defaultdict(float)
    print("megapixels  faces  found       detect (s)           times   look into (s)        times")
    with tempfile.TemporaryDirectory() as folder:
        for megapixels in sizes:
            for faces in FACES:
                path = Path(folder) / f"{megapixels:g}-{faces}.jpg"
                make_photo(path, megapixels, faces)
                best: dict[str, Spent] = {}
                for _ in range(repeats):
                    for name, backend in backends.items():
                        spent = spend(path, backend)
                        known = best.get(name, spent)
                        best[name] = Spent(
                            min(known.detecting, spent.detecting), min(known.looking, spent.looking), spent.found
                        )
                for name, spent in best.items():
                    totals[name, "detect"] += spent.detecting
                    totals[name, "look"] += spent.looking
                old, new = (best[name] for name in COMPARED)
                print(
                    f"{megapixels:10g}  {faces:5}  {old.found:2} {new.found:2}  "
                    f"{old.detecting:9.2f} {new.detecting:9.3f}  {old.detecting / new.detecting:8.1f}   "
                    f"{old.looking:9.2f} {new.looking:9.3f}  {old.looking / new.looking:8.1f}",
                    flush=True,
                )
    for what in ("detect", "look"):
        old_total, new_total = (totals[name, what] for name in COMPARED)
        print(f"all photos, {what}: {old_total:.2f} s and {new_total:.2f} s, {old_total / new_total:.1f} times")


def copies(shared: Path) -> dict[str, tuple[NDArray[np.uint8], int]]:
    """Pictures of photos_public with quarter turns: all turned by 0, and three of each by 1 to 3."""
    found = {}
    for number, path in enumerate(sorted((shared / "data" / "photos_public").iterdir())):
        pixels = read_photo(path).pixels
        for quarter_turns in (0, 1 + number % 3):
            found[f"{path.name} turned by {90 * quarter_turns}"] = (
                np.ascontiguousarray(np.rot90(pixels, quarter_turns)),
                quarter_turns,
            )
    return found


def measure_recall(shared: Path, sheet: Path | None) -> None:
    """Faces that either finds, matched by place; crops of those that only one finds go to a sheet to be looked at."""
    from facefix.faces.index import _detect

    backends = {name: load_backend(name) for name in COMPARED}
    lost, more = list[tuple[str, Detection, NDArray[np.uint8]]](), list[tuple[str, Detection, NDArray[np.uint8]]]()
    counts: Counter[str] = Counter()
    for name, (pixels, quarter_turns) in copies(shared).items():
        upright = np.ascontiguousarray(np.rot90(pixels, -quarter_turns))
        dlib = backends["dlib"].detector.detect(upright)
        there = _detect(pixels, None, backends["mtcnn"], None)
        mtcnn = [turned_back(face, quarter_turns, upright.shape[1], upright.shape[0]) for face in there]
        lost += [(name, face, upright) for face in dlib if not any(_same(face, other) for other in mtcnn)]
        more += [(name, face, upright) for face in mtcnn if not any(_same(face, other) for other in dlib)]
        counts["dlib"] += len(dlib)
        counts["mtcnn"] += len(mtcnn)
        counts["unsettled dlib"] += sum(not face.settled for face in dlib)
        counts["unsettled mtcnn"] += sum(not face.settled for face in mtcnn)
        print(f"{name:45} dlib {len(dlib):3}  mtcnn {len(mtcnn):3}", flush=True)
    print(dict(counts))
    print(f"lost: {[name for name, _, _ in lost]}; found by mtcnn only: {[name for name, _, _ in more]}")
    if sheet is not None:
        save_sheet(sheet, lost + more)


def _same(one: Detection, other: Detection) -> bool:
    first, second = np.array(one.box), np.array(other.box)
    side = max(first[2] - first[0], 1.0)
    near = float(np.abs((first[:2] + first[2:]) / 2 - (second[:2] + second[2:]) / 2).max()) < 0.4 * side
    return near and 0.5 < (second[2] - second[0]) / side < 2


def save_sheet(path: Path, faces: list[tuple[str, Detection, NDArray[np.uint8]]], side: int = 120) -> None:
    """Crops with what they are, ten a row."""
    page = Image.new("RGB", (10 * side, max(1, -(-len(faces) // 10)) * side))
    for number, (_, face, pixels) in enumerate(faces):
        left, top, right, bottom = face.box
        margin = (right - left) / 2
        window = (round(left - margin), round(top - margin), round(right + margin), round(bottom + margin))
        crop = Image.fromarray(pixels).crop(window).resize((side, side))
        ImageDraw.Draw(crop).text((2, 2), f"{face.confidence:.2f}{'' if face.settled else ' ?'}", fill=(255, 255, 0))
        page.paste(crop, (number % 10 * side, number // 10 * side))
    page.save(path)


def measure_tilted(shared: Path, count: int) -> None:
    """How many of ``count`` faces are found, aligned, and still the same person, by how far they are tilted."""
    with open(shared / "data" / "manifest.csv", newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "train512"]
    chosen = [rows[index]["file"] for index in np.random.default_rng(0).permutation(len(rows))[:count]]
    for name in COMPARED:
        backend = load_backend(name)
        for degrees in (0, 30, -40, 50, -60):
            outcomes = Counter(_tilted(shared / "data" / file, degrees, backend) for file in chosen)
            print(f"{name:6} tilted by {degrees:4}: {dict(outcomes)}", flush=True)


def _tilted(path: Path, degrees: int, backend: Backend) -> str:
    face = Image.open(path).convert("RGB").resize((400, 400), Image.Resampling.BICUBIC)
    expected = backend.embedder.embed([np.asarray(face.resize((512, 512), Image.Resampling.BICUBIC))])[0]
    ground = Image.new("RGB", (900, 900), (96, 104, 112))
    ground.paste(face, (250, 250))
    pixels = np.asarray(ground.rotate(degrees, Image.Resampling.BICUBIC, fillcolor=(96, 104, 112)))
    found = backend.detector.detect(pixels)
    if not found:
        return "not found"
    if not found[0].settled:
        return "not settled"
    embedding = backend.embedder.embed([align.warp(pixels, align.crop_matrix(found[0].landmarks))])[0]
    return "right" if backend.similarity(embedding, expected) > 1 - backend.scale.join_most else "misaligned"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_subparsers(dest="what", required=True)
    speed = what.add_parser("speed")
    speed.add_argument("--sizes", type=float, nargs="+", default=[1, 4, 12, 24])
    speed.add_argument("--repeats", type=int, default=2)
    recall = what.add_parser("recall")
    recall.add_argument("shared", type=Path)
    recall.add_argument("--sheet", type=Path)
    tilted = what.add_parser("tilted")
    tilted.add_argument("shared", type=Path)
    tilted.add_argument("--count", type=int, default=40)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.what == "speed":
        measure_speed(arguments.sizes, arguments.repeats)
    elif arguments.what == "recall":
        measure_recall(arguments.shared, arguments.sheet)
    else:
        measure_tilted(arguments.shared, arguments.count)


if __name__ == "__main__":
    main()
