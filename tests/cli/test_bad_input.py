"""The job over an album full of damaged and hostile files, and on machines that fail under it.

No crash, every file that cannot be done is named with its reason, the good photos among them are done, the exit code
is 3, and no original is touched. ``FACEFIX_TEST_DAMAGED`` sets the number of damaged files.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path

import pytest
from damaged import FAILS, WORKS
from hostile_albums import (
    COUNT,
    MAX_MEMORY_BYTES,
    MAX_PIXELS,
    SEED,
    Album,
    Finished,
    make_album,
    no_partial_files,
    restore,
)

from facefix.files.names import printable
from facefix.report import REPORT_FOLDER


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, model: Path) -> tuple[Album, Path, Finished, dict[Path, str]]:
    root = tmp_path_factory.mktemp("bad")
    album = make_album(root / "album", SEED, COUNT)
    before = album.digests()
    done = restore(
        album.root, "-o", root / "out", "--jsonl", "-q", "--max-pixels", MAX_PIXELS, "--strict-input", model=model
    )
    return album, root / "out", done, before


Run = tuple[Album, Path, Finished, dict[Path, str]]


def test_nothing_crashes_and_the_exit_code_says_that_some_failed(finished: Run) -> None:
    _, _, done, _ = finished
    assert "Traceback" not in done.stderr, done.stderr[-3000:]
    assert done.code == 3, done.stderr[-3000:]


def test_every_file_is_accounted_for(finished: Run) -> None:
    """Done, or named with a reason; what cannot work is named, what must work is done."""
    album, output, done, _ = finished
    named = {os.fsencode(str(row["photo"])): row for row in done.photos}
    wrong = []
    tally: Counter[tuple[str, str]] = Counter()
    for path, expected in album.expected.items():
        row = named.get(os.fsencode(path))
        status = "not named" if row is None else str(row["status"])
        tally[album.kinds[path], status] += 1
        failed = status == "failed"
        if failed and not (row and str(row["reason"]).startswith(f"{printable(path)}: ")):
            wrong.append((path, f"a reason that is not about this file: {row and row['reason']}"))
        if not failed and not (output / path.relative_to(album.root)).is_file():
            wrong.append((path, f"{status}, but no output"))
        if (failed and expected == WORKS) or (not failed and expected == FAILS):
            wrong.append((path, f"{album.kinds[path]}: {status}: {row and row['reason']}"))
    print(*(f"{count:5} {kind}: {status}" for (kind, status), count in sorted(tally.items())), sep="\n")
    print(f"{done.seconds:.1f} s, {done.peak_bytes / 2**20:.0f} MiB")
    assert wrong == []


def test_every_failure_is_on_stderr_with_its_file(finished: Run) -> None:
    """What cron mails: one line each, no control characters, no line that is not about a file."""
    _, _, done, _ = finished
    failures = [row for row in done.photos if row["status"] == "failed"]
    lines = [line for line in done.stderr.splitlines() if line.startswith("facefix: ")]
    assert len(lines) >= len(failures) > 0
    assert set(done.stderr.splitlines()) == set(lines), "nothing that decoders print by themselves"
    assert not [
        line for line in done.stderr.splitlines() if any(ord(letter) < 32 and letter != "\t" for letter in line)
    ]


def test_no_original_is_touched_and_nothing_half_written_is_left(finished: Run) -> None:
    album, output, _, before = finished
    assert album.digests() == before
    assert no_partial_files(output)
    assert not Path("pwned").exists()


def test_faces_among_the_damage_are_found(finished: Run) -> None:
    _, _, done, _ = finished
    rows = [row for row in done.photos if "face" in Path(str(row["photo"])).name]
    assert len(rows) == 2
    assert all(row["faces"] for row in rows)


def test_bombs_do_not_fill_the_memory(finished: Run) -> None:
    _, _, done, _ = finished
    assert 0 < done.peak_bytes < MAX_MEMORY_BYTES


def test_the_report_shows_every_file(finished: Run) -> None:
    album, output, _, _ = finished
    page = (output / REPORT_FOLDER / "index.html").read_text("utf-8")
    photos = json.loads(page.split('id="data">')[1].split("</script>")[0])["photos"]
    assert len(photos) == len(album.expected)


def test_a_second_run_tries_only_the_failures_again(finished: Run, model: Path) -> None:
    album, output, done, _ = finished
    again = restore(
        album.root, "-o", output, "--jsonl", "-q", "--max-pixels", MAX_PIXELS, "--strict-input", model=model
    )
    assert again.code == 3
    assert {row["status"] for row in again.photos} == {"failed"}
    failed = {row["photo"] for row in done.photos if row["status"] == "failed"}
    assert {row["photo"] for row in again.photos} == failed
