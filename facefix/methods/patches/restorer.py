"""The method in patches behind the restorer protocol."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from diffusers import DiffusionPipeline

from facefix.methods.base import LoadOptions, Restorer
from facefix.methods.diffusion import DiffusionRestorer
from facefix.methods.patches.pipeline import Parts, PatchPipeline
from facefix.methods.refldm.restorer import ReFLDMRestorer
from facefix.networks.autoencoder import DOWNSAMPLE_FACTOR, LATENT_CHANNELS


def load(folder: Path, options: LoadOptions) -> Restorer:
    """The restorer in a folder in diffusers layout; see :meth:`DiffusionRestorer.load`."""
    return PatchRestorer.load(folder, options)


_ABLATIONS: Mapping[str, Parts] = MappingProxyType(
    {"guide": Parts(guide=False), "cachekv": Parts(cachekv=False), "warp": Parts(warp=False)}
)


@dataclass(frozen=True, eq=False)
class PatchRestorer(ReFLDMRestorer):
    """A model in patches with its sampling settings, on its device."""

    pipeline_class: ClassVar[type[DiffusionPipeline]] = PatchPipeline

    @classmethod
    def lacking(cls, pipeline: Any, part: str) -> Any:
        """The pipeline without one of the parts."""
        pipeline.parts = _ABLATIONS[part] if part else Parts()
        return pipeline

    @property
    def ablations(self) -> Mapping[str, Callable[[], DiffusionRestorer]]:
        """Without the guide, the references' keys and values, or the warp that lays them onto the face."""
        return {part: functools.partial(self.without_part, part) for part in _ABLATIONS}

    def start_noise(self, seeds: Any) -> torch.Tensor:
        """(B, 8, h, w) start noise, drawn on the CPU face by face, so that it is the same on every device and batch."""
        side = self.pipeline.work_size // DOWNSAMPLE_FACTOR
        shape = (LATENT_CHANNELS, side, side)
        return torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])
