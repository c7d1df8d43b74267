"""The catalogue: where weights lie, which models there are, and what ships with facefix."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from facefix import folders
from facefix.errors import UsageError, WeightsUnavailable
from facefix.weights import catalogue as weights
from facefix.weights import install
from facefix.weights.catalogue import CATALOGUE
from facefix.weights.checksums import verify


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FACEFIX_WEIGHTS_DIR", str(tmp_path / "weights"))
    return tmp_path / "weights"


def test_weights_dir_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FACEFIX_WEIGHTS_DIR", str(tmp_path / "w"))
    assert folders.weights_dir() == tmp_path / "w"
    monkeypatch.delenv("FACEFIX_WEIGHTS_DIR")
    if sys.platform == "linux":
        monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
        assert folders.weights_dir() == tmp_path / "facefix" / "weights"
        monkeypatch.setenv("XDG_DATA_HOME", "relative")
        assert folders.weights_dir() == Path.home() / ".local" / "share" / "facefix" / "weights"


def test_models_are_found_by_name_and_by_folder(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    with pytest.raises(WeightsUnavailable, match="found a folder without one"):
        weights.find_model(mine)
    (mine / "model_index.json").write_text("{}")
    assert weights.find_model(mine) == mine
    monkeypatch.chdir(tmp_path)
    assert weights.find_model("mine") == Path("mine")
    with pytest.raises(WeightsUnavailable, match="found no such folder"):
        weights.find_model("yours")
    with pytest.raises(UsageError, match="expected a restoration model"):
        weights.find_model("buffalo_l")
    with pytest.raises(WeightsUnavailable, match=r"facefix models pull refldm --accept-licence"):
        weights.find_model("refldm")
    assert weights.best_installed_model() == "small"
    (home / "refldm").mkdir(parents=True)
    (home / "refldm" / "model_index.json").write_text("{}")
    assert weights.find_model("refldm") == home / "refldm"
    assert weights.best_installed_model() == "refldm"


def test_unknown_names_list_the_known_ones() -> None:
    with pytest.raises(UsageError, match=r"'nothing' is not in the catalogue.*small, refldm, interlcm, buffalo_l"):
        weights.entry("nothing")


def test_the_shipped_model_is_whole() -> None:
    folder = weights.installed_folder("small")
    if folder is None:
        pytest.skip("models/small is not in this checkout")
    assert weights.find_model("small") == folder
    assert verify(folder) == []
    assert install.pull(CATALOGUE["small"]) == folder
