"""How well faces are grouped, and what it costs: real crops for quality, made-up embeddings for size.

    python tests/bench/bench_grouping.py quality SHARED [--cache FILE]   precision and recall of pairs
    python tests/bench/bench_grouping.py portraits SHARED                blurred faces, soft portraits
    python tests/bench/bench_grouping.py size [--faces 100000]           time and peak memory

SHARED is the folder with data/manifest.csv. Nothing is tuned here: thresholds are those of facefix.faces.embed, and the
ones that a half of the people would choose are reported on the other half.
"""

from __future__ import annotations

import argparse
import csv
import resource
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from facefix.faces import align
from facefix.faces.backends import Backend, load_backend
from facefix.faces.embed import DLIB_SCALE
from facefix.faces.face import Detection, Face
from facefix.faces.quality import assess, yaw_of
from facefix.people.groups import group_faces
from facefix.people.linkage import Constraints, group
from facefix.people.references import choose_references

SPLITS = ("train512", "train256", "eval_public")

SAFETY = 0.05
"""Part by which a threshold stays below the first that joins a wrong pair on the half that chooses it."""


@dataclass(frozen=True)
class Crops:
    """Aligned crops as faces, with who they are."""

    faces: list[Face]
    people: NDArray[np.str_]
    splits: NDArray[np.str_]

    def subset(self, chosen: NDArray[np.bool_]) -> Crops:
        return Crops(
            [face for face, take in zip(self.faces, chosen, strict=True) if take],
            self.people[chosen],
            self.splits[chosen],
        )


@dataclass(frozen=True)
class Score:
    """Pairs of faces put together: precision, recall, how many wrong."""

    precision: float
    recall: float
    wrong: int

    def __str__(self) -> str:
        return f"precision {self.precision:.4f}  recall {self.recall:.4f}  wrong pairs {self.wrong}"


def read_crops(shared: Path, backend: Backend, cache: Path | None = None) -> Crops:
    """Every public crop as a face of a photo of its own."""
    with open(shared / "data" / "manifest.csv", newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] in SPLITS]
    if cache is not None and cache.is_file():
        stored = np.load(cache)
        embeddings, numbers = stored["embeddings"], stored["numbers"]
        faces = [
            _face(row["file"], *pair) for row, pair in zip(rows, zip(embeddings, numbers, strict=True), strict=True)
        ]
    else:
        faces = [_read_face(shared / "data" / row["file"], row["file"], backend) for row in rows]
        if cache is not None:
            quality = [
                [face.quality.face_px, face.quality.sharpness, face.quality.score, face.quality.yaw] for face in faces
            ]
            np.savez(cache, embeddings=np.stack([face.embedding for face in faces]), numbers=np.array(quality))
    return Crops(faces, np.array([row["identity"] for row in rows]), np.array([row["split"] for row in rows]))


def _read_face(path: Path, key: str, backend: Backend) -> Face:
    """The crop is embedded as it lies; its yaw is that of the landmarks that the detector finds in it."""
    crop = np.array(Image.open(path).convert("RGB"))
    side = crop.shape[0]
    landmarks = (align.TEMPLATE_512 + 0.5) * (side / align.CROP_SIZE) - 0.5
    detection = Detection((0, 0, side, side), landmarks, 1.0)
    large = align.warp(crop, align.crop_matrix(landmarks))
    found = max(backend.detector.detect(large), key=lambda face: face.box[2] - face.box[0], default=detection)
    quality = replace(assess(large, detection), yaw=yaw_of(found.landmarks))
    return Face(key, 0, detection, backend.embedder.embed([crop])[0], quality)


def _face(key: str, embedding: NDArray[np.float32], numbers: NDArray[np.float64]) -> Face:
    from facefix.faces.face import Quality

    face_px, sharpness, score, yaw = numbers.tolist()
    detection = Detection((0, 0, 512, 512), align.TEMPLATE_512, 1.0)
    return Face(key, 0, detection, embedding, Quality(face_px, sharpness, yaw, 0.0, score))


def score_pairs(labels: Sequence[int] | NDArray[np.int64], people: NDArray[np.str_]) -> Score:
    """Precision and recall over all pairs of faces."""
    labels = np.asarray(labels)
    upper = np.triu_indices(len(people), 1)
    together = (labels[:, None] == labels[None])[upper]
    same = (people[:, None] == people[None])[upper]
    right = int((together & same).sum())
    return Score(right / max(int(together.sum()), 1), right / int(same.sum()), int((together & ~same).sum()))


