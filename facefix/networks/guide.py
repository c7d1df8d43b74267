"""The guide: the LQ face completed with the detail of the reference that fits it best.

Crops are aligned to one template, so a reference lies nearly on the face that is to be restored. In a Laplacian pyramid
(Burt and Adelson 1983) the LQ face keeps the bands that it still has, and takes those that it lost from the reference.
A denoiser that is given the latents of this guide beside the LQ latents, and diffuses the difference to it, has the
person's features from the first step on; it has to learn only where the two pictures do not fit. It reads all the
references through CacheKV as well. Whether a denoiser takes a guide follows from its input channels: noisy, LQ and
guide latents.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers import UNet2DModel

_COARSEST = 16
"""px; below this everything is the LQ face's: light, colour, pose"""

_FACE = (0.29, 0.86, 0.25, 0.75)
"""top, bottom, left, right of brows to chin in FFHQ's framing, as fractions of the crop"""

_PLACES = 16
"""Faces are compared on a grid this wide: what is left of a severely degraded one."""

_NEIGHBOURHOOD = 7
"""px of a band, within which it is measured whether two faces agree"""

_LUMA = (0.299, 0.587, 0.114)


def is_guided(unet: UNet2DModel) -> bool:
    """Whether a denoiser has input channels for a guide."""
    return bool(unet.config.in_channels == 3 * unet.config.out_channels)


def complete(lq: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """LQ faces with the bands that they lost taken from references.

    A band of the LQ face is trusted by the square of its amplitude over the reference's, at most 1, both measured
    inside the face: blur takes whole bands away, and what is left of them is mostly noise. Trusted bands also tell
    where the two pictures agree. Where they do not (another pose, another expression, a hand, glasses), the finer
    bands are halfway the LQ face's, so that the reference lies over it as less of a ghost.

    :param lq: (B, 3, S, S) FFHQ-framed faces in [-1, 1].
    :param reference: (B, 3, S, S) likewise, one for each face.
    :returns: (B, 3, S, S), not clamped.
    """
    coarse, lq_bands = _pyramid(lq.float())
    _, reference_bands = _pyramid(reference.float())
    agreed = torch.ones_like(coarse[:, :1])
    for lq_band, reference_band in zip(reversed(lq_bands), reversed(reference_bands), strict=True):
        ratio = (_amplitude(lq_band) / (_amplitude(reference_band) + 1e-6)).clamp(max=1)
        trust = ratio.square()
        agreed = F.interpolate(agreed, size=lq_band.shape[2:], mode="bilinear", align_corners=False)
        coarse = _resized(coarse, lq_band.shape[-1]) + torch.lerp(lq_band, reference_band, (1 - trust) * agreed)
        agreed = torch.lerp(agreed, _agreement(lq_band, ratio * reference_band), trust / 2)
    return coarse


def choose_references(lq: torch.Tensor, references: torch.Tensor) -> torch.Tensor:
    """The reference that is laid out most like each LQ face (pose, expression, hair).

    Compared is the luma inside the face on a coarse grid, mean and spread taken out, so that neither light nor blur
    decides. The choice for a face does not depend on the others in the batch.

    :param lq: (B, 3, S, S) FFHQ-framed faces.
    :param references: (1, N, 3, S, S) for all faces, or (B, N, 3, S, S) for each its own.
    :returns: (B, 3, S, S) in float32.
    """
    candidates = references.expand(len(lq), -1, -1, -1, -1)
    if candidates.shape[1] == 1:
        return candidates[:, 0].float()
    faces = _layout(lq)[:, None]  # (B, 1, places)
    distance = (faces - _layout(candidates.flatten(0, 1)).unflatten(0, candidates.shape[:2])).square().mean(2)
    best = distance.argmin(dim=1)
    return candidates[torch.arange(len(best), device=best.device), best].float()


def _pyramid(images: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """(B, 3, S, S) -> what is left at the coarsest size, and the bands from fine to coarse, each half as wide."""
    bands = []
    while images.shape[-1] > _COARSEST:
        smaller = _resized(images, images.shape[-1] // 2)
        bands.append(images - _resized(smaller, images.shape[-1]))
        images = smaller
    return images, bands


def _resized(images: torch.Tensor, side: int) -> torch.Tensor:
    return F.interpolate(images, size=(side, side), mode="bilinear", antialias=True, align_corners=False)


def _amplitude(band: torch.Tensor) -> torch.Tensor:
    """(B, 3, s, s) -> (B, 1, 1, 1): root mean square of the luma inside the face."""
    return _face_luma(band).square().mean((1, 2)).sqrt().view(-1, 1, 1, 1)


def _agreement(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """(B, 3, s, s) bands of equal amplitude -> (B, 1, s, s): 1 where the luma is the same, 0 where it is unrelated.

    Twice the local covariance over the sum of the local variances, as in the structure term of SSIM (Wang et al. 2004).
    """
    one, other = _luma(one), _luma(other)
    covariance, variances = _local_mean(one * other), _local_mean(one.square() + other.square())
    return (2 * covariance / (variances + 1e-5)).clamp(0, 1)


def _local_mean(images: torch.Tensor) -> torch.Tensor:
    return F.avg_pool2d(images, _NEIGHBOURHOOD, stride=1, padding=_NEIGHBOURHOOD // 2, count_include_pad=False)


def _layout(images: torch.Tensor) -> torch.Tensor:
    """(n, 3, S, S) -> (n, places): luma inside the face on a coarse grid, zero mean and unit spread."""
    places = _face_luma(_resized(images.float(), 2 * _PLACES)).flatten(1)
    places = places - places.mean(1, keepdim=True)
    unit: torch.Tensor = places / (places.square().mean(1, keepdim=True).sqrt() + 1e-6)
    return unit


def _face_luma(images: torch.Tensor) -> torch.Tensor:
    """(n, 3, s, s) -> (n, rows, columns) of the face."""
    top, bottom, left, right = (round(fraction * images.shape[-1]) for fraction in _FACE)
    return _luma(images[:, :, top:bottom, left:right])[:, 0]


def _luma(images: torch.Tensor) -> torch.Tensor:
    """(n, 3, h, w) -> (n, 1, h, w)."""
    return (images * images.new_tensor(_LUMA).view(1, 3, 1, 1)).sum(1, keepdim=True)
