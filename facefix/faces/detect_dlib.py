"""Detection with dlib's weights: its convolutional detector (run in torch) and its 68-point landmark predictor."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from facefix.faces import align
from facefix.faces.detect import Search, keep_best
from facefix.faces.dlib_networks import DETECTION_WINDOW, DetectionNetwork, load_detection_network
from facefix.faces.face import Detection
from facefix.faces.landmarks import LandmarkPredictor, box_of, turned, upright_guess

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

_LEAST_IN_SEARCH = 72.0
"""Width in pixels of the smallest faces that the network finds in what it searches."""

_BORDER = 40
"""Half a detection window of repeated border, so that faces cut off by the edge still have a window."""

_TILTS = (0.0, 90.0, -90.0, 40.0, -40.0)
"""Degrees at which landmarks are looked for in turn: the network also responds to heads that are tilted or lie on their
side, which the predictor does not know."""


class DlibDetector:
    """dlib's max-margin object detection network over a pyramid, then landmarks by regression trees.

    King 2015, "Max-Margin Object Detection"; Kazemi and Sullivan 2014, "One millisecond face alignment".
    """

    name = "dlib"

    def __init__(self, network_path: Path, predictor_path: Path, device: str | torch.device = "cpu") -> None:
        self._device = torch.device(device)
        self._network = load_detection_network(network_path).to(self._device).to(memory_format=torch.channels_last)
        self._predictor = LandmarkPredictor(predictor_path)

    def search(self, width: int, height: int, min_face_px: float | None = None) -> Search:
        """Photos are searched at up to WORKING_PIXELS, whatever is asked for."""
        scale = _first_scale(width, height)
        return Search(_LEAST_IN_SEARCH / scale, min(scale, 1.0))

    def glance(self, rgb: NDArray[np.uint8]) -> list[Detection]:
        """All its faces: there is no quicker way."""
        return self.detect(rgb)

    def detect(self, rgb: NDArray[np.uint8], min_face_px: float | None = None) -> list[Detection]:
        """Faces of a photo (H, W, 3), best first. Confidence is the network's score, cut to 0..1.

        Where no landmarks are found although the network is sure, it is a profile: then the points are those of an
        upright frontal face in the box, which is no more than a guess, and the detection says so.
        """
        boxes, scores = self._search(rgb)
        found = []
        for index in keep_best(boxes, np.argsort(-scores, kind="stable")):
            box, score = _voted_box(boxes, scores, index), float(scores[index])
            guess = upright_guess(box)
            face = self._predictor.settle(rgb, (turned(guess, degrees) for degrees in _TILTS))
            if face.steady:
                found.append(Detection(box_of(face.landmarks), face.landmarks, min(score, 1.0)))
            elif score >= SURE_SCORE:
                frontal = align.apply(align.invert(guess), align.TEMPLATE_512)
                confidence = min(score, 1.0) * UNSETTLED_CONFIDENCE
                found.append(Detection(box_of(frontal), frontal, confidence, settled=False))
        return sorted(found, key=lambda detection: -detection.confidence)

    @torch.inference_mode()
    def _search(self, rgb: NDArray[np.uint8]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Boxes (N, 4) and scores (N,) of all windows that respond, at all sizes."""
        height, width = rgb.shape[:2]
        photo = torch.tensor(rgb, device=self._device).permute(2, 0, 1)[None].float()  # (1, 3, H, W)
        scale = _first_scale(width, height)
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


def _first_scale(width: int, height: int) -> float:
    """Size of the largest search relative to the photo."""
    return min(MAX_ENLARGEMENT, math.sqrt(WORKING_PIXELS / (height * width)))


def _voted_box(boxes: NDArray[np.float64], scores: NDArray[np.float64], index: int) -> NDArray[np.float64]:
    """Mean of the boxes that found the same face at nearby sizes, weighted by score: finer than the pyramid's steps."""
    middle = (boxes[:, :2] + boxes[:, 2:]) / 2
    sides = boxes[:, 2] - boxes[:, 0]
    near = np.abs(middle - middle[index]).max(axis=1) < 0.25 * sides[index]
    same = near & (np.abs(np.log(sides / sides[index])) < 0.5)
    voted: NDArray[np.float64] = np.average(boxes[same], axis=0, weights=np.maximum(scores[same], 1e-3))
    return voted
