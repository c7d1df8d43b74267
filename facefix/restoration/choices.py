"""Which model and which face backend a run uses: named at once, loaded only when there is work for them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from facefix.errors import WeightsUnavailable
from facefix.faces.backends import Backend, available, load_backend, resolve_backend
from facefix.methods import registry
from facefix.methods.base import LoadOptions, Restorer, SamplingSettings
from facefix.methods.recipe import recipe, weights_digest
from facefix.outputs.ledger import Ledger
from facefix.settings import Settings
from facefix.weights.catalogue import best_installed_model, find_model


@dataclass(frozen=True, slots=True)
class BackendChoice:
    """A face backend that may not be loaded yet."""

    key: str
    """names detector and embedder: what one pair found is never mixed with what another did"""
    load: Callable[[], Backend]


@dataclass(frozen=True, slots=True)
class ModelChoice:
    """A restoration model that may not be loaded yet."""

    name: str
    recipe: str
    """as the loaded restorer says; see :mod:`facefix.methods.recipe`"""
    load: Callable[[], Restorer]
    load_on_cpu: Callable[[], Restorer] | None = None
    """for a face that the device has no memory for"""


def choose_backend(settings: Settings, given: Backend | None = None) -> BackendChoice:
    """The backend given by a caller, or the one the settings name. Raises WeightsUnavailable."""
    if given is not None:
        return BackendChoice(_key(given.name, given.scale.network == "dlib"), lambda: given)
    name = resolve_backend(settings.faces)
    return BackendChoice(_key(name, not _has_arcface()), functools.cache(lambda: load_backend(name)))


def _has_arcface() -> bool:
    return any(name == "insightface" and usable for name, usable, _ in available())


def _key(backend: str, embeds_with_dlib: bool) -> str:
    """RetinaFace only detects; which embedder it works with depends on what is installed."""
    if backend != "retinaface":
        return backend
    return "retinaface+dlib" if embeds_with_dlib else "retinaface+arcface"


def choose_model(settings: Settings, ledger: Ledger, given: Restorer | None = None) -> ModelChoice:
    """The restorer given by a caller, or the model the settings name. Raises WeightsUnavailable."""
    if given is not None:
        return ModelChoice(given.name, given.recipe, lambda: given)
    name = best_installed_model() if settings.model == "auto" else settings.model
    folder = find_model(name)
    registry.method_of(folder)  # a mistake is told before any work is done
    options = replace(load_options(name, settings), weights=weights_digest(folder, ledger.sha256))
    on_cpu = load_options(name, settings.model_copy(update={"device": "cpu", "dtype": "fp32"}))
    return ModelChoice(
        options.name,
        recipe(options.weights or "", options.sampling, options.dtype),
        lambda: registry.load(folder, options),
        lambda: registry.load(folder, replace(on_cpu, weights=options.weights)),
    )


def no_model() -> ModelChoice:
    """For runs that restore nothing."""

    def load() -> Restorer:
        raise WeightsUnavailable("no model was chosen for this run")

    return ModelChoice("none", "none", load)


def load_options(name: str, settings: Settings) -> LoadOptions:
    """How the settings load a model. Raises DeviceError for a device or a dtype that is not here."""
    from facefix.device import choose_device, choose_dtype

    device = choose_device(settings.device)
    sampling = SamplingSettings(settings.steps, settings.guidance, settings.sampler, settings.seed)
    return LoadOptions(Path(name).name, device, choose_dtype(settings.dtype, device), sampling)


def load_model(name: str, settings: Settings) -> Restorer:
    """Load a model as the settings say. Raises WeightsUnavailable, CheckpointError, DeviceError."""
    return registry.load(find_model(name), load_options(name, settings))


def estimate_seconds_per_face(restorer: Restorer, references: int) -> float:
    """Time one face on this device."""
    return restorer.seconds_per_face(references)
