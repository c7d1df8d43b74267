"""EXIF orientation (EXIF 2.32, tag 0x0112) of boxes given as fractions of the picture."""

from __future__ import annotations

Box = tuple[float, float, float, float]

_INVERSE = {6: 8, 8: 6}


def upright_box(box: Box, orientation: int) -> Box:
    """Turn a box of the stored picture to the upright one.

    Args:
        box: left, top, right, bottom as fractions (0..1) of the stored picture's width and height.
        orientation: EXIF orientation, 1 to 8; any other value counts as 1.

    Returns:
        left, top, right, bottom as fractions of the upright picture's width and height.
    """
    x0, y0 = _upright_point(box[0], box[1], orientation)
    x1, y1 = _upright_point(box[2], box[3], orientation)
    return (min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1))


def stored_box(box: Box, orientation: int) -> Box:
    """Turn a box of the upright picture back to the stored one: the inverse of :func:`upright_box`."""
    return upright_box(box, _INVERSE.get(orientation, orientation))


def _upright_point(x: float, y: float, orientation: int) -> tuple[float, float]:
    turned = {
        2: (1 - x, y),
        3: (1 - x, 1 - y),
        4: (x, 1 - y),
        5: (y, x),
        6: (1 - y, x),
        7: (1 - y, 1 - x),
        8: (y, 1 - x),
    }
    return turned.get(orientation, (x, y))
