"""How good a face is, in few numbers that can be explained, and what follows from them.

Sharpness compares how much fine detail there is in the aligned crop with how much coarse detail, so that contrast and
exposure cancel; the finest detail of all is left out because it is mostly noise, grain and JPEG blocks, whose strength
is a number of its own.

Measured on 80 portraits at 512 px, 60 at 256 px, and the 80 degraded as ReF-LDM's test sets are (5th, 50th and 95th
percentile of sharpness): clean 0.73 1.00 1.00, clean at 256 px 0.65 0.88 1.00, moderate 0.07 0.22 0.58, severe 0.03
0.09 0.19. So the thresholds send 3 % and 2 % of the clean, 95 % of the moderate and all of the severe ones to be
restored. Noise of clean portraits stays below 3.1 levels for 95 %.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from facefix.faces import align
from facefix.faces.face import Detection, Landmarks, Quality

FACE_WIDTH_IN_CROP = 294.0
"""Width of a face, temple to temple, in the 512 crop: 2.33 times the distance between the eyes of the template."""

_FACE = (slice(160, 440), slice(136, 376))
"""Rows and columns of the crop from the brows to the chin: skin, eyes, mouth, little background."""

_FINE_SIGMAS = (1.0, 2.0)
_COARSE_SIGMAS = (4.0, 8.0)
"""Standard deviations in crop pixels between which detail is fine, and coarse: about 4 to 8, and 16 to 32, px wide."""

_TRUNCATE = 4.0
"""Standard deviations at which a Gaussian ends."""

_FINE_DETAIL_OF_NOISE = 0.371
"""What white noise of standard deviation 1 adds to fine detail: 1.96 sqrt(0.1125 / pi), its 95th percentile there."""

_BLURRED_RATIO = 0.10
_SHARP_RATIO = 0.48
"""Fine over coarse detail of a face without any detail left, and of the median portrait: sharpness 0 and 1."""

RESTORE_BELOW_SHARPNESS = 0.60
RESTORE_BELOW_FACE_PX = 90.0
RESTORE_ABOVE_NOISE = 6.0
REFERENCE_SHARPNESS = 0.60
REFERENCE_FACE_PX = 110.0
REFERENCE_YAW = 0.70
REFERENCE_NOISE = 6.0


def assess(crop: NDArray[np.uint8], detection: Detection) -> Quality:
    """Quality of a face from its aligned ``crop`` (512, 512, 3) and its detection in the photo."""
    photo_from_crop = align.invert(align.crop_matrix(detection.landmarks))
    face_px = FACE_WIDTH_IN_CROP * align.scale_of(photo_from_crop)
    sharpness, noise = sharpness_and_noise(crop)
    yaw, roll = yaw_of(detection.landmarks), roll_of(detection.landmarks)
    frontal = 1 - 0.5 * min(abs(yaw), 1.0)
    size = min(face_px / FACE_WIDTH_IN_CROP, 1.0) ** 0.5
    quiet = 1 / (1 + (noise / 10) ** 2)
    score = size * sharpness * quiet * frontal * detection.confidence
    return Quality(face_px, sharpness, yaw, roll, score, noise, detection.settled)


def sharpness_and_noise(crop: NDArray[np.uint8]) -> tuple[float, float]:
    """Sharpness 0..1 of an aligned crop (512, 512, 3), and the standard deviation of its noise in levels of 0..255."""
    luma = crop.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)  # (512, 512)
    fine, coarse = (_detail(luma, *sigmas) for sigmas in (_FINE_SIGMAS, _COARSE_SIGMAS))
    noise = _noise(luma)
    fine = math.sqrt(max(fine**2 - (_FINE_DETAIL_OF_NOISE * noise) ** 2, 0))
    sharpness = (fine / max(coarse, 1e-3) - _BLURRED_RATIO) / (_SHARP_RATIO - _BLURRED_RATIO)
    return float(np.clip(sharpness, 0, 1)), noise


def _detail(luma: NDArray[np.float32], low: float, high: float) -> float:
    """95th percentile of the difference of two Gaussians over the face: strength of its edges at that size."""
    reach = math.ceil(_TRUNCATE * high)  # what lies further from the face changes nothing
    part = luma[tuple(slice(side.start - reach, side.stop + reach) for side in _FACE)]
    blurred = [gaussian_filter(part, sigma, mode="mirror", truncate=_TRUNCATE) for sigma in (low, high)]
    band = (blurred[0] - blurred[1])[reach:-reach, reach:-reach]
    return float(np.percentile(np.abs(band), 95))


def _noise(luma: NDArray[np.float32]) -> float:
    """Robust noise level of flat skin: Immerkaer 1996, "Fast noise variance estimation", with the median."""
    face = luma[_FACE]
    second = face[:, :-2] - 2 * face[:, 1:-1] + face[:, 2:]
    mask = second[:-2] - 2 * second[1:-1] + second[2:]  # the 3 x 3 mask (1 -2 1; -2 4 -2; 1 -2 1), gain 6
    return float(np.median(np.abs(mask)) * 1.4826 / 6)


def yaw_of(landmarks: Landmarks) -> float:
    """-1..1: how far the nose tip lies from the middle of the eyes, in half eye distances, along the line of the eyes.

    0 is frontal, about +-0.35 at 20 degrees, +-1 where the nose tip is beyond an eye. Positive: turned to the right of
    the picture.
    """
    left, right, nose = landmarks[0], landmarks[1], landmarks[2]
    across = right - left
    length = max(float(np.linalg.norm(across)), 1e-9)
    offset = float((nose - (left + right) / 2) @ across) / length
    return float(np.clip(offset / (length / 2), -1, 1))


def roll_of(landmarks: Landmarks) -> float:
    """Degrees by which the head is turned in the picture, clockwise positive, from the similarity to the template."""
    matrix = align.crop_matrix(landmarks)
    return float(np.degrees(np.arctan2(matrix[0, 1], matrix[0, 0])))


def needs_restoring(quality: Quality) -> tuple[bool, str]:
    """Whether ``--restore auto`` restores a face, and why or why not."""
    if quality.face_px < RESTORE_BELOW_FACE_PX:
        return True, f"small: {quality.face_px:.0f} px wide"
    if quality.sharpness < RESTORE_BELOW_SHARPNESS:
        return True, f"blurred: sharpness {quality.sharpness:.2f}, a good portrait has 1.00"
    if quality.noise > RESTORE_ABOVE_NOISE:
        return True, f"noisy: {quality.noise:.0f} levels"
    return False, f"good already: {quality.face_px:.0f} px wide, sharpness {quality.sharpness:.2f}"


def can_be_reference(quality: Quality) -> tuple[bool, str]:
    """Whether a face of the album is good enough to serve as a reference, and why or why not."""
    if quality.face_px < REFERENCE_FACE_PX:
        return False, f"too small: {quality.face_px:.0f} px wide"
    if quality.sharpness < REFERENCE_SHARPNESS:
        return False, f"blurred: sharpness {quality.sharpness:.2f}"
    if quality.noise > REFERENCE_NOISE:
        return False, f"noisy: {quality.noise:.0f} levels"
    if abs(quality.yaw) > REFERENCE_YAW:
        return False, f"turned away: yaw {quality.yaw:+.2f}"
    return True, f"{quality.face_px:.0f} px wide, sharpness {quality.sharpness:.2f}"
