"""From published files to a restored face: fetched files are installed, the command imports, the registry loads."""

from __future__ import annotations

import shutil
from pathlib import Path

import golden_interlcm as published
import numpy as np
import pytest
import torch
from command_line import facefix

from facefix.errors import CheckpointError, UsageError
from facefix.methods import registry
from facefix.methods.base import LoadOptions
from facefix.weights.catalogue import CATALOGUE
from facefix.weights.install import PullOptions, pull


@pytest.fixture
def fetched(tmp_path: Path) -> Path:
    """The published files under their published names."""
    files = published.write(tmp_path / "made")
    folder = tmp_path / "fetched"
    shutil.copytree(files.lcm, folder)
    for path, name in ((files.visual, "visual_encoder_3step.pth"), (files.spatial, "spatial_encoder_3step.pth")):
        path.rename(folder / name)
    torch.save(published.transformers_clip(published.weights("clip")), folder / "pytorch_model.bin")
    return folder


def restored(model: Path) -> np.ndarray:
    loaded = registry.load(model, LoadOptions("interlcm", torch.device("cpu"), torch.float32))
    assert loaded.references == "none"
    crop = np.random.default_rng(0).integers(0, 256, (128, 128, 3), dtype=np.uint8)
    return loaded.restore([crop], None)[0]


def test_pulled_and_imported_models_are_the_same(fetched: Path, tmp_path: Path) -> None:
    options = PullOptions(accept_licence=True, given=(fetched,))
    pulled = pull(CATALOGUE["interlcm"], options, home=tmp_path / "weights")
    assert "CC BY-NC 4.0" in (pulled / "SOURCE.txt").read_text(encoding="utf-8")
    files = {
        "--visual": fetched / "visual_encoder_3step.pth",
        "--spatial": fetched / "spatial_encoder_3step.pth",
        "--lcm": fetched,
        "--clip": fetched / "pytorch_model.bin",
        "--to": tmp_path / "imported",
    }
    done = facefix("models", "import", "interlcm", *(str(part) for pair in files.items() for part in pair))
    assert (done.code, done.stdout.strip()) == (0, str(tmp_path / "imported"))
    assert np.array_equal(restored(pulled), restored(tmp_path / "imported"))


def test_the_licence_is_to_be_accepted(fetched: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"CC BY-NC 4\.0.*--accept-licence"):
        pull(CATALOGUE["interlcm"], PullOptions(given=(fetched,)), home=tmp_path / "weights")


def test_nothing_is_installed_of_a_faulty_file(fetched: Path, tmp_path: Path) -> None:
    shutil.copy(fetched / "visual_encoder_3step.pth", fetched / "spatial_encoder_3step.pth")
    with pytest.raises(CheckpointError, match="was it meant for --visual"):
        pull(CATALOGUE["interlcm"], PullOptions(accept_licence=True, given=(fetched,)), home=tmp_path / "weights")
    assert not (tmp_path / "weights" / "interlcm").exists()
    assert not [path for path in (tmp_path / "weights").iterdir() if path.is_dir() and path.name != "downloads"]
