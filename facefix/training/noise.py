"""The noise schedule of training: timesteps drawn, and the network's target at each (DDPM; v: Salimans and Ho 2022)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from facefix.networks.schedule import REFLDM_SCHEDULE, published_alphas_cumprod

TIMESTEPS = 1000


@dataclass(frozen=True, slots=True)
class NoiseSchedule:
    """alphas_cumprod of the timesteps, and what follows from them."""

    alphas_cumprod: Tensor
    """(T,)"""

    @classmethod
    def published(cls, device: torch.device) -> NoiseSchedule:
        """ReF-LDM's schedule."""
        beta_start, beta_end = REFLDM_SCHEDULE["beta_start"], REFLDM_SCHEDULE["beta_end"]
        return cls(published_alphas_cumprod(beta_start, beta_end, TIMESTEPS).to(device))

    def draw(self, count: int, high_timesteps: float, generator: torch.Generator) -> Tensor:
        """(count,) timesteps t = T u^(1/high_timesteps): uniform for 1, the noisiest preferred above."""
        total = len(self.alphas_cumprod)
        uniform = torch.rand(count, generator=generator)
        return (total * uniform ** (1 / high_timesteps)).long().clamp_max(total - 1)

    def levels(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 1, 1, 1) factors of signal and noise."""
        abar = self.alphas_cumprod[timesteps].view(-1, 1, 1, 1)
        return abar.sqrt(), (1 - abar).sqrt()

    def target(self, clean: Tensor, noise: Tensor, timesteps: Tensor, prediction: str) -> Tensor:
        """What the network is to give: noise, clean latents, or v."""
        signal, sigma = self.levels(timesteps)
        if prediction == "v_prediction":
            return signal * noise - sigma * clean
        return noise if prediction == "epsilon" else clean

    def clean(self, predicted: Tensor, noisy: Tensor, timesteps: Tensor, prediction: str) -> Tensor:
        """The clean latents that a prediction implies."""
        signal, sigma = self.levels(timesteps)
        if prediction == "v_prediction":
            return signal * noisy - sigma * predicted
        return (noisy - sigma * predicted) / signal if prediction == "epsilon" else predicted
