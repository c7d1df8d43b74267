"""An album restored with a model of this method, by the commands."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from albums import make_album, make_portraits
from command_line import facefix
from PIL import Image
from tiny_interlcm import tiny_pipeline


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "blind"
    tiny_pipeline().save_pretrained(folder)
    return folder


def test_an_album_of_a_person_with_portraits(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The method has no use for them; the guard compares the result with them all the same."""
    monkeypatch.chdir(tmp_path)
    make_album(tmp_path / "album", photos_per_person=1, people=["ann"])
    make_portraits(tmp_path / "portraits", people=["ann"])
    options = ["--refs", "portraits", "--restore", "all", "--faces", "dlib", "--jsonl", "--min-face", "20"]
    done = facefix("restore", "album", "--model", model, *options)
    assert done.code == 0, done.stderr
    photos = {Path(row["photo"]).name: row for row in map(json.loads, done.stdout.splitlines())}
    (face,) = photos["ann0.jpg"]["faces"]
    assert face["person"] == "ann"
    assert face["verdict"] == "kept"  # random weights make nobody, and the guard sees it


def test_an_aligned_face(model: Path, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
    Image.fromarray(pixels).convert("RGB").save(tmp_path / "grey.png")
    done = facefix("face", tmp_path / "grey.png", "--model", model, "--steps", "1", "-o", tmp_path / "out.png")
    assert done.code == 0, done.stderr
    red, green, blue = np.moveaxis(np.asarray(Image.open(tmp_path / "out.png").convert("RGB")), 2, 0)
    assert np.array_equal(red, green)
    assert np.array_equal(red, blue)
    assert not np.array_equal(red, pixels)


def test_steps_that_the_model_is_not_made_for(model: Path, tmp_path: Path) -> None:
    Image.new("RGB", (64, 64), (90, 120, 60)).save(tmp_path / "face.png")
    done = facefix("face", tmp_path / "face.png", "--model", model, "--steps", "10", "-o", tmp_path / "out.png")
    assert done.code == 2
    assert "expected 3 or 1 or 2" in done.stderr
    assert not (tmp_path / "out.png").exists()
