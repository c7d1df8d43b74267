"""Photographs as archives hold them: the ``archive`` degradation, from mild to severe, several kinds of damage at once.

A draw first chooses the medium (a print, a printed page, video, a picture from the web, a photographed screen), a
severity, and the tone (colour, faded colour, grey, toned). The chances of each kind of damage follow from the medium,
its strength from the severity. Then it goes in the order in which it happens: the lens, the film, the print, the years,
the copy, the file.

The tone and the large, soft differences of light (vignetting, uneven light, yellowing at one side) belong to the photo,
of which the face is a part: the target of restoration has them too. Everything else is damage.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from facefix.training.archive_capture import (
    Blur,
    Filter,
    Interlace,
    Jpeg,
    Mosaic,
    Noise,
    Resolution,
    Screen,
    Sharpen,
    Step,
)
from facefix.training.archive_surface import Cracks, Crease, Dust, Foxing, Grain, Halftone, Scratches, Texture

Medium = Literal["print", "page", "video", "web", "screen"]
ToneKind = Literal["colour", "faded", "grey", "toned"]
Name = TypeVar("Name", bound=str)

MEDIA: Mapping[Medium, float] = MappingProxyType({"print": 0.5, "page": 0.12, "video": 0.1, "web": 0.18, "screen": 0.1})
"""Shares of the media."""

TONES: Mapping[Medium, Mapping[ToneKind, float]] = MappingProxyType(
    {
        "print": {"grey": 0.42, "toned": 0.26, "faded": 0.2, "colour": 0.12},
        "page": {"grey": 0.8, "toned": 0.12, "faded": 0.03, "colour": 0.05},
        "video": {"grey": 0.15, "toned": 0.0, "faded": 0.3, "colour": 0.55},
        "web": {"grey": 0.3, "toned": 0.08, "faded": 0.17, "colour": 0.45},
        "screen": {"grey": 0.1, "toned": 0.3, "faded": 0.3, "colour": 0.3},
    }
)
"""Shares of the tones for each medium."""

# columns: print, page, video, web, screen
_CHANCES: Mapping[str, tuple[float, float, float, float, float]] = MappingProxyType(
    {
        "vignette": (0.35, 0.1, 0.15, 0.15, 0.2),
        "uneven light": (0.35, 0.2, 0.1, 0.15, 0.3),
        "defocus": (0.75, 0.6, 0.75, 0.6, 0.7),
        "motion": (0.2, 0.05, 0.3, 0.15, 0.25),
        "grain": (0.8, 0.3, 0.2, 0.3, 0.25),
        "texture": (0.15, 0.0, 0.0, 0.03, 0.02),
        "halftone": (0.03, 1.0, 0.0, 0.05, 0.0),
        "scratches": (0.4, 0.12, 0.03, 0.08, 0.05),
        "cracks": (0.22, 0.08, 0.0, 0.04, 0.03),
        "crease": (0.15, 0.12, 0.0, 0.03, 0.02),
        "dust": (0.5, 0.3, 0.05, 0.12, 0.15),
        "foxing": (0.2, 0.2, 0.0, 0.03, 0.03),
        "screen": (0.0, 0.0, 0.0, 0.0, 1.0),
        "interlace": (0.0, 0.0, 0.6, 0.02, 0.0),
        "mosaic": (0.01, 0.01, 0.04, 0.06, 0.02),
        "low resolution": (0.5, 0.4, 0.6, 0.95, 0.5),
        "noise": (0.4, 0.3, 0.6, 0.35, 0.8),
        "sharpen": (0.12, 0.1, 0.1, 0.2, 0.15),
        "jpeg": (0.8, 0.8, 0.85, 0.95, 0.85),
        "second jpeg": (0.1, 0.1, 0.25, 0.5, 0.2),
    }
)
"""Chance of each kind of damage for each medium."""

_ENLARGED: Mapping[Filter, float] = MappingProxyType({"nearest": 0.1, "bilinear": 0.4, "bicubic": 0.5})


@dataclass(frozen=True, slots=True)
class Tone:
    """The tone and light of a photo: what stays when its damage is gone."""

    saturation: float
    """0 is grey before the curves"""
    black: tuple[float, float, float]
    white: tuple[float, float, float]
    """red, green, blue of the darkest and the brightest, in [0, 1]"""
    gamma: float
    light: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    """how much darker at the edge (vignetting), how much towards the right and the bottom, unevenness; parts of 1"""
    yellowing: float = 0.0
    """part of 1 that blue loses at one side; never of a grey photo"""
    seed: int = 0

    @property
    def grey(self) -> bool:
        """Whether the channels of the photo are equal."""
        return self.saturation == 0 and len(set(self.black)) == 1 and len(set(self.white)) == 1

    def __call__(self, picture: Tensor) -> Tensor:
        """(3, H, W) RGB in [0, 1] in this tone; (1, H, W) where it is grey."""
        luma = (picture * picture.new_tensor((0.299, 0.587, 0.114)).view(3, 1, 1)).sum(0, keepdim=True)
        picture = luma if self.grey else torch.lerp(luma.expand(3, -1, -1), picture, self.saturation)
        channels = len(picture)
        black, white = (picture.new_tensor(c[:channels]).view(-1, 1, 1) for c in (self.black, self.white))
        picture = black + (white - black) * picture.clamp(0, 1) ** self.gamma
        return (picture * self._light(picture)).clamp(0, 1)

    def _light(self, picture: Tensor) -> Tensor:
        """(1 or 3, H, W) factors."""
        vignette, right, down, uneven = self.light
        if not any(self.light) and not self.yellowing:
            return picture.new_ones(1, 1, 1)
        height, width = picture.shape[1:]
        y, x = torch.linspace(-1, 1, height)[:, None], torch.linspace(-1, 1, width)[None]
        field = 1 - vignette * (x.square() + y.square()) / 2 + right * x / 2 + down * y / 2
        if uneven or self.yellowing:
            generator = torch.Generator().manual_seed(self.seed)
            coarse = torch.rand(1, 2, 3, 3, generator=generator) * 2 - 1
            soft = F.interpolate(coarse, (height, width), mode="bicubic", align_corners=True)[0]
            field = field + uneven * soft[0]
        if not self.yellowing or len(picture) == 1:
            return field[None].clamp_min(0.1)
        stain = self.yellowing * (0.5 + 0.5 * soft[1]).clamp(0, 1)
        return torch.stack([field * (1 - part * stain) for part in (0.15, 0.35, 1.0)]).clamp_min(0.1)


@dataclass(frozen=True, slots=True)
class ArchiveDegradation:
    """What happens to one photo."""

    medium: Medium
    severity: float
    """0 is mild, 1 severe"""
    tone: Tone
    steps: tuple[Step, ...]

    def target(self, image: Tensor) -> Tensor:
        """(3, H, W) in [0, 1], 256 levels: the photo undamaged, in its own tone. A grey photo's channels are equal."""
        return _levels(self.tone(image.float()))

    def __call__(self, image: Tensor, scale: float = 1.0) -> Tensor:
        """(3, H, W) in [0, 1], 256 levels: the photo as it was found."""
        picture = self.tone(image.float())
        for step in self.steps:
            picture = step(picture, scale)
        return _levels(picture)


