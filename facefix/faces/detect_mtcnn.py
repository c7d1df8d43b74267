"""Detection with MTCNN's three networks; doubtful faces are looked at again by dlib's network, windows of them only.

Zhang et al. 2016, "Joint Face Detection and Alignment Using Multitask Cascaded Convolutional Networks". The thresholds
are far below the published ones: tilted and half-hidden faces score low, and what is no face is told by dlib's network,
which answers about -1 there and about 1 on a face. Points are those of dlib's 68-point predictor, started from MTCNN's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from facefix.faces import align, pyramid
from facefix.faces.detect import LEAST_FACE_PX, Search, without_overlaps
from facefix.faces.dlib_networks import DETECTION_WINDOW, load_detection_network
from facefix.faces.face import Detection, Landmarks
from facefix.faces.landmarks import NETWORK_BOX, LandmarkPredictor, Settled, box_of, turned
from facefix.faces.mtcnn_networks import (
    OUTPUT_SIDE,
    PROPOSAL_STRIDE,
    PROPOSAL_WINDOW,
    REFINE_SIDE,
    load_mtcnn,
    normalised,
)
from facefix.faces.pyramid import Pyramid
from facefix.faces.quality import yaw_of

FLOORS = (0.45, 0.25, 0.15)
PLAIN_FLOORS = (0.6, 0.7, 0.9)
"""Probabilities above which a window passes P-Net, R-Net and O-Net; and where only plain faces are looked for."""

PART_OF_PHOTO = 0.01
"""Faces are looked for from this part of the square root of the photo's pixels, but not below LEAST_FACE_PX."""

SURE = 0.97
"""Probability from which steady landmarks are enough; the next two are for the others."""
LIKELY = 0.9
FACE_SCORE = 0.0
"""Score of dlib's network from which a doubtful window shows a face: 0.55 and more for 99 % of faces, -0.85 and less
for windows without."""
LIKELY_SCORE = -0.4
"""The same for windows that MTCNN finds likely: profiles, children, faces half hidden score 0."""

_MOST_PROPOSED, _MOST_REFINED = 20_000, 3000
"""Windows that go on from P-Net and from R-Net at most, the best ones: a bound on time and memory."""

_BAND_PIXELS = 1 << 17
"""P-Net works through a level in bands of about so many pixels, which stay in the processor's cache."""

DOUBTFUL = 0.6
"""Confidence of a face that MTCNN and the predictor see and dlib's network does not: some are upside down."""
_ASKED_ANYHOW = 2
"""dlib's network sees this many of the faces that are certain too: they say which way is up."""

_AGREED_PX, _AGREED_SPREAD, _PROFILE_YAW = 16.0, 10.0, 0.8
"""Mean distance of the predictor's points from MTCNN's (crop pixels) up to which they bear each other out, and its
spread up to which that counts, and the yaw of MTCNN's from which a face is a profile, which the predictor does not
know. The distance is below 10 for 90 % of faces on which the predictor settles."""

_KNOWN_TILT = 25.0
"""Degrees up to which dlib's network sees the face as it lies in the photo."""

_ZOOMS = (0.8, 1.0, 1.25)
_CHECK_SIDE = 144
"""Sizes relative to the expected one, and pixels, of the windows that dlib's network sees."""

_TILTS_OF_PHOTO = (-40.0, 40.0)
_TILTED_PIXELS = 300_000
"""Degrees by which a photo is tilted where no sure face is found in it, and pixels of the copy that is."""

_TILTS = (0.0, -40.0, 40.0, -80.0, 80.0)
"""Degrees at which landmarks are looked for where they do not settle at first."""


@dataclass(frozen=True, slots=True, eq=False)
class _Windows:
    """What the cascade found: N faces."""

    probabilities: NDArray[np.float64]
    points: NDArray[np.float64]
    """(N, 5, 2) in the photo"""


