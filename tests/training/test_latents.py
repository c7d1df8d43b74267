"""The bank of latents: what is in it, that it is computed once, and that it knows what it was made of."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import VQModel
from PIL import Image

from facefix.datasets.faces import TrainingFace
from facefix.errors import UsageError
from facefix.networks.autoencoder import build_autoencoder, encode
from facefix.training.config import Bank, Machine
from facefix.training.latents import BankBuilder, LatentBank

TINY = {
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
MACHINE = Machine(device="cpu", dtype="fp32")


@pytest.fixture(scope="module")
def autoencoder() -> VQModel:
    torch.manual_seed(0)
    return build_autoencoder(TINY).eval().requires_grad_(False)


@pytest.fixture
def faces(tmp_path: Path) -> list[TrainingFace]:
    """Two pictures of one person, one of another, all different."""
    found = []
    for number, (person, others) in enumerate((("a", (1,)), ("a", (0,)), ("b", ()))):
        path = tmp_path / f"{number}.png"
        Image.fromarray(np.random.default_rng(number).integers(0, 255, (64, 64, 3), np.uint8)).save(path)
        found.append(TrainingFace(path, person, others))
    return found


def builder(faces: list[TrainingFace], autoencoder: VQModel, path: Path, *, guided: bool = False) -> BankBuilder:
    settings = Bank(path=path, presets={"severe": 1, "moderate": 1}, references=2, guided=guided)
    return BankBuilder(settings, faces, 64, autoencoder, MACHINE)


def test_good_latents_are_those_of_the_pictures_as_they_are_and_mirrored(
    faces: list[TrainingFace], autoencoder: VQModel, tmp_path: Path
) -> None:
    bank = builder(faces, autoencoder, tmp_path / "bank").bank()
    assert bank.good.shape == (3, 2, 8, 8, 8) and bank.degraded.shape == (3, 2, 8, 8, 8)
    assert bank.references.shape == (3, 2, 8, 8, 8) and bank.guides is None
    assert bank.good.dtype == torch.float16
    for face, latents in zip(faces, bank.good, strict=True):
        pixels = torch.from_numpy(np.array(Image.open(face.path))).permute(2, 0, 1)[None] / 127.5 - 1
        expected = torch.cat([encode(autoencoder, pixels), encode(autoencoder, pixels.flip(3))])
        torch.testing.assert_close(latents.float(), expected, rtol=2e-3, atol=2e-3)


def test_a_killed_computation_goes_on_and_gives_the_same_bank(
    faces: list[TrainingFace], autoencoder: VQModel, tmp_path: Path
) -> None:
    many = faces * 12  # more than one shard
    whole = builder(many, autoencoder, tmp_path / "bank").bank()
    shards = sorted((tmp_path / "bank").glob("*.safetensors"))
    assert len(shards) == 2
    kept = shards[0].stat().st_mtime_ns
    shards[1].unlink()
    again = builder(many, autoencoder, tmp_path / "bank").bank()
    assert shards[0].stat().st_mtime_ns == kept
    assert torch.equal(again.degraded, whole.degraded) and torch.equal(again.references, whole.references)


def test_a_guide_is_the_degraded_picture_where_the_person_has_no_other(
    faces: list[TrainingFace], autoencoder: VQModel, tmp_path: Path
) -> None:
    bank = builder(faces, autoencoder, tmp_path / "bank", guided=True).bank()
    assert bank.guides is not None
    torch.testing.assert_close(bank.guides[2], bank.degraded[2])
    assert not torch.allclose(bank.guides[0].float(), bank.degraded[0].float(), atol=1e-2)


@pytest.mark.parametrize("change", ["faces", "autoencoder", "references"])
def test_a_bank_of_something_else_is_refused(
    faces: list[TrainingFace], autoencoder: VQModel, tmp_path: Path, change: str
) -> None:
    builder(faces, autoencoder, tmp_path / "bank").bank()
    other = builder(faces, autoencoder, tmp_path / "bank")
    if change == "faces":
        other.faces = faces[:2]
    elif change == "autoencoder":
        torch.manual_seed(1)
        other.autoencoder = build_autoencoder(TINY)
    else:
        other.settings = other.settings.model_copy(update={"references": 4})
    with pytest.raises(UsageError, match=change):
        other.bank()


def test_the_scale_of_the_residual_is_the_spread_of_what_is_to_be_learned() -> None:
    generator = torch.Generator().manual_seed(0)
    good, noise = (torch.randn(6, 2, 8, 4, 4, generator=generator) for _ in range(2))
    sides = torch.stack([good[torch.arange(6), (torch.arange(6) + version) % 2] for version in range(2)], 1)
    bank = LatentBank(good.half(), (sides + 0.3 * noise).half(), good.half())
    assert bank.residual_scale() == pytest.approx(0.3, rel=0.05)
