"""What film, printing and time do to a photograph: one small class for each, as in :mod:`.archive_capture`."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn import functional as F

from facefix.training.archive_capture import places, smooth_field

_INK = (0.35, 0.6, 1.0)
"""What a brown stain takes of red, green and blue, relative to blue."""


@dataclass(frozen=True, slots=True)
class Grain:
    """Film grain: clumps of ``size`` pixels, strongest in the middle tones."""

    strength: float
    size: float
    colour: float
    """part of it that is independent in each channel"""
    seed: int

    def __call__(self, picture: Tensor, scale: float) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed)
        noise = _clumps(picture[:1].shape, self.size * scale, generator)
        if len(picture) == 3 and self.colour:
            noise = noise + self.colour * _clumps(picture.shape, self.size * scale, generator)
        tone = picture.mean(0, keepdim=True).clamp(0, 1)
        return picture + noise * (0.4 + 2.4 * tone * (1 - tone)) * (self.strength / 255)


@dataclass(frozen=True, slots=True)
class Texture:
    """Silk or honeycomb paper, embossed, seen by a scanner's slanting light."""

    strength: float
    """part of 1"""
    period: float
    angle: float
    seed: int

    def __call__(self, picture: Tensor, scale: float) -> Tensor:
        y, x = places(picture)
        wave = 2 * math.pi / (self.period * scale)
        bend = smooth_field(picture, 6, self.seed)
        relief = sum(
            torch.cos(wave * (math.cos(self.angle + turn) * x + math.sin(self.angle + turn) * y) + bend)
            for turn in (0.0, math.pi / 3, 2 * math.pi / 3)
        )
        return picture * (1 + self.strength * relief / 3)


@dataclass(frozen=True, slots=True)
class Halftone:
    """Printed dots, whose area is the tone; in colour three screens at the usual angles."""

    period: float
    angle: float
    softness: float
    """of the dots' edges, part of 1"""

    def __call__(self, picture: Tensor, scale: float) -> Tensor:
        y, x = places(picture)
        wave = 1 / max(self.period * scale, 2.0)
        channels = []
        for channel, turn in zip(picture, (0.0, math.radians(30), math.radians(60)), strict=False):
            cos, sin = math.cos(self.angle + turn), math.sin(self.angle + turn)
            screen = (_triangle((cos * x + sin * y) * wave) + _triangle((cos * y - sin * x) * wave)) / 2
            # The sum of two triangle waves is not spread evenly; its distribution function makes it so.
            even = torch.where(screen < 0.5, 2 * screen.square(), 1 - 2 * (1 - screen).square())
            channels.append(torch.sigmoid((channel - even) * (4 / self.softness)))
        return torch.stack(channels)


@dataclass(frozen=True, slots=True)
class Scratches:
    """Long thin scratches, dark (dirt, negatives) or light (bare paper), mostly one way."""

    count: int
    width: float
    angle: float
    strength: float
    """part of 1"""
    seed: int

    def __call__(self, picture: Tensor, scale: float) -> Tensor:
        random = np.random.default_rng(self.seed)
        side = max(picture.shape[1:])
        light, dark = _sheet(picture), _sheet(picture)
        for _ in range(self.count):
            angle = self.angle + random.normal(0, 0.12)
            points = _walk(random, random.uniform(0, side, 2), angle, random.uniform(0.1, 0.9) * side, 6, 0.03)
            width = max(1, round(self.width * scale * random.uniform(0.4, 1.4)))
            ImageDraw.Draw(light if random.random() < 0.6 else dark).line(points, fill=255, width=width)
        fading = (0.65 + 0.35 * smooth_field(picture, 12, self.seed)).clamp(0, 1) * self.strength
        picture = torch.lerp(picture, picture.new_tensor(0.95), _mask(light) * fading)
        return torch.lerp(picture, picture.new_tensor(0.08), _mask(dark) * fading)


@dataclass(frozen=True, slots=True)
class Cracks:
    """Branching cracks of the emulsion, light on one side, and flakes that have come off beside them."""

    count: int
    width: float
    flakes: int
    strength: float
    """part of 1"""
    seed: int

    def __call__(self, picture: Tensor, scale: float) -> Tensor:
        random = np.random.default_rng(self.seed)
        side = max(picture.shape[1:])
        cracks, rims = _sheet(picture), _sheet(picture)
        width = max(1, round(self.width * scale))
        trunks = []
        for _ in range(self.count):
            points = _walk(random, random.uniform(0, side, 2), random.uniform(0, 7), random.uniform(0.2, 1) * side, 24)
            trunks.append(points)
            branch = points[int(random.integers(len(points)))]
            twig = _walk(random, np.array(branch), random.uniform(0, 7), random.uniform(0.05, 0.3) * side, 8)
            for line in (points, twig):
                ImageDraw.Draw(rims).line([(x + width, y + width) for x, y in line], fill=160, width=width)
                ImageDraw.Draw(cracks).line(line, fill=255, width=width)
        bare = _sheet(picture)
        for _ in range(self.flakes):
            trunk = trunks[int(random.integers(len(trunks)))]
            x, y = trunk[int(random.integers(len(trunk)))]
            ImageDraw.Draw(bare).polygon(_blot(random, x, y, random.uniform(1.5, 7) * scale), fill=255)
        picture = torch.lerp(picture, picture.new_tensor(0.95), _mask(rims) * (0.5 * self.strength))
        picture = torch.lerp(picture, picture.new_tensor(0.1), _mask(cracks) * self.strength)
        return torch.lerp(picture, picture.new_tensor(0.9), _mask(bare) * self.strength)


