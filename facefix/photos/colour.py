"""Colour of a photo: its ICC profile to sRGB and back, whether it is grey, and the tone of a toned photo."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

Floats = NDArray[np.float32]
Bytes8 = NDArray[np.uint8]

_SAME_AS_SRGB = 2.5 / 255
"""A profile that moves no colour further than this is taken for sRGB: rounding, and sRGB's many variants."""

_TONE_TOLERANCE = 3.5
"""Largest distance of a channel from the tone curve, in 8-bit steps, that still counts as toned.

Measured on 32 x 32 averages: at most 1.4 in black-and-white and sepia photographs saved as JPEG; at least 9 in 1,482
face crops of colour photographs.
"""

_TONE_SHARE = 0.98

_TONE_SIDE = 64
_TONE_BLOCK = 8
"""Averages over fewer pixels than this to a side would see how JPEG smears colour across edges."""

_LUMA = np.array([0.299, 0.587, 0.114])
"""ITU-R BT.601, as Pillow converts to grey"""

_INK = 100.0
"""lcms counts ink in per cent in floating point."""


@dataclass(frozen=True, slots=True)
class Profile:
    """An ICC profile that differs from sRGB and can be used both ways."""

    data: bytes
    space: str
    """rgb or cmyk"""

    def to_srgb(self, samples: NDArray[Any]) -> Floats:
        """(..., 3 or 4) device samples, integers or 0..1, to (..., 3) sRGB 0..1, clipped."""
        device = _as_floats(samples)
        device = device * _INK if self.space == "cmyk" else device
        return np.clip(_transform(device, self.data, _srgb(), self.space, "rgb"), 0, 1)

    def to_srgb8(self, samples: Bytes8) -> Bytes8:
        """(H, W, 3 or 4) uint8 device samples to (H, W, 3) uint8 sRGB."""
        result: Bytes8 = imagecodecs.cms_transform(
            np.ascontiguousarray(samples), self.data, _srgb(), colorspace=self.space, outcolorspace="rgb"
        )
        return result

    def from_srgb(self, rgb: Floats) -> Floats:
        """(H, W, 3) sRGB 0..1 to (H, W, 3 or 4) device samples 0..1."""
        device = _transform(np.ascontiguousarray(rgb, dtype=np.float32), _srgb(), self.data, "rgb", self.space)
        return np.clip(device / _INK if self.space == "cmyk" else device, 0, 1)


def load_profile(data: bytes | None, space: str) -> tuple[Profile | None, str | None]:
    """The profile to convert with, and a note where one is there but is not used.

    ``space`` is what the photo's samples are: grey, rgb or cmyk. There is none for a photo without profile, with one
    that is sRGB, and for grey ones, whose tone curves matter to neither detection nor restoration.
    """
    if not data or space not in ("rgb", "cmyk"):
        return None, None
    profile = Profile(data, space)
    probes = np.random.default_rng(0).random((8, 8, 3), dtype=np.float32)
    try:
        there = profile.from_srgb(probes)
        back = profile.to_srgb(there)
    except (imagecodecs.CmsError, ValueError, TypeError, RuntimeError) as error:
        return None, f"ICC profile ignored: it cannot be used ({str(error).splitlines()[0][:80] if str(error) else ''})"
    if not (np.isfinite(there).all() and np.isfinite(back).all()):
        return None, "ICC profile ignored: it gives no finite colours"
    if space == "rgb" and float(np.abs(there - probes).max()) <= _SAME_AS_SRGB:
        return None, None
    return profile, None


def is_monochrome(rgb: Bytes8) -> bool:
    """Whether a picture (H, W, 3) is black-and-white or toned (sepia): its colour follows from its brightness alone.

    Judged on averages over areas, so that grain and JPEG's noise do not count: the chroma has to lie within a few steps
    of one cubic curve of the luma.
    """
    if rgb.size == 0:
        return True
    step = max(1, min(rgb.shape[:2]) // (_TONE_SIDE * _TONE_BLOCK))
    rgb = np.ascontiguousarray(rgb[::step, ::step])
    height, width = (min(max(extent // _TONE_BLOCK, _TONE_BLOCK), _TONE_SIDE, extent) for extent in rgb.shape[:2])
    small = (
        np.asarray(Image.fromarray(rgb).resize((width, height), Image.Resampling.BOX)).reshape(-1, 3).astype(np.float64)
    )
    luma = small @ _LUMA
    powers = np.vander(luma / 255, 4)
    chroma = small - luma[:, None]
    curve, *_ = np.linalg.lstsq(powers, chroma, rcond=None)
    distance = np.abs(chroma - powers @ curve).max(axis=1)
    return float(np.quantile(distance, _TONE_SHARE)) <= _TONE_TOLERANCE


def _as_floats(samples: NDArray[Any]) -> Floats:
    floats: Floats = np.ascontiguousarray(samples, dtype=np.float32)
    peaks = {"uint8": 255, "uint16": 65535}
    scaled: Floats = floats / np.float32(peaks.get(samples.dtype.name, 1))
    return scaled


def _transform(samples: Floats, profile: bytes, to_profile: bytes, space: str, to_space: str) -> Floats:
    shape = samples.shape if samples.ndim == 3 else (1, *samples.shape)
    result: Floats = imagecodecs.cms_transform(
        np.ascontiguousarray(samples.reshape(shape)), profile, to_profile, colorspace=space, outcolorspace=to_space
    )
    return result.reshape(*samples.shape[:-1], result.shape[-1])


@functools.cache
def _srgb() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
