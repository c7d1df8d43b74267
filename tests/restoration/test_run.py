"""The steps of a run: values in, values out."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import FrozenInstanceError, dataclass, field, replace
from pathlib import Path

import pytest
from marked import Checkered, make_photos, marked_backend

from facefix.outputs.ledger import Ledger
from facefix.outputs.outcomes import PhotoOutcome
from facefix.progress import Silent
from facefix.restoration.album import open_album
from facefix.restoration.identities import Found
from facefix.restoration.run import Options, Run
from facefix.restoration.summary import Summary, Tally
from facefix.settings import Settings


@dataclass
class Heard(Silent):
    """What a run says."""

    problems: list[str] = field(default_factory=list)
    phases: list[str] = field(default_factory=list)

    def problem(self, message: str) -> None:
        self.problems.append(message)

    def phase(self, name: str, total: int, unit: str) -> None:
        self.phases.append(f"{name}: {total} {unit}")


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    """A run over two photos with faces, one without, and two files that are no pictures, as is one of two portraits."""
    make_photos(tmp_path / "album", a=["ann"], b=["bob", "ann"], sea=[])
    make_photos(tmp_path / "refs" / "Ann", one=["ann"])
    for path in (tmp_path / "album" / "broken.png", tmp_path / "album" / "copy.png", tmp_path / "refs" / "bad.png"):
        path.write_bytes(b"no picture")
    settings = Settings(refs=tmp_path / "refs", restore="all", threads=1)
    options = Options(marked_backend(), Checkered(), Heard())
    album = open_album([tmp_path / "album"], [], settings)
    with Ledger.open(album.output) as ledger, ThreadPoolExecutor(1) as pool:
        yield Run.over(album, settings, options, ledger, pool)


def all_steps(run: Run) -> Summary:
    work = run.compare_with_ledger()
    found = run.look_into_photos(work)
    people = run.find_people(found)
    plan = run.plan(work, found, people)
    run.update_records(plan, found, people)
    tally = Tally.of(run.recorded(run.restore(plan, work, found)))
    summary = run.summary(work, found, people, plan, tally)
    run.close_books(summary)
    return summary


def heard(run: Run) -> Heard:
    assert isinstance(run.options.progress, Heard)
    return run.options.progress


def test_no_step_can_leave_anything_in_the_run(run: Run) -> None:
    with pytest.raises((FrozenInstanceError, AttributeError, TypeError)):
        run.renamed = 1  # type: ignore[attr-defined]
    with pytest.raises(FrozenInstanceError):
        run.recipe = "other"  # type: ignore[misc]


def test_what_was_found_names_each_file_that_cannot_be_read(run: Run) -> None:
    found = run.look_into_photos(run.compare_with_ledger())
    assert {photo.relative.name: len(seen.faces) for photo, seen in found.photos.items()} == {
        "a.png": 1,
        "b.png": 2,
        "sea.png": 0,
    }
    assert [problem.relative.name for problem in found.unreadable_photos] == ["broken.png", "copy.png"]
    assert all(problem.relative.name in problem.reason for problem in found.unreadable_photos), "same content, own name"
    assert [portrait.path.name for portrait in found.unreadable_portraits] == ["bad.png"]
    assert found.faces == 3 and found.seconds > 0


def test_the_summary_is_folded_from_what_the_steps_gave(run: Run) -> None:
    summary = all_steps(run)
    assert summary.statuses == {"restored": 2, "copied": 3} and summary.verdicts == {"restored": 3}
    assert (summary.photos, summary.faces, summary.people, summary.already_done) == (5, 3, 2, 0)
    assert [path.name for path, _ in summary.problems] == ["bad.png"]
    assert summary.device.faces == 3 and 0 < summary.device.busy_seconds <= summary.restore_seconds
    assert summary.exit_code() == 3
    assert [line.split(":")[0] for line in heard(run).phases] == ["looking into photos", "copying", "restoring"]
    assert sum("portrait" in problem for problem in heard(run).problems) == 1 and len(heard(run).problems) == 3
    assert run.ledger.noted("run")["photos"]["restored"] == 2
    assert run.ledger.noted("seconds_per_face")[run.model.recipe] == pytest.approx(
        summary.restore_seconds / 3, rel=1e-6
    )


def test_a_second_run_looks_at_nothing_and_speaks_of_measured_speed(run: Run) -> None:
    all_steps(run)
    for name in ("broken.png", "copy.png"):
        (run.album.root / name).unlink()
    album = open_album([run.album.root], [], run.settings)
    again = Run.over(album, run.settings, replace(run.options, progress=Heard()), run.ledger, run.pool)
    work = again.compare_with_ledger()
    assert len(work.done) == 3 and again.look_into_photos(work) == Found()
    everything = again.look_into_photos(work, everything=True)
    assert everything.faces == 3
    assert all_steps(again).already_done == 3
    tasks = run.plan(replace(work, pending=work.done), everything, run.find_people(everything)).tasks
    assert again.seconds_per_face(tasks) == run.ledger.noted("seconds_per_face")[run.model.recipe]
    assert again.seconds_per_face([]) is None


def test_stopped_before_anything_was_restored(run: Run) -> None:
    run.options.stop.request(2)
    summary = all_steps(run)
    assert summary.exit_code() == 130 and summary.statuses == {} and summary.faces == 0
    assert not list(run.album.output.glob("*.png"))


def test_everybody_hears_of_a_photo_once_it_is_recorded(run: Run) -> None:
    known: list[tuple[str, bool]] = []

    def on_photo(outcome: PhotoOutcome) -> None:
        known.append((outcome.relative.name, outcome.relative in run.ledger.records.done()))

    all_steps(replace(run, options=replace(run.options, on_photo=on_photo)))
    assert sorted(known) == [
        ("a.png", True), ("b.png", True), ("broken.png", True), ("copy.png", True), ("sea.png", True),
    ]  # fmt: skip


def test_names_follow_people_toml_in_photos_done_before(run: Run) -> None:
    all_steps(run)
    (run.album.output / "people.toml").write_text('[[person]]\nid = "p1"\nname = "Anna"\nfaces = ["a.png#0"]\n')
    again = Run.over(run.album, run.settings, run.options, run.ledger, run.pool)
    work = again.compare_with_ledger()
    assert len(work.stale) == 5
    found = again.look_into_photos(work)
    people = again.find_people(found)
    plan = again.plan(work, found, people)
    assert again.update_records(plan, found, people) > 0
    assert ("Anna", 2) in run.ledger.records.people()
