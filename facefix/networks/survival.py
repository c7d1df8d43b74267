"""What blur, noise and compression have left of a face, place by place and band by band.

A Laplacian pyramid splits a picture into bands (Burt and Adelson 1983). Of each band of a degraded picture some is the
face's detail, weakened perhaps, and the rest is noise, blocks, dots or grain. With l the degraded band, b the true one
and means over a small neighbourhood:

    survival  = <l b>^2 / (<l^2> <b^2>)     the share of b's energy that a multiple of l explains, 0 to 1
    gain      = <l b> / <l^2>               that multiple (Wiener's): below 1 it takes noise away, above 1 blur

Amplitudes cannot tell detail from grain, so a small network estimates both from the photo. Its truth is computed from
pictures that were degraded on purpose.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import nn

BANDS = 5
"""of a 512 px picture: 512, 256, 128, 64 and 32 px wide, from fine to coarse; what is left is 16 px wide"""

CELL_PX = 16
"""px of the 512 picture for each place of an estimate"""

MOST_GAIN = 1.6
"""Bands are not amplified more than this: what compression rounded away does not come back."""

_MARGIN = 4
"""px of a band by which the neighbourhood reaches beyond its cell on each side"""

_FLOOR = (0.6 / 127.5) ** 2
"""Variance below which a band is nothing but rounding"""

_TO_LUMA_CHROMA = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))
_TO_RGB = ((1.0, 0.0, 1.402), (1.0, -0.344136, -0.714136), (1.0, 1.772, 0.0))


@dataclass(frozen=True, slots=True)
class Survival:
    """Estimates for B pictures; places are cells of 16 px of the 512 picture, bands go from fine to coarse."""

    fraction: torch.Tensor
    """(B, 5, h, w) 0 to 1: how much of the luma's band is left"""
    gain: torch.Tensor
    """(B, 5, h, w) 0 to 1.6: what the luma's band is to be multiplied with"""
    chroma_gain: torch.Tensor
    """(B, 5, h, w) likewise for the colours"""


def bands(images: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """(B, C, S, S) -> what is left at S / 32, and five bands from fine to coarse, each half as wide."""
    found = []
    for _ in range(BANDS):
        smaller = resized(images, images.shape[-1] // 2)
        found.append(images - resized(smaller, images.shape[-1]))
        images = smaller
    return images, found


def resized(images: torch.Tensor, side: int) -> torch.Tensor:
    """(B, C, side, side)"""
    return F.interpolate(images, size=(side, side), mode="bilinear", antialias=True, align_corners=False)


def luma_chroma(images: torch.Tensor) -> torch.Tensor:
    """RGB (B, 3, h, w) -> luma and the two colour differences of JPEG."""
    return torch.einsum("cd,bdhw->bchw", images.new_tensor(_TO_LUMA_CHROMA), images)


def rgb(images: torch.Tensor) -> torch.Tensor:
    """The inverse of ``luma_chroma``."""
    return torch.einsum("cd,bdhw->bchw", images.new_tensor(_TO_RGB), images)


def true_survival(degraded: torch.Tensor, clean: torch.Tensor) -> Survival:
    """What survived, for pictures whose undamaged version is known.

    :param degraded: (B, 3, S, S) RGB in [-1, 1], S a multiple of 32 (at full size 512; parts of pictures will do).
    :param clean: likewise.
    """
    places = degraded.shape[-1] // CELL_PX
    pairs = zip(bands(luma_chroma(degraded))[1], bands(luma_chroma(clean))[1], strict=True)
    fractions, gains, chroma = [], [], []
    for found, true in pairs:
        product, energy, wanted = (_around(x, places) for x in (found * true, found.square(), true.square()))
        shared = product.clamp_min(0)
        fractions.append((shared[:, 0].square() / ((energy[:, 0] + _FLOOR) * (wanted[:, 0] + _FLOOR))).clamp(max=1))
        gains.append((shared[:, 0] / (energy[:, 0] + _FLOOR)).clamp(max=MOST_GAIN))
        colour = product[:, 1:].sum(1).clamp_min(0) / (energy[:, 1:].sum(1) + _FLOOR)
        chroma.append(colour.clamp(max=MOST_GAIN))
    return Survival(torch.stack(fractions, 1), torch.stack(gains, 1), torch.stack(chroma, 1))


def band_energy(images: torch.Tensor) -> list[torch.Tensor]:
    """RGB (B, 3, S, S) -> the luma's mean square around each cell, (B, h, w) for each band from fine to coarse."""
    places = images.shape[-1] // CELL_PX
    return [_around(band[:, :1].square(), places)[:, 0] for band in bands(luma_chroma(images))[1]]


def _around(band: torch.Tensor, places: int) -> torch.Tensor:
    """(B, C, s, s) -> (B, C, places, places): means over each cell and four pixels around it."""
    stride = band.shape[-1] // places
    if stride == 0:  # a band with fewer pixels than there are places
        band, stride = resized(band, places), 1
    size = stride + 2 * _MARGIN
    return F.avg_pool2d(band, size, stride=stride, padding=_MARGIN, count_include_pad=False)


class SurvivalNetwork(ModelMixin, ConfigMixin):  # type: ignore[misc]  # diffusers is not followed
    """Four halvings down to the cells, two blocks there that also see the mean of the whole picture, and a head.

    :param widths: channels after each halving.
    """

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(self, widths: tuple[int, int, int, int] = (16, 24, 32, 48)) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, widths[0], 4, stride=2, padding=1), nn.ReLU()]
        for before, after in pairwise(widths):
            layers += [
                nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(after),
                nn.ReLU(),
            ]
        self.body = nn.Sequential(*layers)
        self.blocks = nn.ModuleList(_Block(widths[-1]) for _ in range(2))
        self.head = nn.Conv2d(widths[-1], 3 * BANDS, 1)

    def forward(self, images: torch.Tensor) -> Survival:
        """:param images: (B, 3, S, S) RGB in [-1, 1], 512 px or a part of such a picture, S a multiple of 32."""
        seen = luma_chroma(images.float())
        seen = torch.cat([seen[:, :1] * 2, seen[:, 1:] * 4], 1)
        features = self.body(seen.to(self.head.weight.dtype))
        for block in self.blocks:
            features = block(features)
        raw = torch.sigmoid(self.head(features).float()).unflatten(1, (3, BANDS))
        return Survival(raw[:, 0], raw[:, 1] * MOST_GAIN, raw[:, 2] * MOST_GAIN)


class _Block(nn.Module):
    """A 3 x 3 convolution beside an identity, and what the picture's mean says about every place."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width))
        self.everywhere = nn.Conv2d(width, width, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(x + self.branch(x) + self.everywhere(x.mean((2, 3), keepdim=True)))
