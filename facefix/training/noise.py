"""The noise schedule of training."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

_TIMESTEPS = 1000


@dataclass(frozen=True, slots=True)
class NoiseSchedule:
    """alphas_cumprod of the timesteps, and what follows from them."""

    alphas_cumprod: Tensor

    def levels(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 1, 1, 1) factors of signal and noise."""
        abar = self.alphas_cumprod[timesteps].view(-1, 1, 1, 1)
        return abar.sqrt(), (1 - abar).sqrt()

    def target(self, clean: Tensor, noise: Tensor, timesteps: Tensor, prediction: str) -> Tensor:
        """What the network is to give: noise, clean latents, or v (Salimans and Ho 2022)."""
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
