"""Known names and people.toml over the grouping."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from facefix.faces.face import Detection, Face, Quality, Reference
from facefix.people.corrections import PINNED_REASON, allowed, apply_corrections, as_entries, with_pins
from facefix.people.names import Group, name_groups
from facefix.people.people_file import FaceLabeller, PeopleFile, PersonEntry, write_people_file

ALBUM = Path("/album")
LABEL = FaceLabeller(ALBUM, Path("/refs"))


def face(photo: str, index: int = 0, at: float = 0.0) -> Face:
    detection = Detection((0, 0, 10, 10), np.zeros((5, 2)), 0.9)
    embedding = np.array([at, 1.0], np.float32)
    return Face(photo, index, detection, embedding, Quality(10, 0.5, 0, 0, 0.5))


A, B, C, D = (face(f"/album/{name}.jpg", at=at) for name, at in zip("abcd", (0.0, 0.1, 0.8, 0.9), strict=True))
PORTRAIT = face("/refs/Eva/1.jpg")


def keys(faces: tuple[Face, ...]) -> list[str]:
    return [LABEL(face) for face in faces]


def test_without_a_file_groups_are_persons() -> None:
    persons = apply_corrections([Group((A, PORTRAIT), "Eva"), Group((C,))], PeopleFile(), LABEL)
    assert [(p.id, p.name, keys(p.faces)) for p in persons] == [
        ("p1", "Eva", ["a.jpg#0", "@refs/Eva/1.jpg#0"]),
        ("p2", "Person 2", ["c.jpg#0"]),
    ]


def test_the_file_outweighs_the_grouping() -> None:
    people = PeopleFile((PersonEntry("p4", "Ann", faces=("a.jpg#0", "c.jpg#0")), PersonEntry("p2", faces=("d.jpg#0",))))
    persons = apply_corrections([Group((A, B)), Group((C, D), "Eva")], people, LABEL)
    assert [(p.id, p.name, keys(p.faces)) for p in persons] == [
        ("p4", "Ann", ["a.jpg#0", "b.jpg#0", "c.jpg#0"]),
        ("p2", "Eva", ["d.jpg#0"]),
    ]


def test_pins_and_bans_that_name_nobodys_face_are_told() -> None:
    entry = PersonEntry(
        "p1", "Ann", pin=("a.jpg#0", "d.jpg#0", "x.jpg#0"), ban=("b.jpg", "b.jpg#7"), faces=("a.jpg#0",)
    )
    (ann, other) = apply_corrections([Group((A, B)), Group((D,))], PeopleFile((entry,)), LABEL)
    assert (ann.name, keys(ann.pinned), ann.banned) == ("Ann", ["a.jpg#0"], frozenset({B.key}))
    assert ann.unused == ("b.jpg#7", "d.jpg#0", "x.jpg#0") and other.unused == ()


def test_new_faces_of_a_split_group_go_to_the_most_similar() -> None:
    people = PeopleFile((PersonEntry("p1", "Left", faces=("a.jpg#0",)), PersonEntry("p2", "Right", faces=("d.jpg#0",))))
    persons = apply_corrections([Group((A, B, C, D))], people, LABEL)
    assert {p.name: keys(p.faces) for p in persons} == {"Left": ["a.jpg#0", "b.jpg#0"], "Right": ["c.jpg#0", "d.jpg#0"]}


def test_merge_exclude_ignore_pin_and_ban() -> None:
    people = PeopleFile(
        (
            PersonEntry("p1", "Ann", merge=("p2",), pin=("b.jpg#0",), faces=("a.jpg#0",)),
            PersonEntry("p2", "Second", exclude=True, ban=("c.jpg", "b.jpg"), faces=("b.jpg#0", "c.jpg#0")),
        ),
        ignored=("d.jpg",),
        next_number=3,
    )
    (person,) = apply_corrections([Group((A,)), Group((B, C)), Group((D,))], people, LABEL)
    assert (person.id, person.name, person.excluded) == ("p1", "Ann", True)
    assert keys(person.faces) == ["a.jpg#0", "b.jpg#0", "c.jpg#0"]
    assert keys(person.pinned) == ["b.jpg#0"]
    assert person.banned == {C.key}, "a pin outweighs a ban"
    assert allowed([A, B, C], person) == (A, B)


def test_pins_come_first_but_never_from_the_target_itself() -> None:
    people = PeopleFile((PersonEntry("p1", pin=("c.jpg#0", "a.jpg"), faces=("a.jpg#0", "b.jpg#0", "c.jpg#0")),))
    (person,) = apply_corrections([Group((A, B, C))], people, LABEL)
    chosen = [Reference(other, Path(other.photo), "sharp", 0.9) for other in (B, C, D)]
    references = with_pins(chosen, person, target=A, limit=2)
    assert [(r.face, r.reason) for r in references] == [(C, PINNED_REASON), (B, "sharp")]
    assert [r.face for r in with_pins(chosen, person, target=None)] == [A, C, B, D]
    assert {r.face.photo for r in with_pins(chosen, person, target=B)} >= {A.photo, C.photo}


def test_known_names_unite_and_split_groups() -> None:
    names = {A.key: "Ann", C.key: "Ann", D.key: "Dora"}
    groups = name_groups([(A, B), (C, D), (PORTRAIT,)], names)
    assert [(g.name, keys(g.faces)) for g in groups] == [
        ("Ann", ["a.jpg#0", "b.jpg#0", "c.jpg#0"]),
        ("Dora", ["d.jpg#0"]),
        (None, ["@refs/Eva/1.jpg#0"]),
    ]


def test_ids_hold_from_run_to_run(tmp_path: Path) -> None:
    path = tmp_path / "people.toml"
    first = apply_corrections([Group((A, B)), Group((C,))], PeopleFile.read(path), LABEL)
    write_people_file(path, as_entries(first, LABEL))
    # The grouping comes in another order, with a new photo, and takes C for A's person.
    second = apply_corrections([Group((D,)), Group((C, B, A))], PeopleFile.read(path), LABEL)
    assert {p.id: sorted(keys(p.faces)) for p in second} == {
        "p1": ["a.jpg#0", "b.jpg#0"],
        "p2": ["c.jpg#0"],
        "p3": ["d.jpg#0"],
    }
    write_people_file(path, as_entries(second, LABEL))
    before = path.read_bytes()
    third = apply_corrections([Group((D,)), Group((C,)), Group((B, A))], PeopleFile.read(path), LABEL)
    assert not write_people_file(path, as_entries(third, LABEL))
    assert path.read_bytes() == before