def _levels(picture: Tensor) -> Tensor:
    return picture.mul(255).round_().clamp_(0, 255).div_(255).expand(3, -1, -1).contiguous()


def degrade(images: Tensor, seeds: Sequence[int], *, scale: float = 1.0) -> Tensor:
    """The damaged versions of ``images`` (B, 3, H, W), RGB in [0, 1]; computed on the CPU, one by one."""
    pictures = [draw(seed)(image, scale) for image, seed in zip(images.cpu(), seeds, strict=True)]
    return torch.stack(pictures).to(images.device)


def targets(images: Tensor, seeds: Sequence[int]) -> Tensor:
    """What ``degrade`` with the same seeds should be restored to: (B, 3, H, W) in the tone of each photo."""
    pictures = [draw(seed).target(image) for image, seed in zip(images.cpu(), seeds, strict=True)]
    return torch.stack(pictures).to(images.device)


def draw(seed: int) -> ArchiveDegradation:
    """The degradation that belongs to ``seed``."""
    random = np.random.default_rng(seed)
    medium = _choice(random, MEDIA)
    drawn = _Draw(random, medium, float(random.random()))
    tone = drawn.tone()
    steps = (*drawn.lens(), *drawn.film_and_print(), *drawn.years(), *drawn.copy(), *drawn.file())
    return ArchiveDegradation(medium, drawn.severity, tone, steps)


