"""Modules, functions and signatures stay short enough to be read in one sitting."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest
from conftest import REPOSITORY

MODULE_LINES = 400
BODY_LINES = 60
ARGUMENTS = 8

TOO_LONG: dict[str, int] = {}
"""What is longer today. This list may only become shorter, and its numbers smaller."""

REGISTERED = "Pipeline.__init__"
"""diffusers saves the arguments of a pipeline's ``__init__`` as its configuration: each setting is one of its own."""

Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions(node: ast.AST, owner: str = "") -> Iterator[tuple[str, Function]]:
    """Every function with its qualified name."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            name = f"{owner}{child.name}"
            if not isinstance(child, ast.ClassDef):
                yield name, child
            yield from functions(child, f"{name}.")
        else:
            yield from functions(child, owner)


def body_lines(function: Function) -> int:
    """Lines of the body, without the docstring."""
    body = function.body[1:] if ast.get_docstring(function) and len(function.body) > 1 else function.body
    return (body[-1].end_lineno or 0) - body[0].lineno + 1


def argument_count(function: Function) -> int:
    """Arguments that a caller may give."""
    every = function.args
    named = [*every.posonlyargs, *every.args, *every.kwonlyargs, *filter(None, (every.vararg, every.kwarg))]
    return len([argument for argument in named if argument.arg not in ("self", "cls")])


def measures() -> Iterator[tuple[str, int, int]]:
    """What there is, how long it is, and how long it may be."""
    for path in sorted(path for folder in ("facefix", "tests") for path in (REPOSITORY / folder).rglob("*.py")):
        text, place = path.read_text(encoding="utf-8"), path.relative_to(REPOSITORY).as_posix()
        yield f"{place}: lines", text.count("\n"), MODULE_LINES
        for name, function in functions(ast.parse(text)):
            yield f"{place}: lines of {name}", body_lines(function), BODY_LINES
            if not place.startswith("facefix/cli/") and not name.endswith(REGISTERED):
                yield f"{place}: arguments of {name}", argument_count(function), ARGUMENTS


def test_nothing_is_too_long() -> None:
    assert [row for row in measures() if row[1] > max(row[2], TOO_LONG.get(row[0], 0))] == []


def test_what_is_short_by_now_leaves_the_list() -> None:
    assert TOO_LONG.keys() - {what for what, size, limit in measures() if size > limit} == set()


@pytest.mark.parametrize(
    ("text", "lines", "arguments"),
    [
        ("def f(a, /, b, *c, d, **e): return 1", 1, 5),
        ('def f(self, a):\n "doc"\n x = 1\n\n return x', 3, 1),
        ("async def f(): 'only a docstring'", 1, 0),
    ],
)
def test_the_measures(text: str, lines: int, arguments: int) -> None:
    ((_, function),) = functions(ast.parse(text))
    assert (body_lines(function), argument_count(function)) == (lines, arguments)
