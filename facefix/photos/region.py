"""Region: the part of a photo that changes, and what it changes to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from facefix.errors import UsageError
from facefix.photos.orientation import Box


@dataclass(frozen=True, slots=True, eq=False)
class Region:
    """A rectangle of the upright photo with new pixels and how much of them to use.

    Where ``alpha`` is 0 a photo keeps its stored samples bit for bit; where it is 1 the photo shows ``rgb``.
    """

    left: int
    top: int
    rgb: NDArray[np.float32]
    """(h, w, 3) sRGB, 0..1"""
    alpha: NDArray[np.float32]
    """(h, w) 0..1"""
    scale: int = 1
    """how many times larger than the photo the picture is that ``left`` and ``top`` count in"""

    def __post_init__(self) -> None:
        height, width = self.alpha.shape
        if self.rgb.shape != (height, width, 3) or self.left < 0 or self.top < 0 or self.scale < 1:
            raise UsageError(
                f"region: expected rgb of shape ({height}, {width}, 3) as alpha has it and no negative place, "
                f"found {self.rgb.shape} at ({self.left}, {self.top}), scale {self.scale}"
            )

    @property
    def box(self) -> Box:
        """left, top, right, bottom in pixels of the upright photo times ``scale``."""
        return (self.left, self.top, self.left + self.alpha.shape[1], self.top + self.alpha.shape[0])


Photo = NDArray[Any]


_LANCZOS_REACH = 4
"""Photo pixels round a part that its enlargement depends on, and one to spare."""


def _to_uint8(pixels: Photo) -> NDArray[np.uint8]:
    return np.clip(np.rint(np.asarray(pixels, dtype=np.float32) * 255), 0, 255).astype(np.uint8)


def _to_float(pixels: Photo) -> NDArray[np.float32]:
    """uint8, or float 0..1, as float32 0..1."""
    scaled: NDArray[np.float32] = pixels.astype(np.float32) / np.float32(255 if pixels.dtype == np.uint8 else 1)
    return scaled


def picture_part(photo: Photo, box: tuple[int, int, int, int], scale: int) -> NDArray[np.float32]:
    """(h, w, 3) float 0..1: ``box`` of the photo enlarged ``scale`` times with Lanczos, as the whole photo would be."""
    left, top, right, bottom = box
    if scale == 1:
        return _to_float(photo[top:bottom, left:right])
    if right <= left or bottom <= top:
        return np.zeros((bottom - top, right - left, 3), np.float32)
    pixels = photo if photo.dtype == np.uint8 else _to_uint8(photo)
    x0, y0 = max(left // scale - _LANCZOS_REACH, 0), max(top // scale - _LANCZOS_REACH, 0)
    x1, y1 = -(-right // scale) + _LANCZOS_REACH, -(-bottom // scale) + _LANCZOS_REACH
    part = Image.fromarray(np.ascontiguousarray(pixels[y0:y1, x0:x1]))
    large = np.asarray(part.resize((part.width * scale, part.height * scale), Image.Resampling.LANCZOS))
    return _to_float(large[top - y0 * scale : bottom - y0 * scale, left - x0 * scale : right - x0 * scale])