class MtcnnDetector:
    """MTCNN, dlib's network on doubtful windows, and the 68-point predictor. Safe in several threads at once."""

    name = "mtcnn"

    def __init__(
        self, mtcnn_folder: Path, network_path: Path, predictor_path: Path, device: str | torch.device = "cpu"
    ) -> None:
        """Raises CheckpointError when a file is not the network it should be."""
        self._device = torch.device(device)
        self._cascade = _Cascade(mtcnn_folder, self._device)
        network = load_detection_network(network_path)
        self._judge = network.to(self._device).to(memory_format=torch.channels_last)
        self._predictor = LandmarkPredictor(predictor_path)

    def search(self, width: int, height: int, min_face_px: float | None = None) -> Search:
        """From a part of the photo's size on, or from ``min_face_px`` if that is less. Smaller faces cost more time."""
        least = max(LEAST_FACE_PX, PART_OF_PHOTO * math.sqrt(width * height))
        if min_face_px is not None:
            least = min(least, max(min_face_px, float(PROPOSAL_WINDOW)))
        return Search(least, min(LEAST_FACE_PX / least, 1.0))

    def detect(self, rgb: NDArray[np.uint8], min_face_px: float | None = None) -> list[Detection]:
        """Faces of a photo (H, W, 3), best first; see `search` for their sizes.

        Confidence is MTCNN's probability, or dlib's score where that is higher. Where the predictor does not settle,
        the points are MTCNN's own, and the detection says so.
        """
        levels = pyramid.build(rgb, PROPOSAL_WINDOW / max(rgb.shape[:2]))
        least = self.search(rgb.shape[1], rgb.shape[0], min_face_px).least_face_px
        detections = self._judged(rgb, levels, self._cascade.find(levels, least))
        if not any(face.settled and face.confidence >= SURE for face in detections):
            detections += self._judged(rgb, levels, self._tilted(levels))
        return without_overlaps(detections)

    def glance(self, rgb: NDArray[np.uint8]) -> list[Detection]:
        """Faces that are plain to see, for little time."""
        levels = pyramid.build(rgb, PROPOSAL_WINDOW / max(rgb.shape[:2]))
        found = self._cascade.find(levels, LEAST_FACE_PX, PLAIN_FLOORS)
        return without_overlaps(self._judged(rgb, levels, found))

    def _tilted(self, levels: Pyramid) -> _Windows:
        """Faces that show only when a small copy of the photo is tilted: MTCNN knows upright ones."""
        small, scale = levels.at_most(_TILTED_PIXELS)
        found = []
        for degrees in _TILTS_OF_PHOTO:
            picture, tilted_from_small = _tilted_picture(small, degrees)
            windows = self._cascade.find(
                pyramid.build(picture, PROPOSAL_WINDOW / max(picture.shape[:2])), LEAST_FACE_PX
            )
            likely = windows.probabilities >= LIKELY
            back = align.invert(tilted_from_small)
            points = [(align.apply(back, each) + 0.5) / scale - 0.5 for each in windows.points[likely]]
            found.append((windows.probabilities[likely], np.array(points).reshape(-1, 5, 2)))
        return _Windows(np.concatenate([each[0] for each in found]), np.concatenate([each[1] for each in found]))

    def _judged(self, rgb: NDArray[np.uint8], levels: Pyramid, found: _Windows) -> list[Detection]:
        """The windows that show a face, with landmarks."""
        guesses = [align.crop_matrix(points) for points in found.points]
        first: dict[int, Settled] = {
            index: self._predictor.settle(rgb, [guess], close=True)
            for index, guess in enumerate(guesses)
            if found.probabilities[index] >= LIKELY
        }
        certain = [index for index, face in first.items() if found.probabilities[index] >= SURE and face.steady]
        certain.sort(key=lambda index: -found.probabilities[index])
        ask = [index for index in range(len(guesses)) if index not in certain[_ASKED_ANYHOW:]]
        scores = dict(zip(ask, self._scores(rgb, levels, [guesses[index] for index in ask]), strict=True))
        detections = []
        for index, (guess, points) in enumerate(zip(guesses, found.points, strict=True)):
            probability, score = float(found.probabilities[index]), scores.get(index, 1.0)
            if _is_face(probability, score, first.get(index)):
                confidence = max(probability, min(score, 1.0)) if score >= LIKELY_SCORE else DOUBTFUL
                detections.append(self._detection(rgb, guess, first.get(index), points, confidence))
        return detections

    def _detection(
        self, rgb: NDArray[np.uint8], guess: align.Matrix, first: Settled | None, points: Landmarks, confidence: float
    ) -> Detection:
        """One face, its landmarks looked for at other tilts where they did not settle at first."""
        best = first or self._predictor.settle(rgb, [guess], close=True)
        settled = best.steady or _agree(best, points)
        if not settled and abs(yaw_of(points)) < _PROFILE_YAW:  # the predictor knows no profiles, however tilted
            again = self._predictor.settle(rgb, (turned(_unrolled(guess), degrees) for degrees in _TILTS), close=True)
            best = min(best, again, key=lambda each: each.spread)
            settled = best.steady or _agree(best, points)
        landmarks = best.landmarks if settled else points
        return Detection(box_of(landmarks), landmarks, confidence, settled)

    @torch.inference_mode()
    def _scores(self, rgb: NDArray[np.uint8], levels: Pyramid, guesses: Sequence[align.Matrix]) -> list[float]:
        """dlib's score of the faces that guesses of the crop matrix describe, the best of a few sizes.

        Its network knows heads tilted a little; those tilted further are shown to it upright.
        """
        if not guesses:
            return []
        x, y, side = NETWORK_BOX
        middles = np.array([align.apply(align.invert(guess), [(x, y)])[0] for guess in guesses]) + 0.5
        sides = np.array([side / align.scale_of(guess) for guess in guesses])
        half = (sides[:, None] * np.array(_ZOOMS) * _CHECK_SIDE / DETECTION_WINDOW / 2).reshape(-1, 1)
        middles = middles.repeat(len(_ZOOMS), axis=0)
        views = levels.cut(torch.from_numpy(np.concatenate([middles - half, middles + half], axis=1)), _CHECK_SIDE)
        for index, guess in enumerate(guesses):
            if abs(math.atan2(guess[0, 1], guess[0, 0])) > math.radians(_KNOWN_TILT):
                own = [torch.from_numpy(align.warp(rgb, _check_matrix(guess, zoom), _CHECK_SIDE)) for zoom in _ZOOMS]
                views[index * len(_ZOOMS) : (index + 1) * len(_ZOOMS)] = torch.stack(own).permute(0, 3, 1, 2).float()
        responses = torch.cat(
            [self._judge.responses(some.to(self._device)).amax(dim=(1, 2)) for some in views.split(8)]
        )
        best: list[float] = responses.view(-1, len(_ZOOMS)).amax(dim=1).tolist()
        return best


