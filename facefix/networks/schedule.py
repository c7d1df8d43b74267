"""Noise schedules: diffusers' own schedulers, set up as ReF-LDM's published sampler is."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, SchedulerMixin, UniPCMultistepScheduler

from facefix.errors import UsageError

SAMPLERS: Mapping[str, type[SchedulerMixin]] = {
    "ddim": DDIMScheduler,
    "dpm++": DPMSolverMultistepScheduler,
    "unipc": UniPCMultistepScheduler,
}

REFLDM_SCHEDULE: Mapping[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.0015,
    "beta_end": 0.0155,
    "beta_schedule": "scaled_linear",
    "prediction_type": "epsilon",
    "timestep_spacing": "trailing",
}
"""Schedule of the published model."""


def ddim_scheduler(**overrides: Any) -> DDIMScheduler:
    """The published sampler: DDIM, eta 0, trailing timesteps, no clipping, last alpha ``alphas_cumprod[0]``."""
    settings = {**REFLDM_SCHEDULE, "clip_sample": False, "set_alpha_to_one": False, "steps_offset": 0, **overrides}
    return DDIMScheduler(**settings)


def make_sampler(name: str, scheduler: SchedulerMixin) -> SchedulerMixin:
    """Another sampler on the schedule of this one.

    :param name: one of ``SAMPLERS``.
    :raises UsageError: no sampler has that name.
    """
    if name not in SAMPLERS:
        raise UsageError(f"sampler: expected one of {sorted(SAMPLERS)}, found {name!r}")
    kind = SAMPLERS[name]
    if isinstance(scheduler, kind):
        return scheduler
    shared = {key: scheduler.config[key] for key in REFLDM_SCHEDULE if key in scheduler.config}
    if kind is DDIMScheduler:
        return ddim_scheduler(**shared)
    return kind(**shared)


def prepare(
    scheduler: SchedulerMixin, steps: int, device: torch.device, start_timestep: int | None
) -> tuple[SchedulerMixin, torch.Tensor]:
    """A scheduler of its own for one sampling run (schedulers keep state between steps), and the timesteps to run.

    DDIM runs the timesteps of the published code: where ``steps`` does not divide the number of training timesteps,
    that is one or a few more than asked for (3 asked for: 999, 666, 333, 0).

    :param start_timestep: start at the highest timestep not above this one instead of at the noisiest; ``steps`` is
        then the number of steps from there.
    """
    own = copy.deepcopy(scheduler)
    train_timesteps = own.config.num_train_timesteps
    total = steps
    if start_timestep is not None:
        total = max(steps, round(steps * train_timesteps / (start_timestep + 1)))
    own.set_timesteps(total, device=device)
    if isinstance(own, DDIMScheduler):
        _follow_published(own, total, device)
    skipped = 0
    if start_timestep is not None:
        # The scheduler keeps them all: the multistep ones tell by their number how near the end they are.
        skipped = max(len(own.timesteps) - steps, 0)
        if hasattr(own, "set_begin_index"):
            own.set_begin_index(skipped)
    return own, own.timesteps[skipped:]


def _follow_published(scheduler: DDIMScheduler, steps: int, device: torch.device) -> None:
    """Timesteps as the published code strides over them, and alphas accumulated in float64 as it does."""
    config = scheduler.config
    train_timesteps = config.num_train_timesteps
    stride = train_timesteps // steps
    if config.timestep_spacing == "trailing":
        timesteps = np.arange(train_timesteps, 0, -stride) - 1
        scheduler.timesteps = torch.from_numpy(timesteps.copy()).to(device)
    if config.beta_schedule == "scaled_linear" and config.trained_betas is None:
        alphas_cumprod = published_alphas_cumprod(config.beta_start, config.beta_end, train_timesteps)
        scheduler.alphas_cumprod = alphas_cumprod.to(device)
        scheduler.final_alpha_cumprod = torch.tensor(1.0) if config.set_alpha_to_one else alphas_cumprod[0].to(device)


def published_alphas_cumprod(beta_start: float, beta_end: float, train_timesteps: int) -> torch.Tensor:
    """(T,) float32, accumulated in float64: cumprod(1 - linspace(sqrt(beta_start), sqrt(beta_end), T)^2)."""
    betas = np.linspace(beta_start**0.5, beta_end**0.5, train_timesteps, dtype=np.float64) ** 2
    return torch.from_numpy(np.cumprod(1.0 - betas)).float()
