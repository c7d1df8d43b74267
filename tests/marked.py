"""Faces that need no network: coloured squares. Who it is is the colour, and every answer can be computed by hand."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from facefix.faces.backends import Backend
from facefix.faces.embed import DLIB_SCALE, IdentityScale
from facefix.faces.face import Detection, Face, Pixels, Quality
from facefix.methods.base import PreparedReferences, ReferenceUse, RestorerDefaults

COLOURS = {"ann": (190, 60, 60), "bob": (60, 190, 60), "cid": (60, 60, 190)}
SIDE = 96
"""of a square, in px"""


def picture(*people: str, size: tuple[int, int] = (400, 200), seed: int = 0) -> Image.Image:
    """A grey picture with a square for each of ``people``, left to right; ``seed`` makes the noise in the squares."""
    pixels = np.full((size[1], size[0], 3), 128, np.uint8)
    noise = np.random.default_rng(seed).integers(-20, 21, (SIDE, SIDE, 1))
    for number, person in enumerate(people):
        left, top = 30 + number * (SIDE + 30), 50
        pixels[top : top + SIDE, left : left + SIDE] = COLOURS[person] + noise
    return Image.fromarray(pixels)


def make_photos(folder: Path, **photos: Sequence[str]) -> list[Path]:
    """Photos as PNG files: name -> people in it."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, (name, people) in enumerate(photos.items()):
        paths.append(folder / f"{name}.png")
        picture(*people, seed=number).save(paths[-1])
    return paths


class Squares:
    """Finds the squares."""

    name = "marked"

    def detect(self, rgb: NDArray[np.uint8]) -> list[Detection]:
        found = []
        for colour in COLOURS.values():
            rows, columns = np.nonzero(np.abs(rgb.astype(int) - colour).max(axis=2) <= 50)
            if len(rows) > 100:
                left, top, right, bottom = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
                points = np.array([[0.3, 0.35], [0.7, 0.35], [0.5, 0.58], [0.35, 0.78], [0.65, 0.78]])
                landmarks = points * (right - left, bottom - top) + (left, top)
                found.append(Detection((float(left), float(top), float(right), float(bottom)), landmarks, 0.99))
        return found


class Colours:
    """Embeds a crop as the direction of its colour from grey."""

    name = "marked"
    dim = 3
    scale: IdentityScale = DLIB_SCALE

    def embed(self, crops: Sequence[Pixels]) -> NDArray[np.float32]:
        means = [crop[200:312, 200:312].reshape(-1, 3).mean(axis=0) - 128.0 for crop in crops]
        return np.array([mean / max(np.linalg.norm(mean), 1e-6) for mean in means], np.float32).reshape(-1, 3)


def marked_backend() -> Backend:
    """The backend for such pictures."""
    return Backend("marked", Squares(), Colours())


@dataclass(frozen=True)
class Count:
    """References as their number."""

    count: int
    nbytes: int = 100


@dataclass
class Checkered(RestorerDefaults):
    """Lays a fine pattern over every face, a stronger one with more references; mean colours stay as they are."""

    name: str = "checkered"
    crop_size: int = 512
    recipe: str = "checkered-1"
    references: ReferenceUse = "optional"
    prepared: list[tuple[str, ...]] = field(default_factory=list)
    batches: list[int] = field(default_factory=list)

    def prepare(self, references: Sequence[Pixels], sources: Sequence[str] = ()) -> Count:
        self.prepared.append(tuple(sources))
        return Count(len(references))

    def restore(
        self, crops: Sequence[Pixels], references: PreparedReferences | None, seeds: Sequence[int] | None = None
    ) -> list[Pixels]:
        self.batches.append(len(crops))
        height = 15 + 5 * (references.count if references is not None else 0)
        rows, columns = np.mgrid[0:512, 0:512] // 4
        pattern = np.where((rows + columns) % 2, height, -height)[:, :, None]
        return [np.clip(crop.astype(int) + pattern, 0, 255).astype(np.uint8) for crop in crops]


def make_face(photo: str, index: int = 0, person: str = "ann", **quality: float) -> Face:
    """A face as if it had been found in a photo; sharp, frontal and large, but for what ``quality`` says."""
    known = {"face_px": 150.0, "sharpness": 0.9, "yaw": 0.0, "roll": 0.0, "score": 0.9} | quality
    left = 30.0 + index * (SIDE + 30)
    points = np.array([[0.3, 0.35], [0.7, 0.35], [0.5, 0.58], [0.35, 0.78], [0.65, 0.78]]) * SIDE + (left, 50)
    vector = np.array(COLOURS[person], np.float64) - 128
    other_picture = np.random.default_rng(zlib.crc32(photo.encode())).normal(size=3)  # as far as pictures of one person
    vector = vector / np.linalg.norm(vector) + 0.1 * other_picture / np.linalg.norm(other_picture)
    embedding = np.asarray(vector / np.linalg.norm(vector), np.float32)
    return Face(
        photo, index, Detection((left, 50.0, left + SIDE, 50.0 + SIDE), points, 0.99), embedding, Quality(**known)
    )
