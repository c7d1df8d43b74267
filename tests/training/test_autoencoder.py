"""The autoencoder's training loop: it starts, trains, is killed, and goes on as if nothing had happened."""

from __future__ import annotations

import csv
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import VQModel
from PIL import Image
from skimage import data
from typer.testing import CliRunner

from facefix.cli import app
from facefix.errors import CheckpointError, UsageError
from facefix.networks.autoencoder import build_autoencoder, decode, encode
from facefix.training.autoencoder import AutoencoderTask, train_autoencoder, unit_latents
from facefix.training.config import AutoencoderTraining, write_config
from facefix.training.loop import Moment

TINY = {
    "block_out_channels": (8, 8, 16, 16),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "latent_channels": 8,
    "vq_embed_dim": 8,
    "num_vq_embeddings": 16,
    "norm_num_groups": 4,
    "mid_block_add_attention": False,
}


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("faces")
    picture = Image.fromarray(data.astronaut())
    for number in range(6):
        picture.crop((10 * number, 0, 10 * number + 256, 256)).resize((64, 64)).save(folder / f"{number}.png")
    return folder


def configuration(faces: Path, run: Path, **changes: Any) -> AutoencoderTraining:
    settings: dict[str, Any] = {
        "run": run,
        "faces": {"images": [faces]},
        "model": TINY,
        "crop": 32,
        "losses": {"l1": 1.0, "l2": 1.0, "latent_scale": 0.01, "adversarial": 0.1, "adversarial_from": 6},
        "schedule": {"steps": 20, "batch": 4, "learning_rate": 2e-3, "warmup_steps": 3, "ema_decay": 0.9},
        "machine": {"device": "cpu", "dtype": "fp32"},
        "watching": {"log_steps": 1, "checkpoint_steps": 5, "sheet_steps": 20, "sheet_faces": 2},
    }
    return AutoencoderTraining.model_validate({**settings, **changes})


def rows(run: Path) -> list[dict[str, str]]:
    with open(run / "losses.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_trains_20_steps_and_a_killed_run_goes_on_to_the_same_state(faces: Path, tmp_path: Path) -> None:
    outcome = train_autoencoder(configuration(faces, tmp_path / "whole"))
    assert outcome.step == 20
    assert outcome.finished
    log = rows(tmp_path / "whole")
    assert [int(row["step"]) for row in log] == list(range(1, 21))
    first, last = (np.mean([float(row["l1"]) for row in part]) for part in (log[:5], log[-5:]))
    assert last < first
    for name in ("config.yaml", "seeds.json", "losses.png", "held_out.csv", "sheets/0000020.png", "model/config.json"):
        assert (tmp_path / "whole" / name).is_file(), name

    # A first leg that stops at once, as a kill would, leaves a checkpoint in the middle of the run.
    leg = configuration(faces, tmp_path / "legs")
    schedule = leg.schedule.model_copy(update={"leg_minutes": 1e-9})
    short = leg.model_copy(update={"schedule": schedule})
    assert train_autoencoder(short).step == 1
    for expected in (2, 3):
        assert train_autoencoder(short, resume=True).step == expected
    assert train_autoencoder(leg, resume=True).step == 20
    states = [torch.load(tmp_path / name / "checkpoint.pt", weights_only=True) for name in ("whole", "legs")]
    for part in ("network", "task"):
        flat = [_tensors(state[part]) for state in states]
        assert flat[0].keys() == flat[1].keys()
        assert all(torch.equal(flat[0][key], flat[1][key]) for key in flat[0])
    assert [row["l1"] for row in rows(tmp_path / "legs")] == [row["l1"] for row in log]


def _tensors(state: Any, name: str = "") -> dict[str, torch.Tensor]:
    if isinstance(state, torch.Tensor):
        return {name: state}
    items = state.items() if isinstance(state, dict) else enumerate(state) if isinstance(state, list | tuple) else ()
    return {key: value for part, item in items for key, value in _tensors(item, f"{name}/{part}").items()}


def test_a_run_killed_at_any_moment_resumes_from_the_command_line(faces: Path, tmp_path: Path) -> None:
    """SIGKILL in the middle of a run; the CSV may be ahead of the checkpoint then, and is cut back to it."""
    config = configuration(faces, tmp_path / "whole")
    write_config(config, tmp_path / "whole.yaml")
    killed = config.model_copy(update={"run": tmp_path / "killed"})
    write_config(killed, tmp_path / "killed.yaml")
    command = [sys.executable, "-m", "facefix", "train", "autoencoder", str(tmp_path / "killed.yaml")]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 120
        while not (tmp_path / "killed" / "checkpoint.pt").exists() and time.monotonic() < deadline:
            assert process.poll() in (None, 0)
            time.sleep(0.02)
        process.kill()
    runner = CliRunner()
    for name, options in (("whole", []), ("killed", ["--resume"])):
        result = runner.invoke(app, ["train", "autoencoder", str(tmp_path / f"{name}.yaml"), *options])
        assert result.exit_code == 0, result.output
        assert "finished after 20 steps" in result.output
    assert [row["l1"] for row in rows(tmp_path / "killed")] == [row["l1"] for row in rows(tmp_path / "whole")]
    whole, resumed = (
        torch.load(tmp_path / name / "checkpoint.pt", weights_only=True)["network"] for name in ("whole", "killed")
    )
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)