def _choice(random: np.random.Generator, shares: Mapping[Name, float]) -> Name:
    names = list(shares)
    return names[int(random.choice(len(names), p=list(shares.values())))]


@dataclass(frozen=True, slots=True)
class _Draw:
    """Draws the parts of one degradation, in the order in which they happen."""

    random: np.random.Generator
    medium: Medium
    severity: float

    def has(self, kind: str) -> bool:
        """Whether there is this kind of damage; each kind has its chance for the medium."""
        return bool(self.random.random() < _CHANCES[kind][list(MEDIA).index(self.medium)])

    def between(self, low: float, high: float) -> float:
        """Any value with the same chance, whatever the severity."""
        return float(self.random.uniform(low, high))

    def strength(self, mild: float, severe: float) -> float:
        """A positive value from ``mild`` to ``severe`` in equal ratios, near the severity of the photo."""
        place = min(1.0, max(0.0, self.severity + self.random.uniform(-0.35, 0.35)))
        return float(mild * (severe / mild) ** place)

    def seed(self) -> int:
        return int(self.random.integers(2**62))

    def tone(self) -> Tone:
        """Tone and light."""
        kind = _choice(self.random, TONES[self.medium])
        fade = self.strength(0.02, 0.3) if self.random.random() < 0.6 else 0.0
        black, white = fade * self.between(0.3, 1), 1 - fade * self.between(0, 0.8)
        tone = Tone(1.0, (black,) * 3, (white,) * 3, math.exp(self.between(-0.3, 0.3)))
        if kind == "grey":
            tone = replace(tone, saturation=0.0)
        elif kind == "toned":
            tone = self._sepia(tone)
        elif kind == "faded":
            tone = self._faded(tone)
        vignette = self.strength(0.1, 0.7) if self.has("vignette") else 0.0
        uneven = self.has("uneven light")
        right, down = (self.between(-1, 1) * self.strength(0.1, 0.5) if uneven else 0.0 for _ in range(2))
        patchy = self.strength(0.03, 0.2) if uneven else 0.0
        yellowing = self.strength(0.05, 0.5) if kind in ("faded", "toned") and self.random.random() < 0.3 else 0.0
        return replace(tone, light=(vignette, right, down, patchy), yellowing=yellowing, seed=self.seed())

    def _sepia(self, tone: Tone) -> Tone:
        """Brown, now and then blue or green (cyanotypes), the paper from white to cream."""
        warm = 1.0 if self.random.random() < 0.85 else -0.7
        depth = self.between(0.2, 1) * warm
        black = tone.black[0]
        white = tone.white[0]
        return replace(
            tone,
            saturation=0.0,
            black=(black + 0.1 * max(depth, 0), black + 0.04 * abs(depth), black + 0.1 * max(-depth, 0)),
            white=(white - 0.2 * max(-depth, 0), white - 0.07 * abs(depth), white - 0.28 * max(depth, 0)),
        )

    def _faded(self, tone: Tone) -> Tone:
        """Dyes that faded unequally: a cast, mostly red or yellow, and weaker colours."""
        cast = np.array([0.06, 0.0, -0.06]) * self.random.uniform(-0.5, 2) + self.random.normal(0, 0.03, 3)
        black = np.clip(np.array(tone.black) + np.maximum(cast, 0) * self.random.uniform(0.3, 1.5), 0, 0.4)
        white = np.clip(np.array(tone.white) + cast - max(float(cast.max()), 0), 0.5, 1)
        return replace(tone, saturation=self.between(0.3, 1), black=tuple(black.tolist()), white=tuple(white.tolist()))

    def lens(self) -> list[Step]:
        """Out of focus, moved."""
        sigma = self.strength(0.4, 7) if self.has("defocus") else 0.0
        length = self.strength(2, 22) if self.has("motion") else 0.0
        return [Blur(sigma, length, self.between(0, math.pi))] if sigma or length else []

    def film_and_print(self) -> list[Step]:
        """Grain, paper, printed dots."""
        steps: list[Step] = []
        if self.has("grain"):
            steps.append(Grain(self.strength(3, 26), self.strength(0.8, 3.5), self.between(0, 0.6), self.seed()))
        if self.has("texture"):
            strength, period = self.strength(0.03, 0.25), self.between(5, 16)
            steps.append(Texture(strength, period, self.between(0, math.pi), self.seed()))
        if self.has("halftone"):
            softness = self.between(0.25, 1.6)
            steps.append(Halftone(self.strength(2.6, 8), self.between(0, math.pi / 2), softness))
        return steps

    def years(self) -> list[Step]:
        """Scratches, cracks, folds, dust, stains."""
        steps: list[Step] = []
        if self.has("foxing"):
            steps.append(Foxing(round(self.strength(2, 25)), self.between(4, 45), self.strength(0.1, 0.7), self.seed()))
        if self.has("cracks"):
            count, flakes = round(self.strength(1, 9)), round(self.strength(1, 25)) if self.random.random() < 0.5 else 0
            steps.append(Cracks(count, self.strength(1, 2.5), flakes, self.strength(0.25, 0.9), self.seed()))
        if self.has("crease"):
            angle, offset = self.between(0, math.pi), self.between(-0.5, 0.5)
            steps.append(Crease(angle, offset, self.strength(0.7, 3), self.strength(0.2, 0.9)))
        if self.has("scratches"):
            angle = self.random.normal(math.pi / 2, 0.25) if self.random.random() < 0.6 else self.between(0, math.pi)
            count, width, strength = round(self.strength(1, 22)), self.strength(1, 2.2), self.strength(0.2, 0.85)
            steps.append(Scratches(count, width, float(angle), strength, self.seed()))
        if self.has("dust"):
            specks, hairs = round(self.strength(4, 110)), round(self.strength(1, 9)) - 1
            light = bool(self.random.random() < 0.6)
            steps.append(Dust(specks, hairs, self.strength(0.7, 2.6), light, self.strength(0.3, 0.95), self.seed()))
        return steps

    def copy(self) -> list[Step]:
        """Photographed from a screen, recorded as video."""
        steps: list[Step] = []
        if self.has("screen"):
            coarse = self.random.random() < 0.5
            pitch = self.between(2.05, 4) if coarse else self.between(1.02, 1.2)
            bend, strength = self.random.normal(0, 0.02), self.strength(0.05, 0.3)
            glare = self.strength(0.02, 0.4)
            steps.append(Screen(pitch, self.between(-0.12, 0.12), float(bend), strength, glare))
        if self.has("interlace"):
            dark = self.strength(0.03, 0.3) if self.random.random() < 0.3 else 0.0
            steps.append(Interlace(self.strength(1, 4), self.between(-1, 1) * self.strength(2, 14), dark))
        return steps

    def file(self) -> list[Step]:
        """Resolution, noise, sharpening, JPEG, mosaic, a second JPEG."""
        inside: list[Step] = []
        factor = self.strength(1.3, 13) if self.has("low resolution") else 1.0
        if self.has("noise"):
            inside.append(Noise(self.strength(1, 16), self.seed()))
        if self.has("sharpen"):
            inside.append(Sharpen(self.strength(0.3, 1.5), self.between(0.7, 1.5)))
        if self.has("jpeg"):
            # Blocks of a face of few pixels hide all of it from a quality that a large one bears.
            inside.append(Jpeg(max(round(105 - self.strength(12, 95)), min(50, round(5 + 6 * factor)))))
        steps: list[Step] = inside
        if factor > 1:
            down: Filter = "nearest" if self.random.random() < 0.08 else "bilinear"
            up = _choice(self.random, _ENLARGED)
            steps = [Resolution(factor, down, up, tuple(inside))]
        if self.has("mosaic"):
            steps.append(Mosaic(self.strength(3, 22)))
        if self.has("second jpeg"):
            steps.append(Jpeg(round(105 - self.strength(15, 85))))
        return steps
