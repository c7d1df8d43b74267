"""ReF-LDM behind the restorer protocol."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
    ReferenceUse,
    Restorer,
    SamplingGrid,
    SamplingSettings,
)
from facefix.methods.diffusion import DiffusionRestorer
from facefix.methods.refldm.pipeline import ReFLDMPipeline
from facefix.networks import autoencoder
from facefix.networks.images import pixels_to_tensor, resize, tensor_to_pixels
from facefix.networks.reference_cache import ReferenceCache
from facefix.networks.schedule import make_sampler


def load(folder: Path, options: LoadOptions) -> Restorer:
    """The restorer in a folder in diffusers layout; see :meth:`DiffusionRestorer.load`."""
    return ReFLDMRestorer.load(folder, options)


@dataclass(frozen=True, slots=True)
class CachedReferences:
    """A ``ReferenceCache`` as the protocol wants it."""

    cache: ReferenceCache

    @property
    def nbytes(self) -> int:
        """Memory of the keys and values, in bytes."""
        return self.cache.nbytes

    @property
    def count(self) -> int:
        """Number of references."""
        return self.cache.num_references


@dataclass(frozen=True, eq=False)
class ReFLDMRestorer(DiffusionRestorer):
    """A ReF-LDM model with its sampling settings, on its device."""

    pipeline_class: ClassVar[type[DiffusionPipeline]] = ReFLDMPipeline

    @classmethod
    def sampled(cls, pipeline: Any, sampling: SamplingSettings) -> Any:
        """The pipeline with the sampler that the settings name, or its own."""
        own = pipeline.own_scheduler
        pipeline.scheduler = own if sampling.sampler is None else make_sampler(sampling.sampler, own)
        return pipeline

    @property
    def references(self) -> ReferenceUse:
        """As the model was trained."""
        return "needed" if self.pipeline.config.needs_references else "optional"

    @property
    def composes(self) -> bool:
        """Where the model encodes references one by one."""
        return bool(self.pipeline.config.reference_encoding == "each")

    def prepare(self, references: Sequence[Pixels], sources: Sequence[str] = ()) -> CachedReferences:
        """Encode a person's references (at least one), best first."""
        if not references:
            raise UsageError("references: expected at least one, found none")
        tensors = torch.stack([pixels_to_tensor(pixels) for pixels in references])
        return CachedReferences(
            self.pipeline.encode_references(resize(tensors, self.crop_size).clamp(-1, 1), tuple(sources))
        )

    def compose(self, references: Sequence[PreparedReferences]) -> CachedReferences:
        """One set of references out of several that were prepared alone."""
        return CachedReferences(ReferenceCache.compose([_cache_of(prepared) for prepared in references]))

    def restore(
        self, crops: Sequence[Pixels], references: PreparedReferences | None, seeds: Sequence[int] | None = None
    ) -> list[Pixels]:
        """Restore face crops of one person; see the protocol."""
        cache = None if references is None else _cache_of(references).to(self.device, self.dtype)
        lq = resize(torch.stack([pixels_to_tensor(pixels) for pixels in crops]), self.crop_size).clamp(-1, 1)
        images = self.pipeline(
            lq,
            cache,
            self.sampling.steps,
            self.sampling.guidance_scale,
            latents=self.start_noise(seeds or [self.sampling.seed] * len(crops)),
            output_type="pt",
            start_timestep=self.sampling.start_timestep,
        ).images
        return list(self.pipeline.to_pixels(images))

    def start_noise(self, seeds: Sequence[int]) -> torch.Tensor:
        """(B, 8, h, w) start noise, drawn on the CPU face by face, so that it is the same on every device and batch."""
        side = int(self.pipeline.unet.config.sample_size)
        channels = self.pipeline.autoencoder.config.vq_embed_dim or self.pipeline.autoencoder.config.latent_channels
        shape = (int(channels), side, side)
        return torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])

    @property
    def sweep(self) -> SamplingGrid:
        """Quality against steps, from noise and from the LQ face."""
        return SamplingGrid(
            steps=(2, 4, 6, 8, 10, 20, 50), samplers=("ddim", "dpm++", "unipc"), start_timesteps=(None, 500)
        )

    @property
    def autoencoder(self) -> Callable[[Pixels], Pixels] | None:
        """Encodes a crop and decodes it again as the model would its own result."""
        return self._reconstruct

    @torch.inference_mode()
    def _reconstruct(self, crop: Pixels) -> Pixels:
        network = self.pipeline.autoencoder
        image = resize(pixels_to_tensor(crop)[None], self.pipeline.work_size).clamp(-1, 1)
        latents = autoencoder.encode(network, image.to(network.device, network.dtype))
        pixels: Pixels = tensor_to_pixels(self.pipeline.decode(latents).clamp(-1, 1), nearest=True)[0]
        return pixels


def _cache_of(references: PreparedReferences) -> ReferenceCache:
    if not isinstance(references, CachedReferences):
        raise UsageError(f"references: expected what prepare() gave, found {type(references).__name__}")
    return references.cache