def test_quantised_training_moves_the_codes(faces: Path, tmp_path: Path) -> None:
    config = configuration(faces, tmp_path / "run", schedule={"steps": 4, "batch": 2, "learning_rate": 1e-2})
    torch.manual_seed(config.seed)
    before = build_autoencoder(TINY).quantize.embedding.weight.clone()
    train_autoencoder(config)
    state = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["network"]
    assert not torch.equal(before, state["quantize.embedding.weight"])


def test_a_frozen_encoder_keeps_the_latents(faces: Path, tmp_path: Path) -> None:
    torch.manual_seed(3)
    build_autoencoder(TINY).save_pretrained(tmp_path / "start")
    schedule = {"steps": 3, "batch": 2, "learning_rate": 1e-2, "optimiser": "muon"}
    config = configuration(
        faces, tmp_path / "run", start_from=tmp_path / "start", freeze_encoder=True, quantize=False, schedule=schedule
    )
    train_autoencoder(config)
    before, after = (VQModel.from_pretrained(tmp_path / name).state_dict() for name in ("start", "run/model"))
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"decoder", "post_quant_conv", "quantize"}


def test_the_identity_loss_looks_at_whole_faces_on_its_steps(faces: Path, tmp_path: Path) -> None:
    """Its value is dlib's dissimilarity of what goes in and what comes out, and the decoder learns from it alone."""
    losses = {"l1": 0.0, "codebook": 0.0, "identity": 1.0, "identity_every": 2}
    config = configuration(faces, tmp_path / "run", losses=losses, freeze_encoder=True, quantize=False, whole=64)
    task = AutoencoderTask(config, torch.device("cpu"))
    _, values = task.losses(Moment(1, 0.0, 4))
    assert "identity" not in values
    loss, values = task.losses(Moment(2, 0.0, 4))
    assert values["identity"] > 0
    assert float(loss.detach()) == pytest.approx(values["identity"], rel=1e-5)
    loss.backward()
    gradients = [p.grad for p in task.network.decoder.parameters() if p.grad is not None]
    assert sum(float(gradient.abs().sum()) for gradient in gradients) > 0


def test_a_run_folder_in_use_and_a_changed_configuration_are_refused(faces: Path, tmp_path: Path) -> None:
    config = configuration(faces, tmp_path / "run", schedule={"steps": 1, "batch": 2, "learning_rate": 1e-3})
    with pytest.raises(CheckpointError, match="without --resume"):
        train_autoencoder(config, resume=True)
    train_autoencoder(config)
    with pytest.raises(UsageError, match="--resume"):
        train_autoencoder(config)
    with pytest.raises(UsageError, match="crop"):
        train_autoencoder(config.model_copy(update={"crop": 40}), resume=True)


def test_unit_latents_keep_the_images() -> None:
    torch.manual_seed(0)
    network = build_autoencoder(TINY).eval()
    images = torch.rand(4, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        latents = encode(network, images)
        before = [decode(network, latents, quantized=quantized) for quantized in (False, True)]
        unit_latents(network, latents)
        scaled = encode(network, images)
        after = [decode(network, scaled, quantized=quantized) for quantized in (False, True)]
    assert torch.allclose(scaled.mean((0, 2, 3)), torch.zeros(8), atol=1e-4)
    assert torch.allclose(scaled.std((0, 2, 3)), torch.ones(8), atol=1e-4)
    assert torch.allclose(before[0], after[0], atol=1e-4)
    # nearest by unscaled and by scaled distance may differ where two codes are about as far
    assert (before[1] - after[1]).abs().median() < 0.05
