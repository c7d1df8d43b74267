"""Training of the estimate of what damage has left: it learns, and is measured on people it has not seen."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from skimage import data
from typer.testing import CliRunner

from facefix.cli import app
from facefix.errors import UsageError
from facefix.networks.survival import BANDS, SurvivalNetwork
from facefix.training.config import SurvivalTraining, write_config
from facefix.training.survival import load_bank, train_survival, versions_of


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("faces")
    picture = Image.fromarray(data.astronaut())
    for number in range(4):
        picture.rotate(5 * number).save(folder / f"{number}.png")
    picture.resize((256, 256)).save(folder / "small.png")
    return folder


def configuration(pictures: Path, run: Path, **changes: Any) -> SurvivalTraining:
    manifest = pictures.parent / "manifest.csv"
    rows = "".join(f"{pictures / f'{number}.png'},{'ab'[number // 2]}\n" for number in range(4))
    manifest.write_text("file,identity\n" + rows)
    settings: dict[str, Any] = {
        "run": run,
        "faces": {"images": [pictures], "manifest": manifest, "size": 512},
        "held_out": 1,
        "model": {"widths": (4, 6, 8, 8)},
        "bank": pictures.parent / "survival.safetensors",
        "presets": {"severe": 1, "archive": 1},
        "piece": 64,
        "schedule": {"steps": 40, "batch": 8, "learning_rate": 1e-2, "warmup_steps": 3, "ema_decay": 0.9},
        "machine": {"device": "cpu", "dtype": "fp32"},
        "watching": {"log_steps": 1, "checkpoint_steps": 20, "sheet_steps": 40, "sheet_faces": 2},
    }
    return SurvivalTraining.model_validate({**settings, **changes})


def test_it_trains_and_is_measured_on_others(pictures: Path, tmp_path: Path) -> None:
    config = configuration(pictures, tmp_path / "run")
    outcome = train_survival(config)
    assert outcome.finished
    with open(tmp_path / "run" / "losses.csv", newline="") as file:
        log = list(csv.DictReader(file))
    first, last = (np.mean([float(row["loss"]) for row in part]) for part in (log[:5], log[-5:]))
    assert last < 0.7 * first
    with open(tmp_path / "run" / "held_out.csv", newline="") as file:
        measures = list(csv.DictReader(file))[-1]
    names = {f"band {band} {what} R2" for band in range(BANDS) for what in ("fraction", "gain")}
    assert set(measures) == {"step", "severe fraction R2", "archive fraction R2"} | names
    SurvivalNetwork.from_pretrained(tmp_path / "run" / "model")
    assert (tmp_path / "run" / "sheets" / "0000040.png").is_file()


def test_small_pictures_are_left_out_and_another_bank_refused(pictures: Path, tmp_path: Path) -> None:
    config = configuration(pictures, tmp_path / "run", bank=tmp_path / "other.safetensors")
    assert versions_of(config) == ["severe", "archive"]
    tensors = {"pieces": torch.zeros(5, 2, 3, 64, 64, dtype=torch.uint8), "truth": torch.zeros(5, 2, 3, 5, 4, 4)}
    save_file(tensors, config.bank)
    with pytest.raises(UsageError, match=r"expected pieces \(4, 2, 3, 64, 64\)"):
        train_survival(config)
    with pytest.raises(UsageError, match="expected pieces"):
        load_bank(config, [])


def test_command(pictures: Path, tmp_path: Path) -> None:
    config = configuration(pictures, tmp_path / "run")
    schedule = config.schedule.model_copy(update={"steps": 2})
    write_config(config.model_copy(update={"schedule": schedule}), tmp_path / "config.yaml")
    done = CliRunner().invoke(app, ["train", "survival", str(tmp_path / "config.yaml")])
    assert done.exit_code == 0, done.output
    assert "finished after 2 steps" in done.output
