"""The registry's rows, and docs/add-a-method.md walked through: a method from outside restores an album."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from albums import make_album, make_portraits
from command_line import facefix
from conftest import REPOSITORY

from facefix.errors import UsageError
from facefix.methods import registry
from facefix.methods.registry import BUILT_IN, Importer, ImportOption, Named, method_named, methods

PAGE = (REPOSITORY / "docs" / "add-a-method.md").read_text(encoding="utf-8")


def block(language: str) -> str:
    """The code in that language on the page."""
    (code,) = re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    return str(code)


def install(site: Path, *, name: str = "average", code: str | None = None) -> None:
    """What pip would make of the page's files."""
    project = tomllib.loads(block("toml"))["project"]
    (site / "facefix_average.py").write_text(block("python") if code is None else code, encoding="utf-8")
    information = site / f"facefix_average-{project['version']}.dist-info"
    information.mkdir()
    (information / "METADATA").write_text(f"Name: {project['name']}\nVersion: {project['version']}\n")
    (point,) = project["entry-points"]["facefix.methods"].values()
    (information / "entry_points.txt").write_text(f"[facefix.methods]\n{name} = {point}\n")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of installed packages."""
    folder = tmp_path / "site-packages"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    methods.cache_clear()
    yield folder
    sys.modules.pop("facefix_average", None)
    methods.cache_clear()
    importlib.invalidate_caches()


def test_a_method_from_outside_restores_an_album(site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(site)
    monkeypatch.chdir(tmp_path)
    make_album(tmp_path / "album", photos_per_person=1, people=["ann"])
    make_portraits(tmp_path / "portraits", people=["ann"])
    (tmp_path / "average.json").write_text(block("json"), encoding="utf-8")
    importing, restoring = (line.split()[1:] for line in block("sh").splitlines())
    imported = subprocess.run(
        [sys.executable, "-m", "facefix", *importing],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(site), str(REPOSITORY)])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert imported.returncode == 0, imported.stderr
    assert (tmp_path / "average" / "SHA256SUMS").is_file()
    assert "licence: CC0-1.0" in (tmp_path / "average" / "SOURCE.txt").read_text(encoding="utf-8")

    done = facefix(*restoring, "--restore", "all", "--faces", "dlib", "--jsonl", "--min-face", "20")
    assert done.code == 0, done.stderr
    photos = {Path(row["photo"]).name: row for row in map(json.loads, done.stdout.splitlines())}
    (face,) = photos["ann0.jpg"]["faces"]
    assert (face["verdict"], face["person"]) == ("restored", "ann")
    assert (tmp_path / "album-restored" / "ann0.jpg").read_bytes() != (tmp_path / "album" / "ann0.jpg").read_bytes()
    again = facefix(*restoring, "--restore", "all", "--faces", "dlib", "--jsonl", "--min-face", "20")
    assert (again.code, again.stdout) == (0, "")


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("raise RuntimeError('no such library')", "no such library"),
        ("METHOD = 3", "expected a RestorationMethod"),
        (None, "expected a RestorationMethod with a name other than refldm, guided"),
    ],
)
def test_a_method_that_cannot_be_had_is_left_out(site: Path, code: str | None, message: str) -> None:
    install(site, code=block("python").replace('name="average"', 'name="refldm"') if code is None else code)
    with pytest.warns(UserWarning, match=message):
        assert set(methods()) == {method.name for method in BUILT_IN}


def addresses(value: object) -> Iterator[Named]:
    """Every address in a row."""
    if isinstance(value, Named):
        yield value
    elif hasattr(value, "__dataclass_fields__"):
        for name in value.__dataclass_fields__:
            yield from addresses(getattr(value, name))
    elif isinstance(value, dict):
        for inner in value.values():
            yield from addresses(inner)


@pytest.mark.parametrize("method", BUILT_IN, ids=lambda method: method.name)
def test_what_a_row_names_is_there(method: registry.RestorationMethod) -> None:
    named = list(addresses(method))
    assert len(named) >= 2
    for address in named:
        assert address.load() is not None
    if method.pipeline is not None:
        assert method.pipeline.load().__name__ in method.pipelines
    assert method_named(method.name) is method
    assert method.references in ("none", "optional", "needed")


def test_rows_cost_no_torch() -> None:
    check = (
        "import sys; from facefix.methods.registry import methods; methods(); import facefix.cli; "
        "print(sorted({'torch', 'diffusers', 'numpy.linalg'} & set(sys.modules) - {'numpy.linalg'}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", check],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr


def test_an_import_is_told_everything_by_name(tmp_path: Path) -> None:
    importer = Importer(Named("facefix.methods.refldm.convert:import_refldm"), method_named("refldm").importer.options)  # type: ignore[union-attr]
    with pytest.raises(UsageError, match="expected checkpoint, vqgan, found nothing"):
        importer.run(tmp_path / "model", {})
    with pytest.raises(UsageError, match=r"a\.ckpt: expected a checkpoint file"):
        importer.run(tmp_path / "model", {"checkpoint": tmp_path / "a.ckpt", "vqgan": tmp_path / "b.ckpt"})
    assert ImportOption("steps", "Steps.", default=3, kind=int).kind is int
    with pytest.raises(UsageError, match="method: expected one of refldm, guided"):
        method_named("nothing")


def test_the_page_names_every_field_of_a_row() -> None:
    for name in registry.RestorationMethod.__dataclass_fields__:
        assert re.search(rf"^\|.*`{name}`.*\|", PAGE, re.MULTILINE), f"docs/add-a-method.md: {name}"
