"""The samples of a photo as its file stores them, and the three things done to them: shown, changed, enlarged.

Everything here is in the file's own orientation, bit depth and colour model, so that what does not change stays as it
is, bit for bit.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.spatial import KDTree

from facefix.photos.colour import Profile
from facefix.photos.orientation import contiguous

Samples = NDArray[Any]
Floats = NDArray[np.float32]
Bytes8 = NDArray[np.uint8]

Model = Literal["bilevel", "grey", "rgb", "cmyk", "palette"]
Alpha = Literal["none", "straight", "premultiplied"]

_COLOUR_CHANNELS: dict[Model, int] = {"bilevel": 1, "grey": 1, "rgb": 3, "cmyk": 4, "palette": 1}

_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)

_BAND_PIXELS = 4_000_000
"""Conversions in floating point work on bands of about this many pixels, so that memory stays bounded."""

_UNSEEN = 0.5 / 255
"""A palette pixel keeps its colour unless it should move further than this."""


@dataclass(frozen=True, slots=True, eq=False)
class Raster:
    """The stored samples and what they mean."""

    samples: Samples
    """(H, W, C) uint8 or uint16: the colour channels, then alpha if there is one, then channels that mean nothing here.
    bilevel holds 0 and 1 (white), cmyk ink (0 is none), palette indices."""
    model: Model
    alpha: Alpha = "none"
    palette: Bytes8 | None = None
    """(N, 4) RGBA of a palette picture"""
    key: tuple[int, ...] | None = None
    """the colour that stands for transparent, in a grey or RGB picture without alpha"""
    bits: int | None = None
    """bits of a sample where that is less than its type has"""

    @property
    def size(self) -> tuple[int, int]:
        """width, height as stored"""
        return self.samples.shape[1], self.samples.shape[0]

    @property
    def peak(self) -> int:
        """The sample value of full intensity."""
        if self.model == "bilevel":
            return 1
        return (1 << self.bits) - 1 if self.bits else int(np.iinfo(self.samples.dtype).max)

    @property
    def colours(self) -> int:
        """How many of the channels carry colour."""
        return _COLOUR_CHANNELS[self.model]


@dataclass(frozen=True, slots=True, eq=False)
class Change:
    """New colours for a rectangle of a raster, as stored (not upright)."""

    left: int
    top: int
    rgb: Floats
    """(h, w, 3) sRGB 0..1: what to show"""
    base: Floats
    """(h, w, 3) sRGB 0..1: what the raster shows there now"""
    alpha: Floats
    """(h, w) 0..1: how much of the way to go"""


def to_srgb8(raster: Raster, profile: Profile | None) -> Bytes8:
    """(H, W, 3) uint8 sRGB of what the raster shows, transparency left aside. May share memory with the raster."""
    if raster.model == "palette":
        return _palette_rgb(raster, profile)[_clipped_index(raster)]
    colour = to_8bit(raster.samples[:, :, : raster.colours], raster.peak)
    if raster.alpha == "premultiplied":
        colour = _unpremultiplied(colour, raster)
    if raster.model in ("bilevel", "grey"):
        return np.repeat(colour, 3, axis=2)
    if profile is not None:
        return profile.to_srgb8(colour)
    return _naive_rgb8(colour) if raster.model == "cmyk" else contiguous(colour)


def apply_changes(raster: Raster, changes: Sequence[Change], profile: Profile | None) -> Raster:
    """The raster with ``changes`` made, later ones over earlier ones. Samples where alpha is 0 are not touched."""
    if not any(change.alpha.any() for change in changes):
        return raster
    samples = raster.samples.copy()
    for change in changes:
        rows = slice(change.top, change.top + change.alpha.shape[0])
        columns = slice(change.left, change.left + change.alpha.shape[1])
        samples[rows, columns] = _changed(
            raster, raster.samples[rows, columns], samples[rows, columns], change, profile
        )
    return dataclasses.replace(raster, samples=samples)


def enlarged(raster: Raster, scale: int) -> Raster:
    """The raster ``scale`` times as wide and high, resampled with Lanczos."""
    if scale == 1:
        return raster
    width, height = raster.size[0] * scale, raster.size[1] * scale
    if raster.model == "palette":
        return dataclasses.replace(raster, samples=_enlarged_palette(raster, width, height))
    if raster.model == "bilevel":
        large = _lanczos(raster.samples[:, :, 0] * np.uint8(255), width, height)
        return dataclasses.replace(raster, samples=_dithered(large)[:, :, None])
    planes = [_lanczos(raster.samples[:, :, channel], width, height) for channel in range(raster.samples.shape[2])]
    return dataclasses.replace(raster, samples=np.minimum(np.stack(planes, axis=2), raster.peak, dtype=planes[0].dtype))


def to_8bit(samples: Samples, peak: int) -> Bytes8:
    """Samples of any depth as uint8, rounded."""
    if peak == 255:
        return samples
    if peak == 1:
        return samples.astype(np.uint8) * np.uint8(255)
    result = np.empty(samples.shape, np.uint8)
    for rows in _bands(samples):
        result[rows] = (samples[rows].astype(np.uint32) * 255 + peak // 2) // peak
    return result


def _changed(raster: Raster, old: Samples, now: Samples, change: Change, profile: Profile | None) -> Samples:
    """The samples ``now`` of a rectangle after ``change``; ``old`` are those before any change."""
    if raster.model == "palette":
        return _changed_palette(raster, now, change, profile)
    if raster.model == "bilevel":
        return _changed_bilevel(now, change)
    count, peak = raster.colours, raster.peak
    touched = change.alpha > 0
    shift = _device(change.rgb, raster, profile, old) - _device(change.base, raster, profile, old)
    if raster.alpha != "none":
        opacity = old[:, :, count].astype(np.float32) / peak
        touched &= opacity > 0
        if raster.alpha == "premultiplied":
            shift = shift * opacity[:, :, None]
    current = now[:, :, :count].astype(np.float32)
    target = old[:, :, :count].astype(np.float32) + shift * peak
    mixed = current + change.alpha[:, :, None] * (target - current)
    limit = old[:, :, count : count + 1] if raster.alpha == "premultiplied" else peak
    mixed = np.clip(np.rint(mixed), 0, limit).astype(now.dtype)
    if raster.key is not None:
        touched &= (old[:, :, :count] != np.asarray(raster.key)).any(axis=2)
        is_key = (mixed == np.asarray(raster.key)).all(axis=2)
        mixed[is_key, 0] ^= 1
    result = now.copy()
    result[touched, :count] = mixed[touched]
    return result


def _device(rgb: Floats, raster: Raster, profile: Profile | None, old: Samples) -> Floats:
    """sRGB 0..1 as fractions of the raster's own colour channels."""
    if raster.model == "grey":
        return (rgb @ _LUMA)[:, :, None]
    if profile is not None:
        return profile.from_srgb(rgb)
    if raster.model != "cmyk":
        return rgb
    black: Floats = old[:, :, 3].astype(np.float32) / np.float32(raster.peak)
    return _naive_cmyk(rgb, black)


