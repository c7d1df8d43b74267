"""Changes to make in a test photo: regions as a restoration would give them."""

from __future__ import annotations

import numpy as np
from PIL import Image

from facefix.photos.photo import Photo
from facefix.photos.region import Region


def inverted_region(photo: Photo, scale: int = 1) -> Region:
    """The middle of the photo as its negative, all of it within an ellipse and fading round it."""
    image = Image.fromarray(photo.pixels)
    pixels = np.asarray(image.resize((image.width * scale, image.height * scale), Image.Resampling.LANCZOS))
    height, width = pixels.shape[:2]
    box = (width // 4, height // 5, width // 4 + width // 2, height // 5 + height // 2)
    part = pixels[box[1] : box[3], box[0] : box[2]].astype(np.float32) / 255
    y, x = np.mgrid[-1 : 1 : part.shape[0] * 1j, -1 : 1 : part.shape[1] * 1j]
    alpha = np.clip(2 - 2 * np.hypot(x, y), 0, 1).astype(np.float32)
    return Region(box[0], box[1], np.asarray(1 - part, np.float32), alpha, scale)


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
