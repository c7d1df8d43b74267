"""Five landmarks by dlib's 68-point predictor, started from several places, and whether they can be believed.

Kazemi and Sullivan 2014, "One millisecond face alignment with an ensemble of regression trees". The predictor always
gives points; where it is started a little elsewhere and they stay, there is a face that it knows.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from facefix.faces import align
from facefix.faces.face import Landmarks

STEADY_PX = 4.0
"""Median distance of the starts' results to their median (crop pixels) up to which landmarks are believed. It is below
3.5 for faces turned up to about 45 degrees, however rolled, and 4.5 to 12 in profile, which the predictor does not
know."""
SETTLED_PX, CONFIRMED_SETTLED_PX = 1.5, 2.5
"""Spread at which no further round is needed, and the same where the guess was confirmed."""

# Where the boxes of dlib's detectors lie in the aligned 512 crop: centre x, centre y, side (means over 120 portraits).
NETWORK_BOX = (251.0, 288.0, 294.0)
_PREDICTOR_BOX = (252.0, 316.0, 308.0)

_FRAME = 192
"""Side of the aligned picture in which landmarks are looked for."""

_STARTS = ((0.0, 0.0, 1.0), (-0.08, 0.0, 1.0), (0.0, 0.08, 1.0), (0.08, 0.0, 1.0), (0.0, -0.08, 1.0), (0.0, 0.0, 0.88))
"""The predictor is started from the box moved right and down by these parts of its side and scaled; the median of
the results is steadier than one, and their spread says whether it sees a face."""
_FIRST_STARTS = 3
_ROUNDS, _CLOSE_ROUNDS = 3, 2
_CONFIRMED_PX = 24.0
"""How far the crop may have moved (crop pixels) from a guess that was good enough to start from."""

_LANDMARK_BIAS = np.array([[2.8, 6.0], [-2.8, 4.4], [-3.4, -2.4], [-3.4, -1.4], [2.8, -2.2]])
"""The predictor's five points minus TEMPLATE_512 in the crop, mean over 250 portraits: taken off, so that crops of
this detector have the framing of the template."""


@dataclass(frozen=True, slots=True, eq=False)
class Settled:
    """What the predictor made of one face."""

    landmarks: Landmarks
    """in the photo"""
    spread: float
    """see STEADY_PX; infinite where the points left the place they were looked for in"""

    @property
    def steady(self) -> bool:
        """Whether the points can be believed."""
        return self.spread <= STEADY_PX


class LandmarkPredictor:
    """dlib's ``shape_predictor_68_face_landmarks.dat``. Safe to call from several threads at once."""

    def __init__(self, path: Path) -> None:
        import dlib

        self._predictor = dlib.shape_predictor(str(path))

    def settle(self, rgb: NDArray[np.uint8], guesses: Iterable[align.Matrix], *, close: bool = False) -> Settled:
        """The steadiest landmarks in a photo (H, W, 3), from guesses of the crop matrix; the first good one ends it.

        ``close``: the guesses come from landmarks, so that one round is enough where it confirms them.
        """
        best: Settled | None = None
        for guess in guesses:
            found = self._from_guess(rgb, guess, close=close)
            if best is None or found.spread < best.spread:
                best = found
            if best.steady:
                break
        assert best is not None, "at least one guess"
        return best

    def _from_guess(self, rgb: NDArray[np.uint8], guess: align.Matrix, *, close: bool) -> Settled:
        """Each round sees the face as the one before laid it out: upright and at the size the predictor knows."""
        crop_from_photo = guess
        for round_number in range(_CLOSE_ROUNDS if close else _ROUNDS):
            points, spread = self._predict(rgb, crop_from_photo, may_stop=close)
            landmarks = align.apply(align.invert(crop_from_photo), points)
            crop_from_photo = align.crop_matrix(landmarks)
            confirmed = close and _moved(guess, crop_from_photo) < _CONFIRMED_PX
            if spread < (CONFIRMED_SETTLED_PX if confirmed else SETTLED_PX if round_number > 0 else 0.0):
                break
        return Settled(landmarks, spread if _same_place(crop_from_photo, guess) else math.inf)

    def _predict(
        self, rgb: NDArray[np.uint8], crop_from_photo: align.Matrix, *, may_stop: bool
    ) -> tuple[Landmarks, float]:
        """Five points in the crop, for a face that lies about as in the template, and their spread in crop pixels.

        ``may_stop``: after the first starts, where they agree as well as all of them should.
        """
        import dlib

        shrink = _FRAME / align.CROP_SIZE
        frame_from_crop = np.array([[shrink, 0.0, (shrink - 1) / 2], [0.0, shrink, (shrink - 1) / 2]])
        crop_from_frame = align.invert(frame_from_crop)
        frame = align.warp(rgb, align.compose(frame_from_crop, crop_from_photo), _FRAME)
        x, y, side = _PREDICTOR_BOX
        found: list[Landmarks] = []
        for dx, dy, zoom in _STARTS:
            middle, half = np.array([x + dx * side, y + dy * side]), zoom * side / 2
            corners = np.concatenate([middle - half, middle + half]) * shrink
            rectangle = dlib.rectangle(*(round(edge) for edge in corners.tolist()))
            found.append(align.apply(crop_from_frame, _five_points(self._predictor(frame, rectangle))))
            if may_stop and len(found) == _FIRST_STARTS and _spread(found) < SETTLED_PX:
                break
        return np.median(found, axis=0) - _LANDMARK_BIAS, _spread(found)


