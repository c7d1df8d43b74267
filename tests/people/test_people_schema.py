"""Every kind of mistake in people.toml is said with its place, what was expected and what was found."""

from __future__ import annotations

import tomllib

import pytest

from facefix.people.people_schema import Malformed, PersonEntry, parse


def test_what_is_written_is_read_and_empty_text_is_nothing() -> None:
    text = 'next = 4\n[ignore]\nfaces = ["s.jpg"]\n[[person]]\nname = ""\nexclude = true\nfaces = ["a#0", "b#1"]'
    document = parse(tomllib.loads(text))
    assert document.person == (PersonEntry(None, None, exclude=True, faces=("a#0", "b#1")),)
    assert (document.next, document.ignore.faces) == (4, ("s.jpg",))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("colour = 1", "the file: unknown key 'colour', expected one of ignore, next, person, version"),
        ("ignore = 3", "expected a table [ignore] with a list of faces, found 3"),
        ("[ignore]\nfacs = []", "[ignore]: unknown key 'facs', expected one of faces"),
        ("[ignore]\nfaces = [1]", "[ignore]: expected a list of texts for faces, found [1]"),
        ("next = true", "expected a whole number from 1 for next, found True"),
        ("next = 1.5", "expected a whole number from 1 for next, found 1.5"),
        ('[person]\nid = "x"', "expected [[person]] entries (in double brackets), found {'id': 'x'}"),
        ("person = [3]", "[[person]] number 1: expected a table, found 3"),
        ("[[person]]\nid = 3", "[[person]] number 1 (3): expected text for id, found 3"),
        (
            '[[person]]\n[[person]]\nname = "Eva"\nexclude = 1',
            "[[person]] number 2 (Eva): expected true or false for exclude, found 1",
        ),
        (
            '[[person]]\npin = ["a", 3]',
            "[[person]] number 1 (without name): expected a list of texts for pin, found ['a', 3]",
        ),
    ],
)
def test_mistakes_are_named(text: str, said: str) -> None:
    with pytest.raises(Malformed) as caught:
        parse(tomllib.loads(text))
    assert str(caught.value) == said
