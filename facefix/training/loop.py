"""The training loop that the autoencoder and the denoiser share: schedule, averaging, checkpoints, logs, sheets.

A step depends on nothing but the seed, its number and the state in the checkpoint, so a killed run that goes on from
its last checkpoint gives the numbers it would have given.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from diffusers.training_utils import EMAModel
from torch import nn
from tqdm.auto import tqdm

from facefix.device import DTYPES
from facefix.errors import NotFiniteError
from facefix.stop import Stop, stopping
from facefix.training.config import Machine, Schedule
from facefix.training.optimiser import Optimisers
from facefix.training.runs import Config, RunFolder, Sheet

_PATIENCE = 20
"""steps in a row with a loss or gradient that is not finite before the run gives up"""


@dataclass(frozen=True, slots=True)
class Moment:
    """Where a run is."""

    step: int
    """steps done before this one"""
    progress: float
    """0..1, by steps or by minutes, whichever is further"""
    seed: int

    def generator(self, purpose: int = 0) -> torch.Generator:
        """Random numbers on the CPU that belong to this step and purpose."""
        mixed = (self.seed * 1_000_003 + self.step) * 101 + purpose
        return torch.Generator().manual_seed(mixed % (2**63))


class Task(Protocol):
    """What is trained. The loop owns the optimiser and the average of ``network``."""

    network: nn.Module

    def losses(self, moment: Moment) -> tuple[torch.Tensor, dict[str, float]]:
        """The loss to go down from, and what to log."""
        ...

    def after_step(self, moment: Moment, rate_factor: float) -> dict[str, float]:
        """Further updates (a discriminator), after the network's; what to log."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Everything beside the network that a resumed run needs."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """What ``state_dict`` gave."""
        ...

    def sheet(self, network: nn.Module) -> Sheet:
        """Sample pictures of the averaged network."""
        ...

    def held_out(self, network: nn.Module) -> Mapping[str, float]:
        """Measures of the averaged network on faces that it was not trained on; may be empty."""
        ...

    def save(self, network: nn.Module, folder: Path) -> None:
        """Write the averaged network."""
        ...


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a leg of a run ended."""

    step: int
    finished: bool
    minutes: float
    """of training, all legs together"""


def autocast(device: torch.device, machine: Machine) -> torch.autocast:
    """bf16 where the configuration asks for it."""
    return torch.autocast(device.type, torch.bfloat16, enabled=machine.dtype == "bf16")


def place(network: nn.Module, device: torch.device, machine: Machine) -> None:
    """Move a network to its device and memory layout."""
    network.to(device)
    if machine.channels_last:
        network.to(memory_format=torch.channels_last)


def rate_factor(schedule: Schedule, moment: Moment) -> float:
    """Fraction of the learning rate: linear warm-up, then half a cosine down to ``final_rate``."""
    warm = min(1.0, (moment.step + 1) / schedule.warmup_steps) if schedule.warmup_steps else 1.0
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, moment.progress)))
    return warm * (schedule.final_rate + (1 - schedule.final_rate) * cosine)


class Leg:
    """One call of the loop, from the start or from a checkpoint, to the end or to the end of its time."""

    def __init__(self, config: Config, task: Task, device: torch.device) -> None:
        self.config, self.task, self.device = config, task, device
        schedule = config.schedule
        self.run = RunFolder(config.run)
        self.optimisers = Optimisers(
            task.network,
            schedule.optimiser,
            schedule.learning_rate,
            schedule.muon_rate,
            schedule.weight_decay,
            DTYPES[config.machine.dtype],
        )
        self.average = EMAModel(task.network.parameters(), decay=schedule.ema_decay)
        self.average.to(device)
        self.step, self.seconds, self.faults = 0, 0.0, 0
        self._averaged = copy.deepcopy(task.network).eval().requires_grad_(False)

    def train(self, *, resume: bool) -> Outcome:
        """Run to the end, or until ``leg_minutes`` are over or SIGINT or SIGTERM comes; leaves a checkpoint.

        Raises NotFiniteError when the loss stays infinite or NaN, and what ``RunFolder`` raises.
        """
        if resume:
            self._load(self.run.resume(self.config, self.device))
        else:
            self.run.start(self.config)
        return self._loop()

    def _loop(self) -> Outcome:
        schedule, watching = self.config.schedule, self.config.watching
        began, before = time.monotonic(), self.seconds
        with stopping(Stop()) as stop, _progress(schedule.steps, self.step) as show:
            while not self._finished():
                values = self._one_step()
                self.seconds = before + time.monotonic() - began
                show(self.step, values.get("loss", math.nan))
                if self.step % watching.log_steps == 0:
                    self.run.log(self.step, values)
                if self.step % watching.checkpoint_steps == 0:
                    self._save()
                if self.step % watching.sheet_steps == 0:
                    self._watch()
                leg_over = schedule.leg_minutes and time.monotonic() - began > 60 * schedule.leg_minutes
                if self._agreed(bool(stop or leg_over)):
                    break
        self._save()
        finished = self._finished()
        if finished:
            self._watch()
        self.task.save(self._mean_network(), self.run.model)
        return Outcome(self.step, finished, self.seconds / 60)

    def _agreed(self, stop: bool) -> bool:
        """Whether this leg ends after the step."""
        return stop

    def _progress(self) -> float:
        schedule = self.config.schedule
        by_time = self.seconds / (60 * schedule.minutes) if schedule.minutes else 0.0
        return float(max(self.step / schedule.steps, by_time))

    def _finished(self) -> bool:
        return self._progress() >= 1

    def _one_step(self) -> dict[str, float]:
        moment = Moment(self.step, self._progress(), self.config.seed)
        factor = rate_factor(self.config.schedule, moment)
        self.task.network.train()
        # Dropout and the like draw from the global generators; nothing else in a step does.
        torch.manual_seed(moment.generator(purpose=100).initial_seed())
        loss, values = self.task.losses(moment)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.task.network.parameters(), self.config.schedule.gradient_limit)
        if bool(torch.isfinite(norm)):
            self.optimisers.step(factor)
            self.faults = 0
        else:
            self.optimisers.zero_grad()
            self._count_fault()
        self.average.step(self.task.network.parameters())
        values |= self.task.after_step(moment, factor)
        self.step += 1
        return {**values, "gradient": float(norm), "rate": factor * self.config.schedule.learning_rate}

    def _count_fault(self) -> None:
        self.faults += 1
        if self.faults >= _PATIENCE:
            raise NotFiniteError(
                f"{self.config.run}: expected a finite loss, found NaN or infinity {_PATIENCE} steps in a row "
                f"(step {self.step}); lower schedule.learning_rate or use dtype fp32"
            )

    def _mean_network(self) -> nn.Module:
        self._averaged.load_state_dict(self.task.network.state_dict())
        self.average.copy_to(self._averaged.parameters())
        return self._averaged

    def _watch(self) -> None:
        network = self._mean_network()
        with torch.no_grad(), autocast(self.device, self.config.machine):
            if measures := self.task.held_out(network):
                self.run.log(self.step, measures, "held_out.csv")
            self.run.sheet(self.step, self.task.sheet(network))
        self.run.plot()

    def _save(self) -> None:
        from facefix.training.checkpoint import save_checkpoint

        state = {
            "config": self.config.model_dump(mode="json"),
            "step": self.step,
            "seconds": self.seconds,
            "network": self.task.network.state_dict(),
            "average": self.average.state_dict(),
            "optimisers": self.optimisers.state_dict(),
            "task": self.task.state_dict(),
        }
        save_checkpoint(self.run.checkpoint, state)

    def _load(self, state: dict[str, Any]) -> None:
        self.step, self.seconds = int(state["step"]), float(state["seconds"])
        self.task.network.load_state_dict(state["network"])
        self.average.load_state_dict(state["average"])
        self.average.decay = self.config.schedule.ema_decay
        self.optimisers.load_state_dict(state["optimisers"])
        self.task.load_state_dict(state["task"])


@contextmanager
def _progress(steps: int, done: int) -> Iterator[Callable[[int, float], None]]:
    """A bar with the loss, on stderr or in a notebook; nothing where stderr is no terminal (the CSV says it all)."""
    with tqdm(total=steps, initial=done, desc="training", unit="step", disable=None) as bar:

        def show(step: int, loss: float) -> None:
            bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
            bar.update(step - bar.n)

        yield show
