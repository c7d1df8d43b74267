"""The protocol that every restoration method implements, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from facefix.errors import UsageError

Pixels = NDArray[np.uint8]
"""(S, S, 3) RGB face crop in FFHQ alignment, S = the restorer's ``crop_size``."""


@runtime_checkable
class PreparedReferences(Protocol):
    """A person's references in the form that a restorer uses: opaque, immutable, made once per person."""

    @property
    def nbytes(self) -> int:
        """Memory that it holds."""
        ...

    @property
    def count(self) -> int:
        """Number of references."""
        ...


@runtime_checkable
class Restorer(Protocol):
    """A restoration method with its weights, on its device. Safe to call from several threads."""

    @property
    def name(self) -> str:
        """Short name for people: ``small``, ``refldm``."""
        ...

    @property
    def crop_size(self) -> int:
        """Side of the crops that go in and come out, in px."""
        ...

    @property
    def recipe(self) -> str:
        """Hash of everything but the photo and the references that decides the result: weights and settings."""
        ...

    def prepare(self, references: Sequence[Pixels], sources: Sequence[str] = ()) -> PreparedReferences:
        """Encode a person's references (at least one), best first."""
        ...

    def restore(
        self, crops: Sequence[Pixels], references: PreparedReferences | None, seeds: Sequence[int] | None = None
    ) -> list[Pixels]:
        """Restore face crops of one person.

        :param seeds: one per crop; the same seed gives the same result in any batch. None: the restorer's own seed.
        :raises NotFiniteError: the network gave NaN or infinity.
        :raises torch.OutOfMemoryError: the batch is too large for the device.
        """
        ...

    def in_fp32(self) -> Restorer:
        """The same restorer in fp32, for crops that gave NaN; itself where it is in fp32 already.

        References prepared by either serve both.
        """
        ...


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
