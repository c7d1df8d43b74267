"""EXIF orientation (EXIF 2.32, tag 0x0112): from stored pixels to upright ones and back."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Box = tuple[int, int, int, int]
"""left, top, right, bottom in whole pixels; right and bottom are one past the last"""


def upright(stored: NDArray[Any], orientation: int | None) -> NDArray[Any]:
    """View of a stored picture (H, W, ...) as it is meant to be seen; None and values outside 1..8 change nothing."""
    if orientation in (5, 6, 7, 8):
        stored = stored.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        stored = stored[:, ::-1]
    if orientation in (3, 4, 7, 8):
        stored = stored[::-1]
    return stored


def stored(upright: NDArray[Any], orientation: int | None) -> NDArray[Any]:
    """View of an upright picture (H, W, ...) as the file stores it: the inverse of :func:`upright`."""
    if orientation in (2, 3, 6, 7):
        upright = upright[:, ::-1]
    if orientation in (3, 4, 7, 8):
        upright = upright[::-1]
    if orientation in (5, 6, 7, 8):
        upright = upright.swapaxes(0, 1)
    return upright


def contiguous(picture: NDArray[Any]) -> NDArray[Any]:
    """The same picture as a C-contiguous array; no copy where it is one already."""
    return np.ascontiguousarray(picture)
