"""The guide: the reference that fits a face best, as further input channels of the denoiser.

Crops are aligned to one template, so a reference lies nearly on the face that is to be restored. A denoiser that is
given its latents beside the LQ latents can use them from the first layer on, and learns to from far fewer faces than
attention to the references needs (compare GFRNet's warped guidance, arXiv 1804.04829). It still reads all references
through CacheKV. Whether a denoiser wants a guide follows from its input channels: noisy, LQ and guide latents.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers import UNet2DModel

_PLACES = 8
"""Faces are compared on a grid this wide: what is left of a severely degraded one."""


def is_guided(unet: UNet2DModel) -> bool:
    """Whether a denoiser has input channels for a guide."""
    return bool(unet.config.in_channels == 3 * unet.config.out_channels)


def choose_guides(lq_latents: torch.Tensor, reference_latents: torch.Tensor) -> torch.Tensor:
    """The latents of the reference that is laid out most like each LQ face (pose, expression, hair).

    Compared are averages over an 8 x 8 grid, each channel with its own mean and spread taken out, so that neither
    light nor blur decides. The choice for a face does not depend on the others in the batch.

    :param lq_latents: (B, 8, h, w).
    :param reference_latents: (1, N, 8, h, w) for all faces, or (B, N, 8, h, w) for each its own.
    :returns: (B, 8, h, w), in the type of ``lq_latents``.
    """
    candidates = reference_latents.expand(len(lq_latents), -1, -1, -1, -1)
    if candidates.shape[1] == 1:
        return candidates[:, 0].to(lq_latents.dtype)
    faces = _layout(lq_latents)[:, None]  # (B, 1, 8, 64)
    distance = (faces - _layout(candidates.flatten(0, 1)).unflatten(0, candidates.shape[:2])).square().mean((2, 3))
    best = distance.argmin(dim=1)
    return candidates[torch.arange(len(best), device=best.device), best].to(lq_latents.dtype)


def _layout(latents: torch.Tensor) -> torch.Tensor:
    """(n, 8, h, w) -> (n, 8, 64), zero mean and unit spread in each channel."""
    places = F.adaptive_avg_pool2d(latents.float(), _PLACES).flatten(2)
    spread: torch.Tensor = places - places.mean(2, keepdim=True)
    return spread / (spread.square().mean(2, keepdim=True).sqrt() + 1e-6)
