"""Faces of one photo: detected in whichever turn shows them upright, aligned, embedded, judged."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from facefix.faces import align
from facefix.faces.backends import Backend
from facefix.faces.detect import enlarged, turned_back
from facefix.faces.face import Detection, Face, Pixels
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


def index_photo(
    photo: UprightPhoto,
    backend: Backend,
    min_face_px: float | None = None,
    looked_at: tuple[NDArray[np.uint8], int] | None = None,
) -> list[Face]:
    """The faces of a photo, left to right, with embedding and quality.

    Where no sure, upright face is found, the photo is also tried turned by 90, 270 and 180 degrees, whatever its EXIF
    says: scanners write that it is upright without knowing. Faces come back in coordinates of the photo as read.

    Args:
        photo: with pixels that may be decoded only when they are asked for.
        backend: detector and embedder.
        min_face_px: width of the smallest face to look for; None: what the detector finds worth while.
        looked_at: pixels of the photo made smaller, and how many times, to look for faces in.
    """
    pixels, reduction = looked_at or (photo.pixels, 1)
    wanted = None if min_face_px is None else min_face_px / reduction
    detections = [enlarged(found, reduction) for found in _detect(pixels, photo.orientation, backend, wanted)]
    detections.sort(key=lambda detection: (detection.box[0] + detection.box[2], detection.box[1]))
    crops = [_crop(photo, pixels, reduction, align.crop_matrix(detection.landmarks)) for detection in detections]
    known = [crop for crop, detection in zip(crops, detections, strict=True) if detection.settled]
    embeddings = iter(backend.embedder.embed(known))
    return [
        Face(
            photo=str(photo.path),
            index=index,
            detection=detection,
            embedding=next(embeddings) if detection.settled else None,
            quality=assess(crop, detection),
            taken=photo.taken,
        )
        for index, (detection, crop) in enumerate(zip(detections, crops, strict=True))
    ]


def _crop(photo: UprightPhoto, pixels: NDArray[np.uint8], reduction: int, matrix: align.Matrix) -> Pixels:
    """The aligned crop: from ``pixels``, the photo made smaller, where they are enough for it."""
    if reduction == 1 or align.scale_of(matrix) * reduction > 1:
        return align.warp(photo.pixels, matrix)
    shift = (reduction - 1) / 2
    photo_from_small = np.array([[reduction, 0.0, shift], [0.0, reduction, shift]])
    return align.warp(pixels, align.compose(matrix, photo_from_small))


def _detect(
    pixels: NDArray[np.uint8], orientation: int | None, backend: Backend, min_face_px: float | None
) -> list[Detection]:
    found = backend.detector.detect(pixels, min_face_px)
    if _has_upright_face(found):
        return found
    height, width = pixels.shape[:2]
    best, needed = found, _upright(found) + _MARGIN_OF_A_TURN
    for quarter_turns in _turns_to_try(pixels, found, backend, is_tagged=orientation is not None):
        turned = backend.detector.detect(_turned(pixels, quarter_turns), min_face_px)
        if _upright(turned) > needed:
            best, needed = [turned_back(face, quarter_turns, width, height) for face in turned], _upright(turned)
        if _has_upright_face(turned):
            break
    return best


_MARGIN_OF_A_TURN = 0.1
"""Evidence that a turned photo must have more than the photo as it is."""


_SURE = 0.7
"""Confidence of a face that says which way is up; those of our photographs have more than 0.85 unless in profile."""


_GLANCE_PIXELS = 300_000
"""Which way is up is looked for in a copy of the photo of this size first, unless it is hardly larger."""


def _turns_to_try(
    pixels: NDArray[np.uint8], found: Sequence[Detection], backend: Backend, *, is_tagged: bool
) -> tuple[int, ...]:
    """Quarter turns, the most promising one first: a look at a small copy is cheap, and misses small faces only.

    Where there is an upright face already, if a doubtful one, or EXIF says which way is up, only turns are tried that
    show a sure one, or look better, in the small copy.
    """
    turns = (1, 3, 2)
    small, evidence = _small_copy(pixels), dict.fromkeys(turns, 0.0)
    if small is None and not is_tagged:
        return turns
    for quarter_turns in turns:
        turned = backend.detector.glance(_turned(pixels if small is None else small, quarter_turns))
        evidence[quarter_turns] = _upright(turned)
        if _has_upright_face(turned):
            break
    least = _upright(found) if any(not _lies_on_its_side(face) for face in found) else -1.0
    least = max(least, _SURE) if is_tagged else least
    promising = [quarter_turns for quarter_turns in turns if evidence[quarter_turns] > least]
    return tuple(sorted(promising, key=lambda quarter_turns: -evidence[quarter_turns]))


def _small_copy(pixels: NDArray[np.uint8]) -> NDArray[np.uint8] | None:
    """The photo at _GLANCE_PIXELS; None where it has less than twice as many."""
    height, width = pixels.shape[:2]
    scale = math.sqrt(_GLANCE_PIXELS / (width * height))
    if scale > math.sqrt(0.5):
        return None
    size = (round(width * scale), round(height * scale))
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0))


def _turned(pixels: NDArray[np.uint8], quarter_turns: int) -> NDArray[np.uint8]:
    return np.ascontiguousarray(np.rot90(pixels, quarter_turns))


def _has_upright_face(found: Sequence[Detection]) -> bool:
    return any(face.confidence >= _SURE and face.settled and not _lies_on_its_side(face) for face in found)


def _lies_on_its_side(face: Detection) -> bool:
    return abs(roll_of(face.landmarks)) > 45


def _upright(found: Sequence[Detection]) -> float:
    """Evidence that a photo is the right way up: confidence in its faces.

    Those that lie on their side, or whose landmarks are a guess, count half.
    """
    return sum(face.confidence * (1.0 if face.settled and not _lies_on_its_side(face) else 0.5) for face in found)
