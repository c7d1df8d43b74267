"""InterLCM behind the restorer protocol."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import DiffusionPipeline

from facefix.errors import UsageError
from facefix.methods.base import (
    LoadOptions,
    Pixels,
    PreparedReferences,
    Restorer,
    RestorerDefaults,
    SamplingGrid,
    SamplingSettings,
)
from facefix.methods.diffusion import DiffusionRestorer
from facefix.methods.interlcm.pipeline import Ablation, InterLCMPipeline
from facefix.networks.images import pixels_to_tensor, resize, tensor_to_pixels

_PARTS = ("start", "spatial", "tokens")


def load(folder: Path, options: LoadOptions) -> Restorer:
    """The restorer in a folder in diffusers layout; see :meth:`DiffusionRestorer.load`."""
    return InterLCMRestorer.load(folder, options)


@dataclass(frozen=True, eq=False)
class InterLCMRestorer(DiffusionRestorer):
    """An InterLCM model with its sampling settings, on its device. It takes no references."""

    pipeline_class: ClassVar[type[DiffusionPipeline]] = InterLCMPipeline

    @classmethod
    def sampled(cls, pipeline: Any, sampling: SamplingSettings) -> Any:
        """The pipeline as it is: only the number of steps can be chosen, among those the model was trained for."""
        for setting in ("guidance_scale", "sampler", "start_timestep"):
            if (value := getattr(sampling, setting)) is not None:
                raise UsageError(f"{setting}: InterLCM takes none, found {value!r}; leave it out")
        pipeline.check_steps(sampling.steps)
        return pipeline

    @property
    def own_steps(self) -> int:
        """The first of the numbers of steps that the model was trained for."""
        return int(self.pipeline.check_steps(None))

    seconds_per_face = RestorerDefaults.seconds_per_face

    def restore(
        self, crops: Sequence[Pixels], references: PreparedReferences | None, seeds: Sequence[int] | None = None
    ) -> list[Pixels]:
        """Restore face crops; see the protocol. References change nothing.

        The noise is drawn on the CPU face by face, so that it is the same on every device and in every batch.
        """
        lq = self._network_input(crops)
        generators = [torch.Generator().manual_seed(seed) for seed in seeds or [self.sampling.seed] * len(crops)]
        images = self.pipeline(
            lq, self.sampling.steps, generators, output_type="pt", ablation=self._ablation(len(lq))
        ).images
        return list(tensor_to_pixels(images, nearest=True))

    def _network_input(self, crops: Sequence[Pixels]) -> torch.Tensor:
        """(B, 3, S, S) in [-1, 1]."""
        return resize(torch.stack([pixels_to_tensor(pixels) for pixels in crops]), self.crop_size).clamp(-1, 1)

    def _ablation(self, faces: int) -> Ablation:
        """What is left out of the method for this many faces."""
        if self.without == "tokens":
            grey = torch.zeros(1, 3, self.crop_size, self.crop_size)
            with torch.no_grad():
                return Ablation(tokens=self.pipeline.encode_tokens(grey).expand(faces, -1, -1))
        return Ablation(from_noise=self.without == "start", spatial_scale=float(self.without != "spatial"))

    @property
    def sweep(self) -> SamplingGrid:
        """Every number of steps that the model was trained for."""
        return SamplingGrid(steps=tuple(sorted(int(number) for number in self.pipeline.config.steps)))

    @property
    def ablations(self) -> Mapping[str, Callable[[], DiffusionRestorer]]:
        """From pure noise instead of the LQ latent, without the Spatial Encoder, with a grey picture's tokens."""
        return {part: functools.partial(self.without_part, part) for part in _PARTS}

    @property
    def autoencoder(self) -> Callable[[Pixels], Pixels] | None:
        """Encodes a crop and decodes it again."""
        return self._reconstruct

    @torch.inference_mode()
    def _reconstruct(self, crop: Pixels) -> Pixels:
        decoded = self.pipeline.decode(self.pipeline.encode(self._network_input([crop])))
        pixels: Pixels = tensor_to_pixels(decoded.clamp(-1, 1), nearest=True)[0]
        return pixels