def score_groups(crops: Crops, backend: Backend) -> Score:
    """group_faces as a run uses it."""
    number = {face.key: index for index, members in enumerate(group_faces(crops.faces, backend)) for face in members}
    return score_pairs([number[face.key] for face in crops.faces], crops.people)


def linkage_at(crops: Crops, threshold: float) -> Score:
    """Average linkage alone, at one threshold."""
    embeddings = np.stack([face.embedding for face in crops.faces if face.embedding is not None])
    constraints = Constraints(list(range(len(embeddings))), [None] * len(embeddings))
    noise = DLIB_SCALE.turned * np.array([face.quality.yaw for face in crops.faces]) ** 2
    return score_pairs(group(embeddings, constraints, threshold, noise=noise), crops.people)


def chosen_on_half(crops: Crops, seed: int, *, swapped: bool) -> tuple[float, Score]:
    """A threshold that one half of the people chooses, and what it gives on the other half.

    It is the first one with a wrong pair, less SAFETY of it.
    """
    names = np.unique(crops.people)
    half = np.isin(crops.people, np.random.default_rng(seed).permutation(names)[: len(names) // 2])
    chosen_from, reported_on = crops.subset(half ^ swapped), crops.subset(~half ^ swapped)
    low, high = 0.25, 0.36
    while high - low > 1e-4:
        middle = (low + high) / 2
        low, high = (low, middle) if linkage_at(chosen_from, middle).wrong else (middle, high)
    threshold = high * (1 - SAFETY)
    return threshold, linkage_at(reported_on, threshold)


def halvings(crops: Crops, backend: Backend, count: int) -> None:
    """Thresholds chosen on one half and reported on the other, both ways, for ``count`` random halvings."""
    scores = []
    for seed in range(count):
        for swapped in (False, True):
            threshold, score = chosen_on_half(crops, seed, swapped=swapped)
            scores.append(score)
            print(f"half {seed}{'b' if swapped else 'a'}: threshold {threshold:.4f}: {score}", flush=True)
    good = sum(score.precision >= 0.999 and score.recall >= 0.90 for score in scores)
    print(
        f"precision >= 0.999 and recall >= 0.90 in {good} of {len(scores)}; least precision "
        f"{min(score.precision for score in scores):.4f}, least recall {min(score.recall for score in scores):.4f}"
    )
    names = np.unique(crops.people)
    shipped = [
        score_groups(crops.subset(np.isin(crops.people, np.random.default_rng(seed).permutation(names)[::2])), backend)
        for seed in range(count)
    ]
    print(
        f"group_faces as shipped on {count} random halves: least precision "
        f"{min(score.precision for score in shipped):.4f}, least recall {min(score.recall for score in shipped):.4f}"
    )


def wrong_references(crops: Crops, backend: Backend) -> tuple[int, int]:
    """Number of automatically chosen references, over all faces, and how many are of somebody else."""
    person = {face.key: name for face, name in zip(crops.faces, crops.people.tolist(), strict=True)}
    chosen = wrong = 0
    for members in group_faces(crops.faces, backend):
        for face in members:
            references = choose_references(members, (), face, backend)
            chosen += len(references)
            wrong += sum(person[reference.face.key] != person[face.key] for reference in references)
    return chosen, wrong


def measure_quality(shared: Path, cache: Path | None) -> None:
    backend = load_backend("dlib")
    crops = read_crops(shared, backend, cache)
    print(f"{len(crops.faces)} crops of {len(np.unique(crops.people))} people")
    print(f"all crops together     {score_groups(crops, backend)}")
    print(f"eval_public alone      {score_groups(crops.subset(crops.splits == 'eval_public'), backend)}")
    for threshold in (0.27, 0.28, 0.29, 0.30, 0.31):
        print(f"linkage at {threshold:.2f} alone  {linkage_at(crops, threshold)}")
    halvings(crops, backend, 10)
    for name, part in (("all", crops), ("eval_public", crops.subset(crops.splits == "eval_public"))):
        chosen, wrong = wrong_references(part, backend)
        print(f"references chosen in {name}: {chosen}, of the wrong person: {wrong}")


def measure_portraits(shared: Path, people: int) -> None:
    """Degraded faces of ``people``, and for every other person one portrait, sharp or blurred, of another picture."""
    backend = load_backend("dlib")
    with open(shared / "data" / "manifest.csv", newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "train512"]
    pictures: dict[str, list[str]] = {}
    for row in rows:
        pictures.setdefault(row["identity"], []).append(row["file"])
    chosen = sorted(name for name, files in pictures.items() if len(files) > 1)
    chosen = np.random.default_rng(0).permutation(chosen)[:people].tolist()
    crops = {name: [np.array(Image.open(shared / "data" / file)) for file in pictures[name][:2]] for name in chosen}
    album = {
        preset: [
            _made_face(f"{preset}/{name}", _degraded(crops[name][1], preset, seed), backend)
            for seed, name in enumerate(chosen)
        ]
        for preset in ("moderate", "severe")
    }
    for blur in (0.0, 2.0, 3.0, 5.0):
        portraits = [
            _made_face(
                f"portrait/{name}",
                np.array(Image.fromarray(crops[name][0]).filter(ImageFilter.GaussianBlur(blur))),
                backend,
            )
            for name in chosen[::2]
        ]
        sharpness = np.median([face.quality.sharpness for face in portraits])
        for preset, faces in album.items():
            groups = group_faces([*portraits, *faces], backend, portraits={face.key for face in portraits})
            owner = {
                face.photo.split("/")[1]: {other.photo.split("/")[1] for other in group if other.photo in given}
                for given in [{face.photo for face in portraits}]
                for group in groups
                for face in group
                if face.photo not in given
            }
            right = sum(owner[name] == {name} for name in chosen[::2])
            wrong = sum(bool(found - {name}) for name, found in owner.items())
            print(
                f"portraits blurred by {blur:.0f} px (median sharpness {sharpness:.2f}), {preset} faces: {right} of "
                f"{len(portraits)} find their portrait, {wrong} of {len(faces)} somebody else's",
                flush=True,
            )


def _degraded(crop: NDArray[np.uint8], preset: str, seed: int) -> NDArray[np.uint8]:
    from facefix.datasets import degradation

    image = torch.from_numpy(crop).permute(2, 0, 1)[None].float() / 127.5 - 1
    bad = degradation.apply(image, [degradation.draw(preset, seed)])[0].permute(1, 2, 0).numpy()
    return ((bad + 1) * 127.5).round().clip(0, 255).astype(np.uint8)


def _made_face(key: str, crop: NDArray[np.uint8], backend: Backend) -> Face:
    detection = Detection((0, 0, 512, 512), align.TEMPLATE_512, 1.0)
    return Face(key, 0, detection, backend.embedder.embed([crop])[0], assess(crop, detection))


def measure_size(count: int) -> None:
    """People as directions with realistic spread: pairs of one person about 0.2 apart, of two about 1.4."""
    rng = np.random.default_rng(0)
    people = rng.zipf(1.6, count).clip(1, count // 50)
    people = rng.permutation(count // 20)[people % (count // 20)]
    centres = rng.normal(size=(count // 20 + 1, 128))
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    embeddings = centres[people] + rng.normal(size=(count, 128)) * 0.013
    embeddings = (embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)).astype(np.float32)
    photos = rng.integers(0, count // 2, count).tolist()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start, cpu = time.perf_counter(), time.process_time()
    labels = group(embeddings, Constraints(photos, [None] * count), 0.3)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu
    print(
        f"{count} embeddings of {len(np.unique(people))} people (largest {np.bincount(people).max()} faces): "
        f"{len(np.unique(labels))} groups in {seconds:.0f} s ({cpu_seconds:.0f} s CPU), "
        f"peak memory {after / 1024:.0f} MiB, {(after - before) / 1024:.0f} MiB more than before"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_subparsers(dest="what", required=True)
    quality = what.add_parser("quality")
    quality.add_argument("shared", type=Path)
    quality.add_argument("--cache", type=Path)
    portraits = what.add_parser("portraits")
    portraits.add_argument("shared", type=Path)
    portraits.add_argument("--people", type=int, default=80)
    size = what.add_parser("size")
    size.add_argument("--faces", type=int, default=100_000)
    arguments = parser.parse_args()
    if arguments.what == "quality":
        measure_quality(arguments.shared, arguments.cache)
    elif arguments.what == "portraits":
        measure_portraits(arguments.shared, arguments.people)
    else:
        measure_size(arguments.faces)


if __name__ == "__main__":
    main()
