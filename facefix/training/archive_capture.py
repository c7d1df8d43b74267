"""What cameras, scanners, screens, video and files do to a photograph: one small class for each.

A step is a value: its parameters, a seed where it draws anything, and a call that takes a picture (C, H, W), grey
(C = 1) or RGB (C = 3), in about [0, 1], and gives the picture after it. Lengths are in pixels of a 512 x 512 crop and
are multiplied by the ``scale`` of the call. Strengths are in levels of 0..255, or parts of 1 where that is said.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import scipy.fft
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

Filter = Literal["nearest", "bilinear", "bicubic"]


class Step(Protocol):
    """One thing that happens to a picture."""

    def __call__(self, picture: Tensor, scale: float) -> Tensor:
        """(C, H, W) -> (C, H, W)."""
        ...


@dataclass(frozen=True, slots=True)
class Blur:
    """Out of focus (a Gaussian) and moved (a straight line) at once, the border mirrored."""

    sigma: float
    length: float = 0.0
    """of the movement"""
    angle: float = 0.0

    def __call__(self, picture: Tensor, scale: float) -> Tensor:
        sigma, length = self.sigma * scale, self.length * scale
        height, width = picture.shape[1:]
        reach = min(math.ceil(3 * sigma + length / 2) + 1, height - 1, width - 1)
        padded = F.pad(picture[None], (reach,) * 4, mode="reflect")[0]
        extent = [int(scipy.fft.next_fast_len(size, real=True)) for size in padded.shape[1:]]
        y = torch.fft.fftfreq(extent[0])[:, None]
        x = torch.fft.rfftfreq(extent[1])[None]
        transfer = torch.exp(-2 * (math.pi * sigma) ** 2 * (y.square() + x.square()))
        transfer = transfer * torch.sinc(length * (math.cos(self.angle) * x + math.sin(self.angle) * y))
        result: Tensor = torch.fft.irfft2(torch.fft.rfft2(padded, s=extent) * transfer, s=extent)
        return result[:, reach : reach + height, reach : reach + width]


@dataclass(frozen=True, slots=True)
class Noise:
    """Noise of a sensor or scanner, pixel by pixel."""

    strength: float
    seed: int

    def __call__(self, picture: Tensor, scale: float) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed)
        return picture + torch.randn(picture.shape, generator=generator) * (self.strength / 255)


@dataclass(frozen=True, slots=True)
class Screen:
    """Photographed from a screen: its coloured pixels against the camera's give moire; a shine lies over it."""

    pitch: float
    """pixels of the picture for one of the screen's"""
    angle: float
    bend: float
    """change of the pitch from the middle to the edge, part of 1"""
    strength: float
    """part of 1"""
    glare: float
    """part of 1"""

    def __call__(self, picture: Tensor, scale: float) -> Tensor:
        y, x = places(picture)
        height, width = picture.shape[1:]
        across, down = (x - width / 2) / width, (y - height / 2) / height
        u = x * (1 + self.bend * across) + self.bend * down * y
        cos, sin = math.cos(self.angle), math.sin(self.angle)
        wave = 2 * math.pi / self.pitch
        rows = torch.cos(wave * (cos * y - sin * u))
        stripes = torch.stack(
            [torch.cos(wave * (cos * u + sin * y) + 2 * math.pi * c / 3) for c in range(len(picture))]
        )
        picture = picture * (1 + self.strength * (0.5 * stripes + 0.5 * rows))
        shine = torch.exp(-3 * ((across - cos / 2).square() + (down - sin / 2).square()))
        return picture + self.glare * shine * (1 - picture)


@dataclass(frozen=True, slots=True)
class Interlace:
    """Every other line of a video picture is from another moment, or darker."""

    lines: float
    """pixels a line is high"""
    shift: float
    dark: float
    """part of 1"""

    def __call__(self, picture: Tensor, scale: float) -> Tensor:
        height = max(1, round(self.lines * scale))
        odd = (torch.arange(picture.shape[1]) // height % 2 == 1)[:, None]
        moved = picture.roll(round(self.shift * scale), dims=2)
        return torch.where(odd, moved * (1 - self.dark), picture)


@dataclass(frozen=True, slots=True)
class Mosaic:
    """Large square pixels."""

    block: float

    def __call__(self, picture: Tensor, scale: float) -> Tensor:
        height, width = (max(1, round(extent / max(1.0, self.block * scale))) for extent in picture.shape[1:])
        small = F.interpolate(picture[None], (height, width), mode="area")
        return F.interpolate(small, tuple(picture.shape[1:]), mode="nearest-exact")[0]


@dataclass(frozen=True, slots=True)
class Sharpen:
    """What scanners and telephones do to hide a blur: the detail below ``radius`` pixels again."""

    amount: float
    radius: float

    def __call__(self, picture: Tensor, scale: float) -> Tensor:
        return picture + self.amount * (picture - Blur(self.radius)(picture, scale))


@dataclass(frozen=True, slots=True)
class Jpeg:
    """Compressed and decompressed by libjpeg (4:2:0 in colour)."""

    quality: int

    def __call__(self, picture: Tensor, scale: float) -> Tensor:
        pixels = (picture * 255).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
        buffer = io.BytesIO()
        Image.fromarray(pixels[:, :, 0] if len(picture) == 1 else pixels).save(buffer, "JPEG", quality=self.quality)
        decoded = torch.from_numpy(np.array(Image.open(buffer)))
        return (decoded[None] if decoded.ndim == 2 else decoded.permute(2, 0, 1)).float() / 255


@dataclass(frozen=True, slots=True)
class Resolution:
    """Made smaller, something done to the small picture, enlarged again: a thumbnail, a coarse scan, a distant face."""

    factor: float
    down: Filter
    up: Filter
    inside: tuple[Step, ...]
    """lengths of these are in pixels of the small picture"""

    def __call__(self, picture: Tensor, scale: float) -> Tensor:
        size = tuple(max(4, round(extent / max(1.0, self.factor * scale))) for extent in picture.shape[1:])
        small = _resized(picture, size, self.down)
        for step in self.inside:
            small = step(small, 1.0)
        return _resized(small.clamp(0, 1), tuple(picture.shape[1:]), self.up)


def _resized(picture: Tensor, size: tuple[int, ...], kind: Filter) -> Tensor:
    if kind == "nearest":
        return F.interpolate(picture[None], size, mode="nearest-exact")[0]
    return F.interpolate(picture[None], size, mode=kind, antialias=True, align_corners=False)[0]


def places(picture: Tensor) -> tuple[Tensor, Tensor]:
    """Rows (H, 1) and columns (1, W) of the pixels."""
    return torch.arange(picture.shape[1]).float()[:, None], torch.arange(picture.shape[2]).float()[None]


def smooth_field(picture: Tensor, places: int, seed: int) -> Tensor:
    """(1, H, W) a smooth random field of unit variance with about ``places`` hills a side."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(1, 1, places, places, generator=generator)
    return F.interpolate(coarse, tuple(picture.shape[1:]), mode="bicubic", align_corners=True)[0]
