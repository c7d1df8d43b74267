"""Landmarks of degraded faces: the network, its likelihood, and a run that trains, stops and goes on."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import face_recognition_models
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from skimage import data
from typer.testing import CliRunner

from facefix.cli import app
from facefix.errors import UsageError
from facefix.faces import align
from facefix.faces.landmarks68 import CropLandmarks
from facefix.networks.landmarks import MIRRORED, POINTS, LandmarkNetwork, Landmarks, negative_log_likelihood
from facefix.training.config import LandmarkTraining, write_config
from facefix.training.landmarks import jittered, load_bank, train_landmarks, versions_of

TINY = {"size": 32, "widths": (4, 8, 8, 8), "outlook": 4, "hidden": 16}
PREDICTOR = Path(face_recognition_models.pose_predictor_model_location())
EYES = np.array([[202.4, 99.5], [247.7, 102.3], [226.0, 127.5], [201.6, 139.9], [244.8, 141.4]])
"""Eyes, nose tip and mouth corners of the astronaut."""


@pytest.fixture(scope="module")
def crop() -> np.ndarray:
    return align.warp(data.astronaut(), align.crop_matrix(EYES))


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory, crop: np.ndarray) -> Path:
    folder = tmp_path_factory.mktemp("faces")
    for number in range(4):
        picture = Image.fromarray(crop).rotate(3 * number - 4, Image.Resampling.BICUBIC)
        picture.resize((128, 128), Image.Resampling.LANCZOS).save(folder / f"{number}.png")
    return folder


def configuration(pictures: Path, run: Path, **changes: Any) -> LandmarkTraining:
    settings: dict[str, Any] = {
        "run": run,
        "faces": {"images": [pictures], "size": 128},
        "held_out": 0,
        "model": TINY,
        "bank": pictures.parent / "bank.safetensors",
        "presets": {"moderate": 1, "archive": 1},
        "schedule": {"steps": 30, "batch": 8, "learning_rate": 5e-3, "warmup_steps": 3, "ema_decay": 0.9},
        "machine": {"device": "cpu", "dtype": "fp32"},
        "watching": {"log_steps": 1, "checkpoint_steps": 10, "sheet_steps": 30, "sheet_faces": 2},
    }
    return LandmarkTraining.model_validate({**settings, **changes})


def test_the_predictor_finds_a_face_at_every_size(crop: np.ndarray) -> None:
    large, spread = CropLandmarks(PREDICTOR)(crop)
    small, _ = CropLandmarks(PREDICTOR)(np.array(Image.fromarray(crop).resize((256, 256))))
    assert large.shape == (POINTS, 2)
    assert spread < 4
    assert np.linalg.norm(large - small, axis=1).mean() < 4
    eyes = np.stack([large[36:42].mean(0), large[42:48].mean(0)])
    assert np.linalg.norm(eyes - align.TEMPLATE_512[:2], axis=1).max() < 15


def test_mirrored_points_are_those_of_the_mirror_image(crop: np.ndarray) -> None:
    assert sorted(MIRRORED) == list(range(POINTS))
    assert all(MIRRORED[MIRRORED[point]] == point for point in range(POINTS))
    predictor = CropLandmarks(PREDICTOR)
    points, _ = predictor(crop)
    mirrored, _ = predictor(np.ascontiguousarray(crop[:, ::-1]))
    expected = points[list(MIRRORED)] * (-1, 1) + (511, 0)
    assert np.linalg.norm(mirrored - expected, axis=1).mean() < 6


def test_jitter_moves_points_with_the_picture(faces: Path, tmp_path: Path) -> None:
    """A dot drawn at a point is found at the point where the jitter says it went."""
    config = configuration(faces, tmp_path)
    points = torch.rand(16, POINTS, 2, generator=torch.Generator().manual_seed(2)) * 300 + 100
    pictures = torch.zeros(16, 1, 128, 128)
    places = ((points[:, 0] + 0.5) / 4 - 0.5).round().long()
    for row, (x, y) in enumerate(places.tolist()):
        pictures[row, 0, y - 1 : y + 2, x - 1 : x + 2] = 1
    seen, moved = jittered(pictures, points, config, torch.Generator().manual_seed(1))
    rows, columns = torch.meshgrid(torch.arange(128.0), torch.arange(128.0), indexing="ij")
    weight = seen[:, 0].sum((1, 2))
    found = torch.stack([(seen[:, 0] * grid).sum((1, 2)) / weight for grid in (columns, rows)], 1)
    errors = [(((moved[:, point] + 0.5) / 4 - 0.5) - found).norm(dim=1) for point in (0, MIRRORED[0])]
    assert float(torch.minimum(*errors).max()) < 1.2
    assert float((moved - points).norm(dim=-1).mean()) > 5


def test_the_likelihood_asks_for_the_error_as_deviation() -> None:
    truth = torch.zeros(1, POINTS, 2)
    points = truth + torch.tensor((3.0, 4.0))  # 5 px off, so 5 / sqrt 2 in x and in y
    losses = {
        deviation: float(negative_log_likelihood(Landmarks(points, torch.full((1, POINTS), deviation)), truth, beta=0))
        for deviation in (2.0, 5 / 2**0.5, 6.0)
    }
    assert min(losses, key=losses.__getitem__) == 5 / 2**0.5


def test_tone_and_contrast_do_not_matter_and_a_batch_is_its_rows(crop: np.ndarray) -> None:
    torch.manual_seed(0)
    network = LandmarkNetwork(**TINY).eval()
    torch.nn.init.normal_(network.head.weight, std=0.5)
    picture = torch.tensor(crop).permute(2, 0, 1)[None].float() / 127.5 - 1
    faded = 0.4 * picture + 0.3
    with torch.no_grad():
        both, alone = network(torch.cat([picture, faded])), network(picture)
    torch.testing.assert_close(both.points[0], both.points[1], atol=0.2, rtol=0)
    torch.testing.assert_close(both.points[:1], alone.points, atol=1e-3, rtol=0)
    assert float(both.deviation.min()) > 0.6


def test_it_trains_and_goes_on_where_it_stopped(faces: Path, tmp_path: Path) -> None:
    outcome = train_landmarks(configuration(faces, tmp_path / "whole"))
    assert outcome.finished
    with open(tmp_path / "whole" / "losses.csv", newline="") as file:
        log = list(csv.DictReader(file))
    first, last = (np.mean([float(row["loss"]) for row in part]) for part in (log[:5], log[-5:]))
    assert last < first
    model = LandmarkNetwork.from_pretrained(tmp_path / "whole" / "model")
    assert (tmp_path / "whole" / "sheets" / "0000030.png").is_file()

    stopped = configuration(faces, tmp_path / "legs")
    leg = stopped.schedule.model_copy(update={"leg_minutes": 1e-9})
    train_landmarks(stopped.model_copy(update={"schedule": leg}))
    train_landmarks(stopped, resume=True)
    again = LandmarkNetwork.from_pretrained(tmp_path / "legs" / "model")
    for (name, one), two in zip(model.state_dict().items(), again.state_dict().values(), strict=True):
        torch.testing.assert_close(one, two, msg=name)


def test_held_out_people_are_measured(faces: Path, tmp_path: Path) -> None:
    manifest = tmp_path / "manifest.csv"
    rows = "".join(f"{faces / f'{number}.png'},{'ab'[number // 2]}\n" for number in range(4))
    manifest.write_text("file,identity\n" + rows)
    source = {"images": [faces], "size": 128, "manifest": manifest}
    config = configuration(faces, tmp_path / "run", faces=source, held_out=1)
    train_landmarks(config)
    with open(tmp_path / "run" / "held_out.csv", newline="") as file:
        measures = list(csv.DictReader(file))[-1]
    versions = {f"{name} {unit}" for name in ("clean", "moderate", "archive") for unit in ("px", "z")}
    assert set(measures) == {"step", "mean shape px"} | versions
    assert all(float(value) > 0 for value in measures.values())


def test_another_bank_is_refused(faces: Path, tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    tensors = {"pictures": torch.zeros(2, 1, 32, 32, dtype=torch.uint8), "points": torch.zeros(2, POINTS, 2)}
    save_file({**tensors, "spread": torch.zeros(2)}, path)
    config = configuration(faces, tmp_path / "run", bank=path)
    assert versions_of(config) == ["clean", "moderate", "archive"]
    with pytest.raises(UsageError, match="expected pictures"):
        load_bank(config, [], 32)


def test_command(faces: Path, tmp_path: Path) -> None:
    config = configuration(faces, tmp_path / "run")
    schedule = config.schedule.model_copy(update={"steps": 2})
    write_config(config.model_copy(update={"schedule": schedule}), tmp_path / "config.yaml")
    done = CliRunner().invoke(app, ["train", "landmarks", str(tmp_path / "config.yaml")])
    assert done.exit_code == 0, done.output
    assert "finished after 2 steps" in done.output
