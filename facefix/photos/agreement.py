"""Whether a written file agrees with its source in the eyes of a reader that is not the one that wrote it.

Our own decoder may overlook what our own encoder got wrong: another picture that viewers show, a profile that is no
longer found. Pillow reads both files as any viewer would; where it could read the source, it must see the same again.
"""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from facefix.photos.containers.base import Source
from facefix.photos.raster import Raster

_ORIENTATION = 0x0112
_OWN_ENCODERS = ("PNG", "TIFF", "BMP")
"""Formats that are put together here and decode exactly, so that another decoder must give the very samples."""

_CHANNELS = {"L": 1, "P": 1, "LA": 2, "RGB": 3, "RGBA": 4, "CMYK": 4}


@dataclass(frozen=True, slots=True)
class _View:
    """What Pillow says about a file without decoding it."""

    mode: str
    frames: int
    profile: bytes | None
    orientation: int | None


def check(source: Source, written: bytes, stored: Raster, decoded: Raster) -> None:
    """Compare a written file with its source.

    Args:
        source: what the file was made from.
        written: the file.
        stored: the samples of the source.
        decoded: the samples of the written file as our own decoder has them.

    Raises:
        ValueError: another reader sees another kind of file, or another picture.
    """
    before, after = _view(source.data), _view(written)
    if before is None:
        return
    if after != before:
        raise ValueError(f"another reader found {_difference(before, after)}")
    if source.format not in _OWN_ENCODERS or before.mode not in _CHANNELS:
        return
    if not _shows(written, before.mode, decoded) and _shows(source.data, before.mode, stored):
        raise ValueError("another reader sees another picture than was written")


def _view(data: bytes) -> _View | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data)) as image:
                orientation = image.getexif().get(_ORIENTATION)
                frames = int(getattr(image, "n_frames", 1))
                return _View(image.mode, frames, image.info.get("icc_profile"), orientation)
    except Exception:  # Pillow cannot read it: no second opinion
        return None


def _shows(data: bytes, mode: str, raster: Raster) -> bool:
    """Whether Pillow decodes exactly the raster; True where it cannot be compared."""
    if raster.samples.dtype != np.uint8 or raster.samples.shape[2] != _CHANNELS[mode] or raster.bits:
        return True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data)) as image:
                samples: NDArray[Any] = np.asarray(image)
    except Exception:
        return False
    return np.array_equal(samples.reshape(raster.samples.shape), raster.samples)


def _difference(before: _View, after: _View | None) -> str:
    if after is None:
        return "no picture in it"
    names = ("mode", "frames", "profile", "orientation")
    changed = [name for name in names if getattr(before, name) != getattr(after, name)]
    return "another " + ", ".join(changed)
