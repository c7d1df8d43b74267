"""The denoiser's training loop: latents cached, references read with gradient, killed and resumed to the same state."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DModel, VQModel
from PIL import Image
from pydantic import ValidationError
from skimage import data

from facefix.errors import UsageError
from facefix.methods.refldm.objective import pool
from facefix.methods.refldm.pipeline import ReFLDMPipeline
from facefix.methods.refldm.training import DenoiserTask, train_denoiser
from facefix.networks.autoencoder import build_autoencoder
from facefix.networks.unet import unet_config
from facefix.training.config import DenoiserTraining
from facefix.training.loop import Moment

TINY_AUTOENCODER = {
    "block_out_channels": (8, 8, 16, 16),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "latent_channels": 8,
    "vq_embed_dim": 8,
    "num_vq_embeddings": 16,
    "norm_num_groups": 4,
    "mid_block_add_attention": False,
    "scaling_factor": 1.0,
}
TINY_UNET = unet_config((16, 32), layers_per_block=1, sample_size=8, norm_num_groups=8, attention_head_dim=16)


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Faces of four people, two pictures each, a manifest, and an autoencoder."""
    folder = tmp_path_factory.mktemp("material")
    (folder / "faces").mkdir()
    picture = Image.fromarray(data.astronaut())
    lines = ["file,identity"]
    for number in range(8):
        piece = picture.crop((40 * (number // 2), 10 * (number % 2), 200 + 40 * (number // 2), 160 + 10 * (number % 2)))
        piece.resize((64, 64)).save(folder / "faces" / f"{number}.png")
        lines.append(f"faces/{number}.png,person {number // 2}")
    (folder / "manifest.csv").write_text("\n".join(lines) + "\n")
    torch.manual_seed(0)
    build_autoencoder(TINY_AUTOENCODER).save_pretrained(folder / "autoencoder")
    return folder


def configuration(material: Path, run: Path, **changes: Any) -> DenoiserTraining:
    settings: dict[str, Any] = {
        "run": run,
        "faces": {"images": [material / "faces"], "manifest": material / "manifest.csv", "size": 64},
        "held_out": 2,
        "autoencoder": material / "autoencoder",
        "model": TINY_UNET,
        "bank": {"path": material / "bank", "presets": {"severe": 1, "moderate": 1}, "references": 2},
        "references": {"count": 1, "share": 2, "absent": 0.3},
        "schedule": {"steps": 20, "batch": 4, "learning_rate": 2e-3, "warmup_steps": 3, "ema_decay": 0.9},
        "machine": {"device": "cpu", "dtype": "fp32"},
        "watching": {"log_steps": 1, "checkpoint_steps": 5, "sheet_steps": 20, "sheet_faces": 2},
    }
    return DenoiserTraining.model_validate({**settings, **changes})


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_trains_20_steps_and_a_killed_run_goes_on_to_the_same_state(material: Path, tmp_path: Path) -> None:
    outcome = train_denoiser(configuration(material, tmp_path / "whole"))
    assert (outcome.step, outcome.finished) == (20, True)
    log = rows(tmp_path / "whole" / "losses.csv")
    assert [int(row["step"]) for row in log] == list(range(1, 21))
    measures = rows(tmp_path / "whole" / "held_out.csv")[-1]
    assert {"right", "wrong", "none", "lq"} <= measures.keys()
    assert (tmp_path / "whole" / "sheets" / "0000020.png").is_file()

    leg = configuration(material, tmp_path / "legs")
    short = leg.model_copy(update={"schedule": leg.schedule.model_copy(update={"leg_minutes": 1e-9})})
    assert train_denoiser(short).step == 1
    assert train_denoiser(short, resume=True).step == 2
    assert train_denoiser(leg, resume=True).step == 20
    whole, legs = (torch.load(tmp_path / name / "checkpoint.pt", weights_only=True) for name in ("whole", "legs"))
    assert all(torch.equal(whole["network"][key], legs["network"][key]) for key in whole["network"])
    for first, second in zip(whole["average"]["shadow_params"], legs["average"]["shadow_params"], strict=True):
        assert torch.equal(first, second)
    assert [row["loss"] for row in rows(tmp_path / "legs" / "losses.csv")] == [row["loss"] for row in log]

    pipeline = ReFLDMPipeline.from_pretrained(tmp_path / "whole" / "model", torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    face = Image.open(material / "faces" / "0.png").resize((512, 512))
    assert pipeline(face, pipeline.encode_references(face), num_inference_steps=2).images[0].size == (512, 512)


def test_references_have_a_gradient_and_change_the_loss(material: Path, tmp_path: Path) -> None:
    settings = {"references": {"count": 2, "nulled": 0.0}, "objective": {"lq_dropout": 0.0}}
    task = DenoiserTask(configuration(material, tmp_path / "run", **settings), torch.device("cpu"))
    for parameter in task.network.parameters():  # the last kernels start at zero; let references matter at once
        torch.nn.init.normal_(parameter, std=0.1)
    batch = task.draws.batch(task.inside, 4, Moment(0, 0.0, 1).generator())
    references = batch.references.clone().requires_grad_()
    predicted = task.objective.predict(
        task.network, torch.cat([batch.good, batch.degraded], 1), torch.full((4,), 500), references
    )
    predicted.square().mean().backward()
    assert references.grad is not None
    assert bool((references.grad.abs().flatten(1).sum(1) > 0).all())


def test_people_held_out_are_not_trained_on(material: Path, tmp_path: Path) -> None:
    task = DenoiserTask(configuration(material, tmp_path / "run"), torch.device("cpu"))
    inside, outside = ({task.faces[i].identity for i in indices} for indices in (task.inside, task.outside.indices))
    assert len(outside) == 2
    assert not inside & outside
    for face in task.outside.indices:
        assert task.faces[task.outside.stranger(face)].identity != task.faces[face].identity


def test_the_identity_loss_follows_the_switch(material: Path, tmp_path: Path) -> None:
    losses = {}
    for weighting in ("none", "naive", "sqrt_abar"):
        objective = {"decoded": {"identity": 0.1, "identity_weighting": weighting, "samples": 2}}
        config = configuration(material, tmp_path / weighting, objective=objective)
        task = DenoiserTask(config, torch.device("cpu"))
        loss, values = task.losses(Moment(0, 0.0, 1))
        assert ("identity" in values) == (weighting != "none")
        losses[weighting] = float(loss.detach())
    assert losses["naive"] > losses["sqrt_abar"] > losses["none"]


@pytest.mark.parametrize("residual", [False, True])
def test_small_compute_objectives_train(material: Path, tmp_path: Path, residual: bool) -> None:
    objective = {
        "prediction": "sample" if residual else "v_prediction",
        "residual": residual,
        "high_timesteps": 3.0,
        "lq_dropout": 0.0,
        "decoded": {"truth": "image", "l1": 1.0, "perceptual": 0.5, "window": 6, "samples": 1},
    }
    config = configuration(material, tmp_path / "run", objective=objective)
    machine = config.machine.model_copy(update={"dtype": "bf16"})
    schedule = config.schedule.model_copy(update={"steps": 3})
    config = config.model_copy(update={"schedule": schedule, "machine": machine})
    assert train_denoiser(config).step == 3
    assert {"decoded_l1", "perceptual"} <= rows(tmp_path / "run" / "losses.csv")[-1].keys()
    index = ReFLDMPipeline.load_config(tmp_path / "run" / "model")
    assert index["residual"] is residual


def guided(material: Path, run: Path, **changes: Any) -> DenoiserTraining:
    bank = {
        "path": material / "guided",
        "presets": {"severe": 1, "moderate": 1},
        "references": 2,
        "guided": True,
    }
    changes = {"model": {**TINY_UNET, "in_channels": 24}, "bank": bank, **changes}
    return configuration(material, run, **changes)


def test_a_guided_denoiser_trains_and_its_pipeline_looks_at_the_guide(material: Path, tmp_path: Path) -> None:
    train_denoiser(guided(material, tmp_path / "run"))
    assert {"right", "wrong", "none"} <= set(rows(tmp_path / "run" / "held_out.csv")[-1])
    pipeline = ReFLDMPipeline.from_pretrained(tmp_path / "run" / "model")
    assert pipeline.unet.config.in_channels == 24
    lq = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1
    cache = pipeline.encode_references(lq.flip(2))
    assert cache.images is not None


def test_aligned_references_are_mirrored_as_their_faces_are(material: Path, tmp_path: Path) -> None:
    task = DenoiserTask(
        guided(material, tmp_path / "run", references={"pristine": 1.0, "share": 1, "nulled": 0.0}), torch.device("cpu")
    )
    batch = task.draws.batch(task.inside, 12, torch.Generator().manual_seed(0))
    assert {0, 1} == set(batch.mirrored.tolist())
    for face, side, references in zip(batch.faces.tolist(), batch.mirrored.tolist(), batch.references, strict=True):
        others = [task.draws.bank.good[other, side].float() for other in task.faces[face].references]
        assert any(torch.equal(references[0], other) for other in others)


def test_a_denoiser_without_a_guide_can_be_gone_on_from_with_one(material: Path, tmp_path: Path) -> None:
    train_denoiser(configuration(material, tmp_path / "plain"))
    config = guided(material, tmp_path / "run", start_from=tmp_path / "plain" / "model" / "unet")
    task = DenoiserTask(config, torch.device("cpu"))
    before = UNet2DModel.from_pretrained(config.start_from)
    x = torch.randn(2, 24, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert float(task.network(x, 5).sample.abs().max()) == 0
    torch.testing.assert_close(task.network.mid_block.state_dict(), before.mid_block.state_dict(), rtol=0, atol=0)
    assert torch.equal(task.network.conv_in.weight[:, :16], before.conv_in.weight)


def test_more_samples_of_people_with_several_pictures(material: Path, tmp_path: Path) -> None:
    names = ["alone" if number > 3 else "several" for number in range(8)]
    lines = [f"faces/{n}.png,{name}{n if name == 'alone' else ''}" for n, name in enumerate(names)]
    (material / "mixed.csv").write_text("\n".join(["file,identity", *lines]) + "\n")
    faces = {"images": [material / "faces"], "manifest": material / "mixed.csv", "size": 64}
    config = configuration(material, tmp_path / "run", faces=faces, held_out=0, references={"paired": 0.9})
    task = DenoiserTask(config, torch.device("cpu"))
    drawn = task.draws._people(task.inside, 1000, torch.Generator().manual_seed(0))
    assert 0.85 < float((drawn < 4).float().mean()) < 0.95


def test_pooled_lq_latents_say_nothing_about_who_it_is(material: Path, tmp_path: Path) -> None:
    latents = torch.randn(2, 8, 16, 16, generator=torch.Generator().manual_seed(0))
    pooled = pool(latents)
    assert pooled.shape == latents.shape
    torch.testing.assert_close(pooled.mean((2, 3)), latents.mean((2, 3)), rtol=0, atol=0.05)
    assert float(pooled.var()) < 0.1 * float(latents.var())


def test_a_guided_bank_needs_even_numbers(material: Path, tmp_path: Path) -> None:
    bank = {"path": material / "odd", "presets": {"severe": 3}, "references": 2, "guided": True}
    with pytest.raises(ValidationError, match="even numbers"):
        guided(material, tmp_path / "run", bank=bank)


def test_a_bank_of_another_autoencoder_is_refused(material: Path, tmp_path: Path) -> None:
    bank = {"path": tmp_path / "bank", "presets": {"spec": 1}, "references": 1}
    config = configuration(material, tmp_path / "run", bank=bank)
    DenoiserTask(config, torch.device("cpu"))
    torch.manual_seed(5)
    build_autoencoder(TINY_AUTOENCODER).save_pretrained(tmp_path / "other")
    with pytest.raises(UsageError, match="autoencoder"):
        DenoiserTask(config.model_copy(update={"autoencoder": tmp_path / "other"}), torch.device("cpu"))


def test_a_bank_outlives_further_training_of_the_decoder(material: Path, tmp_path: Path) -> None:
    bank = {"path": tmp_path / "bank", "presets": {"spec": 1}, "references": 1}
    config = configuration(material, tmp_path / "run", bank=bank)
    before = DenoiserTask(config, torch.device("cpu")).draws.bank
    better = VQModel.from_pretrained(material / "autoencoder")
    torch.nn.init.normal_(better.decoder.conv_out.weight)
    better.save_pretrained(tmp_path / "better")
    after = DenoiserTask(config.model_copy(update={"autoencoder": tmp_path / "better"}), torch.device("cpu")).draws.bank
    assert torch.equal(before.degraded, after.degraded)
