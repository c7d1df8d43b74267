"""Restoration methods behind one small protocol. A new method is one file here and one row in the catalogue."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from facefix.restorers.base import Pixels, PreparedReferences, Restorer

if TYPE_CHECKING:
    import torch

    from facefix.restorers.refldm import SamplingSettings

__all__ = ["Pixels", "PreparedReferences", "Restorer", "load"]


def load(
    model: str | Path, *, device: torch.device, dtype: torch.dtype, settings: SamplingSettings | None = None
) -> Restorer:
    """The restorer of a model, by the name of installed weights or by its folder.

    :raises WeightsUnavailable: no such model is installed.
    """
    from facefix.restorers.refldm import ReFLDMRestorer
    from facefix.weights import find_model

    folder = find_model(model)
    return ReFLDMRestorer.load(folder, name=Path(model).name, device=device, dtype=dtype, settings=settings)
