"""Put a restored crop back into its photo: inverse warp, feathered mask, colours of the photo."""

from __future__ import annotations

import functools
import math

import numpy as np
import torch
from numpy.typing import NDArray

from facefix.errors import UsageError
from facefix.faces.align import CROP_SIZE, TEMPLATE_512, Matrix, apply, apply_to_grid, compose, invert, scale_of, warp
from facefix.photos.colour import is_monochrome
from facefix.photos.region import Photo, Region, _to_float, _to_uint8, picture_part

_LOW_FREQUENCY_SIGMA = 36.0
"""Crop pixels. Colour and light that vary more slowly than this are the photo's; finer detail is the restorer's."""

_MATCH_SIDE = 128
"""Low frequencies are computed at this side length."""

_FEATHER = 0.34
"""Width of the mask's falloff, as a fraction of the ellipse's radius."""

_BORDER_PX = 40.0
"""Crop pixels over which the mask fades out towards the border of the crop."""


_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)
"""ITU-R BT.601, as Pillow converts to grey."""

_LARGEST_DENSITY = 1.25
"""Crop pixels per photo pixel; a denser crop is averaged down first, so that nothing aliases."""

_FAINTEST = 0.5 / 255
"""Alpha below this changes no 8-bit sample and is set to 0."""


def blend_face(
    photo_rgb: Photo,
    restored: NDArray[np.uint8],
    matrix: Matrix,
    *,
    strength: float = 1.0,
    grey: bool = False,
    scale: int = 1,
    photo_crop: NDArray[np.uint8] | None = None,
) -> Region:
    """The region of a photo that changes when ``restored`` takes the place of the face it was made from.

    ``photo_rgb`` (H, W, 3) is the upright photo, uint8 or float 0..1; ``restored`` (512, 512, 3) uint8 is the new crop
    and ``matrix`` (2, 3) took the photo to the crop. What is laid over the photo is the *difference* between the new
    crop and the photo's own, so that detail finer than the crop and film grain stay, and the photo's own crop changes
    nothing. Slow changes of colour and light are kept as they are in the photo. ``strength`` 0..1 scales the change; a
    ``grey`` photo stays grey; ``scale`` gives the region for the photo enlarged that many times. ``photo_crop`` is
    the photo's own crop where it is known already.
    """
    _check(photo_rgb, restored, matrix, strength, scale)
    if photo_crop is None:
        photo_crop = warp(photo_rgb if photo_rgb.dtype == np.uint8 else _to_uint8(photo_rgb), matrix)
    crop, wanted = _to_float(photo_crop), _to_float(restored)
    if grey or is_monochrome(photo_crop):
        wanted = np.repeat((wanted @ _LUMA)[:, :, None], 3, axis=2)
    mask = face_mask()
    inside = _inside(photo_rgb.shape[1], photo_rgb.shape[0], matrix)
    change = match_low_frequencies(wanted, crop, mask * inside) - crop
    crop_from_picture = compose(matrix, _photo_from_enlarged(scale))
    box = _bounds(crop_from_picture, photo_rgb.shape[1] * scale, photo_rgb.shape[0] * scale)
    layers = _sample(np.dstack([change, mask]), crop_from_picture, box)
    base = picture_part(photo_rgb, box, scale)
    alpha = layers[:, :, 3] * np.float32(strength)
    alpha[alpha < _FAINTEST] = 0
    rgb = np.clip(base + layers[:, :, :3], 0, 1).astype(np.float32)
    return Region(box[0], box[1], rgb, np.clip(alpha, 0, 1), scale)


