"""The protocol that every restoration method implements, and the values that go with it. Costs no torch to import."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, Self, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from facefix.errors import UsageError

if TYPE_CHECKING:
    import torch

Pixels = NDArray[np.uint8]
"""(S, S, 3) RGB face crop in FFHQ alignment, S = the restorer's ``crop_size``."""

ReferenceUse = Literal["none", "optional", "needed"]
"""``none``: restores blindly; ``optional``: better with references of the person; ``needed``: not without them"""


@runtime_checkable
class PreparedReferences(Protocol):
    """A person's references in the form that a restorer uses: opaque, immutable, made once per person.

    It may hold keys and values of a network, a mean embedding, or nothing.
    """

    @property
    def nbytes(self) -> int:
        """Memory that it holds."""
        ...

    @property
    def count(self) -> int:
        """Number of references."""
        ...


@dataclass(frozen=True, slots=True)
class NoReferences:
    """What a method that takes no references makes of them."""

    count: int = 0
    nbytes: int = 0


@dataclass(frozen=True, slots=True)
class SamplingSettings:
    """How a model samples; None stands for the model's own default."""

    steps: int | None = None
    guidance_scale: float | None = None
    sampler: str | None = None
    seed: int = 2024
    start_timestep: int | None = None
    """start from the LQ latent noised to this timestep instead of from pure noise"""

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**63:
            raise UsageError(f"seed: expected a whole number from 0 to 2**63 - 1, found {self.seed}")


@dataclass(frozen=True, slots=True)
class SamplingGrid:
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


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """How a model folder is loaded."""

    name: str
    """what people call the model: ``small``"""
    device: torch.device
    dtype: torch.dtype
    sampling: SamplingSettings = SamplingSettings()
    weights: str | None = None
    """digest of the weights (:func:`facefix.methods.recipe.weights_digest`) where the caller has it already"""


class Restorer(Protocol):
    """A restoration method with its weights, on its device. Safe to call from several threads."""

    @property
    def name(self) -> str:
        """Short name of the model, for people."""
        ...

    @property
    def crop_size(self) -> int:
        """Side of the crops that go in and come out, in px."""
        ...

    @property
    def references(self) -> ReferenceUse:
        """Whether it takes or needs references of the person."""
        ...

    @property
    def composes(self) -> bool:
        """Whether references may be prepared one by one and joined by :meth:`compose`, as good as prepared together."""
        ...

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        ...

    @property
    def sampling(self) -> SamplingSettings:
        """How it samples."""
        ...

    @property
    def recipe(self) -> str:
        """Digest of all but the photo and the references that decides a result (:mod:`facefix.methods.recipe`)."""
        ...

    def prepare(self, references: Sequence[Pixels], sources: Sequence[str] = ()) -> PreparedReferences:
        """Encode a person's references (at least one), best first.

        :param sources: where they came from.
        :raises NotFiniteError: the network gave NaN or infinity.
        """
        ...

    def compose(self, references: Sequence[PreparedReferences]) -> PreparedReferences:
        """One set out of several that were prepared alone.

        :raises UsageError: this restorer's references cannot be joined (``composes`` is False).
        """
        ...

    def restore(
        self, crops: Sequence[Pixels], references: PreparedReferences | None, seeds: Sequence[int] | None = None
    ) -> list[Pixels]:
        """Restore face crops of one person.

        :param references: what :meth:`prepare` or :meth:`compose` gave; None: restored without.
        :param seeds: one per crop; the same seed gives the same result in any batch. None: the restorer's own seed.
        :raises NotFiniteError: the network gave NaN or infinity.
        :raises UsageError: the references are another method's, or an argument is out of range.
        :raises torch.OutOfMemoryError: the batch is too large for the device.
        """
        ...

    def with_sampling(self, sampling: SamplingSettings) -> Restorer:
        """The same restorer sampled otherwise, sharing its weights and its prepared references.

        :raises UsageError: the method cannot be sampled so; the message says how it can.
        """
        ...

    def in_fp32(self) -> Restorer:
        """The same restorer in fp32, for crops that gave NaN; itself where it is in fp32 already.

        References prepared by either serve both.
        """
        ...

    def seconds_per_face(self, references: int) -> float:
        """Time of one face with so many references on this device, measured now; encoding references is left out."""
        ...

    @property
    def sweep(self) -> SamplingGrid:
        """Ways to sample that an evaluation compares, to choose the model's defaults from."""
        ...

    @property
    def ablations(self) -> Mapping[str, Callable[[], Restorer]]:
        """Restorers that each lack one part of the method, sharing its weights, to measure what the part is worth."""
        ...

    @property
    def autoencoder(self) -> Callable[[Pixels], Pixels] | None:
        """Encodes a crop and decodes it again: the best that a latent method can do. None for other methods."""
        ...


class RestorerDefaults:
    """The protocol's answers for a method that takes no references and has nothing to choose.

    To derive from. What is left is ``name``, ``crop_size``, ``recipe`` and ``restore``; a method that takes references
    also gives ``references`` and ``prepare``, and ``composes`` and ``compose`` where they can be joined.
    """

    sampling: SamplingSettings = SamplingSettings()

    @property
    def references(self) -> ReferenceUse:
        """None are taken."""
        return "none"

    @property
    def composes(self) -> bool:
        """References are not joined."""
        return False

    @property
    def device(self) -> torch.device:
        """The CPU."""
        import torch

        return torch.device("cpu")

    def prepare(self, references: Sequence[Pixels], sources: Sequence[str] = ()) -> PreparedReferences:
        """Nothing: the method takes no references."""
        return NoReferences()

    def compose(self, references: Sequence[PreparedReferences]) -> PreparedReferences:
        """Refused: references that are prepared together cannot be joined."""
        raise UsageError("references: expected a set that was prepared as a whole, found parts to be joined")

    def with_sampling(self, sampling: SamplingSettings) -> Self:
        """Itself: there is nothing to choose."""
        return self

    def in_fp32(self) -> Self:
        """Itself."""
        return self

    def seconds_per_face(self: Restorer, references: int) -> float:
        """Time of one grey face."""
        crop = np.full((self.crop_size, self.crop_size, 3), 128, np.uint8)
        prepared = self.prepare([crop] * references) if references and self.references != "none" else None
        return min(_timed(lambda: self.restore([crop], prepared)) for _ in range(2))  # the first warms up

    @property
    def sweep(self) -> SamplingGrid:
        """The model's own way alone."""
        return SamplingGrid()

    @property
    def ablations(self) -> Mapping[str, Callable[[], Restorer]]:
        """No parts to leave out."""
        return {}

    @property
    def autoencoder(self) -> Callable[[Pixels], Pixels] | None:
        """None."""
        return None


def _timed(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


Loader = Callable[[Path, LoadOptions], Restorer]
"""Loads a model folder. Raises WeightsUnavailable or CheckpointError."""
