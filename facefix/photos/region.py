"""Region: the part of a photo that changes, and what it changes to."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from facefix.errors import UsageError
from facefix.photos.turning import Box


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
