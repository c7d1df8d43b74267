"""The plan: which faces are restored with what, and which photos are done again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from marked import make_face, marked_backend

from facefix.faces.face import Face
from facefix.outputs.ledger import Ledger
from facefix.outputs.outcomes import FaceOutcome, IndexedPhoto, ReferenceNote
from facefix.people.people_file import PEOPLE_FILE
from facefix.restoration.album import Album, Portrait
from facefix.restoration.choices import BackendChoice
from facefix.restoration.identities import Found, People, find_people
from facefix.restoration.plan import in_working_order, make_plan, make_task, references_are_current
from facefix.restoration.scan import ScannedPhoto
from facefix.restoration.work import Work
from facefix.settings import Settings

BACKEND = BackendChoice("marked", marked_backend)
ALL = {"restore": "all"}


def indexed(*faces: Face) -> IndexedPhoto:
    return IndexedPhoto(f"sha {faces[0].photo}" if faces else "sha none", (400, 200), None, None, faces)


def photo(name: str) -> ScannedPhoto:
    return ScannedPhoto(Path("/album") / name, Path(name))


def look(photos: Mapping[str, Sequence[str]], *, portrait: bool = True) -> Found:
    """An album, said by who is in its photos, and one portrait of Ann."""
    seen = {
        photo(name): indexed(*(make_face(f"/album/{name}", number, who) for number, who in enumerate(people)))
        for name, people in photos.items()
    }
    face = make_face("/refs/Ann/a.jpg")
    portraits = {Portrait(Path("/refs/Ann/a.jpg"), "Ann", "sha a"): indexed(face)} if portrait else {}
    return Found(seen, portraits)


def people_of(found: Found, folder: Path, **settings: Any) -> People:
    album = Album(tuple(found.photos), (), folder, Path("/album"), tuple(found.portraits), Path("/refs"))
    return find_people(found, album, Settings(**settings), BACKEND)


def test_a_face_is_restored_with_its_persons_references_or_kept_with_a_reason(tmp_path: Path) -> None:
    found = look({"1.jpg": ["ann", "bob"]})
    people = people_of(found, tmp_path, no_ref="skip", refs_from="both", **ALL)
    task = make_task(photo("1.jpg"), found.photos[photo("1.jpg")], people, "run")
    (face,), (kept,) = task.faces, task.kept
    assert (face.number, face.person, [ref.path.name for ref in face.references]) == (0, "Ann", ["a.jpg"])
    assert face.centroid is not None
    assert (kept.face, kept.verdict, kept.reason) == (1, "kept", "no references of this person (--no-ref skip)")
    alone = make_task(photo("1.jpg"), found.photos[photo("1.jpg")], people_of(found, tmp_path, **ALL), "run")
    assert [(one.number, len(one.references)) for one in alone.faces] == [(0, 1), (1, 0)]
    assert alone.faces[1].centroid is None


def test_outcomes_hold_every_face_in_order_and_failures_are_tried_again(tmp_path: Path) -> None:
    found = look({"1.jpg": ["ann", "bob"]})
    people = people_of(found, tmp_path, no_ref="skip", upscale=2, **ALL)
    task = make_task(photo("1.jpg"), replace(found.photos[photo("1.jpg")], notes=("odd",)), people, "run")
    outcome = task.outcome("restored", [task.faces[0].outcome("restored", "", model="m", seconds=2.0)], notes=["odd"])
    assert [(face.face, face.verdict) for face in outcome.faces] == [(0, "restored"), (1, "kept")]
    assert [(note.path, note.face) for note in outcome.faces[0].references] == [("/refs/Ann/a.jpg", 0)]
    assert (outcome.scale, outcome.notes, outcome.recipe) == (2, ("odd",), task.recipe)
    assert task.outcome("copied").scale == 1
    assert task.failed("why").recipe is None


def test_the_recipe_of_a_photo_changes_with_what_is_given_for_its_people_alone(tmp_path: Path) -> None:
    photos = {"ann.jpg": ["ann"], "bob.jpg": ["bob"]}
    recipes = []
    for found in (look(photos, portrait=False), look(photos)):
        people = people_of(found, tmp_path, **ALL)
        recipes.append([make_task(one, seen, people, "run").recipe for one, seen in found.photos.items()])
    assert recipes[0][0] != recipes[1][0] and recipes[0][1] == recipes[1][1]
    assert all(recipe.startswith("run.") for row in recipes for recipe in row)


def test_photos_of_one_person_come_one_after_another(tmp_path: Path) -> None:
    found = look({"1.jpg": ["bob"], "2.jpg": ["ann"], "3.jpg": ["bob"], "4.jpg": ["ann"], "5.jpg": []})
    people = people_of(found, tmp_path, **ALL)
    tasks = [make_task(one, seen, people, "run") for one, seen in found.photos.items()]
    assert [str(task.photo.relative) for task in in_working_order(tasks)] == [
        "5.jpg", "2.jpg", "4.jpg", "1.jpg", "3.jpg",
    ]  # fmt: skip


@pytest.fixture
def stale(tmp_path: Path) -> tuple[Found, People, Work]:
    """Two photos that were done, stale since other portraits were given."""
    found = look({"1.jpg": ["ann"], "2.jpg": ["bob"]})
    people = people_of(found, tmp_path, **ALL)
    return found, people, Work((), tuple(found.photos), (), (), (), {})


def record(ledger: Ledger, found: Found, people: People, name: str, recipe: str | None = None) -> None:
    task = make_task(photo(name), found.photos[photo(name)], people, "run")
    outcome = task.outcome("restored", [face.outcome("restored", "") for face in task.faces], target=Path(name))
    ledger.records.record(replace(outcome, recipe=recipe or task.recipe), portraits="before")


def test_stale_photos_that_would_come_out_the_same_are_current(stale: tuple[Found, People, Work]) -> None:
    found, people, work = stale
    with Ledger.snapshot(None) as ledger:
        record(ledger, found, people, "1.jpg")
        record(ledger, found, people, "2.jpg", recipe="run.other people")
        plan = make_plan(work, found, people, ledger.records, "run")
    assert plan.current == (Path("1.jpg"),)
    assert [task.photo.relative for task in plan.tasks] == [Path("2.jpg")]


def test_a_photo_whose_people_were_forgotten_is_not_done_again(stale: tuple[Found, People, Work]) -> None:
    found, people, work = stale
    one = found.photos[photo("1.jpg")]
    forgotten = replace(one, faces=tuple(replace(face, embedding=None) for face in one.faces))
    found = replace(found, photos={**found.photos, photo("1.jpg"): forgotten})
    with Ledger.snapshot(None) as ledger:
        record(ledger, found, people, "1.jpg", recipe="run.other people")
        plan = make_plan(work, found, people, ledger.records, "run")
    assert plan.current == (Path("1.jpg"),)


def test_photos_in_which_nothing_could_be_found_get_no_task(stale: tuple[Found, People, Work]) -> None:
    found, people, _ = stale
    work = Work((photo("gone.jpg"), photo("1.jpg")), (), (), (), (), {})
    with Ledger.snapshot(None) as ledger:
        plan = make_plan(work, found, people, ledger.records, "run")
    assert [task.photo.relative for task in plan.tasks] == [Path("1.jpg")] and plan.current == ()


def test_references_that_are_somebody_elses_by_now_are_not_current(tmp_path: Path) -> None:
    found = look({"1.jpg": ["ann"], "2.jpg": ["ann"], "3.jpg": ["bob"]})
    people = people_of(found, tmp_path, **ALL)
    task = make_task(photo("1.jpg"), found.photos[photo("1.jpg")], people, "run")
    box = (0.0, 0.0, 1.0, 1.0)

    def used(*places: str) -> list[FaceOutcome]:
        notes = tuple(ReferenceNote(place, 0, "", 1.0) for place in places)
        return [FaceOutcome(0, box, "restored", "", "Ann", references=notes)]

    assert references_are_current(task, used("/album/2.jpg", "/refs/Ann/a.jpg"), people)
    assert references_are_current(task, used("/elsewhere/gone.jpg"), people), "not known any more: as it was"
    assert not references_are_current(task, used("/album/3.jpg"), people)
    assert references_are_current(task, [], people)
    (tmp_path / PEOPLE_FILE).write_text(
        '[[person]]\nid = "p1"\nname = "Ann"\nfaces = ["1.jpg#0"]\nmerge = ["p2"]\n'
        '[[person]]\nid = "p2"\nfaces = ["3.jpg#0"]\n'
    )
    merged = people_of(found, tmp_path, **ALL)
    task = make_task(photo("1.jpg"), found.photos[photo("1.jpg")], merged, "run")
    assert references_are_current(task, used("/album/3.jpg"), merged)
    assert not references_are_current(task, used(), merged), "it had none, and a merge has given it some"
