"""The noise schedule of training agrees with the sampler that undoes it."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDIMScheduler

from facefix.networks.schedule import ddim_scheduler
from facefix.training.noise import TIMESTEPS, NoiseSchedule


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
def test_targets_agree_with_the_scheduler(prediction: str) -> None:
    """Where the network gives exactly its target, one step of diffusers' sampler to t = 0 finds the clean latents."""
    scheduler: DDIMScheduler = ddim_scheduler(prediction_type=prediction, set_alpha_to_one=True)
    schedule = NoiseSchedule(scheduler.alphas_cumprod)
    generator = torch.Generator().manual_seed(1)
    clean, noise = (torch.randn(2, 8, 4, 4, generator=generator) for _ in range(2))
    timesteps = torch.tensor([999, 999])
    signal, sigma = schedule.levels(timesteps)
    noisy = signal * clean + sigma * noise
    target = schedule.target(clean, noise, timesteps, prediction)
    assert torch.allclose(schedule.clean(target, noisy, timesteps, prediction), clean, atol=1e-3)
    scheduler.set_timesteps(1)
    stepped = scheduler.step(target, scheduler.timesteps[0], noisy).prev_sample
    assert torch.allclose(stepped, clean, atol=1e-3)


def test_published_levels_add_up_and_are_noisiest_last() -> None:
    schedule = NoiseSchedule.published(torch.device("cpu"))
    signal, sigma = schedule.levels(torch.arange(TIMESTEPS))
    assert torch.allclose(signal.square() + sigma.square(), torch.ones(TIMESTEPS, 1, 1, 1), atol=1e-5)
    assert bool((sigma.flatten().diff() > 0).all())


def test_high_timesteps_are_preferred_as_asked() -> None:
    schedule = NoiseSchedule.published(torch.device("cpu"))
    means = []
    for preference in (1.0, 3.0):
        drawn = schedule.draw(20_000, preference, torch.Generator().manual_seed(0))
        assert int(drawn.min()) >= 0 and int(drawn.max()) <= TIMESTEPS - 1
        means.append(float(drawn.float().mean()) / TIMESTEPS)
    # the mean of u^(1/p) is p / (p + 1)
    assert means == pytest.approx([0.5, 0.75], abs=0.01)
