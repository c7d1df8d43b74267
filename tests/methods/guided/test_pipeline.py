"""GuidedPipeline, and the published pipeline under it: as before the two were told apart, and each setting's effect."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import golden
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import REPOSITORY
from PIL import Image
from tiny import tiny_guided, tiny_pipeline

from facefix import ReferenceCache, ReFLDMPipeline
from facefix.errors import UsageError
from facefix.methods.guided.folders import is_guided_folder
from facefix.methods.guided.pipeline import GuidedPipeline
from facefix.methods.registry import method_of
from facefix.networks.guide import complete
from facefix.networks.schedule import ddim_scheduler, make_sampler

STORED = REPOSITORY / "tests" / "data" / "guided"
"""outputs of random weights, and the model_index.json, of the one pipeline that was both; see its README"""

CASES: dict[str, dict[str, Any]] = {
    "guidance": {"num_inference_steps": 3, "guidance_scale": 1.5},
    "from_lq": {"num_inference_steps": 2, "guidance_scale": 1.0, "start_timestep": 400},
}


def picture(seed: int, size: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    small = torch.rand(1, 3, 8, 8, generator=generator) * 2 - 1
    smooth = F.interpolate(small, size=(size, size), mode="bilinear", align_corners=False)
    return (smooth + 0.2 * torch.randn(1, 3, size, size, generator=generator)).clamp(-1, 1)


def image(seed: int, size: int = 64) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC)


def blurred(images: torch.Tensor) -> torch.Tensor:
    small = F.interpolate(images, scale_factor=1 / 4, mode="area")
    return F.interpolate(small, size=images.shape[2:], mode="bicubic").clamp(-1, 1)


def noise(seed: int) -> torch.Tensor:
    return torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.fixture(scope="module")
def pipeline() -> GuidedPipeline:
    return tiny_guided(guided=True)


def whole(**changed: Any) -> GuidedPipeline:
    """With everything that the shipped model has."""
    alone, guided = tiny_pipeline(seed=3), tiny_guided(guided=True)
    settings = {
        "reference_encoding": "each",
        "quantize_latents": False,
        "residual": True,
        "keep_detail": True,
        "latent_scale": 0.6367,
        "crop_size": 96,
        "round_pixels": True,
        "default_steps": 2,
        "default_guidance_scale": 1.0,
        "unguided": alone.unet,
        "unguided_latent_scale": 0.6031,
        **changed,
    }
    pipeline = GuidedPipeline(alone.autoencoder, guided.unet, alone.scheduler, **settings)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


MODELS = {
    "published": lambda: tiny_pipeline(reference_encoding="strip", quantize_latents=True, needs_references=True),
    "each": tiny_pipeline,
    "guided": whole,
    "residual": lambda: tiny_guided(
        seed=1, residual=True, latent_scale=0.5, crop_size=96, start_timestep=500, default_steps=3
    ),
}


def folder_of_before(name: str, folder: Path) -> Path:
    """The model as it was saved when every folder was called ReFLDMPipeline and named every setting."""
    MODELS[name]().save_pretrained(folder)
    index = json.loads((STORED / "model_index.json").read_text(encoding="utf-8"))[name]
    (folder / "model_index.json").write_text(json.dumps(index), encoding="utf-8")
    return folder


@pytest.mark.parametrize("name", sorted(MODELS))
def test_folders_of_before_restore_as_before(name: str, tmp_path: Path) -> None:
    pipeline = ReFLDMPipeline.from_pretrained(folder_of_before(name, tmp_path / "model"))
    pipeline.set_progress_bar_config(disable=True)
    assert type(pipeline) is (ReFLDMPipeline if name in ("published", "each") else GuidedPipeline)
    stored = np.load(STORED / "before_the_split.npz")
    size = pipeline.crop_size
    lq = torch.cat([picture(1, size), picture(2, size)])
    references = pipeline.encode_references(torch.cat([picture(3, size), picture(4, size)]))
    start = torch.randn(2, 8, 8, 8, generator=torch.Generator().manual_seed(5))
    default: dict[str, Any] = {"num_inference_steps": 4} if name in ("published", "each") else {}
    for case, how in {"default": default, **CASES}.items():
        arguments = {key: value for key, value in how.items() if key != "start_timestep"}
        started = pipeline.starting_at(how.get("start_timestep"))
        for given, cache in (("references", references), ("alone", None)):
            latents = started(lq, cache, latents=start, output_type="latent", **arguments).images
            images = started(lq, cache, latents=start, output_type="pt", **arguments).images
            expected = stored[f"{name}/{case}/{given}/latents"]
            scale = np.abs(expected).max()
            np.testing.assert_allclose(latents.numpy()[:, ::2, ::2, ::2] / scale, expected / scale, atol=1e-5)
            expected = stored[f"{name}/{case}/{given}/images"]
            # the codebook's nearest entry can change with the last bit of a latent
            found = np.abs(images.numpy()[:, :, 5::16, 3::16] - expected)
            assert (found > 1e-4).mean() <= (0.02 if name == "published" else 0), (case, given, found.max())


def test_which_method_a_folder_of_before_is(tmp_path: Path) -> None:
    found = {name: method_of(folder_of_before(name, tmp_path / name)).name for name in MODELS}
    assert found == {"published": "refldm", "each": "refldm", "guided": "guided", "residual": "guided"}
    shipped = REPOSITORY / "models" / "small"
    assert method_of(shipped).name == "guided"


def test_a_denoiser_that_takes_a_guide_is_enough(tmp_path: Path) -> None:
    tiny_guided(guided=True).save_pretrained(tmp_path / "model")
    index = json.loads((tmp_path / "model" / "model_index.json").read_text(encoding="utf-8"))
    assert index["_class_name"] == "GuidedPipeline"
    index["_class_name"] = "ReFLDMPipeline"
    assert is_guided_folder(tmp_path / "model", index)
    assert not is_guided_folder(tmp_path, index)
    assert not is_guided_folder(tmp_path / "model", {**index, "_class_name": "OtherPipeline"})


def test_save_and_load(tmp_path: Path) -> None:
    made = whole()
    made.save_pretrained(tmp_path / "model")
    assert method_of(tmp_path / "model").name == "guided"
    loaded = ReFLDMPipeline.from_pretrained(tmp_path / "model")
    assert type(loaded) is GuidedPipeline
    loaded.set_progress_bar_config(disable=True)
    start = torch.randn(1, 8, 8, 8, generator=torch.Generator().manual_seed(1))
    lq, reference = picture(1, 96), picture(2, 96)
    one, two = (p(lq, p.encode_references(reference), latents=start, output_type="pt").images for p in (made, loaded))
    torch.testing.assert_close(one, two, rtol=0, atol=1e-5)


def test_the_published_method_takes_no_guide() -> None:
    with pytest.raises(UsageError, match="unet: expected 16 input channels"):
        ReFLDMPipeline(*(getattr(tiny_guided(guided=True), part) for part in ("autoencoder", "unet", "scheduler")))
    with pytest.raises(TypeError, match="residual"):
        tiny_pipeline(residual=True)


def test_crop_size_may_differ_from_what_the_networks_see() -> None:
    pipeline = tiny_guided(crop_size=96)
    cache = pipeline.encode_references([image(1, 96)])
    assert pipeline(image(0, 96), cache, 1).images[0].size == (96, 96)
    assert pipeline(torch.zeros(2, 3, 96, 96), cache, 1, output_type="pt").images.shape == (2, 3, 96, 96)


def test_residual_model_with_no_change_returns_the_lq_face() -> None:
    pipeline = tiny_guided(residual=True)
    torch.nn.init.zeros_(pipeline.unet.conv_out.weight)
    torch.nn.init.zeros_(pipeline.unet.conv_out.bias)
    pipeline.scheduler = make_sampler("ddim", pipeline.scheduler)
    pipeline.scheduler.register_to_config(prediction_type="sample", set_alpha_to_one=True)
    lq = image(0)
    with torch.no_grad():
        expected = pipeline._encode(torch.from_numpy(np.asarray(lq) / 127.5 - 1).float().permute(2, 0, 1)[None])
    found = pipeline(lq, None, 2, output_type="latent").images
    assert torch.allclose(found, expected, atol=1e-4)


def test_detail_that_the_autoencoder_loses_is_kept() -> None:
    """A residual model that changes nothing gives the LQ crop back, whatever its autoencoder makes of it."""
    lossy = tiny_guided(residual=True, crop_size=96)
    exact = tiny_guided(residual=True, crop_size=96, keep_detail=True)
    crop = torch.rand(1, 3, 96, 96, generator=torch.Generator().manual_seed(1)) * 2 - 1
    for pipeline in (lossy, exact):
        torch.nn.init.zeros_(pipeline.unet.conv_out.weight)
        torch.nn.init.zeros_(pipeline.unet.conv_out.bias)
        pipeline.scheduler.register_to_config(prediction_type="sample", set_alpha_to_one=True)
    assert torch.allclose(exact(crop, None, 2, output_type="pt").images, crop, atol=1e-3)
    assert not torch.allclose(lossy(crop, None, 2, output_type="pt").images, crop, atol=0.1)


def test_the_guide_reaches_the_denoiser_beside_cachekv(pipeline: GuidedPipeline) -> None:
    """With the same keys and values, another guide gives another face."""
    start = torch.randn(1, 8, 8, 8, generator=torch.Generator().manual_seed(1))
    cache = pipeline.encode_references([image(1)])
    other = pipeline.encode_references([image(2)])
    results = [
        pipeline(image(0), references, 2, 1.0, latents=start, output_type="latent").images
        for references in (cache, replace(cache, images=other.images), replace(other, images=cache.images), None)
    ]
    for number, result in enumerate(results):
        assert all((result - later).abs().max() > 1e-3 for later in results[number + 1 :])


def test_a_residual_model_that_changes_nothing_returns_the_guide() -> None:
    pipeline = tiny_guided(guided=True, residual=True, keep_detail=True)
    torch.nn.init.zeros_(pipeline.unet.conv_out.weight)
    torch.nn.init.zeros_(pipeline.unet.conv_out.bias)
    pipeline.scheduler = ddim_scheduler(prediction_type="sample", set_alpha_to_one=True)
    lq, reference = blurred(noise(1)), noise(2)
    result = pipeline(lq, pipeline.encode_references(reference), 1, 1.0, output_type="pt").images
    expected = complete(lq, reference.half().float()).clamp(-1, 1)
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(pipeline(lq, None, 1, 1.0, output_type="pt").images, lq, rtol=0, atol=1e-4)


@pytest.mark.parametrize("scale", [1.0, 1.5])
def test_a_face_in_a_batch_equals_the_face_alone(pipeline: GuidedPipeline, scale: float) -> None:
    cache = pipeline.encode_references([image(1), image(2), image(3)])
    faces = [image(seed) for seed in range(4, 8)]
    start = torch.randn(4, 8, 8, 8, generator=torch.Generator().manual_seed(1))
    together = pipeline(faces, cache, 2, scale, latents=start, output_type="latent").images
    for number, face in enumerate(faces):
        alone = pipeline(face, cache, 2, scale, latents=start[number : number + 1], output_type="latent").images
        assert golden.relative_rms(together[number : number + 1], alone) <= 1e-5


def test_guidance_is_linear_between_the_guided_and_the_null_branch(pipeline: GuidedPipeline) -> None:
    cache = pipeline.encode_references([image(1)])
    start = torch.randn(1, 8, 8, 8, generator=torch.Generator().manual_seed(1))
    by_scale = [
        pipeline(image(0), cache, 1, scale, latents=start, output_type="latent").images for scale in (0.0, 1.0, 1.5)
    ]
    torch.testing.assert_close(by_scale[2], by_scale[0] + 1.5 * (by_scale[1] - by_scale[0]), rtol=0, atol=1e-3)


def test_caches_keep_their_images_when_joined_split_and_moved(pipeline: GuidedPipeline) -> None:
    one, two = pipeline.encode_references([image(1)]), pipeline.encode_references([image(2)])
    both = ReferenceCache.compose([one, two])
    assert both.images is not None and one.images is not None and two.images is not None
    assert torch.equal(both.images, torch.cat([one.images, two.images], 1))
    for part, whole in zip(both.split(), (one, two), strict=True):
        assert part.images is not None and whole.images is not None and torch.equal(part.images, whole.images)
    assert both.nbytes == one.nbytes + two.nbytes
    halved = both.to(dtype=torch.float16)
    assert halved.images is not None and torch.equal(halved.images, both.images)


def test_a_cache_without_images_is_refused(pipeline: GuidedPipeline) -> None:
    cache = pipeline.encode_references([image(1)])
    with pytest.raises(UsageError, match="made by this model"):
        pipeline(image(0), replace(cache, images=None), 1, 1.0)


def test_a_denoiser_without_a_guide_keeps_no_images() -> None:
    assert tiny_pipeline().encode_references([image(1)]).images is None


def test_faces_without_references_go_to_the_denoiser_without_a_guide(tmp_path: Path) -> None:
    alone = tiny_pipeline(seed=3)
    guided = tiny_guided(guided=True)
    both = GuidedPipeline(alone.autoencoder, guided.unet, alone.scheduler, "each", False, unguided=alone.unet)
    both.set_progress_bar_config(disable=True)
    both.save_pretrained(tmp_path / "model")
    both = ReFLDMPipeline.from_pretrained(tmp_path / "model")
    both.set_progress_bar_config(disable=True)
    start = torch.randn(1, 8, 8, 8, generator=torch.Generator().manual_seed(1))
    expected = alone(image(0), None, 2, 1.0, latents=start, output_type="latent").images
    found = both(image(0), None, 2, 1.0, latents=start, output_type="latent").images
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    cache = both.encode_references([image(1)])
    read = both(image(0), cache, 2, 1.0, latents=start, output_type="latent").images
    assert (read - expected).abs().max() > 1e-3
