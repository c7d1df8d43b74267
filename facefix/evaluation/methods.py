"""The methods of an evaluation: models, each sampled in one way or in every way of a grid."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch

from facefix.evaluation.results import Method
from facefix.methods.base import Pixels, Restorer, SamplingSettings
from facefix.methods.refldm.restorer import ReFLDMRestorer
from facefix.methods.registry import load
from facefix.networks import autoencoder
from facefix.networks.images import pixels_to_tensor, resize, tensor_to_pixels
from facefix.networks.schedule import make_sampler


@dataclass(frozen=True, slots=True)
class Grid:
    """Ways to sample: every combination of the values; None stands for the model's own default."""

    steps: Sequence[int | None] = (None,)
    samplers: Sequence[str | None] = (None,)
    guidance_scales: Sequence[float | None] = (None,)
    start_timesteps: Sequence[int | None] = (None,)

    def settings(self) -> Iterator[SamplingSettings]:
        """The settings of every combination."""
        for start, sampler, guidance, steps in itertools.product(
            self.start_timesteps, self.samplers, self.guidance_scales, self.steps
        ):
            yield SamplingSettings(steps, guidance, sampler, start_timestep=start)


SWEEP = Grid(steps=(2, 4, 6, 8, 10, 20, 50), samplers=("ddim", "dpm++", "unipc"), start_timesteps=(None, 500))
"""Quality against steps: what the default settings of a model are chosen from."""


def load_methods(
    models: Iterable[str], grid: Grid, *, device: torch.device, dtype: torch.dtype, with_autoencoder: bool
) -> list[Method]:
    """Every model of ``models`` (names or folders), its weights loaded once, sampled in every way of ``grid``.

    ``with_autoencoder``: the first method of each latent model also reconstructs the truth.
    Raises WeightsUnavailable and UsageError as ``restorers.load`` does.
    """
    methods: list[Method] = []
    for model in models:
        base = load(model, device=device, dtype=dtype)
        for number, settings in enumerate(grid.settings()):
            restorer = with_settings(base, settings)
            reconstruct = None
            if with_autoencoder and number == 0 and isinstance(base, ReFLDMRestorer):
                reconstruct = AutoencoderAlone(base)
            methods.append(Method(_label(base.name, settings), restorer, reconstruct, family=str(model)))
    return methods


def with_settings(restorer: Restorer, settings: SamplingSettings) -> Restorer:
    """``restorer`` sampled with ``settings``, sharing its weights; itself where it is not a diffusion model."""
    if not isinstance(restorer, ReFLDMRestorer):
        return restorer
    pipeline = copy.copy(restorer.pipeline)
    if settings.sampler is not None:
        pipeline.scheduler = make_sampler(settings.sampler, pipeline.scheduler)
    return ReFLDMRestorer(restorer.name, pipeline, settings, restorer.weights_digest)


class AutoencoderAlone:
    """Encodes a crop and decodes it again as the model would its own result."""

    def __init__(self, restorer: ReFLDMRestorer) -> None:
        self.pipeline = restorer.pipeline

    @torch.inference_mode()
    def __call__(self, crop: Pixels) -> Pixels:
        """(S, S, 3) -> (S, S, 3), S = the model's crop size."""
        network = self.pipeline.autoencoder
        image = resize(pixels_to_tensor(crop)[None], self.pipeline.work_size).clamp(-1, 1)
        latents = autoencoder.encode(network, image.to(network.device, network.dtype))
        pixels: Pixels = tensor_to_pixels(self.pipeline.decode(latents).clamp(-1, 1), nearest=True)[0]
        return pixels


def _label(name: str, settings: SamplingSettings) -> str:
    parts = [name]
    if settings.steps is not None:
        parts.append(f"{settings.steps} steps")
    if settings.sampler is not None:
        parts.append(settings.sampler)
    if settings.guidance_scale is not None:
        parts.append(f"guidance {settings.guidance_scale:g}")
    if settings.start_timestep is not None:
        parts.append(f"from t={settings.start_timestep}")
    return ", ".join(parts)
