"""Restoration methods behind one small protocol. A new method is one file here and one row in the catalogue."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from facefix.methods.base import Pixels, PreparedReferences, Restorer
from facefix.methods.registry import load

if TYPE_CHECKING:
    import torch

    from facefix.methods.base import SamplingSettings

__all__ = ["Pixels", "PreparedReferences", "Restorer", "load"]
