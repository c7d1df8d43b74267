"""The restorer protocol as ReF-LDM and the guided method implement it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import tiny_guided, tiny_pipeline

from facefix.errors import CheckpointError, UsageError, WeightsUnavailable
from facefix.methods import registry
from facefix.methods.base import LoadOptions, Pixels, Restorer, SamplingSettings
from facefix.methods.guided.restorer import GuidedRestorer
from facefix.methods.recipe import recipe, weights_digest
from facefix.methods.refldm.restorer import CachedReferences, ReFLDMRestorer

CPU = torch.device("cpu")


@pytest.fixture(scope="module", params=["refldm", "guided"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    made = tiny_pipeline(default_steps=3) if request.param == "refldm" else tiny_guided(guided=True, default_steps=3)
    made.save_pretrained(folder)
    return folder


def crop(seed: int) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (64, 64, 3), dtype=np.uint8)


def restorer(folder: Path, dtype: torch.dtype = torch.float32, **settings: object) -> ReFLDMRestorer:
    options = LoadOptions("tiny", CPU, dtype, SamplingSettings(**settings))  # type: ignore[arg-type]
    loaded = registry.load(folder, options)
    assert isinstance(loaded, ReFLDMRestorer)
    return loaded


def test_it_is_a_restorer(folder: Path) -> None:
    made: Restorer = restorer(folder)
    assert (made.name, made.crop_size, made.references, made.composes) == ("tiny", 64, "optional", True)
    assert made.device == CPU
    references = made.prepare([crop(1), crop(2)])
    assert references.count == 2
    assert references.nbytes > 0
    restored = made.restore([crop(3)], references)
    assert [(image.shape, image.dtype) for image in restored] == [((64, 64, 3), np.dtype(np.uint8))]
    assert made.autoencoder is not None
    assert made.autoencoder(crop(4)).shape == (64, 64, 3)
    assert made.seconds_per_face(2) > 0


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
    tiny_pipeline(seed=1, default_steps=3).save_pretrained(other)
    recipes = [
        restorer(folder).recipe,
        restorer(folder, steps=4).recipe,
        restorer(folder, guidance_scale=2.0).recipe,
        restorer(folder, sampler="unipc").recipe,
        restorer(folder, seed=1).recipe,
        restorer(folder, start_timestep=500).recipe,
        restorer(folder, dtype=torch.bfloat16).recipe,
        restorer(other).recipe,
    ]
    assert len(set(recipes)) == len(recipes)
    assert restorer(folder).recipe == recipes[0]


def test_recipe_is_known_before_anything_is_loaded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sampling = SamplingSettings(steps=4, sampler="unipc")
    named = recipe(weights_digest(folder), sampling, torch.float32)
    assert named == restorer(folder, steps=4, sampler="unipc").recipe == restorer(folder).with_sampling(sampling).recipe
    monkeypatch.setattr("facefix.methods.recipe.__version__", "0.0.0")
    assert recipe(weights_digest(folder), sampling, torch.float32) != named


def test_sampled_otherwise_with_the_same_weights(folder: Path) -> None:
    made = restorer(folder, sampler="unipc", steps=2)
    other = made.with_sampling(SamplingSettings(steps=3))
    assert other.pipeline.unet is made.pipeline.unet
    references = made.prepare([crop(1)])
    results = [each.restore([crop(3)], references)[0] for each in (made, other)]
    assert not np.array_equal(results[0], results[1])
    assert np.array_equal(results[1], restorer(folder, steps=3).restore([crop(3)], references)[0])
    assert np.array_equal(results[0], made.restore([crop(3)], references)[0])
    with pytest.raises(UsageError, match="sampler"):
        made.with_sampling(SamplingSettings(sampler="euler"))


def test_every_way_of_the_sweep_is_a_way_to_sample(folder: Path) -> None:
    made = restorer(folder)
    ways = list(made.sweep.settings())
    assert len(ways) == 7 * 3 * 2
    for way in {(way.sampler, way.start_timestep): replace(way, steps=2) for way in ways}.values():
        assert made.with_sampling(way).restore([crop(3)], None)[0].shape == (64, 64, 3)


def test_a_part_is_left_out(tmp_path: Path) -> None:
    tiny_guided(guided=True, residual=True, keep_detail=True, default_steps=2).save_pretrained(tmp_path / "model")
    made = restorer(tmp_path / "model")
    assert isinstance(made, GuidedRestorer)
    references = made.prepare([crop(1)])
    whole = made.restore([crop(3)], references)[0]
    results = {part: make() for part, make in made.ablations.items()}
    assert set(results) == {"guide", "cachekv", "detail"}
    pixels = [whole, *(each.restore([crop(3)], references)[0] for each in results.values())]
    assert all(not np.array_equal(one, other) for n, one in enumerate(pixels) for other in pixels[n + 1 :])
    assert len({made.recipe, *(each.recipe for each in results.values())}) == 4
    assert np.array_equal(made.restore([crop(3)], references)[0], whole)


def test_references_one_by_one_make_the_same_set(folder: Path) -> None:
    made = restorer(folder)
    whole = made.prepare([crop(1), crop(2)], ["a", "b"])
    composed = made.compose([made.prepare([crop(1)], ["a"]), made.prepare([crop(2)], ["b"])])
    assert composed.cache.sources == whole.cache.sources
    one, two = (made.restore([crop(3)], references)[0] for references in (whole, composed))
    assert np.abs(one.astype(int) - two.astype(int)).max() <= 1


def test_references_encoded_as_a_strip_are_not_composed(tmp_path: Path) -> None:
    tiny_pipeline(reference_encoding="strip", needs_references=True).save_pretrained(tmp_path / "model")
    made = restorer(tmp_path / "model")
    assert (made.composes, made.references) == (False, "needed")


def test_fp32_twin_for_retries(folder: Path) -> None:
    half = restorer(folder, dtype=torch.bfloat16, sampler="unipc")
    exact = half.in_fp32()
    assert exact is half.in_fp32()
    assert exact.in_fp32() is exact
    assert exact.pipeline.unet.dtype == torch.float32
    assert type(exact.pipeline.scheduler) is type(half.pipeline.scheduler)
    references = half.prepare([crop(1)])
    assert isinstance(references, CachedReferences)
    assert references.cache.dtype == torch.bfloat16
    assert exact.restore([crop(3)], references)[0].shape == (64, 64, 3)


def test_what_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="at least one"):
        restorer(folder).prepare([])
    with pytest.raises(UsageError, match="what prepare"):
        restorer(folder).restore([crop(1)], object())  # type: ignore[arg-type]
    with pytest.raises(WeightsUnavailable):
        restorer(tmp_path)
    (tmp_path / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}', encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"expected _class_name to be one of ReFLDMPipeline.*StableDiffusion"):
        restorer(tmp_path)
    (tmp_path / "model_index.json").write_text("[]", encoding="utf-8")
    with pytest.raises(CheckpointError, match="expected the index of a model"):
        restorer(tmp_path)