@dataclass(frozen=True, slots=True)
class Crease:
    """A fold across the picture: a pale line between a shadow and a shine."""

    angle: float
    offset: float
    """of the line from the middle, part of the side"""
    width: float
    strength: float
    """part of 1"""

    def __call__(self, picture: Tensor, scale: float) -> Tensor:
        y, x = places(picture)
        height, width = picture.shape[1:]
        across = math.cos(self.angle) * (x - width / 2) + math.sin(self.angle) * (y - height / 2)
        distance = (across - self.offset * width) / (self.width * scale)
        relief = distance * torch.exp(-0.5 * (distance / 4).square()) / 4
        line = torch.exp(-0.5 * distance.square())
        picture = picture * (1 - 0.4 * self.strength * relief)
        return torch.lerp(picture, picture.new_tensor(0.9), line * self.strength)


@dataclass(frozen=True, slots=True)
class Dust:
    """Specks and hairs, dark (on a print) or light (on a negative)."""

    specks: int
    hairs: int
    size: float
    light: bool
    strength: float
    """part of 1"""
    seed: int

    def __call__(self, picture: Tensor, scale: float) -> Tensor:
        random = np.random.default_rng(self.seed)
        side = max(picture.shape[1:])
        sheet = _sheet(picture)
        draw = ImageDraw.Draw(sheet)
        for _ in range(self.specks):
            x, y = random.uniform(0, side, 2)
            radius = max(0.5, self.size * scale * random.lognormal(-0.4, 0.6))
            draw.polygon(_blot(random, x, y, radius), fill=int(random.integers(120, 256)))
        for _ in range(self.hairs):
            start, angle = random.uniform(0, side, 2), random.uniform(0, 7)
            points = _walk(random, start, angle, random.uniform(15, 90) * scale, 10, 0.35)
            draw.line(points, fill=int(random.integers(120, 256)), width=1)
        return torch.lerp(picture, picture.new_tensor(0.97 if self.light else 0.05), _mask(sheet) * self.strength)


@dataclass(frozen=True, slots=True)
class Foxing:
    """Brown spots and stains with soft edges."""

    count: int
    size: float
    strength: float
    """part of 1"""
    seed: int

    def __call__(self, picture: Tensor, scale: float) -> Tensor:
        random = np.random.default_rng(self.seed)
        height, width = picture.shape[1:]
        centres = torch.from_numpy(random.uniform(0, 1, (self.count, 2, 1, 1))).float()
        radius = torch.from_numpy(self.size / 512 * random.lognormal(-0.2, 0.7, (self.count, 1, 1))).float()
        depth = torch.from_numpy(random.uniform(0.3, 1, (self.count, 1, 1))).float()
        grid = torch.linspace(0, 1, 96)
        distance = (grid[:, None] - centres[:, 0]).square() + (grid[None] - centres[:, 1]).square()
        spots = (depth * torch.exp(-((distance / radius.square()) ** 2))).sum(0).clamp(max=1)
        spots = F.interpolate(spots[None, None], (height, width), mode="bilinear", align_corners=False)[0]
        ink = torch.tensor(_INK if len(picture) == 3 else (0.65,)).view(-1, 1, 1)
        return picture * (1 - self.strength * spots * ink)


def _clumps(shape: torch.Size, size: float, generator: torch.Generator) -> Tensor:
    """Noise of unit variance that is smooth over ``size`` pixels."""
    if size <= 1:
        return torch.randn(shape, generator=generator)
    coarse = [max(2, math.ceil(extent / size)) for extent in shape[1:]]
    noise = torch.randn(1, shape[0], *coarse, generator=generator)
    noise = F.interpolate(noise, tuple(shape[1:]), mode="bicubic", align_corners=False)[0]
    return noise / noise.std().clamp_min(1e-6)


def _triangle(phase: Tensor) -> Tensor:
    """A triangle wave of period 1 between 0 and 1."""
    return 2 * (phase - phase.floor() - 0.5).abs()


def _sheet(picture: Tensor) -> Image.Image:
    return Image.new("L", (picture.shape[2], picture.shape[1]))


def _mask(sheet: Image.Image) -> Tensor:
    """(1, H, W) in [0, 1], edges a little soft."""
    mask = torch.from_numpy(np.array(sheet)).float()[None, None] / 255
    soft = F.avg_pool2d(F.pad(mask, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    return torch.lerp(mask, soft, 0.5)[0]


def _walk(
    random: np.random.Generator,
    start: np.ndarray[tuple[int], np.dtype[np.float64]],
    angle: float,
    length: float,
    steps: int,
    wander: float = 0.5,
) -> list[tuple[float, float]]:
    """Points of a line that changes its heading by about ``wander`` radians a step."""
    headings = angle + np.cumsum(random.normal(0, wander, steps))
    strides = np.stack([np.cos(headings), np.sin(headings)], axis=1) * (length / steps)
    points = np.concatenate([start[None], start + np.cumsum(strides, axis=0)])
    return [(float(x), float(y)) for x, y in points]


def _blot(random: np.random.Generator, x: float, y: float, radius: float) -> list[tuple[float, float]]:
    """An uneven polygon."""
    angles = np.linspace(0, 2 * math.pi, 8, endpoint=False)
    radii = radius * random.uniform(0.5, 1.4, 8)
    return [(x + r * math.cos(a), y + r * math.sin(a)) for a, r in zip(angles.tolist(), radii.tolist(), strict=True)]
