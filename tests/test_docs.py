"""The README names every command and every option, in the section of its command, and every exit code."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
import typer
from conftest import REPOSITORY

from facefix.cli import app

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")


def commands(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Every command with its full name."""
    for name, below in getattr(command, "commands", {}).items():
        yield from commands(below, (*path, name))
    if path and not getattr(command, "commands", {}):
        yield " ".join(path), command


COMMANDS = dict(commands(typer.main.get_command(app)))


def section(name: str) -> str:
    """The part of the README under the heading of a command."""
    found = re.search(rf"^### `facefix {re.escape(name)}`\n(.*?)(?=^##|\Z)", README, re.DOTALL | re.MULTILINE)
    assert found, f"README.md: expected a heading ### `facefix {name}`"
    return found.group(1)


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_and_option_is_documented(name: str) -> None:
    text = section(name)
    assert COMMANDS[name].help, f"facefix {name} has no help"
    for parameter in COMMANDS[name].params:
        for option in (*parameter.opts, *parameter.secondary_opts):
            if option.startswith("-") and option != "--help":
                assert f"`{option}" in text or f", {option}" in text, f"facefix {name}: {option} is not in README.md"
        if parameter.param_type_name == "option":
            assert getattr(parameter, "help", None), f"facefix {name}: {parameter.opts} has no help"


def test_no_command_in_the_readme_is_made_up() -> None:
    named = set(re.findall(r"^### `facefix ([a-z -]+)`$", README, re.MULTILINE))
    assert named == set(COMMANDS)


def test_exit_codes_are_documented() -> None:
    table = README.split("## Exit codes", 1)[1].split("\n## ", 1)[0]
    assert re.findall(r"^\| (\d+) \|", table, re.MULTILINE) == ["0", "1", "2", "3", "4", "69", "75", "130", "143"]


def test_settings_are_documented() -> None:
    from facefix.settings import Settings

    for name in Settings.model_fields:
        assert f"--{name.replace('_', '-')}" in README or f"`{name}`" in README, f"{name} is not in README.md"
