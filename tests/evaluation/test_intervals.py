"""The paired bootstrap covers the truth as often as it says, and draws people, not faces."""

from __future__ import annotations

import numpy as np
import pytest

from facefix.evaluation.intervals import Interval, paired_interval


def names(count: int) -> list[str]:
    return [str(number) for number in range(count)]


def test_constant_difference_has_no_width() -> None:
    assert paired_interval(np.full(5, 0.25), names(5)) == Interval(0.25, 0.25, 0.25)


def test_interval_is_that_of_the_mean() -> None:
    differences = np.random.default_rng(1).normal(0.1, 1.0, 400)
    interval = paired_interval(differences, names(400))
    assert interval.mean == pytest.approx(differences.mean())
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * differences.std() / 20, rel=0.05)


def test_covers_the_truth_95_times_in_100() -> None:
    random = np.random.default_rng(2)
    covered = 0
    for _ in range(300):
        interval = paired_interval(random.normal(1.0, 0.5, 40), names(40), resamples=1000)
        covered += interval.low <= 1.0 <= interval.high
    assert 0.90 < covered / 300 < 0.98


def test_several_faces_of_one_person_count_as_one() -> None:
    per_person = np.random.default_rng(3).normal(0, 1, 30)
    alone = paired_interval(per_person, names(30))
    repeated = paired_interval(np.repeat(per_person, 10), [name for name in names(30) for _ in range(10)])
    assert repeated.low == pytest.approx(alone.low)
    assert repeated.high == pytest.approx(alone.high)


def test_seed_decides_the_draw() -> None:
    differences = np.random.default_rng(4).normal(0, 1, 10)
    assert paired_interval(differences, names(10), seed=5) == paired_interval(differences, names(10), seed=5)
    assert paired_interval(differences, names(10), seed=5) != paired_interval(differences, names(10), seed=6)


def test_clear_of_zero() -> None:
    assert Interval(1, 0.5, 2).clear_of_zero
    assert Interval(-1, -2, -0.5).clear_of_zero
    assert not Interval(0.2, -0.1, 0.5).clear_of_zero
