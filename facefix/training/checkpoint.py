"""Training checkpoints that a kill cannot break: a temporary file, fsync, rename."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from facefix.errors import CheckpointError
from facefix.files.atomic import replacing


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write ``state`` (tensors, numbers, strings and containers of them) to ``path`` all at once or not at all."""
    with replacing(path) as temporary:
        torch.save(state, temporary)


def load_checkpoint(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """What :func:`save_checkpoint` wrote. Raises CheckpointError when it is missing or broken."""
    if not path.is_file():
        raise CheckpointError(f"{path}: expected a training checkpoint, found none; start without --resume")
    try:
        state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # torch raises half a dozen kinds for a truncated or foreign file
        raise CheckpointError(
            f"{path}: expected a training checkpoint, found a file that cannot be read: {error}"
        ) from error
    return state
