"""What the restorers around a diffusers pipeline have in common."""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from diffusers import DiffusionPipeline

from facefix.methods.base import LoadOptions, Pixels, PreparedReferences, RestorerDefaults, SamplingSettings
from facefix.methods.loading import load_pipeline
from facefix.methods.recipe import recipe, weights_digest


class _Twin:
    """The fp32 restorer, once it has been loaded."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.restorer: Any = None


@dataclass(frozen=True, eq=False)
class DiffusionRestorer(RestorerDefaults):
    """A diffusers pipeline with its sampling settings, on its device. The base of a method's ``Restorer``.

    A subclass gives ``pipeline_class`` and :meth:`restore`; :meth:`prepare` and :meth:`compose` where it takes
    references; and :meth:`sampled`, :attr:`own_steps`, ``timed_steps``, ``sweep``, ``ablations`` and ``autoencoder``
    where its own are other than these.
    """

    name: str
    pipeline: Any
    weights: str
    """their digest"""
    sampling: SamplingSettings = SamplingSettings()
    without: str = ""
    """the part of the method that is left out, in an ablation"""
    _twin: _Twin = field(default_factory=_Twin, repr=False)

    pipeline_class: ClassVar[type[DiffusionPipeline]]
    denoiser: ClassVar[str] = "unet"
    """the part of the pipeline whose dtype and device are the model's"""
    timed_steps: ClassVar[tuple[int, int]] = (1, 3)
    """numbers of steps that are run to tell how long others take"""

    @classmethod
    def load(cls, folder: Path, options: LoadOptions) -> Self:
        """Load a folder in diffusers layout.

        :raises WeightsUnavailable: there is no model in the folder.
        :raises CheckpointError: the files in it do not make a model.
        :raises UsageError: the method cannot be sampled as ``options`` says.
        """
        pipeline = load_pipeline(cls.pipeline_class, folder, device=options.device, dtype=options.dtype)
        weights = options.weights or weights_digest(folder)
        return cls(options.name, cls.sampled(pipeline, options.sampling), weights, options.sampling)

    @classmethod
    def sampled(cls, pipeline: Any, sampling: SamplingSettings) -> Any:
        """``pipeline``, which may be changed, sampled as ``sampling`` says.

        :raises UsageError: the method cannot be sampled so.
        """
        return pipeline

    @classmethod
    def lacking(cls, pipeline: Any, part: str) -> Any:
        """``pipeline``, which may be changed, without a part named in :attr:`ablations`; whole where it is empty."""
        return pipeline

    def without_part(self, part: str) -> Self:
        """The same restorer without a part of the method, sharing its weights."""
        return replace(self, pipeline=self.lacking(copy.copy(self.pipeline), part), without=part, _twin=_Twin())

    @property
    def own_steps(self) -> int:
        """Steps of the model where the settings name none."""
        return int(self.pipeline.config.default_steps)

    @property
    def crop_size(self) -> int:
        """Side of the crops that go in and come out, in px."""
        return int(self.pipeline.crop_size)

    @property
    def dtype(self) -> torch.dtype:
        """Of the denoiser."""
        dtype: torch.dtype = getattr(self.pipeline, self.denoiser).dtype
        return dtype

    @property
    def device(self) -> torch.device:
        """Where the denoiser runs."""
        device: torch.device = getattr(self.pipeline, self.denoiser).device
        return device

    @property
    def recipe(self) -> str:
        """See :mod:`facefix.methods.recipe`."""
        return recipe(self.weights, self.sampling, self.dtype, without=self.without)

    def restore(
        self, crops: Sequence[Pixels], references: PreparedReferences | None, seeds: Sequence[int] | None = None
    ) -> list[Pixels]:
        """Restore face crops of one person; see the protocol."""
        raise NotImplementedError

    def with_sampling(self, sampling: SamplingSettings) -> Self:
        """The same restorer sampled otherwise, sharing its weights."""
        pipeline = self.sampled(copy.copy(self.pipeline), sampling)
        return replace(self, pipeline=pipeline, sampling=sampling, _twin=_Twin())

    def in_fp32(self) -> Self:
        """The same restorer in fp32; itself where it is in fp32 already. Loaded once, when first asked for."""
        if self.dtype == torch.float32:
            return self
        with self._twin.lock:
            if self._twin.restorer is None:
                folder = Path(self.pipeline.config._name_or_path)
                pipeline = load_pipeline(self.pipeline_class, folder, device=self.device, dtype=torch.float32)
                pipeline = self.lacking(self.sampled(pipeline, self.sampling), self.without)
                self._twin.restorer = replace(self, pipeline=pipeline, _twin=_Twin())
            twin: Self = self._twin.restorer
            return twin

    def seconds_per_face(self, references: int) -> float:
        """Time of one face on this device. Only a few steps are run; the others take as long."""
        crop = np.full((self.crop_size, self.crop_size, 3), 128, np.uint8)
        prepared = self.prepare([crop] * references) if references and self.references != "none" else None
        steps = self.sampling.steps or self.own_steps

        def seconds(restorer: DiffusionRestorer) -> float:
            start = time.perf_counter()
            restorer.restore([crop], prepared)
            return time.perf_counter() - start

        fewest, most = self.timed_steps
        few, more = (self.with_sampling(replace(self.sampling, steps=count)) for count in (fewest, most))
        seconds(few)  # warms up
        once = seconds(few)
        a_step = max(0.0, seconds(more) - once) / (most - fewest)
        return once + a_step * (steps - fewest)
