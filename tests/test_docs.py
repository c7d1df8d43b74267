"""The pages agree with the code: commands, options, settings, exit codes, JSON, links, paths, uses of the command."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer
from conftest import REPOSITORY
from option_tables import PAGE, commands, heading, page, parameters

from facefix import errors
from facefix.cli import app
from facefix.cli.console import outcome_dict
from facefix.outputs.outcomes import FaceOutcome, PhotoOutcome
from facefix.photos.formats import SUFFIXES
from facefix.restoration.summary import SOME_FAILED, SOME_FLAGGED, Summary
from facefix.restoration.verdicts import RESTORED, VERDICTS
from facefix.settings import NOT_SETTINGS, Settings

DOCS = REPOSITORY / "docs"
NOTHING_TO_SAY = {"__init__", "__main__", "version"}
OTHER_COMMANDS = {"add-a-method.md", "CHANGELOG.md"}
PAGES = [REPOSITORY / "README.md", *sorted(DOCS.rglob("*.md")), *sorted((REPOSITORY / "models").rglob("*.md"))]
COMMANDS = commands()


def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def name_of(path: Path) -> str:
    return path.relative_to(REPOSITORY).as_posix()


@pytest.mark.parametrize("name", COMMANDS, ids=lambda name: name or "facefix")
def test_every_command_and_option_has_help_and_a_row(name: str) -> None:
    command = COMMANDS[name]
    assert command.help, f"facefix {name} has no help"
    _, found, below = text_of(PAGE).partition(f"\n{heading(name)}\n")
    assert found, f"{name_of(PAGE)}: expected a heading {heading(name)}; run python tests/option_tables.py"
    section = below.split("\n### ", 1)[0]
    for parameter in parameters(command):
        assert parameter.help, f"facefix {name}: {parameter.name} has no help"
        for option in (*parameter.opts, *parameter.secondary_opts):
            if option.startswith("-"):
                assert re.search(rf"^\| .*`{re.escape(option)}`", section, re.MULTILINE), f"facefix {name}: {option}"


def test_the_tables_are_those_of_the_command_line() -> None:
    assert text_of(PAGE) == page(text_of(PAGE)), "run python tests/option_tables.py"


def test_every_setting_has_a_row_and_every_variable_is_named() -> None:
    text = text_of(PAGE)
    for name in Settings.model_fields:
        assert f"`--{name.replace('_', '-')}`" in text, f"{name} is not in {name_of(PAGE)}"
    for variable in NOT_SETTINGS - {"SHARED"}:  # where the tests' photographs are: CONTRIBUTING has it
        assert f"`FACEFIX_{variable}`" in text, f"FACEFIX_{variable} is not in {name_of(PAGE)}"


def test_options_that_are_no_settings_are_listed() -> None:
    own = [
        parameter
        for name in ("restore", "people")
        for parameter in parameters(COMMANDS[name])
        if parameter.param_type_name == "option" and parameter.name not in Settings.model_fields
    ]
    options = {option for parameter in own for option in parameter.opts if option.startswith("--")}
    sentence = re.search(r"Only\s(.*?)\sare\sno\ssettings", text_of(PAGE), re.DOTALL)
    assert sentence and set(re.findall(r"`(--[a-z-]+)`", sentence.group(1))) == options


def test_exit_codes() -> None:
    table = text_of(DOCS / "scripts.md").split("## Exit codes", 1)[1].split("\n## ", 1)[0]
    codes = {
        error.exit_code for error in vars(errors).values() if isinstance(error, type) and hasattr(error, "exit_code")
    }
    codes |= {0, SOME_FAILED, SOME_FLAGGED, 130, 143}
    assert [int(code) for code in re.findall(r"^\| (\d+) \|", table, re.MULTILINE)] == sorted(codes)


def test_verdicts_and_file_endings() -> None:
    assert tuple(re.findall(r"^\| (\w+) \| the ", text_of(REPOSITORY / "README.md"), re.MULTILINE)) == VERDICTS
    assert set(re.findall(r"`(\.[a-z0-9]+)`", text_of(DOCS / "formats.md"))) == SUFFIXES


def test_json_keys() -> None:
    run, photo = text_of(DOCS / "scripts.md").split("`facefix restore --jsonl` prints", 1)
    cells = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \|", run, re.MULTILINE)
    keys = re.findall(r"`(\w+)`", " ".join(cells))
    assert sorted(keys) == sorted(Summary(Path("out")).as_dict())
    face = FaceOutcome(0, (0, 0, 1, 1), RESTORED, "", None)
    said = outcome_dict(PhotoOutcome(Path("a.jpg"), Path("a.jpg"), "restored", faces=(face,)))
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", photo.split("\n## ", 1)[0], re.MULTILINE))
    assert list(rows) == list(said)
    assert re.findall(r"`(\w+)`", rows["faces"]) == list(said["faces"][0])


def test_the_layout_names_every_package() -> None:
    packages = {path.parent.name for path in (REPOSITORY / "facefix").glob("*/__init__.py")}
    modules = {path.stem for path in (REPOSITORY / "facefix").glob("*.py") if path.stem not in NOTHING_TO_SAY}
    text = text_of(DOCS / "CONTRIBUTING.md")
    assert set(re.findall(r"^\| `(\w+)/` \| \S", text, re.MULTILINE)) == packages
    sentence = re.search(r"^The modules beside them.*?: (.*?)\.$", text, re.MULTILINE | re.DOTALL)
    assert sentence and set(re.findall(r"`(\w+)`", sentence.group(1))) == modules


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_links_lead_somewhere(path: Path) -> None:
    for link in links(text_of(path)):
        target, _, anchor = link.partition("#")
        found = (path.parent / target).resolve() if target else path
        assert found.exists(), f"{name_of(path)}: {link}: there is no such file"
        if anchor:
            assert anchor in anchors(text_of(found)), f"{name_of(path)}: {link}: there is no such heading"


def test_every_page_is_reached_from_the_readme() -> None:
    reached: set[Path] = set()
    waiting = [PAGES[0]]
    while waiting:
        path = waiting.pop()
        reached.add(path)
        targets = [(path.parent / link.partition("#")[0]).resolve() for link in links(text_of(path))]
        targets = [target / "README.md" if target.is_dir() else target for target in targets]
        waiting += [target for target in targets if target.suffix == ".md" and target not in reached]
    assert {name_of(path) for path in PAGES} == {name_of(path) for path in reached}


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_paths_of_the_repository_exist(path: Path) -> None:
    for code in code_of(text_of(path)):
        for word in re.findall(r"(?:^|\s)((?:facefix|tests|models|docs)/[\w./-]*)", code):
            assert (REPOSITORY / word).exists(), f"{name_of(path)}: {word} is not there"


@pytest.mark.parametrize("path", [path for path in PAGES if path.name not in OTHER_COMMANDS], ids=name_of)
def test_command_lines_are_right_use(path: Path) -> None:
    """Every command line in a page, as far as the command line can tell without doing it.

    Left out are the page on adding a method, whose commands are those of that method, and the changes, which name
    commands of the past.
    """
    for line in command_lines(text_of(path)):
        words = shlex.split(line, comments=True)[1:]
        command: Any = typer.main.get_command(app)
        name = "facefix"
        while words and words[0] in getattr(command, "commands", {}):
            name, command = f"{name} {words[0]}", command.commands[words.pop(0)]
        assert not hasattr(command, "commands") or "--version" in words or not words, f"{name_of(path)}: {line}"
        if words and not hasattr(command, "commands"):
            try:
                command.make_context(name, list(words))
            except Exception as error:  # Typer's and click's have no base in common in every release
                pytest.fail(f"{name_of(path)}: {line}: {error}")


def links(text: str) -> list[str]:
    """Where a page links to inside the repository."""
    found = re.findall(r"\]\(([^)\s]+)\)", text)
    return [link for link in found if not re.match(r"[a-z]+:", link)]


def anchors(text: str) -> set[str]:
    """Names of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def code_of(text: str) -> list[str]:
    """Lines of code blocks, and code in sentences."""
    fenced = re.findall(r"^```\w*\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    blocks = re.findall(r"(?:^|\n\n)((?: {4}.*\n?)+)", text)
    spans = re.findall(r"(?<!`)`([^`\n]+)`(?!`)", text)
    return [line.strip() for block in (*fenced, *blocks) for line in block.splitlines()] + spans


def command_lines(text: str) -> list[str]:
    """Uses of the facefix command; not its mere name, and not patterns like OUT|PHOTO."""
    parts = [part.strip() for code in code_of(text) for part in re.split(r"\||&&|;", code)]
    found = [re.sub(r"\s[\d&]?>.*", "", part) for part in parts if re.match(r"facefix \S", part)]
    return [line for line in found if not re.search(r"[\[\]<>]|\.\.\.", line)]