@functools.cache
def face_mask(size: int = CROP_SIZE) -> NDArray[np.float32]:
    """(size, size) 0..1, read only: 1 over the face, falling smoothly to 0 round it and towards the crop's border.

    The face is taken for an egg shape round the eyes, nose and mouth of TEMPLATE_512: from above the brows to below
    the chin and from ear to ear, wider at the temples than at the jaw.
    """
    eyes, mouth = TEMPLATE_512[:2].mean(axis=0), TEMPLATE_512[3:].mean(axis=0)
    centre = eyes + 0.42 * (mouth - eyes)
    eye_distance = float(np.linalg.norm(TEMPLATE_512[1] - TEMPLATE_512[0]))
    step = CROP_SIZE / size
    axis = (np.arange(size) + 0.5) * step - 0.5
    x, y = np.meshgrid(axis - centre[0], axis - centre[1])
    half_height = np.where(y < 0, 1.42, 1.52) * eye_distance
    half_width = 1.36 * eye_distance * (1 - 0.10 * np.clip(y / (1.52 * eye_distance), -1, 1))
    radius = np.hypot(x / half_width, y / half_height)
    border = np.minimum(axis, CROP_SIZE - 1 - axis) / _BORDER_PX
    fade = _smoothstep(np.minimum(border[:, None], border[None, :]))
    mask: NDArray[np.float32] = (_smoothstep((1 + _FEATHER / 2 - radius) / _FEATHER) * fade).astype(np.float32)
    mask.setflags(write=False)
    return mask


def match_low_frequencies(
    image: NDArray[np.float32], like: NDArray[np.float32], weight: NDArray[np.float32]
) -> NDArray[np.float32]:
    """``image`` (512, 512, 3) with the low frequencies of ``like``, both judged only where ``weight`` (512, 512) is.

    Normalised convolution (Knutsson and Westin 1993): the mean of the difference under a Gaussian times the weight.
    """
    difference = torch.from_numpy(np.dstack([(like - image) * weight[:, :, None], weight])).permute(2, 0, 1)[None]
    small = torch.nn.functional.interpolate(difference, size=(_MATCH_SIDE, _MATCH_SIDE), mode="area")
    smooth = _gaussian_blur(small, _LOW_FREQUENCY_SIGMA * _MATCH_SIDE / image.shape[0])
    shift = smooth[:, :3] / (smooth[:, 3:] + 1e-4)
    shift = torch.nn.functional.interpolate(shift, size=image.shape[:2], mode="bilinear", align_corners=False)
    shifted: NDArray[np.float32] = image + shift[0].permute(1, 2, 0).numpy()
    return shifted


def _check(photo: Photo, restored: NDArray[np.uint8], matrix: Matrix, strength: float, scale: int) -> None:
    if photo.ndim != 3 or photo.shape[2] != 3:
        raise UsageError(f"photo_rgb: expected an array (H, W, 3), found shape {photo.shape}")
    if restored.shape != (CROP_SIZE, CROP_SIZE, 3) or restored.dtype != np.uint8:
        raise UsageError(f"restored: expected (512, 512, 3) uint8, found {restored.shape} {restored.dtype}")
    if not 0 <= strength <= 1:
        raise UsageError(f"strength: expected a number from 0 to 1, found {strength}")
    if scale < 1:
        raise UsageError(f"scale: expected a whole number of at least 1, found {scale}")
    if not np.isfinite(matrix).all() or abs(float(np.linalg.det(matrix[:, :2]))) < 1e-12:
        raise UsageError(f"matrix: expected an invertible affine, found {matrix.tolist()}")


def _smoothstep(value: NDArray[np.float64]) -> NDArray[np.float64]:
    clipped = np.clip(value, 0, 1)
    smooth: NDArray[np.float64] = clipped * clipped * (3 - 2 * clipped)
    return smooth


def _inside(width: int, height: int, matrix: Matrix) -> NDArray[np.float32]:
    """(512, 512) 1 where the crop shows the photo, 0 where it shows its mirrored border."""
    last = CROP_SIZE - 1
    corners = apply(invert(matrix), [(0, 0), (last, 0), (0, last), (last, last)])
    if (corners >= 0).all() and (corners <= (width - 1, height - 1)).all():
        return np.ones((CROP_SIZE, CROP_SIZE), np.float32)
    columns, rows = np.meshgrid(np.arange(CROP_SIZE), np.arange(CROP_SIZE))
    places = apply(invert(matrix), np.stack([columns, rows], axis=-1).reshape(-1, 2))
    inside = (places >= -0.5).all(axis=1) & (places[:, 0] <= width - 0.5) & (places[:, 1] <= height - 0.5)
    return inside.reshape(CROP_SIZE, CROP_SIZE).astype(np.float32)


