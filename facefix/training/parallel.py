"""Training in several processes of one machine: each computes its share of a batch, gradients are averaged.

On a CPU two processes with a thread each do more than one with two: nothing waits but the average once a step, also
where the cores are shared with other work.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.multiprocessing.spawn import spawn

from facefix.training.loop import Leg, Moment, Outcome, Task, rate_factor
from facefix.training.runs import Config, RunFolder

_TIMEOUT = timedelta(hours=2)
"""the first process draws sheets while the others wait"""


class ParallelLeg(Leg):
    """A leg of one of several processes. Only the first one writes; it also keeps the time."""

    def __init__(self, config: Config, task: Task, device: torch.device, rank: int, world: int) -> None:
        super().__init__(config, task, device)
        self.rank, self.world = rank, world
        if rank:
            self.run = _Unwritten(config.run)

    def _one_step(self) -> dict[str, float]:
        moment = Moment(self.step, self._progress(), self.config.seed * self.world + self.rank)
        factor = rate_factor(self.config.schedule, moment)
        network = self.task.network.train()
        torch.manual_seed(moment.generator(purpose=100).initial_seed())
        loss, values = self.task.losses(moment)
        loss.backward()
        average(list(network.parameters()), self.world)
        norm = nn.utils.clip_grad_norm_(network.parameters(), self.config.schedule.gradient_limit)
        if bool(torch.isfinite(norm)):
            self.optimisers.step(factor)
            self.faults = 0
        else:
            self.optimisers.zero_grad()
            self._count_fault()
        self.average.step(network.parameters())
        self.step += 1
        return {**values, "gradient": float(norm), "rate": factor * self.config.schedule.learning_rate}

    def _agreed(self, stop: bool) -> bool:
        """What the first process says; its clock becomes that of all."""
        shared = torch.tensor([float(stop), self.seconds], dtype=torch.float64)
        if self.world > 1:
            dist.broadcast(shared, 0)
        self.seconds = float(shared[1])
        return bool(shared[0])

    def _save(self) -> None:
        if self.rank == 0:
            super()._save()

    def _watch(self) -> None:
        if self.rank == 0:
            super()._watch()

    def train(self, *, resume: bool) -> Outcome:
        """As in :class:`Leg`; the first process's clock and signals count."""
        if resume:
            state = self.run.resume(self.config, self.device) if self.rank == 0 else self._read()
            self._load(state)
        elif self.rank == 0:
            self.run.start(self.config)
        return self._loop()

    def _read(self) -> dict[str, Any]:
        from facefix.training.checkpoint import load_checkpoint

        return load_checkpoint(self.run.checkpoint, self.device)


class _Unwritten(RunFolder):
    """A run folder that another process writes."""

    def log(self, step: int, values: Mapping[str, float], name: str = "losses.csv") -> None:
        """Nothing."""


def average(parameters: list[nn.Parameter], world: int) -> None:
    """Replace the gradients by their mean over the processes."""
    if world == 1:
        return
    found = [parameter for parameter in parameters if parameter.grad is not None]
    flat = torch.cat([parameter.grad.flatten() for parameter in found if parameter.grad is not None])
    dist.all_reduce(flat)
    flat /= world
    for parameter, part in zip(found, flat.split([parameter.numel() for parameter in found]), strict=True):
        parameter.grad = part.view_as(parameter)


def run_parallel(body: Callable[[int, int], Outcome], processes: int, meeting: Path) -> Outcome:
    """``body(rank, world)`` in so many processes; the first one's outcome."""
    if processes == 1:
        return body(0, 1)
    meeting.unlink(missing_ok=True)
    meeting.parent.mkdir(parents=True, exist_ok=True)
    results: torch.multiprocessing.SimpleQueue[Outcome] = torch.multiprocessing.get_context("spawn").SimpleQueue()
    spawn(_process, (body, processes, meeting, results), processes)
    return results.get()


def _process(
    rank: int,
    body: Callable[[int, int], Outcome],
    world: int,
    meeting: Path,
    results: torch.multiprocessing.SimpleQueue[Outcome],
) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=world, timeout=_TIMEOUT)
    outcome = body(rank, world)
    if rank == 0:
        results.put(outcome)
    dist.destroy_process_group()
