"""Verdicts: which faces are restored, and which results are used."""

from __future__ import annotations

import pytest

from facefix.faces.face import Quality
from facefix.restoration.verdicts import (
    DRIFT,
    FAILED,
    FLAGGED,
    KEPT,
    RESTORED,
    VERDICTS,
    Verdict,
    judge,
    judge_alone,
    why_left_alone,
)
from facefix.settings import Settings

SAME = 0.6


def quality(face_px: float, sharpness: float) -> Quality:
    return Quality(face_px, sharpness, 0.0, 0.0, 0.5)


def test_a_face_is_left_alone_for_the_first_reason_that_holds() -> None:
    settings = Settings(min_face=40)
    assert why_left_alone(quality(30, 0.1), settings, excluded=True) == "excluded in people.toml"
    assert why_left_alone(quality(30, 0.1), settings) == "30 px wide, below --min-face 40"
    assert why_left_alone(quality(50, 0.1), settings) is None
    assert why_left_alone(quality(500, 0.95), settings), "a good face needs nothing"
    assert why_left_alone(quality(500, 0.95), Settings(restore="all")) is None


@pytest.mark.parametrize(
    ("before", "after", "verdict"),
    [
        (0.5, 0.7, RESTORED),
        (None, 0.7, RESTORED),
        (0.5, 0.55, FLAGGED),
        (0.7, 0.69, KEPT),
        (0.55, 0.55, FLAGGED),
        (0.7, 0.7, RESTORED),
        (0.5, None, FLAGGED),
    ],
)
def test_a_result_must_not_be_less_like_the_person_and_is_flagged_below_the_limit(
    before: float | None, after: float | None, verdict: str
) -> None:
    judged = judge(before, after, SAME)
    assert judged.name == verdict
    assert bool(judged.reason) == (verdict != RESTORED)


def test_without_references_the_result_must_still_be_the_face_in_the_photo() -> None:
    limit = SAME - DRIFT * (1 - SAME)
    assert judge_alone(SAME, SAME).name == RESTORED
    assert judge_alone(SAME - 1e-6, SAME).name == FLAGGED
    assert judge_alone(limit, SAME).name == FLAGGED
    assert judge_alone(limit - 1e-6, SAME).name == KEPT


def test_only_restored_and_flagged_results_are_used() -> None:
    assert {name for name in VERDICTS if Verdict(name).uses_result} == {RESTORED, FLAGGED}
    assert FAILED in VERDICTS
