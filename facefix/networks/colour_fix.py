"""Colours of the LQ face for a restored one: wavelet fix, AdaIN, and grey that stays grey.

The fixes are pure functions of two pictures, for every method. Tensors are (B, 3, H, W), about in [-1, 1] and best not
clamped before; grey is decided and made on uint8 pixels.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from facefix.errors import UsageError

ColourFix = Literal["wavelet", "adain", "none"]

WAVELET_LEVELS = 5
GREY_VARIANCE = 10.0
"""mean variance of the differences of channels, in squared levels, up to which a picture counts as grey"""

_EPS = 1e-5
_LUMA = (0.2989, 0.5870, 0.1140)


def fix_colours(restored: Tensor, lq: Tensor, kind: ColourFix) -> Tensor:
    """The restored faces with the colours of the LQ faces.

    :param restored: (B, 3, H, W), not clamped: clamping before changes the result.
    :param lq: (B, 3, H, W) in [-1, 1].
    :raises UsageError: there is no such kind, or the shapes differ.
    """
    if restored.shape != lq.shape:
        raise UsageError(f"lq: expected the restored faces' shape {tuple(restored.shape)}, found {tuple(lq.shape)}")
    if kind == "wavelet":
        return wavelet(restored, lq)
    if kind == "adain":
        return adain(restored, lq)
    if kind == "none":
        return restored
    raise UsageError(f"colour_fix: expected 'wavelet', 'adain' or 'none', found {kind!r}")


def wavelet(content: Tensor, style: Tensor) -> Tensor:
    """The fine bands of ``content`` on the coarsest band of ``style``, both (B, C, H, W)."""
    return wavelet_bands(content)[0] + wavelet_bands(style)[1]


def wavelet_bands(images: Tensor) -> tuple[Tensor, Tensor]:
    """Sum of the fine bands, and the coarsest band, of (B, C, H, W) images; their sum is the images.

    An undecimated ("a trous") transform of five levels with the kernel (1 2 1) x (1 2 1) / 16, spread 1, 2, 4, 8 and
    16 px, borders repeated.
    """
    fine, coarse = torch.zeros_like(images), images
    for level in range(WAVELET_LEVELS):
        blurred = _blur(coarse, 2**level)
        fine = fine + (coarse - blurred)
        coarse = blurred
    return fine, coarse


def _blur(images: Tensor, spread: int) -> Tensor:
    channels = images.shape[1]
    row = torch.tensor([1.0, 2.0, 1.0], device=images.device, dtype=images.dtype)
    kernel = (torch.outer(row, row) / 16).expand(channels, 1, 3, 3)
    padded = F.pad(images, (spread,) * 4, mode="replicate")
    return F.conv2d(padded, kernel, dilation=spread, groups=channels)


def adain(content: Tensor, style: Tensor) -> Tensor:
    """``content`` with each channel's mean and standard deviation of ``style`` (Huang & Belongie 2017), (B, C, H, W).

    The variance is the unbiased one, plus 1e-5.
    """
    (mean, std), (wanted_mean, wanted_std) = _statistics(content), _statistics(style)
    return (content - mean) / std * wanted_std + wanted_mean


def _statistics(images: Tensor) -> tuple[Tensor, Tensor]:
    variance, mean = torch.var_mean(images, dim=(2, 3), keepdim=True)
    return mean, (variance + _EPS).sqrt()


def is_grey(pixels: NDArray[np.uint8]) -> bool:
    """Whether a picture is grey, be it under a constant tint: (H, W, 3) uint8.

    The mean over R-G, G-B and B-R of the variance of the difference is at most ``GREY_VARIANCE``.
    """
    wide = pixels.astype(np.int16)
    variances = [(wide[..., first] - wide[..., second]).var() for first, second in ((0, 1), (1, 2), (2, 0))]
    return float(np.mean(variances)) <= GREY_VARIANCE


def grey_like(restored: NDArray[np.uint8], lq: NDArray[np.uint8]) -> NDArray[np.float64]:
    """A restored face made grey, each channel with the mean and deviation that the LQ face's has.

    Where the LQ face's channels are equal, so are the result's.

    :param restored: (H, W, 3) levels; ``lq`` likewise.
    :returns: (H, W, 3) levels, neither rounded nor kept within 0..255.
    """
    grey = restored.astype(np.float64) @ np.array(_LUMA)  # (H, W)
    unit = (grey - grey.mean()) / np.sqrt(grey.var() + _EPS)
    channels = []
    for number in range(3):
        wanted = np.ascontiguousarray(lq[..., number]).astype(np.float64)
        channels.append(unit * np.sqrt(wanted.var() + _EPS) + wanted.mean())
    return np.stack(channels, axis=-1)


def keep_grey(images: Tensor, lq: NDArray[np.uint8]) -> Tensor:
    """Restored faces, those of grey LQ faces made grey.

    :param images: (B, 3, H, W) in [-1, 1].
    :param lq: (B, H, W, 3) levels.
    """
    rows = []
    for image, levels in zip(images, lq, strict=True):
        if not is_grey(levels):
            rows.append(image)
            continue
        restored = image.float().clamp(-1, 1).add(1).div(2).mul(255).round().to("cpu", torch.uint8)
        grey = grey_like(restored.permute(1, 2, 0).numpy(), levels).clip(0, 255)
        rows.append(torch.from_numpy(grey / 127.5 - 1).permute(2, 0, 1).to(image.device, image.dtype))
    return torch.stack(rows)
