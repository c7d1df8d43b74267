"""A pipeline that lays references onto the face: landmarks travel with the cache, both networks are saved with it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny import tiny_pipeline

from facefix import ReferenceCache, ReFLDMPipeline
from facefix.errors import UsageError
from facefix.methods.refldm.restorer import load_pipeline
from facefix.networks.landmarks import LandmarkNetwork
from facefix.networks.survival import SurvivalNetwork

SIDE = 128


@pytest.fixture(scope="module")
def pipeline() -> ReFLDMPipeline:
    torch.manual_seed(0)
    landmarks = LandmarkNetwork(size=32, widths=(4, 8, 8, 8), outlook=4, hidden=16).eval()
    torch.nn.init.normal_(landmarks.head.weight, std=0.3)  # every face has points of its own
    survival = SurvivalNetwork((4, 6, 8, 8)).eval()
    return tiny_pipeline(
        sample_size=16, guided=True, residual=True, keep_detail=True, landmarks=landmarks, survival=survival
    )


def pictures(count: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 16, 16, generator=generator) * 2 - 1
    return torch.nn.functional.interpolate(coarse, (SIDE, SIDE), mode="bilinear")


def restore(pipeline: ReFLDMPipeline, faces: torch.Tensor, cache: ReferenceCache) -> torch.Tensor:
    noise = torch.randn(1, 8, 16, 16, generator=torch.Generator().manual_seed(5)).expand(len(faces), -1, -1, -1)
    images: torch.Tensor = pipeline(faces, cache, 1, 1.0, latents=noise, output_type="pt").images
    return images


def test_landmarks_of_references_travel_with_the_cache(pipeline: ReFLDMPipeline) -> None:
    cache = pipeline.encode_references(pictures(3, 1))
    assert cache.landmarks is not None and cache.images is not None
    assert cache.landmarks.shape == (1, 3, 68, 3)
    alone = cache.split()
    assert [part.landmarks.shape for part in alone if part.landmarks is not None] == [(1, 1, 68, 3)] * 3
    again = ReferenceCache.compose(alone)
    assert again.landmarks is not None and torch.equal(again.landmarks, cache.landmarks)
    assert cache.to(dtype=torch.bfloat16).landmarks is not None
    assert cache.nbytes > sum(k.nbytes + v.nbytes for k, v in cache.layers.values()) + cache.images.nbytes


def test_the_guide_is_made_of_laid_references(pipeline: ReFLDMPipeline) -> None:
    """Where landmarks say that a reference lies elsewhere, another guide comes out."""
    faces, cache = pictures(1, 2), pipeline.encode_references(pictures(2, 1))
    assert cache.landmarks is not None
    with torch.no_grad():
        latents = pipeline._encode(faces)
    with torch.no_grad():
        guide, _ = pipeline._guides(faces, latents, cache)
    moved = ReferenceCache(
        cache.layers, 2, "each", cache.sources, cache.images, cache.landmarks + torch.tensor((12.0, 0.0, 0.0))
    )
    with torch.no_grad():
        other, _ = pipeline._guides(faces, latents, moved)
    assert float((guide - faces).abs().mean()) > 1e-3
    assert float((guide - other).abs().mean()) > 1e-3


def test_a_batch_is_what_its_faces_are_alone(pipeline: ReFLDMPipeline) -> None:
    faces, cache = pictures(3, 3), pipeline.encode_references(pictures(2, 1))
    together = restore(pipeline, faces, cache)
    for row in range(3):
        torch.testing.assert_close(restore(pipeline, faces[row : row + 1], cache)[0], together[row], atol=2e-3, rtol=0)


def test_both_networks_are_saved_and_loaded(pipeline: ReFLDMPipeline, tmp_path: Path) -> None:
    pipeline.save_pretrained(tmp_path)
    again = load_pipeline(tmp_path, device=torch.device("cpu"), dtype=torch.float32)
    faces, references = pictures(1, 3), pictures(2, 1)
    found = restore(again, faces, again.encode_references(references))
    torch.testing.assert_close(found, restore(pipeline, faces, pipeline.encode_references(references)))


def test_one_network_without_the_other_is_refused(pipeline: ReFLDMPipeline) -> None:
    with pytest.raises(UsageError, match="expected both networks or neither"):
        tiny_pipeline(guided=True, landmarks=pipeline.landmarks)
