"""InterLCM behind the restorer protocol."""

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
from facefix.methods.interlcm.pipeline import InterLCMPipeline
from facefix.methods.loading import _quiet_diffusers, weights_digest
from facefix.networks.images import pixels_to_tensor, resize, tensor_to_pixels


@dataclass(frozen=True, slots=True)
class NoReferences:
    """What a method that takes no references makes of them."""

    nbytes: int = 0
    count: int = 0


@dataclass(frozen=True, eq=False)
class InterLCMRestorer:
    """An InterLCM model with its sampling settings, on its device. It takes no references."""

    name: str
    pipeline: InterLCMPipeline
    settings: SamplingSettings
    weights_digest: str
    _fp32: list[InterLCMRestorer] = field(default_factory=list, repr=False)
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
    ) -> InterLCMRestorer:
        """Load a folder in diffusers layout.

        :raises UsageError: a setting that this method has no use for, or a number of steps the model is not made for.
        :raises WeightsUnavailable: there is no model in the folder.
        :raises CheckpointError: the files in it do not make a model.
        """
        settings = settings or SamplingSettings()
        for setting in ("guidance_scale", "sampler", "start_timestep"):
            if (value := getattr(settings, setting)) is not None:
                raise UsageError(f"{setting}: InterLCM takes none, found {value!r}; leave it out")
        pipeline = load_pipeline(folder, device=device, dtype=dtype)
        pipeline.check_steps(settings.steps)
        return cls(name or folder.name, pipeline, settings, weights_digest(folder))

    @property
    def crop_size(self) -> int:
        """Side of the crops that go in and come out, in px."""
        return self.pipeline.crop_size

    @property
    def recipe(self) -> str:
        """Hash of the weights, the configuration, the sampling settings, the dtype and the version of facefix."""
        parts: dict[str, Any] = {
            "version": __version__,
            "weights": self.weights_digest,
            "steps": self.settings.steps,
            "seed": self.settings.seed,
            "dtype": str(self.pipeline.unet.dtype),
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]

    def prepare(self, references: Sequence[Pixels], sources: Sequence[str] = ()) -> NoReferences:
        """Nothing: the method is blind."""
        return NoReferences()

    def restore(
        self, crops: Sequence[Pixels], references: PreparedReferences | None, seeds: Sequence[int] | None = None
    ) -> list[Pixels]:
        """Restore face crops; see the protocol. References change nothing.

        The noise is drawn on the CPU face by face, so that it is the same on every device and in every batch.
        """
        lq = resize(torch.stack([pixels_to_tensor(pixels) for pixels in crops]), self.crop_size).clamp(-1, 1)
        chosen = seeds or [self.settings.seed] * len(crops)
        generators = [torch.Generator().manual_seed(seed) for seed in chosen]
        images = self.pipeline(lq, self.settings.steps, generators, output_type="pt").images
        return list(tensor_to_pixels(images, nearest=True))

    def in_fp32(self) -> InterLCMRestorer:
        """The same restorer in fp32; itself where it is in fp32 already. Loaded once, when first asked for."""
        if self.pipeline.unet.dtype == torch.float32:
            return self
        with self._fp32_lock:
            if not self._fp32:
                folder = Path(self.pipeline.config._name_or_path)
                pipeline = load_pipeline(folder, device=self.pipeline.unet.device, dtype=torch.float32)
                self._fp32.append(InterLCMRestorer(self.name, pipeline, self.settings, self.weights_digest))
            return self._fp32[0]


@_quiet_diffusers()
def load_pipeline(folder: Path, *, device: torch.device, dtype: torch.dtype) -> InterLCMPipeline:
    """The pipeline in a folder in diffusers layout, on a device and in a dtype, without progress bars.

    :raises WeightsUnavailable: there is no model in the folder.
    :raises CheckpointError: the files in it do not make a model.
    """
    if not (folder / "model_index.json").is_file():
        raise WeightsUnavailable(
            f"{folder}: expected a model in diffusers layout (model_index.json), found none; "
            "see `facefix models list`, or make one with `facefix models import interlcm`"
        )
    try:
        pipeline = InterLCMPipeline.from_pretrained(folder, local_files_only=True, dtype=dtype, use_safetensors=True)
    except Exception as error:  # diffusers and safetensors raise many kinds for damaged files
        raise CheckpointError(
            f"{folder}: expected a complete model, found files that do not load ({type(error).__name__}: {error})"
        ) from error
    pipeline.set_progress_bar_config(disable=True)
    pipeline.to(device)
    if device.type == "cuda":
        for part in (pipeline.unet, pipeline.controlnet, pipeline.vae):
            part.to(memory_format=torch.channels_last)
    loaded: InterLCMPipeline = pipeline
    return loaded
