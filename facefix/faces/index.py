"""Faces of one photo: detected in whichever turn shows them upright, aligned, embedded, judged."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from facefix.faces import align
from facefix.faces.backends import Backend
from facefix.faces.detect import turned_back
from facefix.faces.face import Detection, Face
from facefix.faces.quality import assess, roll_of


class UprightPhoto(Protocol):
    """What index_photo needs to know of a photo."""

    @property
    def path(self) -> Path:
        """Where the photo is; its key."""
        ...

    @property
    def pixels(self) -> NDArray[np.uint8]:
        """(H, W, 3) upright RGB."""
        ...

    @property
    def taken(self) -> float | None:
        """POSIX seconds."""
        ...

    @property
    def orientation(self) -> int | None:
        """EXIF orientation, None where the file does not say."""
        ...


def index_photo(photo: UprightPhoto, backend: Backend) -> list[Face]:
    """The faces of a photo, left to right, with embedding and quality.

    Where the file does not say which way is up and no sure, upright face is found, the photo is also tried turned by
    90, 270 and 180 degrees; faces come back in coordinates of the photo as read.
    """
    detections = _detect(photo, backend)
    detections.sort(key=lambda detection: (detection.box[0] + detection.box[2], detection.box[1]))
    crops = [align.warp(photo.pixels, align.crop_matrix(detection.landmarks)) for detection in detections]
    embeddings = backend.embedder.embed(crops)
    return [
        Face(
            photo=str(photo.path),
            index=index,
            detection=detection,
            embedding=embedding,
            quality=assess(crop, detection),
            taken=photo.taken,
        )
        for index, (detection, crop, embedding) in enumerate(zip(detections, crops, embeddings, strict=True))
    ]


def _detect(photo: UprightPhoto, backend: Backend) -> list[Detection]:
    found = backend.detector.detect(photo.pixels)
    if photo.orientation is not None or _has_upright_face(found):
        return found
    height, width = photo.pixels.shape[:2]
    best, needed = found, _upright(found) + _MARGIN_OF_A_TURN
    for quarter_turns in _turns_to_try(photo.pixels, found, backend):
        turned = backend.detector.detect(np.ascontiguousarray(np.rot90(photo.pixels, quarter_turns)))
        if _upright(turned) > needed:
            best, needed = [turned_back(face, quarter_turns, width, height) for face in turned], _upright(turned)
        if _has_upright_face(turned):
            break
    return best


_MARGIN_OF_A_TURN = 0.1
"""Evidence that a turned photo must have more than the photo as it is."""


_SURE = 0.7
"""Confidence of a face that says which way is up; those of our photographs have more than 0.85 unless in profile."""


_LEAST_SIDE_TO_HALVE = 640
"""Which way is up is looked for in the photo at half its size first, unless it is smaller than this."""


def _turns_to_try(pixels: NDArray[np.uint8], found: Sequence[Detection], backend: Backend) -> tuple[int, ...]:
    """Quarter turns, the most promising one first: a look at half the size is cheap, and misses small faces only.

    Where there is an upright face already, if a doubtful one, only turns that look better at half the size are tried.
    """
    turns = (1, 3, 2)
    if min(pixels.shape[:2]) < _LEAST_SIDE_TO_HALVE:
        return turns
    small, evidence = np.asarray(Image.fromarray(pixels).reduce(2)), dict.fromkeys(turns, 0.0)
    for quarter_turns in turns:
        turned = backend.detector.detect(np.ascontiguousarray(np.rot90(small, quarter_turns)))
        evidence[quarter_turns] = _upright(turned)
        if _has_upright_face(turned):
            break
    least = _upright(found) if any(not _lies_on_its_side(face) for face in found) else -1.0
    promising = [quarter_turns for quarter_turns in turns if evidence[quarter_turns] > least]
    return tuple(sorted(promising, key=lambda quarter_turns: -evidence[quarter_turns]))


def _has_upright_face(found: Sequence[Detection]) -> bool:
    return any(face.confidence >= _SURE and not _lies_on_its_side(face) for face in found)


def _lies_on_its_side(face: Detection) -> bool:
    return abs(roll_of(face.landmarks)) > 45


def _upright(found: Sequence[Detection]) -> float:
    """Evidence that a photo is the right way up: confidence in its faces, those lying on their side counting half."""
    return sum(face.confidence * (0.5 if _lies_on_its_side(face) else 1.0) for face in found)
