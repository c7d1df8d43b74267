"""Detection with dlib's weights: its convolutional detector (run in torch) and its 68-point landmark predictor."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from facefix.faces import align
from facefix.faces.detect import keep_best
from facefix.faces.dlib_networks import DETECTION_WINDOW, DetectionNetwork, load_detection_network
from facefix.faces.face import Detection, Landmarks

SCORE_FLOOR = 0.5
"""Least score of a face: upright faces of our photographs score 0.88 to 1.12, the median is 1.05."""
SURE_SCORE = 0.8
"""Least score of a face whose landmarks cannot be found, such as a profile."""

UNSETTLED_CONFIDENCE = 0.5
"""Factor of the confidence of such a face."""

MAX_ENLARGEMENT = 2.0
"""Photos are searched at up to twice their size, so that faces of about 35 px are found."""
WORKING_PIXELS = 6_000_000
"""Largest size at which a photo is searched; in a photo of 24 megapixels it finds faces from about 150 px."""
PYRAMID_STEP = 0.7
"""Size of one search relative to the one before; finer steps find no more faces in our photos and cost more."""

_BORDER = 40
"""Half a detection window of repeated border, so that faces cut off by the edge still have a window."""

# Where the boxes of dlib's detectors lie in the aligned 512 crop: centre x, centre y, side (means over 120 portraits).
_NETWORK_BOX = (251.0, 288.0, 294.0)
_PREDICTOR_BOX = (252.0, 316.0, 308.0)

_FRAME = 256
"""Side of the aligned picture in which landmarks are looked for: half the crop."""

_STARTS = ((0.0, 0.0, 1.0), (-0.08, 0.0, 1.0), (0.08, 0.0, 1.0), (0.0, -0.08, 1.0), (0.0, 0.08, 1.0), (0.0, 0.0, 0.88))
"""The predictor is started from the box moved right and down by these parts of its side and scaled; the median of
the results is steadier than one, and their spread says whether it sees a face."""
_STEADY_PX = 4.0
"""Median distance of the starts' results to their median (crop pixels) up to which landmarks are believed. It is below
3.5 for faces turned up to about 45 degrees, however rolled, and 4.5 to 12 in profile, which the predictor does not
know: there the box is used."""
_SETTLED_PX = 1.5
"""Spread at which no further round is needed."""
_ROUNDS = 3

_LAST = align.CROP_SIZE - 1.0
_QUARTER_TURNS = (np.array([[0.0, -1.0, _LAST], [1.0, 0.0, 0.0]]), np.array([[0.0, 1.0, 0.0], [-1.0, 0.0, _LAST]]))
"""The crop turned by 90 degrees, either way, about its middle."""

_LANDMARK_BIAS = np.array([[2.8, 6.0], [-2.8, 4.4], [-3.4, -2.4], [-3.4, -1.4], [2.8, -2.2]])
"""The predictor's five points minus TEMPLATE_512 in the crop, mean over 250 portraits: taken off, so that crops of
this detector have the framing of the template."""


class DlibDetector:
    """dlib's max-margin object detection network over a pyramid, then landmarks by regression trees.

    King 2015, "Max-Margin Object Detection"; Kazemi and Sullivan 2014, "One millisecond face alignment".
    """

    name = "dlib"

    def __init__(self, network_path: Path, predictor_path: Path, device: str | torch.device = "cpu") -> None:
        import dlib

        self._device = torch.device(device)
        self._network = load_detection_network(network_path).to(self._device).to(memory_format=torch.channels_last)
        self._predictor = dlib.shape_predictor(str(predictor_path))

    def detect(self, rgb: NDArray[np.uint8]) -> list[Detection]:
        """Faces of a photo (H, W, 3), best first. Confidence is the network's score, cut to 0..1.

        Where no landmarks are found although the network is sure, it is a profile, or lies on its side: then the points
        are those of an upright frontal face in the box, and the confidence is lower.
        """
        boxes, scores = self._search(rgb)
        found = []
        for index in keep_best(boxes, np.argsort(-scores, kind="stable")):
            box, score = _voted_box(boxes, scores, index), float(scores[index])
            landmarks = self._landmarks(rgb, box)
            if landmarks is not None:
                found.append(Detection(_box_of(landmarks), landmarks, min(score, 1.0)))
            elif score >= SURE_SCORE:
                frontal = align.apply(align.invert(_crop_from_box(box)), align.TEMPLATE_512)
                found.append(Detection(_box_of(frontal), frontal, min(score, 1.0) * UNSETTLED_CONFIDENCE))
        return sorted(found, key=lambda detection: -detection.confidence)

    @torch.inference_mode()
    def _search(self, rgb: NDArray[np.uint8]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Boxes (N, 4) and scores (N,) of all windows that respond, at all sizes."""
        height, width = rgb.shape[:2]
        photo = torch.tensor(rgb, device=self._device).permute(2, 0, 1)[None].float()  # (1, 3, H, W)
        scale = min(MAX_ENLARGEMENT, math.sqrt(WORKING_PIXELS / (height * width)))
        boxes, scores = [np.zeros((0, 4))], [np.zeros(0)]
        while min(height, width) * scale > DETECTION_WINDOW / 2:
            level_boxes, level_scores = self._search_level(photo, scale)
            boxes.append(level_boxes)
            scores.append(level_scores)
            scale *= PYRAMID_STEP
        return np.concatenate(boxes), np.concatenate(scores)

    def _search_level(self, photo: Tensor, scale: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        size = (round(photo.shape[2] * scale), round(photo.shape[3] * scale))
        level = functional.interpolate(photo, size=size, mode="bilinear", antialias=scale < 1, align_corners=False)
        level = functional.pad(level, (_BORDER,) * 4, mode="replicate").contiguous(memory_format=torch.channels_last)
        response = self._network(level)  # (h, w)
        peaks = response == functional.max_pool2d(response[None, None], 3, stride=1, padding=1)[0, 0]
        rows, columns = torch.where(peaks & (response > SCORE_FLOOR))
        scores = response[rows, columns].cpu().double().numpy()
        cells = torch.stack([columns, rows], dim=1).cpu().double().numpy()
        centres = (DetectionNetwork.cell_centres(cells) - _BORDER + 0.5) / scale - 0.5
        half = DETECTION_WINDOW / 2 / scale
        return np.concatenate([centres - half, centres + half], axis=1), scores

    def _landmarks(self, rgb: NDArray[np.uint8], box: NDArray[np.float64]) -> Landmarks | None:
        """Five points in the photo, or None where the predictor does not settle.

        The network also responds to many faces that lie on their side, which the predictor does not know, so where it
        does not settle upright, quarter turns are tried.
        """
        upright = _crop_from_box(box)
        landmarks, spread = self._settle(rgb, upright, box)
        if spread > _STEADY_PX:
            turned = [self._settle(rgb, align.compose(turn, upright), box) for turn in _QUARTER_TURNS]
            landmarks, spread = min([(landmarks, spread), *turned], key=lambda result: result[1])
        return landmarks if spread <= _STEADY_PX else None

    def _settle(
        self, rgb: NDArray[np.uint8], crop_from_photo: align.Matrix, box: NDArray[np.float64]
    ) -> tuple[Landmarks, float]:
        """Landmarks in the photo from a first guess of the crop, and their spread; infinite where they leave the box.

        Each round sees the face as the one before laid it out: upright and at the size the predictor knows.
        """
        guess = crop_from_photo
        for round_number in range(_ROUNDS):
            points, spread = self._predict(rgb, crop_from_photo)
            landmarks = align.apply(align.invert(crop_from_photo), points)
            crop_from_photo = align.crop_matrix(landmarks)
            if round_number > 0 and spread < _SETTLED_PX:
                break
        return landmarks, spread if _agree(crop_from_photo, guess, box) else math.inf

    def _predict(self, rgb: NDArray[np.uint8], crop_from_photo: align.Matrix) -> tuple[Landmarks, float]:
        """Five points in the crop, for a face that lies about as in the template, and their spread in crop pixels."""
        import dlib

        shrink = _FRAME / align.CROP_SIZE
        frame_from_crop = np.array([[shrink, 0.0, (shrink - 1) / 2], [0.0, shrink, (shrink - 1) / 2]])
        frame = align.warp(rgb, align.compose(frame_from_crop, crop_from_photo), _FRAME)
        x, y, side = _PREDICTOR_BOX
        found = []
        for dx, dy, zoom in _STARTS:
            middle, half = np.array([x + dx * side, y + dy * side]), zoom * side / 2
            corners = np.concatenate([middle - half, middle + half]) * shrink
            rectangle = dlib.rectangle(*(round(edge) for edge in corners.tolist()))
            points = _five_points(self._predictor(frame, rectangle))
            found.append(align.apply(align.invert(frame_from_crop), points))
        middle = np.median(found, axis=0)
        spread = float(np.median(np.linalg.norm(np.array(found) - middle, axis=2), axis=0).mean())
        return middle - _LANDMARK_BIAS, spread


def _five_points(shape: Any) -> Landmarks:
    """Eye centres, nose tip and mouth corners of dlib's 68 points (Multi-PIE / iBUG 300-W order)."""
    points = np.array([(part.x, part.y) for part in shape.parts()], dtype=np.float64)
    return np.stack([points[36:42].mean(axis=0), points[42:48].mean(axis=0), points[30], points[48], points[54]])


def _voted_box(boxes: NDArray[np.float64], scores: NDArray[np.float64], index: int) -> NDArray[np.float64]:
    """Mean of the boxes that found the same face at nearby sizes, weighted by score: finer than the pyramid's steps."""
    middle = (boxes[:, :2] + boxes[:, 2:]) / 2
    sides = boxes[:, 2] - boxes[:, 0]
    near = np.abs(middle - middle[index]).max(axis=1) < 0.25 * sides[index]
    same = near & (np.abs(np.log(sides / sides[index])) < 0.5)
    voted: NDArray[np.float64] = np.average(boxes[same], axis=0, weights=np.maximum(scores[same], 1e-3))
    return voted


def _crop_from_box(box: NDArray[np.float64]) -> align.Matrix:
    """Upright crop matrix that lays a box of the network where such boxes lie in the aligned crop."""
    x, y, side = _NETWORK_BOX
    scale = side / (box[2] - box[0])
    return np.array([[scale, 0, x - scale * (box[0] + box[2]) / 2], [0, scale, y - scale * (box[1] + box[3]) / 2]])


def _agree(crop_from_photo: align.Matrix, upright: align.Matrix, box: NDArray[np.float64]) -> bool:
    """Whether landmarks describe a face of about the size and place of the detector's box."""
    ratio = align.scale_of(crop_from_photo) / align.scale_of(upright)
    middle = np.array([[(box[0] + box[2]) / 2, (box[1] + box[3]) / 2]])
    moved = np.linalg.norm(align.apply(crop_from_photo, middle) - align.apply(upright, middle))
    return 0.6 < ratio < 1.7 and float(moved) < _NETWORK_BOX[2] / 3


def _box_of(landmarks: Landmarks) -> tuple[float, float, float, float]:
    """Square of the network's framing around the face that the landmarks describe."""
    x, y, side = _NETWORK_BOX
    photo_from_crop = align.invert(align.crop_matrix(landmarks))
    middle_x, middle_y = align.apply(photo_from_crop, [(x, y)])[0].tolist()
    half = side / 2 * align.scale_of(photo_from_crop)
    return middle_x - half, middle_y - half, middle_x + half, middle_y + half
