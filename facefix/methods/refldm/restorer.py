"""ReF-LDM behind the restorer protocol."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from facefix import __version__
from facefix.errors import CheckpointError, UsageError, WeightsUnavailable
from facefix.methods.base import Pixels, PreparedReferences, SamplingSettings
from facefix.methods.loading import _quiet_diffusers, weights_digest
from facefix.methods.refldm.pipeline import ReFLDMPipeline
from facefix.networks.images import pixels_to_tensor, resize, tensor_to_pixels
from facefix.networks.reference_cache import ReferenceCache
from facefix.networks.schedule import make_sampler


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
class ReFLDMRestorer:
    """A ReF-LDM model with its sampling settings, on its device."""

    name: str
    pipeline: ReFLDMPipeline
    settings: SamplingSettings
    weights_digest: str
    _fp32: list[ReFLDMRestorer] = field(default_factory=list, repr=False)
    _fp32_lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @classmethod
    def load(
        cls,
        folder: Path,
        *,
        name: str | None = None,
        device: torch.device,
        dtype: torch.dtype,
        settings: SamplingSettings | None = None,
    ) -> ReFLDMRestorer:
        """Load a folder in diffusers layout.

        :raises WeightsUnavailable: there is no model in the folder.
        :raises CheckpointError: the files in it do not make a model.
        """
        settings = settings or SamplingSettings()
        pipeline = load_pipeline(folder, device=device, dtype=dtype)
        if settings.sampler is not None:
            pipeline.scheduler = make_sampler(settings.sampler, pipeline.scheduler)
        return cls(name or folder.name, pipeline, settings, weights_digest(folder))

    @property
    def crop_size(self) -> int:
        """Side of the crops that go in and come out, in px."""
        return self.pipeline.crop_size

    @property
    def reference_encoding(self) -> str:
        """``"strip"`` or ``"each"``: whether references are prepared as a set or one by one."""
        return str(self.pipeline.config.reference_encoding)

    @property
    def recipe(self) -> str:
        """Hash of the weights, the configuration, the sampling settings, the dtype and the version of facefix."""
        parts: dict[str, Any] = {
            "version": __version__,
            "weights": self.weights_digest,
            "scheduler": type(self.pipeline.scheduler).__name__,
            "steps": self.settings.steps,
            "guidance_scale": self.settings.guidance_scale,
            "seed": self.settings.seed,
            "start_timestep": self.settings.start_timestep,
            "dtype": str(self.pipeline.unet.dtype),
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]

    def prepare(self, references: Sequence[Pixels], sources: Sequence[str] = ()) -> CachedReferences:
        """Encode a person's references (at least one), best first."""
        if not references:
            raise UsageError("references: expected at least one, found none")
        tensors = torch.stack([pixels_to_tensor(pixels) for pixels in references])
        return CachedReferences(
            self.pipeline.encode_references(resize(tensors, self.crop_size).clamp(-1, 1), tuple(sources))
        )

    def compose(self, references: Sequence[CachedReferences]) -> CachedReferences:
        """One set of references out of several that were prepared alone (``reference_encoding`` is ``"each"``)."""
        return CachedReferences(ReferenceCache.compose([prepared.cache for prepared in references]))

    def restore(
        self, crops: Sequence[Pixels], references: PreparedReferences | None, seeds: Sequence[int] | None = None
    ) -> list[Pixels]:
        """Restore face crops of one person; see the protocol."""
        if references is not None and not isinstance(references, CachedReferences):
            raise UsageError(f"references: expected what prepare() gave, found {type(references).__name__}")
        lq = resize(torch.stack([pixels_to_tensor(pixels) for pixels in crops]), self.crop_size).clamp(-1, 1)
        cache = None if references is None else references.cache.to(self.pipeline.unet.device, self.pipeline.unet.dtype)
        images = self.pipeline(
            lq,
            cache,
            self.settings.steps,
            self.settings.guidance_scale,
            latents=self.start_noise(seeds or [self.settings.seed] * len(crops)),
            output_type="pt",
            start_timestep=self.settings.start_timestep,
        ).images
        return list(tensor_to_pixels(images, nearest=self.pipeline.config.round_pixels))

    def start_noise(self, seeds: Sequence[int]) -> torch.Tensor:
        """(B, 8, h, w) start noise, drawn on the CPU face by face, so that it is the same on every device and batch."""
        side = int(self.pipeline.unet.config.sample_size)
        shape = (int(self.pipeline.unet.config.out_channels), side, side)
        return torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])

    def in_fp32(self) -> ReFLDMRestorer:
        """The same restorer in fp32; itself where it is in fp32 already. Loaded once, when first asked for."""
        if self.pipeline.unet.dtype == torch.float32:
            return self
        with self._fp32_lock:
            if not self._fp32:
                folder = Path(self.pipeline.config._name_or_path)
                pipeline = load_pipeline(folder, device=self.pipeline.unet.device, dtype=torch.float32)
                pipeline.scheduler = self.pipeline.scheduler
                self._fp32.append(ReFLDMRestorer(self.name, pipeline, self.settings, self.weights_digest))
            return self._fp32[0]


@_quiet_diffusers()
def load_pipeline(folder: Path, *, device: torch.device, dtype: torch.dtype) -> ReFLDMPipeline:
    """The pipeline in a folder in diffusers layout, on a device and in a dtype, without progress bars.

    :raises WeightsUnavailable: there is no model in the folder.
    :raises CheckpointError: the files in it do not make a model.
    """
    if not (folder / "model_index.json").is_file():
        raise WeightsUnavailable(
            f"{folder}: expected a model in diffusers layout (model_index.json), found none; "
            "see `facefix models list`, or make one with `facefix models import`"
        )
    try:
        pipeline = ReFLDMPipeline.from_pretrained(folder, local_files_only=True, dtype=dtype, use_safetensors=True)
    except Exception as error:  # diffusers and safetensors raise many kinds for damaged files
        raise CheckpointError(
            f"{folder}: expected a complete model, found files that do not load ({type(error).__name__}: {error})"
        ) from error
    pipeline.set_progress_bar_config(disable=True)
    pipeline.to(device)
    if device.type == "cuda":
        pipeline.unet.to(memory_format=torch.channels_last)
        if pipeline.unguided is not None:
            pipeline.unguided.to(memory_format=torch.channels_last)
        pipeline.autoencoder.to(memory_format=torch.channels_last)
    loaded: ReFLDMPipeline = pipeline
    return loaded
