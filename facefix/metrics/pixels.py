"""Distances of pixels: PSNR and SSIM."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

_LUMA = (0.299, 0.587, 0.114)


def psnr(first: Tensor, second: Tensor) -> Tensor:
    """(B,) peak signal-to-noise ratio in dB of (B, 3, H, W) in [0, 1], over all channels; 100 for equal pictures."""
    error = (first - second).square().mean(dim=(1, 2, 3)).clamp_min(1e-10)
    return -10 * error.log10()


def ssim(first: Tensor, second: Tensor) -> Tensor:
    """(B,) structural similarity of (B, 3, H, W) in [0, 1], on the luma.

    Wang et al. 2004: Gaussian window of 11 pixels, sigma 1.5, K1 = 0.01, K2 = 0.03, windows wholly inside the picture.
    """
    offsets = torch.arange(11, dtype=first.dtype, device=first.device) - 5
    window = torch.exp(-offsets.square() / (2 * 1.5**2))
    window = window / window.sum()
    luma = first.new_tensor(_LUMA).view(1, 3, 1, 1)
    x, y = (first * luma).sum(1, keepdim=True), (second * luma).sum(1, keepdim=True)

    def local_mean(image: Tensor) -> Tensor:
        return F.conv2d(F.conv2d(image, window.view(1, 1, 11, 1)), window.view(1, 1, 1, 11))

    mean_x, mean_y = local_mean(x), local_mean(y)
    var_x = local_mean(x * x) - mean_x.square()
    var_y = local_mean(y * y) - mean_y.square()
    covariance = local_mean(x * y) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    similarity = ((2 * mean_x * mean_y + c1) * (2 * covariance + c2)) / (
        (mean_x.square() + mean_y.square() + c1) * (var_x + var_y + c2)
    )
    return similarity.mean(dim=(1, 2, 3))
