"""Paired bootstrap: how sure is it that one condition differs from another on the same faces?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 10_000
CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean and its confidence interval."""

    mean: float
    low: float
    high: float

    @property
    def clear_of_zero(self) -> bool:
        """Whether the interval lies on one side of zero."""
        return self.low > 0 or self.high < 0


def paired_interval(
    differences: NDArray[np.float64], identities: Sequence[str], *, seed: int = 0, resamples: int = RESAMPLES
) -> Interval:
    """Mean of ``differences`` (N,), one per face, with its 95 % percentile interval; the same for the same ``seed``.

    People are drawn, not faces (Efron & Tibshirani 1993, ch. 8.4, cluster bootstrap): several faces of one person are
    not independent. With one face per person it is the ordinary paired bootstrap.
    """
    labels, cluster = np.unique(np.asarray(identities), return_inverse=True)
    sums = np.bincount(cluster, weights=differences, minlength=len(labels))
    counts = np.bincount(cluster, minlength=len(labels))
    drawn = np.random.default_rng(seed).integers(len(labels), size=(resamples, len(labels)))
    means = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return Interval(float(np.mean(differences)), float(low), float(high))
