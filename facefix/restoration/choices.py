"""Which model and which face backend a run uses: named at once, loaded only when there is work for them."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from facefix.errors import WeightsUnavailable
from facefix.faces.backends import Backend, available, load_backend, resolve_backend
from facefix.files.digests import digest
from facefix.methods.base import Restorer
from facefix.outputs.ledger import Ledger
from facefix.settings import Settings
from facefix.weights.catalogue import best_installed_model, find_model

_WEIGHT_FILES = (".json", ".safetensors")


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
    """digest of weights and sampling settings: what decides its results beside the photo and the references"""
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
    if settings.device not in ("auto", "cpu"):
        from facefix.device import choose_device

        choose_device(settings.device)  # a mistake is told before any work is done
    name = best_installed_model() if settings.model == "auto" else settings.model
    folder = find_model(name)
    recipe = digest([_weights(folder, ledger), settings.steps, settings.guidance, settings.sampler, settings.seed])
    return ModelChoice(
        Path(name).name,
        recipe,
        lambda: load_model(name, settings),
        lambda: load_model(name, settings.model_copy(update={"device": "cpu", "dtype": "fp32"})),
    )


def no_model() -> ModelChoice:
    """For runs that restore nothing."""

    def load() -> Restorer:
        raise WeightsUnavailable("no model was chosen for this run")

    return ModelChoice("none", "none", load)


def load_model(name: str, settings: Settings) -> Restorer:
    """Load a model as the settings say. Raises WeightsUnavailable, CheckpointError, DeviceError."""
    from facefix.device import choose_device, choose_dtype
    from facefix.methods import registry
    from facefix.methods.base import SamplingSettings

    device = choose_device(settings.device)
    sampling = SamplingSettings(settings.steps, settings.guidance, settings.sampler, settings.seed)
    return registry.load(name, device=device, dtype=choose_dtype(settings.dtype, device), settings=sampling)


def estimate_seconds_per_face(restorer: Restorer, references: int) -> float:
    """Time one face on this device. Of a diffusion model only three steps are run; the others take as long."""
    from facefix.methods.refldm.restorer import ReFLDMRestorer

    crop = np.full((restorer.crop_size, restorer.crop_size, 3), 128, np.uint8)
    prepared = restorer.prepare([crop] * references) if references else None

    def seconds(model: Restorer) -> float:
        start = time.perf_counter()
        model.restore([crop], prepared)
        return time.perf_counter() - start

    if not isinstance(restorer, ReFLDMRestorer):
        return seconds(restorer)
    few, more = (replace(restorer, settings=replace(restorer.settings, steps=steps)) for steps in (1, 3))
    seconds(few)  # warms up
    once = seconds(few)
    steps = restorer.settings.steps or int(restorer.pipeline.config.default_steps)
    return once + max(0.0, seconds(more) - once) / 2 * (steps - 1)


def _weights(folder: Path, ledger: Ledger) -> list[tuple[str, str]]:
    """Every file of a model with its sha256; files that did not change since the last run are not read again."""
    files = sorted(path for path in folder.rglob("*") if path.suffix in _WEIGHT_FILES)
    return [(path.relative_to(folder).as_posix(), ledger.sha256(path)) for path in files]
