"""The tables of commands and options in docs/options.md, made from the command line itself.

python tests/option_tables.py     writes them into docs/options.md, below its marker line
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import typer

from facefix.cli import app
from facefix.settings import Settings

PAGE = Path(__file__).resolve().parent.parent / "docs" / "options.md"
MARKER = "<!-- what follows is made from the command line: python tests/option_tables.py -->\n"

_FIRST = ("", "restore", "people", "report", "undo", "forget", "config", "models", "doctor", "face", "evaluate")
_KINDS = {Path: "PATH", int: "INTEGER", float: "FLOAT", str: "TEXT"}


def commands() -> dict[str, Any]:
    """``facefix`` itself under the name "", then every command that does something under its full name."""
    return dict(_commands(typer.main.get_command(app), ()))


def heading(name: str) -> str:
    """The heading of a command's section."""
    return f"### `facefix {name}`" if name else "### `facefix`"


def page(text: str) -> str:
    """The page with the tables made anew; ``text`` is the page as it is."""
    tables = "\n".join(_section(name, command) for name, command in commands().items())
    return text.split(MARKER, 1)[0] + MARKER + "\n" + tables


def parameters(command: Any) -> list[Any]:
    """The arguments and options of a command, without those of every Typer program."""
    typers = {"--help", "--install-completion", "--show-completion"}
    return [parameter for parameter in command.params if not typers & {*parameter.opts}]


def _commands(command: Any, path: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    below = getattr(command, "commands", {})
    if not path or not below:
        yield " ".join(path), command
    for name in sorted(below, key=lambda name: _FIRST.index(name) if name in _FIRST else len(_FIRST)):
        yield from _commands(below[name], (*path, name))


def _section(name: str, command: Any) -> str:
    rows = "".join(_row(parameter) for parameter in parameters(command))
    text = " ".join((command.help or "").split())
    return f"{heading(name)}\n\n{text}\n\n| option | values | meaning |\n| --- | --- | --- |\n{rows}"


def _row(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        names = [parameter.metavar or parameter.name.upper()]
    else:
        groups = (parameter.opts, parameter.secondary_opts)
        names = [name for group in groups for name in sorted(group, key=len, reverse=True)]
    cells = (", ".join(f"`{name}`" for name in names), _values(parameter), _help(parameter))
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells).replace("|  |", "| |") + " |\n"


def _values(parameter: Any) -> str:
    """What may be given: the choices, or the kind of value; nothing for an argument or a switch."""
    if parameter.param_type_name == "argument" or getattr(parameter, "is_flag", False):
        return ""
    descriptor = getattr(parameter, "type_descriptor", None)  # newer releases of Typer; older ones have click's types
    kind = descriptor.annotation if descriptor else parameter.type
    choices = get_args(kind) if get_origin(kind) is Literal else getattr(kind, "choices", ())
    if choices:
        return ", ".join(f"`{choice}`" for choice in choices)
    repeatable = parameter.multiple or get_origin(kind) is list
    kind = get_args(kind)[0] if get_args(kind) else kind
    name = str(parameter.metavar or _KINDS.get(kind) or kind.name.upper())
    return f"{name}, repeatable" if repeatable and "repeatable" not in (parameter.help or "") else name


def _help(parameter: Any) -> str:
    """The help text, with the default and the variable where the text does not name them."""
    text = " ".join((getattr(parameter, "help", None) or "").split())
    default = _default(parameter)
    if default is not None and "default:" not in text.lower():
        text += f" (default: {default})"
    return f"{text} (variable: `{parameter.envvar}`)" if getattr(parameter, "envvar", None) else text


def _default(parameter: Any) -> str | None:
    """The default of an option as it would be given; None where there is none, and for a plain switch."""
    field = Settings.model_fields.get(parameter.name)
    default = field.default if parameter.default is None and field is not None else parameter.default
    if parameter.param_type_name == "argument" or not isinstance(default, str | int | float):
        return None
    if not isinstance(default, bool):
        return str(default)
    names = parameter.opts if default else parameter.secondary_opts
    return f"`{names[0]}`" if parameter.secondary_opts else None


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
