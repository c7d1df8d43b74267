"""The restoration methods by name."""

from __future__ import annotations

from pathlib import Path

import torch

from facefix.methods.base import Restorer, SamplingSettings


def load(
    model: str | Path, *, device: torch.device, dtype: torch.dtype, settings: SamplingSettings | None = None
) -> Restorer:
    """The restorer of a model, by the name of installed weights or by its folder.

    :raises WeightsUnavailable: no such model is installed.
    """
    from facefix.methods.refldm.restorer import ReFLDMRestorer
    from facefix.weights.catalogue import find_model

    folder = find_model(model)
    return ReFLDMRestorer.load(folder, name=Path(model).name, device=device, dtype=dtype, settings=settings)
