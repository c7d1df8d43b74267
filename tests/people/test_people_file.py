"""people.toml: written, edited by hand, read again; ids, comments and edits stay."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from facefix.errors import UsageError
from facefix.people.people_file import (
    FaceLabeller,
    PeopleFile,
    PeopleIndex,
    PersonEntry,
    forget_person,
    write_people_file,
)

ANNA = PersonEntry("p1", "Anna", faces=("a.jpg#0", "b.jpg#1"))
BERT = PersonEntry("p2", "Person 2", faces=("a.jpg#1",))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "out" / "people.toml"


def replaced(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_written_and_read_again(path: Path) -> None:
    assert write_people_file(path, [ANNA, BERT])
    people = PeopleFile.read(path)
    assert people.persons == (ANNA, BERT)
    assert people.next_number == 3
    assert "Edit it freely" in path.read_text()
    assert [p.name for p in path.parent.iterdir()] == ["people.toml"]


def test_nothing_new_leaves_the_file_alone(path: Path) -> None:
    write_people_file(path, [ANNA, BERT])
    before = path.read_bytes()
    assert not write_people_file(path, [BERT, ANNA])
    assert not write_people_file(path, [])
    assert path.read_bytes() == before


def test_edits_and_comments_outlive_new_faces(path: Path) -> None:
    write_people_file(path, [ANNA, BERT])
    replaced(path, 'name = "Person 2"', 'name = "Bert"   # my uncle\npin = ["b.jpg#0"]')
    replaced(
        path, 'pin = []\nban = []\nfaces = [\n    "a.jpg#1",', 'ban = ["x.jpg"]\nfaces = [\n    "a.jpg#1",  # 1950'
    )
    edited = path.read_text()
    grown = PersonEntry("p2", "Person 2", faces=("c.jpg#0", "a.jpg#1"))
    assert write_people_file(path, [ANNA, grown, PersonEntry("p3", "Carla", faces=("d.jpg#0",))])
    text = path.read_text()
    assert "# my uncle" in text
    assert "# 1950" in text
    kept = [line for line in edited.splitlines() if not line.startswith("next")]
    lines = text.splitlines()
    places = [lines.index(line) for line in kept if line.strip() and line.count('"') != 0]
    assert places == sorted(places), "the order stays"
    people = PeopleFile.read(path)
    assert people.persons[1] == PersonEntry(
        "p2", "Bert", pin=("b.jpg#0",), ban=("x.jpg",), faces=("a.jpg#1", "c.jpg#0")
    )
    assert people.persons[2].name == "Carla"
    assert people.next_number == 4


def test_split_by_a_new_entry_gets_an_id_for_good(path: Path) -> None:
    write_people_file(path, [ANNA, BERT])
    replaced(path, '    "b.jpg#1",\n', "")
    with path.open("a") as file:
        file.write('\n[[person]]\nfaces = ["b.jpg#1"]\nname = "Anna\'s sister"\n')
    index = PeopleIndex(PeopleFile.read(path))
    assert index.ids == ["p1", "p2", "p3"]
    assert index.owner("b.jpg#1") == "p3"
    assert index.next_number == 4
    assert write_people_file(path, [ANNA, BERT])
    people = PeopleFile.read(path)
    assert people.persons[2] == PersonEntry("p3", "Anna's sister", faces=("b.jpg#1",))
    assert people.persons[0].faces == ("a.jpg#0",)
    assert people.next_number == 4


def test_comments_of_an_entry_without_id_stay(path: Path) -> None:
    path.parent.mkdir()
    entry = '[[person]]\n# the twin\nexclude = true  # she asked\n# of 1950\nfaces = ["a.jpg#0"]\n'
    written = entry + "\n\n# the end\n[ignore]\nfaces = []\n"
    path.write_text(written)
    assert write_people_file(path, [BERT])
    lines = path.read_text().splitlines()
    for line in filter(None, written.splitlines()):
        assert line in lines
    people = PeopleFile.read(path)
    assert people.persons == (PersonEntry("p1", exclude=True, faces=("a.jpg#0",)), BERT)


def test_merged_faces_stay_where_they_were_written(path: Path) -> None:
    write_people_file(path, [ANNA, BERT])
    replaced(path, "merge = []", 'merge = ["p2"]')
    index = PeopleIndex(PeopleFile.read(path))
    assert index.owner("a.jpg#1") == "p1"
    assert [entry.id for entry in index.parts("p1")] == ["p1", "p2"]
    before = path.read_bytes()
    both = PersonEntry("p1", "Anna", faces=(*ANNA.faces, *BERT.faces))
    assert not write_people_file(path, [both])
    assert path.read_bytes() == before


def test_ids_are_not_used_again(path: Path) -> None:
    write_people_file(path, [ANNA, BERT])
    assert forget_person(path, "Person 2") == 1
    assert PeopleIndex(PeopleFile.read(path)).next_number == 3
    assert "a.jpg#1" not in path.read_text()
    assert forget_person(path, "nobody") == 0


def test_forgetting_takes_all_that_is_merged(path: Path) -> None:
    write_people_file(path, [ANNA, BERT, PersonEntry("p3", "Carla", faces=("d.jpg#0",))])
    replaced(path, "merge = []", 'merge = ["p2"]')
    assert forget_person(path, "p2") == 2
    assert [entry.id for entry in PeopleFile.read(path).persons] == ["p3"]
    assert forget_person(path, None) == 1
    assert not path.exists()
    assert forget_person(path, None) == 0


def test_whole_photos_and_ignored_faces(path: Path) -> None:
    path.parent.mkdir()
    path.write_text('[[person]]\nid = "p5"\nfaces = ["all.jpg"]\n[ignore]\nfaces = ["statue.jpg", "a.jpg#3"]\n')
    index = PeopleIndex(PeopleFile.read(path))
    assert index.owner("all.jpg#7") == "p5"
    assert index.owner("other.jpg#0") is None
    assert index.ignores("statue.jpg#2")
    assert index.ignores("a.jpg#3")
    assert not index.ignores("a.jpg#2")
    assert index.next_number == 6
    assert write_people_file(path, [PersonEntry("p6", "New", faces=("n.jpg#0",))])
    again = PeopleFile.read(path)
    assert again.next_number == 7
    assert again.ignored == ("statue.jpg", "a.jpg#3")
    assert [entry.id for entry in again.persons] == ["p5", "p6"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[[person]", "people.toml"),
        ("version = 2", "expected version = 1, found 2"),
        ("colour = 1", "unknown key 'colour'"),
        ('[[person]]\nnmae = "x"', r"\[\[person\]\] number 1 \(without name\): unknown key 'nmae'"),
        ('[[person]]\nname = "Eva"\nexclude = "yes"', r"number 1 \(Eva\): expected true or false for exclude"),
        ('[[person]]\nfaces = "a.jpg#0"', "expected a list of texts for faces"),
        ('[[person]]\nfaces = ["a#0"]\n[[person]]\nfaces = ["a#0"]', "'a#0' is listed under 2 persons"),
        ('[[person]]\nid = "p1"\n[[person]]\nid = "p1"', "'p1' stands at 2 persons"),
        ('[[person]]\nid = "p1"\nmerge = ["p9"]', "expected the id of another person"),
        ('[[person]]\nid = "p1"\nmerge = ["p2"]\n[[person]]\nid = "p2"\nmerge = ["p1"]', "merged into itself"),
        ("person = 3", r"expected \[\[person\]\] entries"),
        ("next = 0", "whole number from 1"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "people.toml"
    path.write_text(text)
    with pytest.raises(UsageError, match=said) as caught:
        PeopleFile.read(path)
    assert str(path) in str(caught.value)
    with pytest.raises(UsageError):
        write_people_file(path, [ANNA])
    assert path.read_text() == text, "a file that is not understood is left alone"


def test_not_utf8_is_named(tmp_path: Path) -> None:
    path = tmp_path / "people.toml"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="UTF-8"):
        PeopleFile.read(path)


def test_labels(tmp_path: Path) -> None:
    label = FaceLabeller(tmp_path / "album", tmp_path / "album" / "refs")
    assert label.of(tmp_path / "album" / "x" / "a.jpg", 2) == "x/a.jpg#2"
    assert label.of(tmp_path / "album" / "refs" / "Eva" / "1.png", 0) == "@refs/Eva/1.png#0"
    assert label.of("/elsewhere/100%.jpg", 0) == "/elsewhere/100%25.jpg#0"
    assert label.of("x/caf\udce9.jpg", 1) == "x/caf%E9.jpg#1"


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), min_size=1, max_size=5, unique=True))
def test_any_name_comes_back(tmp_path_factory: pytest.TempPathFactory, names: list[str]) -> None:
    path = tmp_path_factory.mktemp("any") / "people.toml"
    person = PersonEntry("p1", names[0], faces=tuple(f"{name}#0" for name in names))
    write_people_file(path, [person])
    assert PeopleFile.read(path).persons == (person,)


def test_thousands_of_faces_are_quick(path: Path) -> None:
    persons = [
        PersonEntry(f"p{p}", f"Person {p}", faces=tuple(f"folder/{p}/{i:04}.jpg#0" for i in range(50)))
        for p in range(1, 201)
    ]
    write_people_file(path, persons)
    start = time.perf_counter()
    assert not write_people_file(path, persons)
    assert time.perf_counter() - start < 2