def _photo_from_enlarged(scale: int) -> Matrix:
    """Takes pixel centres of the enlarged photo to those of the photo."""
    shift = -(scale - 1) / (2 * scale)
    return np.array([[1 / scale, 0.0, shift], [0.0, 1 / scale, shift]])


def _bounds(crop_from_picture: Matrix, width: int, height: int) -> tuple[int, int, int, int]:
    """left, top, right, bottom of the pixels of the picture that the crop's mask covers; possibly empty."""
    margin = 2 * max(1.0, scale_of(crop_from_picture))  # crop pixels that resampling reaches across
    (x0, y0, x1, y1) = np.clip(_mask_box() + margin * np.array([-1, -1, 1, 1]), -0.5, CROP_SIZE - 0.5).tolist()
    corners = apply(invert(crop_from_picture), [(x0, y0), (x1, y0), (x0, y1), (x1, y1)])
    left, top = np.floor(corners.min(axis=0)).astype(int)
    right, bottom = np.ceil(corners.max(axis=0)).astype(int) + 1
    left, top = min(max(int(left), 0), width), min(max(int(top), 0), height)
    return left, top, max(left, min(int(right), width)), max(top, min(int(bottom), height))


@functools.cache
def _mask_box() -> NDArray[np.float64]:
    """left, top, right, bottom of the crop's pixels where the mask is not 0."""
    rows, columns = np.nonzero(face_mask())
    return np.array([columns.min() - 0.5, rows.min() - 0.5, columns.max() + 0.5, rows.max() + 0.5])


def _sample(
    layers: NDArray[np.float32], crop_from_picture: Matrix, box: tuple[int, int, int, int]
) -> NDArray[np.float32]:
    """``layers`` (512, 512, C) as seen in the pixels of ``box``: bicubic, averaged over each pixel's area if small."""
    left, top, right, bottom = box
    height, width = bottom - top, right - left
    if not height or not width:
        return np.zeros((height, width, layers.shape[2]), np.float32)
    places = apply_to_grid(crop_from_picture, left + np.arange(width), top + np.arange(height))
    grid = ((2 * places + 1) / CROP_SIZE - 1).astype(np.float32)[None]
    source = torch.from_numpy(layers).permute(2, 0, 1)[None]  # (1, C, 512, 512)
    density = scale_of(crop_from_picture)  # crop pixels per picture pixel
    if density > _LARGEST_DENSITY:
        side = max(1, round(CROP_SIZE * _LARGEST_DENSITY / density))
        source = torch.nn.functional.interpolate(
            source, size=(side, side), mode="bilinear", antialias=True, align_corners=False
        )
    sampled = torch.nn.functional.grid_sample(
        source, torch.from_numpy(grid), mode="bicubic", padding_mode="zeros", align_corners=False
    )
    return np.ascontiguousarray(sampled[0].permute(1, 2, 0).numpy())


def _gaussian_blur(images: torch.Tensor, sigma: float) -> torch.Tensor:
    """``images`` (B, C, H, W) blurred; outside is 0."""
    reach = math.ceil(3 * sigma)
    offsets = torch.arange(-reach, reach + 1, dtype=images.dtype)
    kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
    kernel = kernel / kernel.sum()
    channels = images.shape[1]
    vertical = kernel.view(1, 1, -1, 1).expand(channels, 1, -1, 1)
    horizontal = kernel.view(1, 1, 1, -1).expand(channels, 1, 1, -1)
    blurred = torch.nn.functional.conv2d(images, vertical, padding=(reach, 0), groups=channels)
    return torch.nn.functional.conv2d(blurred, horizontal, padding=(0, reach), groups=channels)
