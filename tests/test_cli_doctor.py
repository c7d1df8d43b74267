"""``facefix doctor``: says what is there, what is wrong, times one face, and changes nothing."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from command_line import facefix
from tiny import tiny_pipeline

from facefix.checksums import seal
from facefix.weights import CATALOGUE


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A weights folder in which a tiny model with random weights stands for the published one."""
    home = tmp_path_factory.mktemp("weights")
    tiny_pipeline(default_steps=2).save_pretrained(home / "refldm")
    seal(home / "refldm")
    return home


@pytest.fixture(autouse=True)
def home(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FACEFIX_WEIGHTS_DIR", str(tiny_model))
    monkeypatch.chdir(tmp_path)
    return tiny_model


def findings(*options: str) -> tuple[int, dict[tuple[str, str], dict[str, Any]]]:
    done = facefix("doctor", "--json", *options)
    report = json.loads(done.stdout)
    assert report["healthy"] == (done.code == 0)
    return done.code, {(row["area"], row["name"]): row for row in report["findings"]}


def tree(folder: Path) -> dict[str, str]:
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*") if path.is_file()}


def test_a_sound_installation_is_measured_and_left_as_it_is(home: Path, tmp_path: Path) -> None:
    before = tree(home)
    code, found = findings()
    assert code == 0, [row for row in found.values() if row["state"] == "problem"]
    assert found["device", "cpu"]["gigaflops"]["fp32"] > 0.1
    assert {name for area, name in found if area == "disk"} == {"working folder", "temporary files", "weights"}
    assert found["disk", "weights"]["free_bytes"] > 0
    assert {name for area, name in found if area == "weights"} >= set(CATALOGUE)
    assert found["weights", "refldm"]["state"] == "ok"
    assert found["weights", "buffalo_l"]["state"] == "note"
    for name, entry in CATALOGUE.items():
        assert found["weights", name]["licence"] == entry.licence
    assert found["faces", "dlib"]["installed"] is True
    assert found["face", "refldm"]["seconds"]["restore a face in the usual steps"] > 0
    assert any("embed a face" in row["seconds"] for (area, _), row in found.items() if area == "face")
    assert tree(home) == before
    assert list(tmp_path.iterdir()) == []


def test_it_reads_well_without_json() -> None:
    done = facefix("doctor", "--no-face")
    assert done.code == 0
    lines = done.stdout.splitlines()
    assert all(line.startswith(("ok ", "note ")) for line in lines)
    assert any("GFLOP/s" in line and "used by default" in line for line in lines)
    assert any("the default model" in line for line in lines)
    assert any("facefix models pull buffalo_l --accept-licence" in line for line in lines)


def test_damaged_weights_are_a_problem(home: Path) -> None:
    path = next((home / "refldm").rglob("*.safetensors"))
    sound = path.read_bytes()
    try:
        path.write_bytes(sound[:-1] + b"x")
        code, found = findings("--no-face")
    finally:
        path.write_bytes(sound)
    assert code == 1
    assert str(path) in found["weights", "refldm"]["text"]


def test_a_model_that_does_not_load_is_a_problem(home: Path) -> None:
    path = home / "refldm" / "unet" / "config.json"
    sound = path.read_bytes()
    try:
        path.write_bytes(b"{}")
        code, found = findings()
    finally:
        path.write_bytes(sound)
    assert code == 1
    assert found["face", "timed face"]["state"] == "problem"


def test_settings_that_cannot_be_used_are_a_problem(tmp_path: Path) -> None:
    (tmp_path / "facefix.toml").write_text("strenght = 1\n")
    code, found = findings("--no-face")
    assert code == 1
    assert "strenght" in found["settings", "settings"]["text"]