def _naive_rgb8(cmyk: Bytes8) -> Bytes8:
    """CMYK without a profile, by the definition of the PostScript language (red = (1 - cyan)(1 - black))."""
    result = np.empty((*cmyk.shape[:2], 3), np.uint8)
    for rows in _bands(cmyk):
        light = 255 - cmyk[rows].astype(np.uint32)
        result[rows] = (light[:, :, :3] * light[:, :, 3:] + 127) // 255
    return result


def _naive_cmyk(rgb: Floats, black: Floats) -> Floats:
    """The inverse of _naive_rgb8 with as much of the black that is there as the colour allows."""
    ink = np.minimum(black, 1 - rgb.max(axis=2))[:, :, None]
    light = np.maximum(1 - ink, 1e-6)
    return np.concatenate([np.clip(1 - rgb / light, 0, 1), ink], axis=2).astype(np.float32)


def _unpremultiplied(colour: Bytes8, raster: Raster) -> Bytes8:
    opacity = to_8bit(raster.samples[:, :, raster.colours], raster.peak)[:, :, None].astype(np.float32)
    plain: Bytes8 = np.clip(np.rint(colour * (255 / np.maximum(opacity, 1))), 0, 255).astype(np.uint8)
    return plain


def _palette_rgb(raster: Raster, profile: Profile | None) -> Bytes8:
    assert raster.palette is not None
    colours = contiguous(raster.palette[None, :, :3])
    shown: Bytes8 = (profile.to_srgb8(colours) if profile is not None else colours)[0]
    return shown


