"""The methods of an evaluation: models, each sampled in one way or in every way of a grid, or lacking a part."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from facefix.errors import UsageError
from facefix.evaluation.results import Method
from facefix.methods import registry
from facefix.methods.base import LoadOptions, Restorer, SamplingGrid, SamplingSettings
from facefix.weights.catalogue import find_model


@dataclass(frozen=True, slots=True)
class Variants:
    """In which ways every model is evaluated."""

    grid: SamplingGrid = field(default_factory=SamplingGrid)
    sweep: bool = False
    """the model's own sweep, where ``grid`` leaves something open"""
    ablations: Sequence[str] = ()
    """parts of the method to leave out, each in a restorer of its own, sampled by default"""
    autoencoder: bool = False
    """also encode and decode the truth, where the model has an autoencoder"""

    def grid_of(self, restorer: Restorer) -> SamplingGrid:
        """The ways to sample a model."""
        if not self.sweep:
            return self.grid
        own, asked, everything = restorer.sweep, self.grid, SamplingGrid()
        names = ("steps", "samplers", "guidance_scales", "start_timesteps")
        return replace(
            own, **{name: getattr(asked, name) for name in names if getattr(asked, name) != getattr(everything, name)}
        )


def load_methods(
    models: Iterable[str], variants: Variants, *, device: torch.device, dtype: torch.dtype
) -> list[Method]:
    """Every model of ``models`` (names or folders), its weights loaded once, in every variant.

    :raises WeightsUnavailable: a model is not installed.
    :raises UsageError: a model cannot be sampled so, or has no such part.
    """
    methods: list[Method] = []
    for model in models:
        base = registry.load(find_model(model), LoadOptions(Path(model).name, device, dtype))
        for number, sampling in enumerate(variants.grid_of(base).settings()):
            autoencoder = base.autoencoder if variants.autoencoder and number == 0 else None
            restorer = base.with_sampling(sampling)
            methods.append(Method(_label(base.name, sampling), restorer, autoencoder, family=str(model)))
        for part in variants.ablations:
            if part not in base.ablations:
                known = ", ".join(base.ablations) or "none: this method has no parts to leave out"
                raise UsageError(f"--ablation: expected for model {base.name} one of {known}; found {part!r}")
            methods.append(Method(f"{base.name}, without {part}", base.ablations[part](), family=str(model)))
    return methods


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
