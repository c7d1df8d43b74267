"""What is done, stale, pending or in the way, by the ledger and what lies in the output folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from marked import make_photos

from facefix.errors import UsageError
from facefix.files.digests import sha256_of
from facefix.outputs.ledger import Ledger
from facefix.outputs.outcomes import PhotoOutcome
from facefix.people.people_file import PEOPLE_FILE
from facefix.restoration.album import Album, Portrait, open_album
from facefix.restoration.work import PIXEL_SETTINGS, Work, base_recipe, find_work, given_identities
from facefix.settings import Settings

RECIPE, GIVEN = "recipe", "given"


@dataclass
class Place:
    """An album of three photos, all restored by an earlier run."""

    album: Album
    ledger: Ledger

    def done(self, name: str, recipe: str = f"{RECIPE}.people", status: str = "restored") -> None:
        """Record a photo as written, and write it."""
        photo = next(photo for photo in self.album.photos if photo.path.stem == name)
        target = self.album.output / photo.relative
        target.write_bytes(b"restored")
        outcome = PhotoOutcome(
            photo.relative,
            photo.path,
            status,
            "",
            self.ledger.sha256(photo.path),
            photo.relative,
            recipe,
            target_sha256=sha256_of(target),
        )
        self.ledger.records.record(outcome, portraits=GIVEN, written=target.stat())

    def work(self, given: str = GIVEN, recipe: str = RECIPE, **settings: Any) -> Work:
        return find_work(self.album, self.ledger, Settings(**settings), recipe, given)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    make_photos(tmp_path / "album", a=["ann"], b=["bob"], c=["cid"])
    album = open_album([tmp_path / "album"], [], Settings())
    with Ledger.open(album.output) as ledger:
        place = Place(album, ledger)
        for name in "abc":
            place.done(name)
        yield place


def names(photos: object) -> str:
    return "".join(photo.path.stem for photo in photos)  # type: ignore[attr-defined]


def test_what_is_as_it_was_written_is_done(place: Place) -> None:
    work = place.work()
    assert (names(work.done), names(work.pending), names(work.stale)) == ("abc", "", "")
    assert not work.needs_looking and len(work.digests) == 3


def test_other_portraits_or_corrections_make_it_stale_and_another_recipe_pending(place: Place) -> None:
    stale = place.work(given="more portraits")
    assert (names(stale.done), names(stale.stale), names(stale.pending)) == ("", "abc", "") and stale.needs_looking
    assert names(place.work(recipe="other").pending) == "abc"
    assert names(place.work(recipe="recip").pending) == "abc", "the whole recipe counts, not its beginning"


def test_changed_photos_and_lost_outputs_are_pending_and_edited_outputs_in_the_way(place: Place) -> None:
    make_photos(place.album.photos[0].path.parent, a=["cid", "ann"])
    (place.album.output / "b.png").unlink()
    with (place.album.output / "c.png").open("ab") as file:
        file.write(b"edited")
    work = place.work()
    assert (names(work.pending), names(work.occupied), names(work.done)) == ("ab", "c", "")
    assert names(place.work(if_exists="overwrite").pending) == "abc"
    with pytest.raises(UsageError, match=r"c\.png: exists and is not as facefix wrote it"):
        place.work(if_exists="fail")


def test_outputs_are_known_by_content_whatever_their_date(place: Place) -> None:
    """After a copy through FAT, an archive or a cloud folder, dates are rounded or those of the copy."""
    for name, date in (("a.png", 1_000_000_000), ("b.png", 1_700_000_002)):
        os.utime(place.album.output / name, (date, date))
    (place.album.output / "c.png").write_bytes(b"RESTORED")
    os.utime(place.album.output / "c.png", (1, 1))
    work = place.work()
    assert (names(work.done), names(work.occupied)) == ("ab", "c")
    assert names(place.work(recipe="other").pending) == "ab", "ours, so they are done again"


def test_a_file_of_a_killed_run_is_ours_and_another_one_is_not(place: Place) -> None:
    place.ledger.records.start([(Path("a.png"), place.album.photos[0].path)])
    assert names(place.work().pending) == "a"
    stranger = Ledger.snapshot(None)
    work = find_work(place.album, stranger, Settings(), RECIPE, GIVEN)
    assert names(work.occupied) == "abc"


def test_an_undone_photo_stays_undone_while_it_is_there(place: Place) -> None:
    place.done("a", status="undone")
    os.utime(place.album.output / "a.png", (0, 0))
    assert "a" in names(place.work().done)
    (place.album.output / "a.png").unlink()
    assert names(place.work().pending) == "a"


def test_a_photo_that_cannot_be_read_is_a_problem(place: Place) -> None:
    place.album.photos[1].path.unlink()
    work = place.work()
    assert [problem.relative for problem in work.problems] == [Path("b.png")] and names(work.done) == "ac"


def test_recipes_change_with_the_model_the_backend_and_settings_that_change_pixels() -> None:
    plain = base_recipe("model", "dlib", Settings())
    changes: dict[str, Any] = {
        "strength": 0.5,
        "upscale": 2,
        "restore": "all",
        "min_face": 30,
        "no_ref": "skip",
        "max_references": 2,
    }
    recipes = {base_recipe("model", "dlib", Settings(**{name: value})) for name, value in changes.items()}
    recipes |= {base_recipe("other", "dlib", Settings()), base_recipe("model", "insightface", Settings())}
    recipes.add(base_recipe("model", "dlib", Settings(refs_from="album")))
    assert len(recipes | {plain}) == len(PIXEL_SETTINGS) + 3
    same = Settings(device="cpu", dtype="bf16", batch_size=4, threads=2, cache_mib=1, wait=1, report=False)
    assert base_recipe("model", "dlib", same) == plain


def test_what_is_given_changes_with_portraits_names_and_people_toml(tmp_path: Path) -> None:
    def given(*portraits: Portrait) -> str:
        return given_identities(Album((), (), tmp_path, tmp_path, portraits))

    one, two = Portrait(Path("a"), "Ann", "aa"), Portrait(Path("b"), "Bob", "bb")
    assert given(one, two) == given(two, one) == given(Portrait(Path("moved"), "Ann", "aa"), two)
    known = {given(), given(one), given(one, two), given(Portrait(Path("a"), "Eve", "aa"))}
    (tmp_path / PEOPLE_FILE).write_text("")
    assert given() in known, "an empty file says nothing"
    (tmp_path / PEOPLE_FILE).write_text("# a comment")
    assert len(known | {given()}) == 5
