"""The bank and the training of the method in patches: records, draws, a step, a leg and its resumption."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import UNet2DModel
from PIL import Image
from skimage import data

from facefix.datasets.faces import find_faces
from facefix.errors import UsageError
from facefix.methods.patches.bank import build_bank
from facefix.methods.patches.config import PatchTraining
from facefix.methods.patches.draws import Draws
from facefix.methods.patches.pipeline import PatchPipeline
from facefix.methods.patches.records import NO_GUIDE, open_records
from facefix.methods.patches.training import PatchTask, build, grouped_branches, train_patches
from facefix.networks.autoencoder import autoencoder_config, build_autoencoder
from facefix.networks.landmarks import LandmarkNetwork
from facefix.networks.survival import SurvivalNetwork
from facefix.training.loop import Moment

PEOPLE = 5


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Faces of five people, two pictures each but for the last, a manifest, an autoencoder, and a bank."""
    folder = tmp_path_factory.mktemp("material")
    (folder / "faces").mkdir()
    astronaut = Image.fromarray(data.astronaut())
    lines = ["file,identity,set"]
    for number in range(2 * PEOPLE - 1):
        left = 40 * (number // 2)
        piece = astronaut.crop((left, 10 * (number % 2), left + 160, 160 + 10 * (number % 2)))
        piece.resize((512, 512) if number % 2 else (96, 96)).save(folder / "faces" / f"{number}.png")
        lines.append(f"faces/{number}.png,person {number // 2},{'one' if number < 4 else 'other'}")
    (folder / "manifest.csv").write_text("\n".join(lines) + "\n")
    torch.manual_seed(0)
    arguments = autoencoder_config(
        (8, 8, 8, 16), layers_per_block=1, codes=16, norm_num_groups=4, mid_block_add_attention=False
    )
    build_autoencoder(arguments).save_pretrained(folder / "autoencoder")
    LandmarkNetwork().save_pretrained(folder / "landmarks")
    SurvivalNetwork().save_pretrained(folder / "survival")
    build_bank(configuration(folder, folder / "none"))
    return folder


def configuration(material: Path, run: Path, **changes: Any) -> PatchTraining:
    settings: dict[str, Any] = {
        "run": run,
        "faces": {"images": [material / "faces"], "manifest": material / "manifest.csv", "size": 512},
        "held_out": 2,
        "autoencoder": material / "autoencoder",
        "bank": material / "bank",
        "records": {
            "capacity": 12,
            "guided": 0.8,
            "wrong": 0.4,
            "landmarks": material / "landmarks",
            "survival": material / "survival",
        },
        "model": {"widths": [16, 32], "attention": [False, True]},
        "drawing": {"share": 2, "guide": 0.8},
        "objective": {"decoded": {"faces": 1, "pieces": 1, "face_window": 8, "piece_window": 6}},
        "schedule": {"steps": 2, "batch": 4, "learning_rate": 1e-3, "optimiser": "muon", "warmup_steps": 0},
        "machine": {"device": "cpu", "dtype": "fp32"},
        "watching": {"log_steps": 1, "checkpoint_steps": 1, "sheet_steps": 100, "sheet_faces": 1},
        **changes,
    }
    return PatchTraining.model_validate(settings)


def draws(config: PatchTraining, **changes: Any) -> Draws:
    good = np.load(config.bank / "good.npy", mmap_mode="r")
    drawing = config.drawing.model_copy(update=changes)
    return Draws(good, open_records(config.bank), find_faces(config.faces), range(9), drawing)


def test_records(material: Path) -> None:
    config = configuration(material, material / "none")
    records, faces = open_records(config.bank), find_faces(config.faces)
    meta = records.meta()
    assert len(meta) == 12
    guided = meta[meta["guide_face"] != NO_GUIDE]
    assert len(guided)
    for number, entry in enumerate(meta):
        assert records.latents("lq", number).abs().max() > 0
        assert records.latents("clean", number).abs().max() > 0
        assert bool(records.latents("guide", number).any()) == (entry["guide_face"] != NO_GUIDE)
        assert bool(records.latents("truth", number).any()) == (records.presets[entry["preset"]] == "archive")
    several = [face for face in meta["face"].tolist() if faces[face].references]
    assert 4 <= len(several) < 12


def test_building_again_changes_nothing_and_other_faces_are_refused(material: Path) -> None:
    config = configuration(material, material / "none")
    before = np.load(config.bank / "records0" / "lq.npy")
    assert build_bank(config).finished is False  # nothing was left to do
    assert np.array_equal(before, np.load(config.bank / "records0" / "lq.npy"))
    fewer = config.faces.model_copy(update={"limit": 4})
    with pytest.raises(UsageError, match="same 4 faces"):
        build_bank(config.model_copy(update={"faces": fewer}))


def test_references_are_other_pictures_of_the_person_or_a_stranger(material: Path) -> None:
    config = configuration(material, material / "none")
    faces, good = find_faces(config.faces), np.load(config.bank / "good.npy")
    kinds = set()
    drawn = draws(config, absent=0.0, nulled=0.0, wrong=0.5)
    for seed in range(12):
        batch = drawn.batch(4, np.random.default_rng(seed))
        assert batch.lq.shape == (4, 8, 64, 64)
        start = 0
        for group, count in enumerate(batch.counts):
            face, side = int(batch.faces[2 * group]), int(batch.mirrored[2 * group])
            for latents in batch.references[start : start + count]:
                source = int(np.abs(good[:, side].astype(np.float32) - latents.numpy()).max((1, 2, 3)).argmin())
                assert source != face
                kinds.add(faces[source].identity == faces[face].identity)
            start += count
        assert start == len(batch.references)
    assert kinds == {True, False}


def test_without_references_or_with_zeros(material: Path) -> None:
    config = configuration(material, material / "none")
    assert sum(draws(config, absent=1.0).batch(4, np.random.default_rng(0)).counts) == 0
    nulled = draws(config, absent=0.0, nulled=1.0).batch(4, np.random.default_rng(1))
    assert not bool(nulled.references.any())


def test_a_group_reads_its_own_references_only(material: Path) -> None:
    config = configuration(material, material / "none")
    task = PatchTask(config, torch.device("cpu"), 0)
    torch.nn.init.normal_(task.network.conv_out.weight, std=0.1)  # type: ignore[arg-type,union-attr]
    batch = next(
        found for found in (task.draws.batch(4, np.random.default_rng(seed)) for seed in range(50)) if all(found.counts)
    )
    unet = task.network.eval()
    assert isinstance(unet, UNet2DModel)

    def predicted(references: torch.Tensor) -> torch.Tensor:
        changed = type(batch)(**{name: getattr(batch, name) for name in batch.__slots__} | {"references": references})
        branches = grouped_branches(unet, task.patches, changed, 2)
        return task.patches.predict(unet, batch.lq, batch.lq, batch.guide, 999, branches).residual

    with torch.no_grad():
        one = predicted(batch.references)
        other = predicted(torch.cat([batch.references[: batch.counts[0]], batch.references[batch.counts[0] :] + 1]))
    assert torch.allclose(one[:2], other[:2], atol=1e-5)
    assert not torch.allclose(one[2:], other[2:], atol=1e-4)


def test_a_step_has_gradients_everywhere_that_it_should(material: Path) -> None:
    config = configuration(material, material / "none")
    task = PatchTask(config, torch.device("cpu"), 0)
    torch.nn.init.normal_(task.network.conv_out.weight, std=0.1)  # type: ignore[arg-type,union-attr]
    loss, values = task.losses(Moment(1, 0.5, 1))
    loss.backward()
    assert {"latent", "face_perceptual", "identity", "piece_l1"} <= set(values)
    missing = [name for name, weight in task.network.named_parameters() if weight.grad is None]
    assert missing == []


def test_train_save_and_go_on(material: Path, tmp_path: Path) -> None:
    parallel = configuration(material, tmp_path / "run")
    first = train_patches(parallel.model_copy(update={"schedule": parallel.schedule.model_copy(update={"steps": 1})}))
    assert first.step == 1
    second = train_patches(parallel, resume=True)
    assert (second.step, second.finished) == (2, True)
    assert (tmp_path / "run" / "held_out.csv").read_text().count("\n") == 3
    pipeline = PatchPipeline.from_pretrained(tmp_path / "run" / "model")
    assert pipeline.config.latent_scale == parallel.latent_scale
    start = build(parallel.model_copy(update={"start_from": tmp_path / "run" / "model" / "unet"}))
    assert torch.equal(start.conv_in.weight, pipeline.unet.conv_in.weight.float())
    wider = parallel.model_copy(update={"model": parallel.model.model_copy(update={"widths": (32, 32)})})
    with pytest.raises(UsageError, match="start_from"):
        build(wider.model_copy(update={"start_from": tmp_path / "run" / "model" / "unet", "run": tmp_path / "b"}))
