"""Small albums of real faces for tests: people of insightface's sample group photo and scikit-image's astronaut."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter

from facefix.methods.base import Pixels

PEOPLE = ("ann", "bea", "cid", "dan", "eve", "fay")
"""people in the group photo; the names are ours"""

_FACES = ((59, 279, 169, 389), (728, 364, 831, 466), (875, 65, 1012, 203), (449, 283, 572, 407), (1118, 288, 1220, 390),
          (271, 159, 370, 258))  # fmt: skip


@functools.cache
def group_photo() -> Image.Image:
    """The group photo, 1280 x 886."""
    import insightface

    path = Path(insightface.__file__).parent / "data" / "images" / "t1.jpg"
    return Image.open(path).convert("RGB")


def portrait(person: str, shift: int = 0, side: int = 240) -> Image.Image:
    """A sharp picture of one person, ``side`` px wide; the group photo itself is a little soft."""
    left, top, right, bottom = _FACES[PEOPLE.index(person)]
    x, y = (left + right) // 2 + shift, (top + bottom) // 2 + shift // 2
    soft = group_photo().crop((x - side // 2, y - side // 2, x + side // 2, y + side // 2))
    return soft.filter(ImageFilter.UnsharpMask(radius=1.5, percent=200, threshold=0))


def old_photo(person: str, number: int) -> Image.Image:
    """A degraded picture of one person: blurred, faded, each number another one."""
    image = portrait(person, shift=3 * number % 17 - 8).filter(ImageFilter.GaussianBlur(1.6 + 0.2 * (number % 3)))
    return ImageEnhance.Contrast(image).enhance(0.7 + 0.05 * (number % 4))


def landscape(number: int) -> Image.Image:
    """A picture without any face."""
    noise = np.random.default_rng(number).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((160, 120), Image.Resampling.BICUBIC)


def make_album(folder: Path, photos_per_person: int = 2, people: Sequence[str] = PEOPLE[:3]) -> list[Path]:
    """An album with a subfolder, degraded photos of some people, and one photo without a face."""
    paths = []
    (folder / "more").mkdir(parents=True, exist_ok=True)
    for person in people:
        for number in range(photos_per_person):
            path = folder / ("more" if number % 2 else "") / f"{person}{number}.jpg"
            old_photo(person, number).save(path, quality=88)
            paths.append(path)
    landscape(1).save(folder / "sea.png")
    return [*paths, folder / "sea.png"]


def make_portraits(folder: Path, people: Sequence[str] = PEOPLE[:3], each: int = 1) -> list[Path]:
    """A subfolder of portraits for each person."""
    paths = []
    for person in people:
        (folder / person).mkdir(parents=True, exist_ok=True)
        for number in range(each):
            paths.append(folder / person / f"{number}.png")
            portrait(person, shift=4 * number).save(paths[-1])
    return paths


@dataclass(frozen=True)
class Mean:
    """References as their mean picture."""

    picture: Pixels
    count: int
    nbytes: int = 512 * 512 * 3


@dataclass
class Borrow:
    """A real, if simple, restorer: lays the mean of the aligned references over the face. Counts what it is asked."""

    name: str = "borrow"
    crop_size: int = 512
    recipe: str = "borrow-1"
    part: float = 0.75
    faces: int = 0
    prepared: list[int] = field(default_factory=list)

    def prepare(self, references: Sequence[Pixels], sources: Sequence[str] = ()) -> Mean:
        self.prepared.append(len(references))
        return Mean(np.mean(references, axis=0).astype(np.uint8), len(references))

    def restore(
        self, crops: Sequence[Pixels], references: Mean | None, seeds: Sequence[int] | None = None
    ) -> list[Pixels]:
        self.faces += len(crops)
        if references is None:
            return [np.asarray(Image.fromarray(crop).filter(ImageFilter.UnsharpMask(4, 60, 0))) for crop in crops]
        return [(crop * (1 - self.part) + references.picture * self.part).astype(np.uint8) for crop in crops]

    def in_fp32(self) -> Borrow:
        return self
