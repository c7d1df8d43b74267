"""Gradients of two processes are averaged, and the first one's outcome is returned."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from torch import nn

from facefix.training.loop import Outcome
from facefix.training.parallel import average, run_parallel


def body(scale: float, rank: int, world: int) -> Outcome:
    weight = nn.Parameter(torch.ones(3))
    idle = nn.Parameter(torch.ones(1))
    (weight * scale * (rank + 1)).sum().backward()
    average([weight, idle], world)
    assert weight.grad is not None and idle.grad is None
    return Outcome(rank, True, float(weight.grad.mean()))


def test_gradients_are_averaged(tmp_path: Path) -> None:
    outcome = run_parallel(partial(body, 2.0), 2, tmp_path / "meeting")
    assert (outcome.step, outcome.minutes) == (0, 3.0)


def test_one_process_needs_no_meeting(tmp_path: Path) -> None:
    assert run_parallel(partial(body, 2.0), 1, tmp_path / "meeting").minutes == 2.0
    assert not (tmp_path / "meeting").exists()