def _clipped_index(raster: Raster) -> Samples:
    """Indices, those beyond the palette's end taken for its last."""
    assert raster.palette is not None
    return np.minimum(raster.samples[:, :, 0], len(raster.palette) - 1)


def _changed_palette(raster: Raster, now: Samples, change: Change, profile: Profile | None) -> Samples:
    """Nearest colours of the palette; pixels that are transparent, or hardly move, keep theirs."""
    assert raster.palette is not None
    colours = _palette_rgb(raster, profile).astype(np.float32) / 255
    opaque = np.flatnonzero(raster.palette[:, 3] == 255)
    index = np.minimum(now[:, :, 0], len(colours) - 1)
    target = colours[index] + change.alpha[:, :, None] * (change.rgb - change.base)
    touched = (change.alpha > 0) & np.isin(index, opaque)
    touched &= np.abs(target - colours[index]).max(axis=2) > _UNSEEN
    result = now.copy()
    if touched.any():
        _, nearest = KDTree(colours[opaque]).query(target[touched])
        result[touched, 0] = opaque[nearest]
    return result


def _changed_bilevel(now: Samples, change: Change) -> Samples:
    """Error diffusion (Floyd and Steinberg 1976) inside the change; black and white dots outside stay."""
    weight = change.alpha[:, :, None]
    shown = now.astype(np.float32) * (1 - weight) + (change.rgb @ _LUMA)[:, :, None] * weight
    dots = _dithered(np.clip(np.rint(shown[:, :, 0] * 255), 0, 255).astype(np.uint8))
    return np.where(change.alpha > 0, dots, now[:, :, 0])[:, :, None].astype(now.dtype)


def _dithered(grey: Bytes8) -> Bytes8:
    return np.asarray(Image.fromarray(contiguous(grey)).convert("1")).astype(np.uint8)


def _enlarged_palette(raster: Raster, width: int, height: int) -> Samples:
    """Lanczos in RGBA, then the nearest colour of the palette."""
    assert raster.palette is not None
    index = _clipped_index(raster)
    tree = KDTree(raster.palette.astype(np.float64))
    planes = [_lanczos(raster.palette[:, channel][index], width, height) for channel in range(4)]
    result = np.empty((height, width, 1), raster.samples.dtype)
    for rows in _bands(result):
        _, nearest = tree.query(np.stack([plane[rows] for plane in planes], axis=2).reshape(-1, 4))
        result[rows] = nearest.reshape(-1, width, 1)
    return result


def _lanczos(plane: Samples, width: int, height: int) -> Samples:
    """One channel (H, W) uint8 or uint16 resampled to ``width`` x ``height``."""
    if plane.dtype == np.uint8:
        image = Image.fromarray(contiguous(plane))
        return np.asarray(image.resize((width, height), Image.Resampling.LANCZOS))
    image = Image.fromarray(plane.astype(np.float32))
    large = np.asarray(image.resize((width, height), Image.Resampling.LANCZOS))
    rounded: Samples = np.clip(np.rint(large), 0, np.iinfo(plane.dtype).max).astype(plane.dtype)
    return rounded


def _bands(picture: Samples) -> Iterator[slice]:
    """Slices of rows that hold about _BAND_PIXELS pixels each."""
    step = max(1, _BAND_PIXELS // max(1, picture.shape[1]))
    for start in range(0, picture.shape[0], step):
        yield slice(start, start + step)
