"""What a denoiser learns on one batch: the diffusion loss, and losses on the decoded prediction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from diffusers import UNet2DModel
from torch import Tensor, nn

from facefix.networks.cachekv import denoise, reference_pass
from facefix.networks.reference_cache import Branch, ReferenceCache
from facefix.training.config import Machine, Objective
from facefix.training.decoded import DecodedTerms
from facefix.training.draws import Batch
from facefix.training.loop import autocast
from facefix.training.noise import NoiseSchedule


@dataclass(frozen=True, slots=True)
class DenoisingObjective:
    """The loss of a batch, and the network's guess at clean latents, as the settings say."""

    settings: Objective
    machine: Machine
    noise: NoiseSchedule
    latent_scale: float
    """what is diffused is divided by this"""
    guided: bool
    """the network has input channels for a guide"""
    share: int
    """so many samples of a batch in a row share their references"""
    decoded: DecodedTerms | None = None

    def losses(
        self, network: nn.Module, batch: Batch, progress: float, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        """The loss of a batch, with gradient, and its parts.

        :param progress: fraction of the run that is over; losses on decoded pictures begin at ``decoded.after``.
        """
        lq, base = self._conditions(batch, generator)
        clean = (batch.good - base if self.settings.residual else batch.good) / self.latent_scale
        noise = torch.randn(clean.shape, generator=generator).to(clean.device)
        timesteps = self.noise.draw(len(clean), self.settings.high_timesteps, generator).to(clean.device)
        signal, sigma = self.noise.levels(timesteps)
        noisy = signal * clean + sigma * noise
        with autocast(clean.device, self.machine):
            seen = self.seen(noisy, lq, base)
            predicted = self.predict(network, seen, timesteps, batch.references).float()
        error = predicted - self.noise.target(clean, noise, timesteps, self.settings.prediction)
        loss = error.square().mean() if self.settings.loss == "l2" else error.abs().mean()
        values = {"diffusion": float(loss.detach())}
        if self.decoded is not None and progress >= self.settings.decoded.after:
            guess = self.guess(predicted, noisy, base, timesteps)
            more, terms = self._decoded_losses(guess, batch, timesteps)
            loss, values = loss + more, values | terms
        return loss, {"loss": float(loss.detach()), **values}

    def _conditions(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """LQ latents, some of them dropped or pooled, and what a residual is relative to."""
        count, device = len(batch.faces), batch.degraded.device
        keep = (torch.rand(count, generator=generator) >= self.settings.lq_dropout).to(device)
        pooled = (torch.rand(count, generator=generator) < self.settings.lq_pooled).to(device)
        lq = torch.where(pooled.view(-1, 1, 1, 1), pool(batch.degraded), batch.degraded) * keep.view(-1, 1, 1, 1)
        return lq, batch.base if self.guided else lq

    def seen(self, noisy: Tensor, lq: Tensor, base: Tensor) -> Tensor:
        """The denoiser's input: noisy and LQ latents, and the guides where it takes them."""
        return torch.cat([noisy, lq, base] if self.guided else [noisy, lq], 1)

    def predict(self, network: nn.Module, seen: Tensor, timesteps: Tensor, references: Tensor) -> Tensor:
        """The network's output for its (B, C, h, w) input, the first groups reading their references, with gradient."""
        unet = cast(UNet2DModel, network)
        if not len(references):
            return denoise(unet, seen, timesteps)
        share = min(self.share, len(seen))
        cache = _repeated(reference_pass(unet, references), share)
        return denoise(unet, seen, timesteps, (Branch(slice(0, len(references) * share), cache),))

    def guess(self, predicted: Tensor, noisy: Tensor, base: Tensor, timesteps: Tensor) -> Tensor:
        """The clean (B, 8, h, w) latents that a prediction implies."""
        clean = self.noise.clean(predicted, noisy, timesteps, self.settings.prediction) * self.latent_scale
        return clean + base if self.settings.residual else clean

    def _decoded_losses(self, guess: Tensor, batch: Batch, timesteps: Tensor) -> tuple[Tensor, dict[str, float]]:
        """Losses on the decoded guesses of a few samples, spread over the groups."""
        assert self.decoded is not None
        count = min(self.settings.decoded.samples, len(guess))
        rows = slice(0, count * (len(guess) // count), len(guess) // count)
        alphas_cumprod = self.noise.alphas_cumprod[timesteps[rows]]
        with autocast(guess.device, self.machine):
            return self.decoded(guess[rows], batch.good[rows], batch.faces[rows], batch.mirrored[rows], alphas_cumprod)


def pool(latents: Tensor) -> Tensor:
    """Latents averaged over squares of 8 x 8 places (or the whole), at their size again."""
    side = max(1, latents.shape[-1] // 8)
    return F.interpolate(F.adaptive_avg_pool2d(latents, side), size=latents.shape[2:], mode="bilinear")


def _repeated(cache: ReferenceCache, times: int) -> ReferenceCache:
    """(P, n T, C) -> (P times, n T, C): neighbouring rows share references."""
    if times == 1:
        return cache
    layers = {
        name: (k.repeat_interleave(times, 0), v.repeat_interleave(times, 0)) for name, (k, v) in cache.layers.items()
    }
    return ReferenceCache(layers, cache.num_references, cache.encoding, cache.sources)