def _moved(one: align.Matrix, other: align.Matrix) -> float:
    """Distance in crop pixels between where two crop matrices lay the same face, at most."""
    there = align.apply(other, align.apply(align.invert(one), align.TEMPLATE_512))
    return float(np.linalg.norm(there - align.TEMPLATE_512, axis=1).max())


def _spread(found: list[Landmarks]) -> float:
    """Median distance of several results to their median, mean over the points."""
    distances = np.linalg.norm(np.array(found) - np.median(found, axis=0), axis=2)
    return float(np.median(distances, axis=0).mean())


def upright_guess(box: NDArray[np.float64]) -> align.Matrix:
    """Upright crop matrix that lays a box of dlib's framing where such boxes lie in the aligned crop."""
    x, y, side = NETWORK_BOX
    scale = side / (box[2] - box[0])
    return np.array([[scale, 0, x - scale * (box[0] + box[2]) / 2], [0, scale, y - scale * (box[1] + box[3]) / 2]])


def turned(guess: align.Matrix, degrees: float) -> align.Matrix:
    """A guess for a head tilted by ``degrees``, clockwise as seen, about the middle of the face."""
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    x, y, _ = NETWORK_BOX
    about = np.array([[cosine, sine, x - cosine * x - sine * y], [-sine, cosine, y + sine * x - cosine * y]])
    return align.compose(about, guess)


def box_of(landmarks: Landmarks) -> tuple[float, float, float, float]:
    """Square of dlib's framing around the face that the landmarks describe."""
    x, y, side = NETWORK_BOX
    photo_from_crop = align.invert(align.crop_matrix(landmarks))
    middle_x, middle_y = align.apply(photo_from_crop, [(x, y)])[0].tolist()
    half = side / 2 * align.scale_of(photo_from_crop)
    return middle_x - half, middle_y - half, middle_x + half, middle_y + half


def _five_points(shape: Any) -> Landmarks:
    """Eye centres, nose tip and mouth corners of dlib's 68 points (Multi-PIE / iBUG 300-W order)."""
    parts = [shape.part(number) for number in (*range(36, 48), 30, 48, 54)]
    points = np.array([(part.x, part.y) for part in parts], dtype=np.float64)
    return np.stack([points[:6].mean(axis=0), points[6:12].mean(axis=0), *points[12:]])


def _same_place(crop_from_photo: align.Matrix, guess: align.Matrix) -> bool:
    """Whether landmarks describe a face of about the size and place of the guess, however it is turned."""
    ratio = align.scale_of(crop_from_photo) / align.scale_of(guess)
    x, y, side = NETWORK_BOX
    middle = align.apply(align.invert(guess), [(x, y)])
    moved = np.linalg.norm(align.apply(crop_from_photo, middle) - (x, y))
    return 0.6 < ratio < 1.7 and float(moved) < side / 3
