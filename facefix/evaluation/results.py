"""The values of an evaluation: conditions, runs, comparisons, and what is made of them."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from facefix.datasets.degradation import PRESETS
from facefix.datasets.targets import EvaluationFace
from facefix.errors import UsageError
from facefix.evaluation.intervals import Interval
from facefix.evaluation.metrics import Metric
from facefix.methods.base import Pixels, Restorer

GIVEN = "given"
"""Name of the degradation of the LQ pictures that come with a set."""


NOT_DEGRADED = "none"


LQ_INPUT = "LQ input"


OTHER_PHOTO = "another photo"


THUMBNAIL_PX = 224


class Condition(StrEnum):
    """What a method is given besides the degraded face."""

    LQ = "LQ input"
    """nothing is restored: the degraded face itself is compared"""
    AUTOENCODER = "autoencoder alone"
    """the truth, encoded and decoded: the best that a latent model can do"""
    OTHER_PHOTO = "another photo"
    """the first reference itself is compared with the truth: how alike two real photos of the person are"""
    REFERENCES = "references"
    NO_REFERENCES = "no references"
    WRONG_REFERENCES = "wrong references"
    """those of another person"""


RESTORED = (Condition.REFERENCES, Condition.NO_REFERENCES, Condition.WRONG_REFERENCES)


COMPARED = (
    (Condition.REFERENCES, Condition.LQ),
    (Condition.NO_REFERENCES, Condition.LQ),
    (Condition.REFERENCES, Condition.NO_REFERENCES),
    (Condition.REFERENCES, Condition.WRONG_REFERENCES),
)


@dataclass(frozen=True, slots=True)
class Method:
    """A restorer under the name it has in the table."""

    name: str
    restorer: Restorer
    reconstruct: Callable[[Pixels], Pixels] | None = None
    """encodes and decodes a crop, for latent methods"""
    family: str = ""
    """methods of one family (the same weights, sampled differently) share prepared references; empty: of its own"""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is evaluated."""

    degradations: tuple[str, ...] = ("severe", "moderate")
    """names of presets (training.degradation), or GIVEN for LQ pictures that come with the set"""
    conditions: tuple[Condition, ...] = RESTORED
    max_references: int = 5
    seed: int = 0
    """of degradations, start noise, wrong references and bootstrap"""

    def __post_init__(self) -> None:
        known = (*PRESETS, GIVEN)
        for name in self.degradations:
            if name not in known:
                raise UsageError(f"degradation: expected one of {', '.join(known)}, found {name!r}")
        if self.max_references < 1:
            raise UsageError(f"references: expected at least 1 per face, found {self.max_references}")


@dataclass(frozen=True, slots=True)
class RunKey:
    """Names one column of results."""

    method: str
    degradation: str
    condition: Condition


@dataclass(slots=True)
class Run:
    """Results of one method under one condition, one entry per face; NaN where the face has no such result."""

    scores: dict[str, NDArray[np.float64]]
    seconds: NDArray[np.float64]
    """to restore the face alone, its references already prepared"""
    peak_bytes: NDArray[np.float64]
    """of the whole process (CPU) or of the device's allocator (CUDA) while the face was restored"""
    not_finite: set[str] = field(default_factory=set)
    """faces kept as they were because the network gave NaN, in fp32 too"""
    thumbnails: dict[str, bytes] = field(default_factory=dict)
    """name of the face -> small JPEG of the result"""


@dataclass(frozen=True, slots=True)
class Comparison:
    """One condition minus another, over the faces that have both."""

    method: str
    degradation: str
    first: Condition
    second: Condition
    metric: Metric
    faces: int
    difference: Interval

    @property
    def verdict(self) -> str:
        """``better``, ``worse`` or ``unclear`` (the interval holds zero)."""
        if not self.difference.clear_of_zero:
            return "unclear"
        return "better" if (self.difference.mean > 0) == (self.metric.better == "higher") else "worse"


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Everything that was measured."""

    plan: Plan
    faces: tuple[EvaluationFace, ...]
    metrics: tuple[Metric, ...]
    recipes: Mapping[str, str]
    """method -> hash of its weights and settings"""
    runs: Mapping[RunKey, Run]
    prepare_seconds: Mapping[str, float]
    """method -> mean time to prepare one person's references"""
    comparisons: tuple[Comparison, ...]


def thumbnail(crop: Pixels) -> bytes:
    """A small JPEG of ``crop`` for the sheets."""
    buffer = io.BytesIO()
    small = Image.fromarray(crop).resize((THUMBNAIL_PX, THUMBNAIL_PX), Image.Resampling.LANCZOS)
    small.save(buffer, "JPEG", quality=93, subsampling=0)
    return buffer.getvalue()
