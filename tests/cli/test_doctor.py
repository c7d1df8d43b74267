"""``facefix doctor``: says what is there, what is wrong, times one face, and changes nothing."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from command_line import facefix
from PIL import Image
from tiny import tiny_pipeline

from facefix.weights.catalogue import CATALOGUE
from facefix.weights.checksums import seal


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
    assert found["face", "refldm"]["seconds"]["restore a face"] > 0
    assert any("embed a face" in row["seconds"] for (area, _), row in found.items() if area == "face")
    assert tree(home) == before
    assert list(tmp_path.iterdir()) == []


def test_it_reads_well_without_json() -> None:
    done = facefix("doctor", "--no-face")
    assert done.code == 0
    lines = done.stdout.splitlines()
    assert all(line.startswith(("ok ", "note ")) for line in lines)
    assert any("GFLOP/s" in line and "used for the model, in fp32" in line for line in lines)
    assert any("the model that is used" in line for line in lines)
    assert any("facefix models pull buffalo_l --accept-licence" in line for line in lines)
    assert any("dlib" in line and "on the CPU; the one that is used" in line for line in lines)


def test_every_format_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    _, found = findings("--no-face")
    formats = {name: row for (area, name), row in found.items() if area == "formats"}
    assert set(formats) == {"JPEG", "PNG", "TIFF", "WEBP", "BMP", "AVIF", "HEIC", "camera raw"}
    assert "read and written by Pillow" in formats["AVIF"]["text"] and "extra" not in formats["AVIF"]["text"]
    assert formats["HEIC"]["state"] == ("ok" if importlib.util.find_spec("pillow_heif") else "note")
    assert formats["camera raw"]["state"] == ("ok" if importlib.util.find_spec("rawpy") else "note")

    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    monkeypatch.setitem(sys.modules, "rawpy", None)
    monkeypatch.delitem(Image.SAVE, "AVIF")
    code, found = findings("--no-face")
    assert code == 0
    for name, reason in (("AVIF", "AVIF"), ("HEIC", "facefix[heif]"), ("camera raw", "facefix[raw]")):
        assert found["formats", name]["state"] == "note" and reason in found["formats", name]["text"]


def test_the_settings_of_the_folder_decide_what_is_used(home: Path, tmp_path: Path) -> None:
    (tmp_path / "facefix.toml").write_text('model = "small"\ndtype = "bf16"\nfaces = "insightface"\n')
    code, found = findings("--no-face")
    assert code == 1
    assert "in bf16" in found["device", "cpu"]["text"]
    assert "used" not in found["weights", "refldm"]["text"]
    assert found["faces", "insightface"]["state"] == "problem"
    assert "models pull buffalo_l --accept-licence" in found["faces", "insightface"]["text"]
    (tmp_path / "facefix.toml").write_text('model = "nowhere"\ndevice = "cuda:7"\n')
    code, found = findings("--no-face")
    assert code == 1
    assert found["weights", "nowhere"]["state"] == found["device", "cuda:7"]["state"] == "problem"


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
