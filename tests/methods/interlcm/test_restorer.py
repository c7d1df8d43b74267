"""The restorer protocol as InterLCM implements it."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_interlcm import tiny_pipeline

from facefix.errors import CheckpointError, NotFiniteError, UsageError, WeightsUnavailable
from facefix.methods import registry
from facefix.methods.base import LoadOptions, Pixels, Restorer, SamplingSettings
from facefix.methods.interlcm.restorer import InterLCMRestorer

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny_pipeline().save_pretrained(folder)
    return folder


def crop(seed: int, side: int = 64) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)


def restorer(folder: Path, dtype: torch.dtype = torch.float32, **settings: object) -> InterLCMRestorer:
    options = LoadOptions("tiny", CPU, dtype, SamplingSettings(**settings))  # type: ignore[arg-type]
    loaded = registry.load(folder, options)
    assert isinstance(loaded, InterLCMRestorer)
    return loaded


def test_it_is_a_restorer_without_references(folder: Path) -> None:
    made = restorer(folder)
    assert isinstance(made, Restorer)
    assert (made.name, made.crop_size, made.references, made.composes) == ("tiny", 64, "none", False)
    references = made.prepare([crop(1), crop(2)])
    assert (references.count, references.nbytes) == (0, 0)
    (without,), (with_them,) = made.restore([crop(3)], None), made.restore([crop(3)], references)
    assert (without.shape, without.dtype) == ((64, 64, 3), np.uint8)
    assert np.array_equal(without, with_them)
    assert made.autoencoder is not None
    assert made.autoencoder(crop(4)).shape == (64, 64, 3)
    assert made.seconds_per_face(2) > 0


def test_numbers_of_steps(folder: Path) -> None:
    made = restorer(folder)
    assert made.own_steps == 3
    assert made.sweep.steps == (1, 2, 3)
    one = made.with_sampling(SamplingSettings(steps=1))
    assert np.array_equal(one.restore([crop(3)], None)[0], restorer(folder, steps=1).restore([crop(3)], None)[0])
    assert not np.array_equal(one.restore([crop(3)], None)[0], made.restore([crop(3)], None)[0])
    with pytest.raises(UsageError, match="expected 3 or 1 or 2"):
        made.with_sampling(SamplingSettings(steps=10))


def test_every_part_can_be_left_out(folder: Path) -> None:
    made = restorer(folder)
    assert made.ablations.keys() == {"start", "spatial", "tokens"}
    lacking = [made, *(make() for make in made.ablations.values())]
    assert len({one.recipe for one in lacking}) == 4
    pictures = [one.restore([crop(3), crop(4)], None)[0] for one in lacking]
    for number, first in enumerate(pictures):
        assert not any(np.array_equal(first, second) for second in pictures[:number])


def test_a_face_has_its_own_seed_in_any_batch(folder: Path) -> None:
    made = restorer(folder)
    together = made.restore([crop(3), crop(4), crop(5)], None, seeds=[30, 40, 50])
    alone = made.restore([crop(4)], None, seeds=[40])
    other = made.restore([crop(4)], None, seeds=[41])
    assert np.abs(together[1].astype(int) - alone[0].astype(int)).max() <= 1
    assert not np.array_equal(alone[0], other[0])


def test_crops_of_another_size_are_resized(folder: Path) -> None:
    assert restorer(folder).restore([crop(3, side=48)], None)[0].shape == (64, 64, 3)


def test_grey_stays_grey(folder: Path) -> None:
    grey = crop(1)[..., :1].repeat(3, axis=2)
    (found,) = restorer(folder).restore([grey], None)
    assert np.array_equal(found[..., 0], found[..., 1])
    assert np.array_equal(found[..., 0], found[..., 2])


def test_recipe_names_everything_that_decides_the_result(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "tiny"
    tiny_pipeline(seed=1).save_pretrained(other)
    recipes = [
        restorer(folder).recipe,
        restorer(folder, steps=1).recipe,
        restorer(folder, seed=1).recipe,
        restorer(folder, dtype=torch.bfloat16).recipe,
        restorer(other).recipe,
    ]
    assert len(set(recipes)) == len(recipes)
    assert restorer(folder).recipe == recipes[0]


def test_settings_that_it_has_no_use_for(folder: Path) -> None:
    for name, value in (("guidance_scale", 1.5), ("sampler", "ddim"), ("start_timestep", 500)):
        with pytest.raises(UsageError, match=f"{name}: InterLCM takes none"):
            restorer(folder, **{name: value})
    with pytest.raises(UsageError, match="expected 3 or 1 or 2"):
        restorer(folder, steps=10)


def test_bf16_is_close_and_fp32_is_at_hand(folder: Path) -> None:
    half = restorer(folder, torch.bfloat16)
    full = half.in_fp32()
    assert full is half.in_fp32()
    assert full.in_fp32() is full
    assert full.pipeline.unet.dtype == torch.float32
    assert np.array_equal(full.restore([crop(1)], None)[0], restorer(folder).restore([crop(1)], None)[0])
    difference = half.restore([crop(1)], None)[0].astype(float) - full.restore([crop(1)], None)[0]
    assert np.abs(difference).mean() < 8


def test_not_a_number_is_raised(folder: Path) -> None:
    made = restorer(folder)
    made.pipeline.unet.conv_out.bias.data[:] = torch.nan
    with pytest.raises(NotFiniteError):
        made.restore([crop(1)], None)


def test_folders_that_hold_no_model(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(WeightsUnavailable, match="facefix models import"):
        restorer(tmp_path)
    damaged = tmp_path / "damaged"
    shutil.copytree(folder, damaged)
    (damaged / "controlnet" / "diffusion_pytorch_model.safetensors").write_bytes(b"no")
    with pytest.raises(CheckpointError, match="complete model"):
        restorer(damaged)
