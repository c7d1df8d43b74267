"""Five landmarks and the aligned 512 x 512 crop: pure geometry, and the resampling between the two.

Coordinates are x, y in pixels with the centre of the first pixel at (0, 0). A matrix is the 2 x 3 affine
``[a b tx; c d ty]`` that takes a column (x, y, 1) of its source to its target.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from facefix.errors import UsageError
from facefix.faces.face import Landmarks, Pixels

Matrix = NDArray[np.float64]
"""(2, 3) affine matrix."""

CROP_SIZE = 512

TEMPLATE_512: Landmarks = np.array(
    [[192.98, 239.95], [318.90, 240.19], [256.63, 314.02], [201.26, 371.41], [313.09, 371.15]], dtype=np.float64
)
"""Where left eye, right eye, nose tip and mouth corners lie in the crop: FFHQ's framing."""
TEMPLATE_512.setflags(write=False)

DLIB_CHIP_FROM_CROP: Matrix = np.array([[0.4423, 0.0, -37.9], [0.0, 0.4423, -61.2]])
"""Takes 512-crop coordinates to the 150 x 150 chip (padding 0.25) that dlib's recognition network expects.

The mean over 398 aligned portraits of the transform that dlib.get_face_chip itself applied with landmarks of its
68-point predictor (spread 3 % in scale, 5 px in x, 4 px in y; the 5-point predictor gives the same within 1 px).
"""
DLIB_CHIP_FROM_CROP.setflags(write=False)

_PREFILTER_BELOW = 0.8
"""Bicubic sampling alone is free of visible aliasing down to about this scale."""


def similarity(source: ArrayLike, target: ArrayLike) -> Matrix:
    """The rotation, uniform scale and shift that take ``source`` (N, 2) to ``target`` (N, 2) with least squares.

    Umeyama 1991, "Least-squares estimation of transformation parameters between two point patterns", eq. 40-42;
    never a reflection. Raises UsageError when the points do not define one (fewer than two distinct points).
    """
    source_points = np.asarray(source, dtype=np.float64)
    target_points = np.asarray(target, dtype=np.float64)
    source_mean, target_mean = source_points.mean(axis=0), target_points.mean(axis=0)
    source_centred, target_centred = source_points - source_mean, target_points - target_mean
    variance = float((source_centred**2).sum())
    if not math.isfinite(variance) or variance < 1e-9:
        raise UsageError(f"landmarks: expected at least two distinct finite points, found {source_points.tolist()}")
    u, singular, vt = np.linalg.svd(target_centred.T @ source_centred)
    signs = np.array([1.0, np.sign(np.linalg.det(u @ vt))])
    rotation = (u * signs) @ vt
    linear = rotation * float(singular @ signs) / variance
    return np.column_stack([linear, target_mean - linear @ source_mean])


def crop_matrix(landmarks: Landmarks) -> Matrix:
    """(2, 3) similarity from photo to 512 crop that lays ``landmarks`` (5, 2) onto TEMPLATE_512 with least squares."""
    if np.shape(landmarks) != (5, 2):
        raise UsageError(f"landmarks: expected five x, y pairs, found shape {np.shape(landmarks)}")
    return similarity(landmarks, TEMPLATE_512)


def invert(matrix: Matrix) -> Matrix:
    """(2, 3) matrix that undoes ``matrix``."""
    linear = np.linalg.inv(matrix[:, :2])
    return np.column_stack([linear, -linear @ matrix[:, 2]])


def compose(after: Matrix, before: Matrix) -> Matrix:
    """(2, 3) matrix that applies ``before`` and then ``after``."""
    return np.column_stack([after[:, :2] @ before[:, :2], after[:, :2] @ before[:, 2] + after[:, 2]])


def apply(matrix: Matrix, points: ArrayLike) -> NDArray[np.float64]:
    """``points`` (N, 2) taken through ``matrix``."""
    x, y = np.asarray(points, dtype=np.float64).T
    (xx, xy, x0), (yx, yy, y0) = matrix
    return np.stack([xx * x + xy * y + x0, yx * x + yy * y + y0], axis=1)  # BLAS starts threads for so little work


