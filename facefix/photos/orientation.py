"""The eight EXIF orientations as ways to turn pixels: how the stored picture lies to the upright one.

EXIF 2.32, tag 0x0112: the value names the corner of the upright scene in which the stored picture begins.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Box = tuple[int, int, int, int]
"""left, top, right, bottom in whole pixels; right and bottom are the first column and row outside."""

_STEPS = {  # transpose, then flip rows, then flip columns: takes stored to upright
    1: (False, False, False),
    2: (False, False, True),
    3: (False, True, True),
    4: (False, True, False),
    5: (True, False, False),
    6: (True, False, True),
    7: (True, True, True),
    8: (True, True, False),
}


def swaps_sides(orientation: int | None) -> bool:
    """Whether width and height of the stored picture are those of the upright one the other way round."""
    return _steps(orientation)[0]


def upright(stored_pixels: NDArray[Any], orientation: int | None) -> NDArray[Any]:
    """View of a stored picture (H, W, ...) turned upright; None and unknown values leave it as it is."""
    transpose, flip_rows, flip_columns = _steps(orientation)
    turned = stored_pixels.swapaxes(0, 1) if transpose else stored_pixels
    turned = turned[::-1] if flip_rows else turned
    return turned[:, ::-1] if flip_columns else turned


def stored(upright_pixels: NDArray[Any], orientation: int | None) -> NDArray[Any]:
    """View of an upright picture (H, W, ...) turned to the way the file stores it: undoes ``upright``."""
    transpose, flip_rows, flip_columns = _steps(orientation)
    turned = upright_pixels[:, ::-1] if flip_columns else upright_pixels
    turned = turned[::-1] if flip_rows else turned
    return turned.swapaxes(0, 1) if transpose else turned


def stored_box(box: Box, orientation: int | None, upright_size: tuple[int, int]) -> Box:
    """Where ``box`` of the upright picture of ``upright_size`` (width, height) lies in the stored picture."""
    transpose, flip_rows, flip_columns = _steps(orientation)
    width, height = upright_size
    left, top, right, bottom = box
    if flip_columns:
        left, right = width - right, width - left
    if flip_rows:
        top, bottom = height - bottom, height - top
    return (top, left, bottom, right) if transpose else (left, top, right, bottom)


def contiguous(pixels: NDArray[Any]) -> NDArray[Any]:
    """``pixels`` in C order with no negative stride, copied only where needed.

    NumPy calls a one pixel wide view contiguous whatever its strides; torch and Pillow do not.
    """
    return pixels.copy() if min(pixels.strides) < 0 else np.ascontiguousarray(pixels)


def _steps(orientation: int | None) -> tuple[bool, bool, bool]:
    return _STEPS.get(orientation or 1, _STEPS[1])
