"""Landmarks of degraded faces: the 68 points of an aligned crop, and how sure the network is of each.

A detector's landmarks need a face that can be seen. Here the face is known to lie about in FFHQ's framing, so a small
network can say where its brows, eyes, nose, mouth and outline are most likely, and how far off it may be: from the
picture where that tells, from what faces are like where it does not. It is trained by the Gaussian likelihood of the
true points (Kendall and Gal 2017, "What uncertainties do we need in Bayesian deep learning for computer vision?").
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import nn

POINTS = 68

CROP_PX = 512
"""Points and deviations are in pixels of a crop of this side, whatever the size of the pictures."""

MIRRORED = (
    *range(16, -1, -1),
    *range(26, 16, -1),
    *range(27, 31),
    *range(35, 30, -1),
    *(45, 44, 43, 42, 47, 46, 39, 38, 37, 36, 41, 40),
    *range(54, 47, -1),
    *range(59, 54, -1),
    *range(64, 59, -1),
    *(67, 66, 65),
)
"""Where each of the points is found in a mirror image (order of Multi-PIE / iBUG 300-W)."""

_LUMA = (0.299, 0.587, 0.114)
_STEP_PX = 32.0
_LEAST_PX, _MOST_PX = 0.7, 64.0


@dataclass(frozen=True, slots=True)
class Landmarks:
    """Points of B faces."""

    points: torch.Tensor
    """(B, 68, 2) x, y in pixels of the 512 crop, the first pixel's centre at 0"""
    deviation: torch.Tensor
    """(B, 68) standard deviation of x and of y, in the same pixels"""


class LandmarkNetwork(ModelMixin, ConfigMixin):  # type: ignore[misc]  # diffusers is not followed
    """A few convolutions on the luma, standardised so that neither light nor tone matters, and two linear layers.

    :param size: px that the network sees.
    :param widths: channels after each halving.
    :param outlook: channels that the linear layers see at each place of the last level.
    :param hidden: width of the linear layers.
    """

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        size: int = 128,
        widths: tuple[int, ...] = (16, 32, 64, 96),
        outlook: int = 24,
        hidden: int = 96,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 1
        for number, width in enumerate(widths):
            layers.append(_convolution(before, width, stride=2))
            if number:
                layers.append(_Residual(width))
            before = width
        self.body = nn.Sequential(*layers, nn.Conv2d(before, outlook, 1), nn.ReLU())
        places = (size >> len(widths)) ** 2
        self.gather = nn.Sequential(nn.Linear(outlook * places, hidden), nn.ReLU())
        self.head = nn.Linear(hidden, 3 * POINTS)
        self.register_buffer("mean_shape", torch.full((POINTS, 2), (CROP_PX - 1) / 2))
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, images: torch.Tensor) -> Landmarks:
        """:param images: (B, 3, S, S), or (B, 1, S, S) luma, FFHQ-framed faces in any range of values."""
        seen = self.standardised(images).to(self.head.weight.dtype)
        features = self.gather(self.body(seen).flatten(1))
        raw = self.head(features).float().unflatten(1, (POINTS, 3))
        points = self.mean_shape.float() + _STEP_PX * raw[..., :2]
        # Between the limits log sigma is the network's; the slope does not vanish at the start, where it is 8 px.
        low, high = torch.tensor((_LEAST_PX, _MOST_PX)).log().tolist()
        deviation = (low + (high - low) * torch.sigmoid(raw[..., 2] + 0.15)).exp()
        return Landmarks(points, deviation)

    def standardised(self, images: torch.Tensor) -> torch.Tensor:
        """(B, 1, size, size) luma with zero mean and unit variance, at the network's size."""
        images = images.float()
        if images.shape[1] == 3:
            images = (images * images.new_tensor(_LUMA).view(1, 3, 1, 1)).sum(1, keepdim=True)
        size = (int(self.config.size),) * 2
        if tuple(images.shape[2:]) != size:
            images = F.interpolate(images, size, mode="bilinear", antialias=True, align_corners=False)
        spread, mean = torch.std_mean(images, dim=(2, 3), keepdim=True)
        return (images - mean) / (spread + 1e-3)


def _convolution(before: int, after: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()
    )


class _Residual(nn.Module):
    """A 3 x 3 convolution beside an identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(x + self.branch(x))


def negative_log_likelihood(found: Landmarks, truth: torch.Tensor, beta: float = 0.5) -> torch.Tensor:
    """Mean over points of -log N(truth; point, deviation^2) in two dimensions, up to a constant.

    Each point's term is weighted by deviation^(2 beta), without gradient, so that points that are unsure do not stop
    learning (Seitzer et al. 2022, "On the pitfalls of heteroscedastic uncertainty estimation", eq. 5).

    :param truth: (B, 68, 2) px.
    """
    error = (found.points - truth).square().sum(-1)
    variance = found.deviation.square()
    terms = error / (2 * variance) + variance.log()
    weight = variance.detach() ** beta
    return (terms * weight).mean() / 8  # about 1 for a deviation of 8 px