def _check_matrix(guess: align.Matrix, zoom: float) -> align.Matrix:
    """From the photo to the window that dlib's network sees, turned as the crop is."""
    x, y, side = NETWORK_BOX
    scale, shift = DETECTION_WINDOW / side / zoom, (_CHECK_SIDE - 1) / 2
    return align.compose(np.array([[scale, 0, shift - scale * x], [0, scale, shift - scale * y]]), guess)


def _agree(face: Settled, points: Landmarks) -> bool:
    """Whether a predictor that is not steady is borne out by MTCNN's points, as in many a bearded face."""
    crop_from_photo = align.crop_matrix(points)
    distances = align.apply(crop_from_photo, face.landmarks) - align.apply(crop_from_photo, points)
    near = float(np.linalg.norm(distances, axis=1).mean()) <= _AGREED_PX
    return near and face.spread <= _AGREED_SPREAD and abs(yaw_of(points)) < _PROFILE_YAW


def _is_face(probability: float, score: float, face: Settled | None) -> bool:
    return score >= FACE_SCORE or (
        face is not None and probability >= LIKELY and (score >= LIKELY_SCORE or face.steady)
    )


def _tilted_picture(small: NDArray[np.uint8], degrees: float) -> tuple[NDArray[np.uint8], align.Matrix]:
    """A picture turned clockwise about its middle on a black ground that holds it all, and the matrix to it."""
    height, width = small.shape[:2]
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    new_width = math.ceil(abs(cosine) * width + abs(sine) * height)
    new_height = math.ceil(abs(sine) * width + abs(cosine) * height)
    linear = np.array([[cosine, -sine], [sine, cosine]])
    shift = np.array([new_width - 1, new_height - 1]) / 2 - linear @ np.array([width - 1, height - 1]) / 2
    matrix = np.column_stack([linear, shift])
    edges = align.invert(matrix)  # Pillow's coordinates are those of edges
    edges[:, 2] += 0.5 - edges[:, :2] @ np.array([0.5, 0.5])
    turned_picture = Image.fromarray(small).transform(
        (new_width, new_height), Image.Transform.AFFINE, edges.flatten().tolist(), Image.Resampling.BILINEAR
    )
    return np.asarray(turned_picture), matrix


