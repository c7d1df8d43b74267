"""The summary: a fold over what became of the photos."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from facefix.outputs.outcomes import FaceOutcome, PhotoOutcome
from facefix.restoration.batches import DeviceStatistics
from facefix.restoration.summary import ALL_DONE, SOME_FAILED, SOME_FLAGGED, Done, Summary, Tally
from facefix.restoration.verdicts import FAILED, FLAGGED, KEPT, RESTORED


def photo(name: str, status: str, *verdicts: str, reason: str = "") -> PhotoOutcome:
    faces = tuple(FaceOutcome(number, (0, 0, 1, 1), verdict, "", None) for number, verdict in enumerate(verdicts))
    return PhotoOutcome(Path(name), Path("/album") / name, status, reason, faces=faces)


def test_photos_faces_problems_and_times_are_counted() -> None:
    tally = Tally.of(
        iter(
            [
                Done(photo("a", "restored", RESTORED, KEPT), DeviceStatistics(faces=2, busy_seconds=3.0), 4.0),
                Done(photo("b", "failed", reason="b: cannot be read")),
                Done(photo("c", "restored", FLAGGED), DeviceStatistics(faces=1, busy_seconds=1.0), 1.0),
            ]
        )
    )
    assert tally.statuses == {"restored": 2, "failed": 1}
    assert tally.verdicts == {RESTORED: 1, KEPT: 1, FLAGGED: 1}
    assert tally.problems == ((Path("/album/b"), "b: cannot be read"),)
    assert (tally.device.faces, tally.restore_seconds) == (3, 5.0)
    assert Summary(Path("out"), tally=tally).device_busy == 0.8
    assert Summary(Path("out")).device_busy is None, "nothing was restored"


def summary_of(*photos: PhotoOutcome, **changes: Any) -> Summary:
    tally = Tally.of(Done(one) for one in photos)
    return Summary(Path("out"), tally=tally, problems=tally.problems, **changes)


def test_the_exit_code_says_the_worst() -> None:
    good, bad = photo("a", "restored", RESTORED), photo("b", "failed")
    assert summary_of(good).exit_code(strict=True) == ALL_DONE
    assert summary_of(good, bad).exit_code() == SOME_FAILED
    assert summary_of(photo("a", "copied", FAILED)).exit_code() == SOME_FAILED
    flagged = summary_of(photo("a", "restored", FLAGGED))
    assert (flagged.exit_code(), flagged.exit_code(strict=True)) == (ALL_DONE, SOME_FLAGGED)
    assert summary_of(bad, signal=15).exit_code(strict=True) == 143


def test_lines_and_json_hold_the_same_numbers() -> None:
    summary = summary_of(
        photo("a", "restored", RESTORED, KEPT),
        photo("b", "copied"),
        photos=5,
        already_done=2,
        occupied=1,
        people=3,
        left_out=((Path("x"), "no photo"),),
        seconds=61.0,
    )
    numbers = summary.as_dict()
    assert numbers["photos"] == {
        "found": 5,
        "already_done": 2,
        "in_the_way": 1,
        "restored": 1,
        "enlarged": 0,
        "copied": 1,
        "left": 0,
        "failed": 0,
    }
    assert numbers["skipped"] == 1 and numbers["left_out"] == [{"path": "x", "reason": "no photo"}]
    assert (numbers["faces"][RESTORED], numbers["people"]) == (1, 3)
    assert summary.lines() == [
        "5 photos: 1 copied, 1 restored, 2 done before",
        "1 left alone: a file that facefix did not write is in the way (--if-exists)",
        "faces: 1 restored, 1 kept, 0 flagged, 0 failed; 3 people",
        "1 min 1 s; results in out",
    ]
