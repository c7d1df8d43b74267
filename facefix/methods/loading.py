"""Loading of models in diffusers layout, without advice on the terminal."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from diffusers.utils import logging
from torch import nn

from facefix.errors import CheckpointError, WeightsUnavailable
from facefix.methods.registry import MODEL_INDEX


@contextmanager
def _quiet_diffusers() -> Iterator[None]:
    """Without its bar while it loads, and its advice against fp16 on the CPU, which works here.

    This module has no business on the terminal.
    """
    shown, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if shown:
            logging.enable_progress_bar()


@_quiet_diffusers()
def load_pipeline(kind: type[DiffusionPipeline], folder: Path, *, device: torch.device, dtype: torch.dtype) -> Any:
    """The pipeline of a class in a folder in diffusers layout, on a device and in a dtype, without progress bars.

    :raises WeightsUnavailable: there is no model in the folder.
    :raises CheckpointError: the files in it do not make a model.
    """
    if not (folder / MODEL_INDEX).is_file():
        raise WeightsUnavailable(
            f"{folder}: expected a model in diffusers layout ({MODEL_INDEX}), found none; "
            "see `facefix models list`, or make one with `facefix models import`"
        )
    try:
        pipeline = kind.from_pretrained(folder, local_files_only=True, dtype=dtype, use_safetensors=True)
    except Exception as error:  # diffusers and safetensors raise many kinds for damaged files
        raise CheckpointError(
            f"{folder}: expected a complete model, found files that do not load ({type(error).__name__}: {error})"
        ) from error
    pipeline.set_progress_bar_config(disable=True)
    pipeline.to(device)
    if device.type == "cuda":
        for part in pipeline.components.values():
            if isinstance(part, nn.Module):
                part.to(memory_format=torch.channels_last)
    return pipeline
