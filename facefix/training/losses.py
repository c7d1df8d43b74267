"""Losses of the autoencoder and the denoiser that are more than one line of torch."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

IdentityWeighting = Literal["none", "naive", "sqrt_abar"]


def nearest_codes(codes: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
    """Latents (B, C, h, w) looked up in ``codes`` (n, C), with the codes' gradient and none of the latents'."""
    vectors = latents.detach().permute(0, 2, 3, 1).flatten(0, 2).float()  # (B h w, C)
    distances = torch.addmm(codes.float().square().sum(1), vectors, codes.float().T, alpha=-2)
    found = codes[distances.argmin(1)]
    batch, _, height, width = latents.shape
    nearest: torch.Tensor = found.view(batch, height, width, -1).permute(0, 3, 1, 2)
    return nearest


def codebook_loss(latents: torch.Tensor, found: torch.Tensor, commitment: float) -> torch.Tensor:
    """Codes move to the latents, and the latents to their codes (van den Oord et al. 2017, eq. 3; taming's order)."""
    return (found - latents.detach()).square().mean() + commitment * (found.detach() - latents).square().mean()


class PatchDiscriminator(nn.Module):
    """PatchGAN (Isola et al. 2017): one logit per overlapping patch, three strided convolutions as in taming.

    Group norm instead of batch norm, so that it works with the small batches of a CPU run.
    """

    def __init__(self, width: int = 32, layers: int = 3) -> None:
        super().__init__()
        channels = [width * min(2**level, 8) for level in range(layers + 1)]
        blocks: list[nn.Module] = [nn.Conv2d(3, width, 4, 2, 1), nn.LeakyReLU(0.2)]
        for level in range(1, layers + 1):
            blocks += [
                nn.Conv2d(channels[level - 1], channels[level], 4, 2 if level < layers else 1, 1, bias=False),
                nn.GroupNorm(8, channels[level]),
                nn.LeakyReLU(0.2),
            ]
        blocks.append(nn.Conv2d(channels[-1], 1, 4, 1, 1))
        self.layers = nn.Sequential(*blocks)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) in [-1, 1] -> (B, 1, h, w) logits, high for real."""
        logits: torch.Tensor = self.layers(images)
        return logits


def hinge_loss(real: torch.Tensor, fake: torch.Tensor) -> torch.Tensor:
    """The discriminator's loss on its logits."""
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())


def adversarial_weight(
    reconstruction: torch.Tensor, adversarial: torch.Tensor, last_layer: torch.Tensor
) -> torch.Tensor:
    """Ratio of the two losses' gradients at the decoder's last kernel, at most 1e4 (Esser et al. 2021, eq. 7)."""
    (wanted,) = torch.autograd.grad(reconstruction, last_layer, retain_graph=True)
    (found,) = torch.autograd.grad(adversarial, last_layer, retain_graph=True)
    ratio: torch.Tensor = (wanted.norm() / (found.norm() + 1e-4)).clamp(0, 1e4).detach()
    return ratio


def identity_weight(alphas_cumprod: torch.Tensor, weighting: IdentityWeighting) -> torch.Tensor:
    """Weight of the identity loss at (B,) noise levels: sqrt(alphas_cumprod), 1, or 0 (arXiv 2412.05043, ablation)."""
    if weighting == "sqrt_abar":
        return alphas_cumprod.sqrt()
    return torch.full_like(alphas_cumprod, 1.0 if weighting == "naive" else 0.0)