def apply_to_grid(matrix: Matrix, columns: ArrayLike, rows: ArrayLike) -> NDArray[np.float64]:
    """(H, W, 2): the points of the grid of ``columns`` (W,) and ``rows`` (H,) taken through ``matrix``."""
    x, y = np.asarray(columns, dtype=np.float64)[None, :], np.asarray(rows, dtype=np.float64)[:, None]
    (xx, xy, x0), (yx, yy, y0) = matrix
    return np.stack([xx * x + xy * y + x0, yx * x + yy * y + y0], axis=-1)


def scale_of(matrix: Matrix) -> float:
    """Target pixels per source pixel (square root of the area ratio)."""
    return math.sqrt(abs(float(np.linalg.det(matrix[:, :2]))))


def warp(image: Pixels, matrix: Matrix, size: int | tuple[int, int] = CROP_SIZE) -> Pixels:
    """Resample ``image`` (H, W, 3) uint8 through ``matrix`` (source to target) to ``size`` (side, or height and width).

    Bicubic; low-pass filtered first where the target is much smaller than the source; what lies outside the image is
    its mirror image. Only the part of a large image that is needed is touched.
    """
    height, width = (size, size) if isinstance(size, int) else size
    left, top, right, bottom = _needed_region(image.shape[1], image.shape[0], invert(matrix), width, height)
    part = torch.tensor(image[top:bottom, left:right]).permute(2, 0, 1)[None].float()  # (1, 3, h, w)
    part_from_image = np.array([[1.0, 0.0, -left], [0.0, 1.0, -top]])
    shrink = scale_of(matrix) / _PREFILTER_BELOW
    if shrink < 1:
        part, resized_from_part = _shrink(part, shrink)
        part_from_image = compose(resized_from_part, part_from_image)
    part_from_target = compose(part_from_image, invert(matrix))
    sampled = torch.nn.functional.grid_sample(
        part,
        _sampling_grid(part_from_target, part.shape[3], part.shape[2], width, height),
        mode="bicubic",
        padding_mode="reflection",
        align_corners=False,
    )
    pixels: Pixels = sampled[0].round_().clamp_(0, 255).to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
    return pixels


def _needed_region(
    image_width: int, image_height: int, image_from_target: Matrix, width: int, height: int
) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of the pixels that a target of this size reads, mirrored ones included."""
    corners = apply(image_from_target, [(0, 0), (width, 0), (0, height), (width, height)])
    margin = 4 + 4 / scale_of(invert(image_from_target))
    low, high = corners.min(axis=0) - margin, corners.max(axis=0) + margin
    spans = []
    for start, end, extent in zip(low, high, (image_width, image_height), strict=True):
        first = min(start, 2 * extent - end) if end > extent else start
        last = max(end, -start) if start < 0 else end
        first = min(max(math.floor(first), 0), extent - 1)
        spans.append((first, max(min(math.ceil(last), extent), first + 1)))
    (left, right), (top, bottom) = spans
    return left, top, right, bottom


def _shrink(part: torch.Tensor, factor: float) -> tuple[torch.Tensor, Matrix]:
    """``part`` (1, 3, h, w) made smaller and antialiased, and the matrix from its pixels to the new ones."""
    old_height, old_width = part.shape[2:]
    new_height, new_width = max(1, round(old_height * factor)), max(1, round(old_width * factor))
    resized = torch.nn.functional.interpolate(
        part, size=(new_height, new_width), mode="bilinear", antialias=True, align_corners=False
    )
    sx, sy = new_width / old_width, new_height / old_height
    return resized, np.array([[sx, 0.0, (sx - 1) / 2], [0.0, sy, (sy - 1) / 2]])


def _sampling_grid(
    source_from_target: Matrix, source_width: int, source_height: int, width: int, height: int
) -> torch.Tensor:
    """(1, height, width, 2) places to read, in grid_sample's -1..1 coordinates of the source."""
    places = apply_to_grid(source_from_target, np.arange(width), np.arange(height))
    extent = np.array([source_width, source_height], dtype=np.float64)
    return torch.from_numpy(((2 * places + 1) / extent - 1).astype(np.float32))[None]
