"""What a run says: lines for logs, bars for notebooks, problems only when quiet."""

from __future__ import annotations

import io

import pytest

from facefix.progress import Notebook, PlainLines, ProblemsOnly, Progress, duration, open_progress


def one_run(progress: Progress) -> None:
    progress.phase("finding faces", 3, "photos")
    progress.problem("a.jpg: cannot be read")
    for _ in range(3):
        progress.advance(detail="2 faces")
    progress.phase("restoring", 0, "faces")
    progress.advance(0)
    progress.say("done")


def test_a_notebook_shows_a_bar_a_phase_and_messages_above_it() -> None:
    stream = io.StringIO()
    one_run(Notebook(stream))
    said = stream.getvalue()
    assert "facefix: a.jpg: cannot be read" in said and "finding faces: 100%" in said and "3/3" in said
    assert "restoring" not in said, "a phase without work has no bar"
    assert said.rstrip().endswith("done")


def test_plain_lines_say_what_is_left() -> None:
    stream = io.StringIO()
    one_run(PlainLines(stream, every_seconds=0))
    lines = stream.getvalue().splitlines()
    assert lines[0] == "finding faces: 3 photos" and lines[1] == "facefix: a.jpg: cannot be read"
    assert lines[2].startswith("finding faces: 1/3 photos, 2 faces, about ") and lines[-1] == "done"
    assert len(lines) == 6


def test_quiet_is_problems_only_and_a_file_gets_lines() -> None:
    stream = io.StringIO()
    with open_progress(quiet=True, stream=stream) as progress:
        assert isinstance(progress, ProblemsOnly) and not isinstance(progress, PlainLines)
        one_run(progress)
    assert stream.getvalue() == "facefix: a.jpg: cannot be read\n"
    with open_progress(stream=stream) as progress:
        assert isinstance(progress, PlainLines)


@pytest.mark.parametrize(
    ("seconds", "words"), [(-1, "0 s"), (40.4, "40 s"), (200, "3 min 20 s"), (7500, "2 h 5 min"), (59.6, "1 min 0 s")]
)
def test_durations_are_in_words(seconds: float, words: str) -> None:
    assert duration(seconds) == words