def _unrolled(guess: align.Matrix) -> align.Matrix:
    """The guess with the head upright in the photo."""
    scale = align.scale_of(guess)
    middle = NETWORK_BOX[:2]
    x, y = align.apply(align.invert(guess), [middle])[0]
    return np.array([[scale, 0, middle[0] - scale * x], [0, scale, middle[1] - scale * y]])


class _Cascade:
    """P-Net over a pyramid, R-Net and O-Net on all windows that are left."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        networks = [network.to(device).to(memory_format=torch.channels_last) for network in load_mtcnn(folder)]
        self._proposal, self._refine, self._output = networks
        self._device = device

    @torch.inference_mode()
    def find(self, levels: Pyramid, min_face_px: float, floors: tuple[float, float, float] = FLOORS) -> _Windows:
        """All windows that pass the three networks, each face about once."""
        boxes = self._propose(levels, min_face_px, floors[0])
        boxes, _, _ = self._pass(self._refine, levels, boxes, REFINE_SIDE, floors[1])
        boxes, logits, points = self._pass(self._output, levels, boxes, OUTPUT_SIDE, floors[2])
        kept = _suppressed(boxes, logits, 0.7, of_smaller=True)
        return _Windows(torch.sigmoid(logits[kept]).numpy(), points[kept].numpy())

    def _propose(self, levels: Pyramid, min_face_px: float, floor: float) -> Tensor:
        """Square windows (N, 4) that P-Net takes for faces of at least that size."""
        boxes, logits = [torch.zeros((0, 4), dtype=torch.float64)], [torch.zeros(0, dtype=torch.float64)]
        for level, scale in zip(levels.levels, levels.scales, strict=True):
            if max(scale) * min_face_px > PROPOSAL_WINDOW * math.sqrt(1 / pyramid.STEP):
                continue  # shows faces that are smaller still
            found, corrections, places = self._respond(level, _logit(floor))
            corners = places.flip(1) * PROPOSAL_STRIDE
            windows = torch.cat([corners, corners + PROPOSAL_WINDOW], dim=1) / torch.from_numpy(np.tile(scale, 2))
            boxes.append(_corrected(windows, corrections))
            logits.append(found)
        return _squares(torch.cat(boxes)[_best(torch.cat(logits), _MOST_PROPOSED)])

    def _respond(self, level: Tensor, floor: float) -> tuple[Tensor, Tensor, Tensor]:
        """Logits (N,), corrections (N, 4) and row and column (N, 2) of the peaks of P-Net's map of one level."""
        _, _, height, width = level.shape
        rows = max(_BAND_PIXELS // width // PROPOSAL_STRIDE, 8) * PROPOSAL_STRIDE
        maps = []
        for top in range(0, max(height - PROPOSAL_WINDOW, 0) + 1, rows):
            band = level[:, :, top : top + rows + PROPOSAL_WINDOW - PROPOSAL_STRIDE]
            if band.shape[2] >= PROPOSAL_WINDOW:
                pixels = band.to(self._device).float().contiguous(memory_format=torch.channels_last)
                maps.append(self._proposal(normalised(pixels)))
        logits = torch.cat([each[0][0] for each in maps])  # (h, w)
        corrections = torch.cat([each[1][0] for each in maps], dim=1)  # (4, h, w)
        peaks = (logits > floor) & (logits == functional.max_pool2d(logits[None], 3, stride=1, padding=1)[0])
        places = peaks.nonzero()
        found = logits[peaks].double().cpu(), corrections[:, peaks].T.double().cpu(), places.double().cpu()
        return found

    def _pass(
        self, network: nn.Module, levels: Pyramid, boxes: Tensor, side: int, floor: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What a network on windows leaves of ``boxes``: corrected boxes, their logits, and its five points."""
        parts = [network(normalised(levels.cut(some, side).to(self._device))) for some in boxes.split(256)]
        if not parts:
            return boxes, torch.zeros(0, dtype=torch.float64), torch.zeros((0, 5, 2), dtype=torch.float64)
        logits, corrections, *points = (torch.cat(each).double().cpu() for each in zip(*parts, strict=True))
        good = logits > _logit(floor)
        boxes, logits = boxes[good], logits[good]
        corrected = _corrected(boxes, corrections[good])
        if points:
            fractions = points[0][good].view(-1, 2, 5).transpose(1, 2)
            sides = (boxes[:, 2:] - boxes[:, :2])[:, None]
            return corrected, logits, boxes[:, None, :2] + fractions * sides - 0.5
        best = _best(logits, _MOST_REFINED)
        kept = best[_suppressed(corrected[best], logits[best], 0.7)]
        return _squares(corrected[kept]), logits[kept], torch.zeros((len(kept), 5, 2), dtype=torch.float64)


def _best(logits: Tensor, most: int) -> Tensor:
    """Indexes of the best, at most so many."""
    return logits.topk(min(most, len(logits))).indices


def _logit(probability: float) -> float:
    return math.log(probability / (1 - probability))


def _corrected(boxes: Tensor, corrections: Tensor) -> Tensor:
    """Boxes moved by parts of their own width and height."""
    return boxes + corrections * (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)


def _squares(boxes: Tensor) -> Tensor:
    """Squares of the longer side about the same middle."""
    middle = (boxes[:, :2] + boxes[:, 2:]) / 2
    half = (boxes[:, 2:] - boxes[:, :2]).amax(dim=1, keepdim=True) / 2
    return torch.cat([middle - half, middle + half], dim=1)


def _suppressed(boxes: Tensor, logits: Tensor, most: float, *, of_smaller: bool = False) -> Tensor:
    """Greedy non-maximum suppression of (N, 4) boxes; which ones are kept, best first.

    Kept are those that share at most that part of their union (or of the smaller one) with any better one that is kept.
    The greedy choice is the only fixed point of "kept unless a better one that is kept overlaps".
    """
    order = logits.argsort(descending=True, stable=True)
    boxes = boxes[order].float()
    corner, opposite = boxes[:, :2], boxes[:, 2:]
    size = (torch.minimum(opposite[:, None], opposite) - torch.maximum(corner[:, None], corner)).clamp_(min=0)
    shared, areas = size.prod(dim=2), (opposite - corner).prod(dim=1)
    other = torch.minimum(areas[:, None], areas) if of_smaller else areas[:, None] + areas - shared
    overlaps = (shared > most * other).triu_(1).float()  # (better, worse)
    kept = torch.ones(len(boxes))
    while True:
        again = (kept @ overlaps == 0).float()
        if torch.equal(again, kept):
            return order[kept.bool()]
        kept = again
