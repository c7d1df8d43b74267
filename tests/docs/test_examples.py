"""Every file in docs/examples, and every Python block in the pages, does what it says."""

from __future__ import annotations

import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from albums import make_album, make_portraits, old_photo, portrait
from conftest import REPOSITORY
from PIL import Image
from tiny import tiny_pipeline

EXAMPLES = REPOSITORY / "docs" / "examples"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with random weights."""
    folder = tmp_path_factory.mktemp("model")
    tiny_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """A folder with a space in its name that holds photos, and portraits of a person."""
    folder = tmp_path / "family archive"
    make_album(folder / "photos", photos_per_person=1, people=["ann"])
    make_portraits(folder / "portraits", people=["ann"])
    return folder


@pytest.fixture
def environ(model: Path, tmp_path: Path) -> dict[str, str]:
    """Variables for a process that finds this facefix and the tiny model."""
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    command = bin_folder / "facefix"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m facefix "$@"\n', encoding="utf-8")
    command.chmod(0o755)
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith("FACEFIX_")},
        "PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(REPOSITORY),
        "FACEFIX_MODEL": str(model),
        "FACEFIX_FACES": "dlib",
        "FACEFIX_DEVICE": "cpu",
        "FACEFIX_REPORT": "false",
    }


def run(*command: object, folder: Path, environ: dict[str, str]) -> subprocess.CompletedProcess[str]:
    words = [str(word) for word in command]
    return subprocess.run(words, cwd=folder, env=environ, capture_output=True, text=True, timeout=300, check=False)


def test_every_example_is_listed() -> None:
    files = {path.name for path in EXAMPLES.iterdir()} - {"README.md"}
    listed = re.findall(r"^\| \[(.*?)\]\(\1\) \|", (EXAMPLES / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert set(listed) == files == {"nightly.cron", "new_photos.sh", "restore_album.py", "restore_faces.py"}


def test_cron(archive: Path, environ: dict[str, str]) -> None:
    lines = (EXAMPLES / "nightly.cron").read_text(encoding="utf-8").splitlines()
    (job,) = [line for line in lines if re.match(r"[\d*]", line)]
    minute, hour, *days, command = job.split(maxsplit=5)
    assert 0 <= int(minute) < 60 and 0 <= int(hour) < 24 and days == ["*"] * 3
    assert f"    {job}\n" in (REPOSITORY / "docs" / "scripts.md").read_text(encoding="utf-8")
    assert "%" not in command, "cron ends a command at %"
    done = run("sh", "-c", command.replace("/archive", f"'{archive}'"), folder=archive, environ=environ)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert {path.name for path in (archive / "restored").iterdir()} == {".facefix", "ann0.jpg", "sea.png"}


def test_shell(archive: Path, environ: dict[str, str]) -> None:
    def once() -> list[str]:
        script = EXAMPLES / "new_photos.sh"
        done = run(script, "photos", "portraits", "out of it", folder=archive, environ=environ)
        assert done.returncode == 0, done.stderr
        lines = (archive / "out of it" / "photos.jsonl").read_text(encoding="utf-8").splitlines()
        return [Path(json.loads(line)["photo"]).name for line in lines]

    assert once() == ["ann0.jpg"]
    (archive / "photos" / "1950").mkdir()
    old_photo("ann", 1).save(archive / "photos" / "1950" / "new.jpeg")
    assert once() == ["new.jpeg"]
    assert (archive / "out of it" / "1950" / "new.jpeg").is_file()


class Python:
    """Runs Python programs inside the test process, which has imported torch already."""

    def __init__(self, environ: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
        self.monkeypatch = monkeypatch
        for name, value in environ.items():
            monkeypatch.setenv(name, value)

    def __call__(self, script: str, *arguments: str, folder: Path) -> int | str:
        """The program's exit code, or the text that it ended with."""
        self.monkeypatch.chdir(folder)
        self.monkeypatch.setattr(sys, "argv", [script, *arguments])
        try:
            runpy.run_path(str(EXAMPLES / script), run_name="__main__")
        except SystemExit as leave:
            return leave.code or 0
        return 0


@pytest.fixture
def python(environ: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Python:
    return Python(environ, monkeypatch)


def test_python_album(archive: Path, python: Python, capsys: pytest.CaptureFixture[str]) -> None:
    assert python("restore_album.py", "photos", "portraits", "out", folder=archive) == 0
    assert re.search(r"^ann0.jpg: (restored|copied) \(ann\)$", capsys.readouterr().out, re.MULTILINE)
    assert (archive / "out" / "ann0.jpg").is_file()
    assert python("restore_album.py", "nowhere", "portraits", "out", folder=archive) == 2
    assert "nowhere" in capsys.readouterr().err
    assert "python restore_album.py" in str(python("restore_album.py", folder=archive))


def test_python_faces(tmp_path: Path, python: Python) -> None:
    for name in ("reference", "face"):
        portrait("ann", side=64).save(tmp_path / f"{name}.png")
    assert python("restore_faces.py", "out", "reference.png", "--", "face.png", folder=tmp_path) == 0
    assert Image.open(tmp_path / "out" / "face.png").size == (64, 64)
    assert "python restore_faces.py" in str(python("restore_faces.py", "out", "face.png", folder=tmp_path))


def blocks(page: str) -> list[str]:
    text = (REPOSITORY / page).read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def test_python_page(archive: Path, environ: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    faces, album = blocks("docs/python.md")
    monkeypatch.chdir(REPOSITORY)
    crops = [portrait("ann", side=200).resize((512, 512))]
    names: dict[str, Any] = {"portraits": crops, "faces": crops}
    exec(compile(faces, "docs/python.md", "exec"), names)
    assert np.asarray(names["restored"][0]).shape == (512, 512, 3)

    monkeypatch.chdir(archive)
    (archive / "photos").rename(archive / "album")
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    exec(compile(album, "docs/python.md", "exec"), {})
    assert (archive / "restored" / "ann0.jpg").is_file()
