"""Regions to lay over a photo, in place of restored faces."""

from __future__ import annotations

import numpy as np

from facefix.photos.photo import Photo
from facefix.photos.region import Region


def regions_of(photo: Photo, scale: int = 1) -> list[Region]:
    """Two overlapping ovals of other colours."""
    width, height = photo.size[0] * scale, photo.size[1] * scale
    made = []
    for number, (x, y) in enumerate(((0.45, 0.4), (0.6, 0.55))):
        w, h = int(width * 0.4), int(height * 0.4)
        rows, columns = np.mgrid[0:h, 0:w].astype(np.float32)
        distance = ((columns / w - 0.5) ** 2 + (rows / h - 0.5) ** 2) * 4
        rgb = np.stack([rows / h, columns / w, np.full((h, w), 0.2 + 0.6 * number)], axis=2).astype(np.float32)
        alpha = np.clip(1.2 - distance, 0, 1).astype(np.float32)
        made.append(Region(int(width * x - w / 2), int(height * y - h / 2), rgb, alpha, scale))
    return made
