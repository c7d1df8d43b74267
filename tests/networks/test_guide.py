"""The guide: which reference it is, and what a denoiser that takes one does with it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import golden
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from tiny import tiny_pipeline

from facefix import ReferenceCache, ReFLDMPipeline
from facefix.errors import UsageError
from facefix.networks.guide import choose_references, complete
from facefix.networks.images import to_tensor
from facefix.networks.schedule import ddim_scheduler


@pytest.fixture(scope="module")
def pipeline() -> ReFLDMPipeline:
    return tiny_pipeline(guided=True)


def picture(seed: int) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((64, 64), Image.Resampling.BICUBIC)


def images(*seeds: int) -> torch.Tensor:
    return torch.cat([to_tensor(picture(seed), 64, argument="images") for seed in seeds])


def blurred(images: torch.Tensor) -> torch.Tensor:
    small = F.interpolate(images, scale_factor=1 / 4, mode="area")
    return F.interpolate(small, size=images.shape[2:], mode="bicubic").clamp(-1, 1)


def noise(seed: int) -> torch.Tensor:
    return torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def grain(seed: int) -> torch.Tensor:
    return torch.randn(1, 3, 512, 512, generator=torch.Generator().manual_seed(seed))


def test_a_face_that_lost_nothing_is_left_as_it_is() -> None:
    face, other = noise(1), 0.5 * noise(2)
    torch.testing.assert_close(complete(face, other), face, rtol=0, atol=1e-5)


def test_a_blurred_face_gets_the_detail_of_the_reference_and_keeps_its_light() -> None:
    truth = noise(1)
    lq = blurred(truth) * 0.5 + 0.2
    guide = complete(lq, truth)
    assert (guide - truth).std() < 0.3 * (lq - truth).std()
    torch.testing.assert_close(guide.mean((2, 3)), lq.mean((2, 3)), rtol=0, atol=0.01)
    flat = complete(lq, torch.zeros_like(lq))  # a reference without detail has none to give
    torch.testing.assert_close(flat, lq, rtol=0, atol=0.05)


def test_a_reference_lends_less_detail_where_it_shows_something_else() -> None:
    """On the right, light is dark: fine bands from there would lie over the face as a ghost."""
    coarse = F.interpolate(images(1), size=512, mode="bicubic")
    truth = coarse + 0.2 * grain(3)
    reference = torch.cat([truth[..., :256], 0.2 * grain(4)[..., 256:] - coarse[..., 256:]], dim=3)
    lq = F.interpolate(F.interpolate(truth, scale_factor=1 / 8, mode="area"), size=512, mode="bicubic")
    added = (complete(lq, reference) - lq).square().mean((0, 1, 2)).sqrt()
    assert added[320:].mean() < 0.8 * added[:192].mean()


def test_the_reference_laid_out_most_like_the_face_is_chosen() -> None:
    references = images(1, 2, 3)[None]
    faces = torch.cat([0.5 * references[0, 2:] + 0.3, 0.8 * references[0, :1] - 0.1])  # other light, other contrast
    assert torch.equal(choose_references(blurred(faces), references), references[0, [2, 0]])


def test_each_face_chooses_for_itself() -> None:
    faces, references = images(1, 2, 3), images(4, 5, 6, 7)[None]
    together = choose_references(faces, references)
    alone = torch.cat([choose_references(face[None], references) for face in faces])
    assert torch.equal(together, alone)
    per_row = torch.stack([references[0].roll(shift, 0) for shift in range(3)])
    assert torch.equal(choose_references(faces, per_row), together)


def test_the_guide_reaches_the_denoiser_beside_cachekv(pipeline: ReFLDMPipeline) -> None:
    """With the same keys and values, another guide gives another face."""
    start = torch.randn(1, 8, 8, 8, generator=torch.Generator().manual_seed(1))
    cache = pipeline.encode_references([picture(1)])
    other = pipeline.encode_references([picture(2)])
    results = [
        pipeline(picture(0), references, 2, 1.0, latents=start, output_type="latent").images
        for references in (cache, replace(cache, images=other.images), replace(other, images=cache.images), None)
    ]
    for number, result in enumerate(results):
        assert all((result - later).abs().max() > 1e-3 for later in results[number + 1 :])


def test_a_residual_model_that_changes_nothing_returns_the_guide() -> None:
    pipeline = tiny_pipeline(guided=True, residual=True, keep_detail=True)
    torch.nn.init.zeros_(pipeline.unet.conv_out.weight)
    torch.nn.init.zeros_(pipeline.unet.conv_out.bias)
    pipeline.scheduler = ddim_scheduler(prediction_type="sample", set_alpha_to_one=True)
    lq, reference = blurred(noise(1)), noise(2)
    result = pipeline(lq, pipeline.encode_references(reference), 1, 1.0, output_type="pt").images
    expected = complete(lq, reference.half().float()).clamp(-1, 1)
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(pipeline(lq, None, 1, 1.0, output_type="pt").images, lq, rtol=0, atol=1e-4)


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


def test_caches_keep_their_images_when_joined_split_and_moved(pipeline: ReFLDMPipeline) -> None:
    one, two = pipeline.encode_references([picture(1)]), pipeline.encode_references([picture(2)])
    both = ReferenceCache.compose([one, two])
    assert both.images is not None and one.images is not None and two.images is not None
    assert torch.equal(both.images, torch.cat([one.images, two.images], 1))
    for part, whole in zip(both.split(), (one, two), strict=True):
        assert part.images is not None and torch.equal(part.images, whole.images)
    assert both.nbytes == one.nbytes + two.nbytes
    halved = both.to(dtype=torch.float16)
    assert halved.images is not None and torch.equal(halved.images, both.images)


def test_a_cache_without_images_is_refused(pipeline: ReFLDMPipeline) -> None:
    cache = pipeline.encode_references([picture(1)])
    with pytest.raises(UsageError, match="made by this model"):
        pipeline(picture(0), replace(cache, images=None), 1, 1.0)


def test_a_denoiser_without_a_guide_keeps_no_images() -> None:
    assert tiny_pipeline().encode_references([picture(1)]).images is None


def test_faces_without_references_go_to_the_denoiser_without_a_guide(tmp_path: Path) -> None:
    alone = tiny_pipeline(seed=3)
    guided = tiny_pipeline(guided=True)
    both = ReFLDMPipeline(alone.autoencoder, guided.unet, alone.scheduler, "each", False, unguided=alone.unet)
    both.set_progress_bar_config(disable=True)
    both.save_pretrained(tmp_path / "model")
    both = ReFLDMPipeline.from_pretrained(tmp_path / "model")
    both.set_progress_bar_config(disable=True)
    start = torch.randn(1, 8, 8, 8, generator=torch.Generator().manual_seed(1))
    expected = alone(picture(0), None, 2, 1.0, latents=start, output_type="latent").images
    found = both(picture(0), None, 2, 1.0, latents=start, output_type="latent").images
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    cache = both.encode_references([picture(1)])
    read = both(picture(0), cache, 2, 1.0, latents=start, output_type="latent").images
    assert (read - expected).abs().max() > 1e-3
