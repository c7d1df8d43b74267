"""A survey: what would be done, and nothing written."""

from __future__ import annotations

from pathlib import Path

import pytest
from marked import Checkered, make_photos, marked_backend

from facefix.errors import WeightsUnavailable
from facefix.jobs.restore import restore_album
from facefix.jobs.survey import survey_album
from facefix.restoration.run import Options, Request
from facefix.settings import Settings


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_survey_says_what_the_run_then_does(tmp_path: Path) -> None:
    make_photos(tmp_path / "album", a=["ann"], b=["ann", "bob"], sea=[])
    (tmp_path / "album" / "broken.png").write_bytes(b"no picture")
    make_photos(tmp_path / "refs" / "Ann", one=["ann"])
    settings = Settings(refs=tmp_path / "refs", restore="all", threads=1, report=False, strict_input=True)
    before = tree(tmp_path)
    request, options = Request((tmp_path / "album",)), Options(backend=marked_backend(), restorer=Checkered())
    survey = survey_album(request, settings, options)
    assert tree(tmp_path) == before
    numbers = survey.as_dict()
    assert numbers["photos"] == {"found": 4, "already_done": 0, "in_the_way": 0, "to_restore": 2, "to_copy": 1}
    assert numbers["faces"] == {"found": 3, "to_restore": 3} and numbers["people"] == 2
    assert [problem.relative for problem in survey.problems] == [Path("broken.png")]
    assert survey.seconds is not None and survey.seconds_per_face is not None and survey.seconds > 0
    summary = restore_album(request, settings, options)
    assert (summary.statuses["restored"], summary.statuses["copied"], summary.statuses["failed"]) == (2, 1, 1)
    again = survey_album(request, settings, options)
    assert again.as_dict()["photos"]["already_done"] == 3 and again.seconds is None
    assert tree(tmp_path / "album") == {name[6:]: data for name, data in before.items() if name.startswith("album/")}


def test_the_rows_of_a_survey(tmp_path: Path) -> None:
    make_photos(tmp_path / "album", a=["ann"], b=["ann", "bob"])
    make_photos(tmp_path / "refs" / "Ann", one=["ann"])
    settings = Settings(refs=tmp_path / "refs", restore="all", threads=1)
    (tmp_path / "album-restored").mkdir()
    (tmp_path / "album-restored" / "people.toml").write_text(
        '[[person]]\nid = "p9"\nname = "Bob"\nfaces = ["b.png#1"]\nexclude = true\n'
    )
    survey = survey_album(
        Request((tmp_path / "album",)), settings, Options(backend=marked_backend()), needs_model=False
    )
    ann, bob = survey.persons()
    assert (ann.person.name, len(ann.album), len(ann.portraits), ann.to_restore) == ("Ann", 2, 1, 2)
    assert (bob.person.name, len(bob.album), bob.to_restore) == ("Bob", 1, 0)
    first, second = sorted(survey.photo_dicts(), key=lambda row: str(row["photo"]))
    assert first["faces"] == [{"number": 0, "person": "Ann", "restore": True, "references": 0}], (
        "the portrait is the very picture"
    )
    assert [face["restore"] for face in second["faces"]] == [True, False]
    assert survey.seconds_per_face is None
    assert survey.lines()[1] == "3 faces of 2 people, 2 to restore"


def test_without_a_model_nothing_can_be_loaded(tmp_path: Path) -> None:
    from facefix.restoration.choices import no_model

    with pytest.raises(WeightsUnavailable):
        no_model().load()
