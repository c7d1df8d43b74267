"""The restorer protocol as ReF-LDM implements it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import tiny_pipeline

from facefix.errors import UsageError, WeightsUnavailable
from facefix.methods.base import Pixels, Restorer, SamplingSettings
from facefix.methods.refldm.restorer import CachedReferences, ReFLDMRestorer
from facefix.methods.registry import load

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny_pipeline(crop_size=96, default_steps=3).save_pretrained(folder)
    return folder


def crop(seed: int) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (96, 96, 3), dtype=np.uint8)


def restorer(folder: Path, dtype: torch.dtype = torch.float32, **settings: object) -> ReFLDMRestorer:
    return ReFLDMRestorer.load(folder, device=CPU, dtype=dtype, settings=SamplingSettings(**settings))  # type: ignore[arg-type]


def test_it_is_a_restorer(folder: Path) -> None:
    made = load(folder, device=CPU, dtype=torch.float32)
    assert isinstance(made, Restorer)
    assert made.name == "tiny"
    assert made.crop_size == 96
    references = made.prepare([crop(1), crop(2)])
    assert references.count == 2
    assert references.nbytes > 0
    restored = made.restore([crop(3)], references)
    assert [(image.shape, image.dtype) for image in restored] == [((96, 96, 3), np.uint8)]


def test_a_face_has_its_own_seed_in_any_batch(folder: Path) -> None:
    made = restorer(folder)
    references = made.prepare([crop(1)])
    together = made.restore([crop(3), crop(4), crop(5)], references, seeds=[30, 40, 50])
    alone = made.restore([crop(4)], references, seeds=[40])
    other = made.restore([crop(4)], references, seeds=[41])
    assert np.abs(together[1].astype(int) - alone[0].astype(int)).max() <= 1
    assert not np.array_equal(alone[0], other[0])


def test_recipe_names_everything_that_decides_the_result(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "tiny"
    tiny_pipeline(seed=1, crop_size=96, default_steps=3).save_pretrained(other)
    recipes = [
        restorer(folder).recipe,
        restorer(folder, steps=4).recipe,
        restorer(folder, guidance_scale=2.0).recipe,
        restorer(folder, sampler="unipc").recipe,
        restorer(folder, seed=1).recipe,
        restorer(folder, dtype=torch.bfloat16).recipe,
        restorer(other).recipe,
    ]
    assert len(set(recipes)) == len(recipes)
    assert restorer(folder).recipe == recipes[0]


def test_references_one_by_one_make_the_same_set(folder: Path) -> None:
    made = restorer(folder)
    whole = made.prepare([crop(1), crop(2)], ["a", "b"])
    composed = made.compose([made.prepare([crop(1)], ["a"]), made.prepare([crop(2)], ["b"])])
    assert composed.cache.sources == whole.cache.sources
    one, two = (made.restore([crop(3)], references)[0] for references in (whole, composed))
    assert np.abs(one.astype(int) - two.astype(int)).max() <= 1


def test_fp32_twin_for_retries(folder: Path) -> None:
    half = restorer(folder, dtype=torch.bfloat16)
    exact = half.in_fp32()
    assert exact is half.in_fp32()
    assert exact.in_fp32() is exact
    assert exact.pipeline.unet.dtype == torch.float32
    references = half.prepare([crop(1)])
    assert isinstance(references, CachedReferences)
    assert references.cache.dtype == torch.bfloat16
    assert exact.restore([crop(3)], references)[0].shape == (96, 96, 3)


def test_what_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="at least one"):
        restorer(folder).prepare([])
    with pytest.raises(UsageError, match="what prepare"):
        restorer(folder).restore([crop(1)], object())  # type: ignore[arg-type]
    with pytest.raises(WeightsUnavailable):
        ReFLDMRestorer.load(tmp_path, device=CPU, dtype=torch.float32)
    with pytest.raises(WeightsUnavailable):
        load("no-such-model", device=CPU, dtype=torch.float32)
