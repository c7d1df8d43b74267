"""The guided method behind the restorer protocol."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from diffusers import DiffusionPipeline

from facefix.methods.base import LoadOptions, Restorer
from facefix.methods.diffusion import DiffusionRestorer
from facefix.methods.guided.pipeline import GuidedPipeline, Parts
from facefix.methods.refldm.restorer import ReFLDMRestorer


def load(folder: Path, options: LoadOptions) -> Restorer:
    """The restorer in a folder in diffusers layout; see :meth:`DiffusionRestorer.load`."""
    return GuidedRestorer.load(folder, options)


_ABLATIONS: Mapping[str, Parts] = {
    "guide": Parts(guide=False),
    "attention": Parts(attention=False),
    "detail": Parts(detail=False),
}


@dataclass(frozen=True, eq=False)
class GuidedRestorer(ReFLDMRestorer):
    """A guided model with its sampling settings, on its device."""

    pipeline_class: ClassVar[type[DiffusionPipeline]] = GuidedPipeline

    @classmethod
    def lacking(cls, pipeline: Any, part: str) -> Any:
        """The pipeline without one of the parts."""
        pipeline.parts = _ABLATIONS[part] if part else Parts()
        return pipeline

    @property
    def ablations(self) -> Mapping[str, Callable[[], DiffusionRestorer]]:
        """Without the guide, without attention to the references, and without the detail that bypasses the decoder."""
        return {part: functools.partial(self.without_part, part) for part in _ABLATIONS}
