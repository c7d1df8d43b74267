"""A small set of face crops on disk: four "people" made from one portrait by colour and shape, two pictures each."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import skimage.data
from PIL import Image

PEOPLE = ("ann", "bob", "cid", "dee")


def portrait(person: int, picture: int) -> Image.Image:
    """(160, 160): the astronaut's face; a person is a channel order and a stretch, a picture a mirror image."""
    face = skimage.data.astronaut()[40:200, 150:310]
    orders = ([0, 1, 2], [2, 0, 1], [1, 2, 0], [2, 1, 0])
    pixels = np.ascontiguousarray(np.roll(face[:, :, orders[person]], 4 * person, axis=0))
    return Image.fromarray(pixels[:, ::-1] if picture else pixels)


def write_manifest_set(folder: Path) -> Path:
    """``folder``/faces with pictures of everyone, and ``folder``/manifest.csv; returns the folder of the faces."""
    faces = folder / "faces"
    faces.mkdir(parents=True)
    rows = []
    for number, name in enumerate(PEOPLE):
        for picture, role in enumerate(("target", "reference")):
            file = f"faces/{name}_{role}.png"
            portrait(number, picture).save(folder / file)
            rows.append({"file": file, "identity": name, "role": role})
    rows.append({"file": "elsewhere/eve.png", "identity": "eve", "role": "target"})
    with (folder / "manifest.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, ["file", "identity", "role"])
        writer.writeheader()
        writer.writerows(rows)
    return faces
