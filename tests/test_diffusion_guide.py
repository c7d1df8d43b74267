"""The guide: which reference it is, and what a denoiser that takes one does with it."""

from __future__ import annotations

import golden
import numpy as np
import pytest
import torch
from PIL import Image
from tiny import tiny_pipeline

from facefix import ReferenceCache, ReFLDMPipeline
from facefix.diffusion.guide import choose_guides
from facefix.errors import UsageError


@pytest.fixture(scope="module")
def pipeline() -> ReFLDMPipeline:
    return tiny_pipeline(guided=True)


def picture(seed: int) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((64, 64), Image.Resampling.BICUBIC)


def latents(*seeds: int) -> torch.Tensor:
    return torch.stack([torch.randn(8, 16, 16, generator=torch.Generator().manual_seed(seed)) for seed in seeds])


def test_the_guide_is_the_reference_laid_out_most_like_the_face() -> None:
    references = latents(1, 2, 3)[None]
    light = torch.linspace(0.5, 2, 8).view(8, 1, 1)
    faces = torch.stack([light * references[0, 2] + 3, references[0, 0] - light])  # other light, other contrast
    guides = choose_guides(faces + 0.1 * latents(4, 5), references)
    assert torch.equal(guides, references[0, [2, 0]])


def test_each_face_chooses_for_itself() -> None:
    faces, references = latents(1, 2, 3), latents(4, 5, 6, 7)[None]
    together = choose_guides(faces, references)
    alone = torch.cat([choose_guides(face[None], references) for face in faces])
    assert torch.equal(together, alone)
    per_row = torch.stack([references[0].roll(shift, 0) for shift in range(3)])
    assert torch.equal(choose_guides(faces, per_row), together)


def test_the_guide_reaches_the_denoiser_beside_cachekv(pipeline: ReFLDMPipeline) -> None:
    """With the same keys and values, another guide gives another face; without references the guide is zero."""
    start = torch.randn(1, 8, 8, 8, generator=torch.Generator().manual_seed(1))
    cache = pipeline.encode_references([picture(1)])
    other = pipeline.encode_references([picture(2)])
    swapped = ReferenceCache(cache.layers, 1, "each", (), other.latents)
    results = [
        pipeline(picture(0), references, 2, 1.0, latents=start, output_type="latent").images
        for references in (cache, swapped, None)
    ]
    assert (results[0] - results[1]).abs().max() > 1e-3
    zero = ReferenceCache(cache.layers, 1, "each", (), torch.zeros_like(cache.latents))
    unguided = pipeline(picture(0), zero, 2, 1.0, latents=start, output_type="latent").images
    assert (results[0] - unguided).abs().max() > 1e-3


@pytest.mark.parametrize("scale", [1.0, 1.5])
def test_a_face_in_a_batch_equals_the_face_alone(pipeline: ReFLDMPipeline, scale: float) -> None:
    cache = pipeline.encode_references([picture(1), picture(2), picture(3)])
    faces = [picture(seed) for seed in range(4, 8)]
    start = torch.randn(4, 8, 8, 8, generator=torch.Generator().manual_seed(1))
    together = pipeline(faces, cache, 2, scale, latents=start, output_type="latent").images
    for number, face in enumerate(faces):
        alone = pipeline(face, cache, 2, scale, latents=start[number : number + 1], output_type="latent").images
        assert golden.relative_rms(together[number : number + 1], alone) <= 1e-5


def test_guidance_is_linear_between_the_guided_and_the_null_branch(pipeline: ReFLDMPipeline) -> None:
    cache = pipeline.encode_references([picture(1)])
    start = torch.randn(1, 8, 8, 8, generator=torch.Generator().manual_seed(1))
    by_scale = [
        pipeline(picture(0), cache, 1, scale, latents=start, output_type="latent").images for scale in (0.0, 1.0, 1.5)
    ]
    torch.testing.assert_close(by_scale[2], by_scale[0] + 1.5 * (by_scale[1] - by_scale[0]), rtol=0, atol=1e-3)


def test_caches_keep_their_latents_when_joined_split_and_moved(pipeline: ReFLDMPipeline) -> None:
    one, two = pipeline.encode_references([picture(1)]), pipeline.encode_references([picture(2)])
    both = ReferenceCache.compose([one, two])
    assert both.latents is not None and one.latents is not None and two.latents is not None
    assert torch.equal(both.latents, torch.cat([one.latents, two.latents], 1))
    assert [torch.equal(a.latents, b.latents) for a, b in zip(both.split(), (one, two), strict=True)] == [True, True]
    halved = both.to(dtype=torch.float16)
    assert halved.latents is not None and halved.latents.dtype == torch.float16
    assert both.nbytes == one.nbytes + two.nbytes == 2 * halved.nbytes


def test_a_cache_without_latents_is_refused(pipeline: ReFLDMPipeline) -> None:
    cache = pipeline.encode_references([picture(1)])
    stripped = ReferenceCache(cache.layers, 1, "each")
    with pytest.raises(UsageError, match="made by this model"):
        pipeline(picture(0), stripped, 1, 1.0)


def test_a_denoiser_without_a_guide_keeps_no_latents() -> None:
    assert tiny_pipeline().encode_references([picture(1)]).latents is None
