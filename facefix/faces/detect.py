"""The Detector protocol and what its adapters share: removing overlaps, turning, weights that are missing.

Adapters: detect_mtcnn.py and detect_dlib.py (need no download), insightface_models.py (SCRFD), detect_retinaface.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from facefix.faces.face import Detection

SAME_FACE_IOU = 0.35
"""Two boxes that share more of their union are one face."""
SAME_FACE_INSIDE = 0.75
"""A box that lies this far inside another one is the same face, found at another scale."""


LEAST_FACE_PX = 24.0
"""Faces narrower than this are looked for only where the user asks for them."""


@dataclass(frozen=True, slots=True)
class Search:
    """How a photo of some size is searched."""

    least_face_px: float
    """width in pixels of the photo from which faces are looked for"""
    scale: float = 1.0
    """size, relative to the photo's, at which its pixels are enough for that"""


class Detector(Protocol):
    """Finds faces with their five landmarks. Safe to call from several threads at once."""

    name: str

    def search(self, width: int, height: int, min_face_px: float | None = None) -> Search:
        """How a photo of that size is searched for faces of at least ``min_face_px``; None: the detector's default."""
        ...

    def detect(self, rgb: NDArray[np.uint8], min_face_px: float | None = None) -> list[Detection]:
        """Faces of an upright photo (H, W, 3), best first, each once; coordinates are pixels of that photo."""
        ...

    def glance(self, rgb: NDArray[np.uint8]) -> list[Detection]:
        """Faces of a small picture that are plain to see, for as little time as the detector can."""
        ...


def without_overlaps(detections: Sequence[Detection]) -> list[Detection]:
    """Each face once: of detections that overlap, the one of the highest confidence; best first."""
    if not detections:
        return []
    order = np.argsort([-detection.confidence for detection in detections], kind="stable")
    boxes = np.array([detection.box for detection in detections])
    kept = keep_best(boxes, order)
    return [detections[index] for index in kept]


def keep_best(boxes: NDArray[np.float64], order: NDArray[np.int64]) -> list[int]:
    """Greedy non-maximum suppression: indexes into ``boxes`` (N, 4), taken in ``order``."""
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    kept: list[int] = []
    for index in order:
        others = boxes[kept]
        size = np.minimum(boxes[index, 2:], others[:, 2:]) - np.maximum(boxes[index, :2], others[:, :2])
        shared = np.prod(np.maximum(size, 0), axis=1)
        union = areas[index] + areas[kept] - shared
        inside = shared / np.maximum(np.minimum(areas[index], areas[kept]), 1e-9)
        if not ((shared > SAME_FACE_IOU * union) | (inside > SAME_FACE_INSIDE)).any():
            kept.append(int(index))
    return kept


def turned_back(detection: Detection, quarter_turns: int, width: int, height: int) -> Detection:
    """A detection in ``numpy.rot90(photo, quarter_turns)`` in coordinates of the photo, ``width`` x ``height``."""
    corners = np.array(detection.box).reshape(2, 2)
    corners, landmarks = (
        _turned_back(points, quarter_turns, width, height) for points in (corners, detection.landmarks)
    )
    (left, top), (right, bottom) = corners.min(axis=0), corners.max(axis=0)
    return replace(detection, box=(float(left), float(top), float(right), float(bottom)), landmarks=landmarks)


def enlarged(detection: Detection, factor: float) -> Detection:
    """A detection in a photo made smaller ``factor`` times in coordinates of the photo."""
    left, top, right, bottom = ((edge + 0.5) * factor - 0.5 for edge in detection.box)
    return replace(detection, box=(left, top, right, bottom), landmarks=(detection.landmarks + 0.5) * factor - 0.5)


def _turned_back(points: NDArray[np.float64], quarter_turns: int, width: int, height: int) -> NDArray[np.float64]:
    x, y = points[:, 0], points[:, 1]
    turned = {
        0: (x, y),
        1: (width - 1 - y, x),
        2: (width - 1 - x, height - 1 - y),
        3: (y, height - 1 - x),
    }[quarter_turns % 4]
    return np.stack(turned, axis=1)
