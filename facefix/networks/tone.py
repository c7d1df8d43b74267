"""The tone of a photograph without colours of its own: grey, sepia, or faded to one hue.

Such a photo's colour is a function of its brightness. What is drawn into it has to follow the same function, so that a
grey photo stays grey and a sepia print keeps its browns, also with colour references.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional as F

_LUMA = (0.299, 0.587, 0.114)
_MEASURED_PX = 64
"""Colours are compared at this size, where noise and compression have averaged out."""
_MOST = 0.012
"""root mean square of what the brightness does not explain, up to which a photo has one tone; of a range of 1"""
_GREY = 0.004
"""difference of channels up to which a photo is grey"""


@dataclass(frozen=True, slots=True)
class Tone:
    """Of a batch of photos in [-1, 1]: RGB as quadratic functions of luma."""

    curves: torch.Tensor
    """(B, 3, 3): channels x (constant, linear, quadratic)"""
    single: torch.Tensor
    """(B,) bool: whether the photo has one tone at all"""

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) in the photos' tones; unchanged where a photo has colours. Grey photos' channels are equal."""
        if not bool(self.single.any()):
            return images
        luma = luma_of(images)
        basis = torch.cat([torch.ones_like(luma), luma, luma.square()], dim=1)  # (B, 3, H, W)
        toned = torch.einsum("bck,bkhw->bchw", self.curves.to(images), basis)
        return torch.where(self.single.to(images.device).view(-1, 1, 1, 1), toned, images)


def luma_of(images: torch.Tensor) -> torch.Tensor:
    """(B, 3, H, W) -> (B, 1, H, W)."""
    return (images * images.new_tensor(_LUMA).view(1, 3, 1, 1)).sum(1, keepdim=True)


def tone_of(images: torch.Tensor) -> Tone:
    """The tones of (B, 3, H, W) photos in [-1, 1]."""
    small = F.interpolate(images.float(), size=(_MEASURED_PX, _MEASURED_PX), mode="area").double()
    luma = luma_of(small).flatten(1)  # (B, n)
    basis = torch.stack([torch.ones_like(luma), luma, luma.square()], dim=2)  # (B, n, 3)
    wanted = small.flatten(2).transpose(1, 2)  # (B, n, 3)
    gram = basis.transpose(1, 2) @ basis + 1e-6 * torch.eye(3, dtype=basis.dtype, device=basis.device)
    curves = torch.linalg.solve(gram, basis.transpose(1, 2) @ wanted)  # (B, basis, channels)
    error = (basis @ curves - wanted).square().mean((1, 2)).sqrt() / 2
    grey = (small - luma_of(small)).abs().mean((1, 2, 3)) / 2 < _GREY
    curves = torch.where(grey.view(-1, 1, 1), _grey_curves(curves), curves).transpose(1, 2)
    return Tone(curves.float(), grey | (error < _MOST))


def _grey_curves(like: torch.Tensor) -> torch.Tensor:
    curves = torch.zeros_like(like)
    curves[:, 1] = 1
    return curves
