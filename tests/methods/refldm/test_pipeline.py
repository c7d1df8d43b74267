"""ReFLDMPipeline: inputs and outputs, guidance, samplers, saving, and arguments that it refuses."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import tiny_pipeline

from facefix import ReFLDMPipeline
from facefix.errors import NotFiniteError, UsageError
from facefix.networks.autoencoder import AUTOENCODER_CONFIGS, build_autoencoder
from facefix.networks.schedule import SAMPLERS, ddim_scheduler, make_sampler, prepare
from facefix.networks.unet import UNET_CONFIGS, build_unet


@pytest.fixture(scope="module")
def pipeline() -> ReFLDMPipeline:
    return tiny_pipeline()


def picture(size: int = 64, seed: int = 0, height: int | None = None) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height or size, size, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def test_published_sizes() -> None:
    with torch.device("meta"):
        sizes = {
            name: sum(weight.numel() for weight in build(name).parameters()) / 1e6
            for build, name in [(build_unet, "refldm"), (build_unet, "small")]
        }
        autoencoder = sum(weight.numel() for weight in build_autoencoder("refldm").parameters()) / 1e6
    assert sizes["refldm"] == pytest.approx(117.8, abs=0.05)
    assert autoencoder == pytest.approx(57.2, abs=0.05)
    assert 20 <= sizes["small"] <= 35
    assert UNET_CONFIGS["small"]["in_channels"] == UNET_CONFIGS["refldm"]["in_channels"] == 16
    assert AUTOENCODER_CONFIGS["small"]["latent_channels"] == AUTOENCODER_CONFIGS["refldm"]["latent_channels"] == 8
    with pytest.raises(UsageError, match="refldm"):
        build_unet("large")
    with pytest.raises(UsageError, match="refldm"):
        build_autoencoder("large")


def test_pictures_in_pictures_out(pipeline: ReFLDMPipeline) -> None:
    cache = pipeline.encode_references([picture(seed=1), picture(seed=2)])
    assert cache.num_references == 2
    seeded = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    images = pipeline([picture(seed=3), picture(seed=4)], cache, 2, generator=seeded).images
    assert [image.size for image in images] == [(64, 64), (64, 64)]
    single = pipeline(picture(seed=4), cache, 2, generator=[torch.Generator().manual_seed(2)]).images
    assert np.abs(np.asarray(images[1], int) - np.asarray(single[0], int)).max() <= 1


def test_output_types_agree(pipeline: ReFLDMPipeline) -> None:
    start = torch.randn(1, 8, 8, 8, generator=torch.Generator().manual_seed(1))
    lq = torch.zeros(1, 3, 64, 64)
    latents, images, pictures = (
        pipeline(lq, None, 2, latents=start, output_type=kind).images for kind in ("latent", "pt", "pil")
    )
    assert latents.shape == (1, 8, 8, 8)
    assert torch.allclose(pipeline.decode(latents).clamp(-1, 1), images, atol=1e-6)
    expected = ((images[0] + 1) / 2 * 255).to(torch.uint8).permute(1, 2, 0).numpy()
    assert np.array_equal(np.asarray(pictures[0]), expected)


def test_guidance(pipeline: ReFLDMPipeline) -> None:
    """1.0 is the conditional branch alone; others are linear in the difference of the branches after one step."""
    cache = pipeline.encode_references([picture(seed=1)])
    start = torch.randn(1, 8, 8, 8, generator=torch.Generator().manual_seed(1))
    by_scale = {
        scale: pipeline(picture(), cache, 1, scale, latents=start, output_type="latent").images
        for scale in (0.0, 1.0, 1.5)
    }
    assert torch.allclose(by_scale[1.5], by_scale[0.0] + 1.5 * (by_scale[1.0] - by_scale[0.0]), atol=1e-3)
    assert not torch.allclose(by_scale[1.0], by_scale[0.0], atol=1e-3)
    none = pipeline(picture(), None, 1, 1.5, latents=start, output_type="latent").images
    assert not torch.allclose(none, by_scale[0.0], atol=1e-3)  # null references are not the absence of references


def test_null_references_are_computed_once(pipeline: ReFLDMPipeline) -> None:
    like = torch.zeros(3, 8, 8, 8)
    assert pipeline.null_cache(like) is pipeline.null_cache(like[:1])


def test_null_references_follow_the_weights() -> None:
    changed, like = tiny_pipeline(), torch.zeros(1, 8, 8, 8)
    before = changed.null_cache(like)
    with torch.no_grad():
        changed.unet.conv_in.weight.mul_(2)
        changed.unet.conv_in.bias.add_(1)
    after = changed.null_cache(like)
    assert all(not torch.equal(before.layers[name][0], key) for name, (key, _) in after.layers.items())
    assert changed.null_cache(like) is after


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda pipeline: pickle.loads(pickle.dumps(pipeline))])
def test_copies_restore_alike(pipeline: ReFLDMPipeline, copied: Callable[[ReFLDMPipeline], ReFLDMPipeline]) -> None:
    start = torch.randn(1, 8, 8, 8, generator=torch.Generator().manual_seed(1))
    cache = pipeline.encode_references([picture(seed=1)])
    expected = pipeline(picture(), cache, 2, latents=start, output_type="latent").images
    found = copied(pipeline)(picture(), cache, 2, latents=start, output_type="latent").images
    assert torch.equal(found, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_stays_close(pipeline: ReFLDMPipeline, dtype: torch.dtype) -> None:
    half = copy.deepcopy(pipeline).to(dtype)
    start = torch.randn(1, 8, 8, 8, generator=torch.Generator().manual_seed(1))
    results = [
        p(picture(), p.encode_references([picture(seed=1)]), 3, latents=start, output_type="latent").images.float()
        for p in (pipeline, half)
    ]
    assert float((results[1] - results[0]).square().mean().sqrt()) < 0.1 * float(results[0].std())


@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_samplers(pipeline: ReFLDMPipeline, name: str) -> None:
    other = tiny_pipeline()
    other.scheduler = make_sampler(name, pipeline.scheduler)
    cache = other.encode_references([picture(seed=1)])
    start = torch.randn(1, 8, 8, 8, generator=torch.Generator().manual_seed(1))
    result = other(picture(), cache, 6, latents=start, output_type="latent").images
    again = other(picture(), cache, 6, latents=start, output_type="latent").images
    assert bool(torch.isfinite(result).all())
    assert torch.equal(result, again)
    with pytest.raises(UsageError, match="sampler"):
        make_sampler("euler", pipeline.scheduler)


@pytest.mark.parametrize("steps", [1, 2, 4])
@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_starting_from_the_noised_lq_latent(pipeline: ReFLDMPipeline, name: str, steps: int) -> None:
    _, timesteps = prepare(make_sampler(name, pipeline.scheduler), steps, torch.device("cpu"), 499)
    assert len(timesteps) == steps
    assert 0 < int(timesteps[0]) <= 499
    other = tiny_pipeline()
    other.scheduler = make_sampler(name, pipeline.scheduler)
    seen: list[int] = []
    other(picture(), None, steps, start_timestep=499, callback_on_step_end=lambda _, __, t, ___: seen.append(int(t)))
    assert seen == timesteps.tolist()


@pytest.mark.parametrize("start", [None, 499])
@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_a_sampler_ends_at_what_a_perfect_denoiser_says(name: str, start: int | None) -> None:
    """The multistep samplers fall back to the first order at the end, also when they start in the middle."""
    base = ddim_scheduler(prediction_type="sample", set_alpha_to_one=True)
    scheduler, timesteps = prepare(make_sampler(name, base), 4, torch.device("cpu"), start)
    clean, noise = torch.randn(2, 1, 8, 8, 8, generator=torch.Generator().manual_seed(1)).double()
    sample = scheduler.add_noise(clean, noise, timesteps[:1])
    for timestep in timesteps:
        sample = scheduler.step(clean, timestep, sample, return_dict=False)[0]
    torch.testing.assert_close(sample, clean, rtol=0, atol=0.05)


def test_published_number_of_steps(pipeline: ReFLDMPipeline) -> None:
    for asked, run in [(50, 50), (7, 8), (30, 31), (3, 4), (1, 1)]:
        _, timesteps = prepare(pipeline.scheduler, asked, torch.device("cpu"), None)
        assert len(timesteps) == run
        assert int(timesteps[0]) == 999


def test_crop_size_may_differ_from_what_the_networks_see() -> None:
    pipeline = tiny_pipeline(crop_size=96)
    cache = pipeline.encode_references([picture(96, seed=1)])
    assert pipeline(picture(96), cache, 1).images[0].size == (96, 96)
    assert pipeline(torch.zeros(2, 3, 96, 96), cache, 1, output_type="pt").images.shape == (2, 3, 96, 96)


def test_residual_model_with_no_change_returns_the_lq_face() -> None:
    pipeline = tiny_pipeline(residual=True)
    torch.nn.init.zeros_(pipeline.unet.conv_out.weight)
    torch.nn.init.zeros_(pipeline.unet.conv_out.bias)
    pipeline.scheduler = make_sampler("ddim", pipeline.scheduler)
    pipeline.scheduler.register_to_config(prediction_type="sample", set_alpha_to_one=True)
    lq = picture()
    with torch.no_grad():
        expected = pipeline._encode(torch.from_numpy(np.asarray(lq) / 127.5 - 1).float().permute(2, 0, 1)[None])
    found = pipeline(lq, None, 2, output_type="latent").images
    assert torch.allclose(found, expected, atol=1e-4)


def test_detail_that_the_autoencoder_loses_is_kept() -> None:
    """A residual model that changes nothing gives the LQ crop back, whatever its autoencoder makes of it."""
    lossy = tiny_pipeline(residual=True, crop_size=96)
    exact = tiny_pipeline(residual=True, crop_size=96, keep_detail=True)
    crop = torch.rand(1, 3, 96, 96, generator=torch.Generator().manual_seed(1)) * 2 - 1
    for pipeline in (lossy, exact):
        torch.nn.init.zeros_(pipeline.unet.conv_out.weight)
        torch.nn.init.zeros_(pipeline.unet.conv_out.bias)
        pipeline.scheduler.register_to_config(prediction_type="sample", set_alpha_to_one=True)
    assert torch.allclose(exact(crop, None, 2, output_type="pt").images, crop, atol=1e-3)
    assert not torch.allclose(lossy(crop, None, 2, output_type="pt").images, crop, atol=0.1)


def test_save_and_load(pipeline: ReFLDMPipeline, tmp_path: Path) -> None:
    pipeline.save_pretrained(tmp_path)
    loaded = ReFLDMPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert loaded.config.reference_encoding == "each"
    start = torch.randn(1, 8, 8, 8, generator=torch.Generator().manual_seed(1))
    cache = pipeline.encode_references([picture(seed=1)])
    one, other = (p(picture(), cache, 2, latents=start, output_type="latent").images for p in (pipeline, loaded))
    assert torch.equal(one, other)


def test_callback_may_change_the_latents(pipeline: ReFLDMPipeline) -> None:
    start = torch.randn(1, 8, 8, 8, generator=torch.Generator().manual_seed(1))

    def zero(_: Any, step: int, __: Any, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"latents": torch.zeros_like(state["latents"])} if step == 1 else {}

    found = pipeline(picture(), None, 2, latents=start, output_type="latent", callback_on_step_end=zero).images
    assert float(found.abs().max()) == 0


def test_resizing_is_said(pipeline: ReFLDMPipeline) -> None:
    with pytest.warns(UserWarning, match="references: resized from 80 to 64 px"):
        pipeline.encode_references([picture(80)])
    with pytest.warns(UserWarning, match="lq: resized from 32 to 64 px"):
        pipeline(torch.zeros(1, 3, 32, 32), None, 1)


def test_nan_is_an_error(pipeline: ReFLDMPipeline) -> None:
    broken = tiny_pipeline()
    with torch.no_grad():
        broken.unet.conv_out.bias.fill_(float("nan"))
    with pytest.raises(NotFiniteError, match="1 of 1 faces"):
        broken(picture(), None, 1)
    with torch.no_grad():
        broken.autoencoder.quant_conv.bias.fill_(float("nan"))
    with pytest.raises(NotFiniteError, match="references"):
        broken.encode_references([picture()])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_inference_steps": 0}, "num_inference_steps: expected a whole number from 1 to 1000, found 0"),
        ({"num_inference_steps": 1001}, "found 1001"),
        ({"num_inference_steps": 2.5}, "found 2.5"),
        ({"guidance_scale": -1.0}, "guidance_scale: expected a number from 0 to 20, found -1.0"),
        ({"guidance_scale": float("nan")}, "found nan"),
        ({"output_type": "numpy"}, "output_type"),
        ({"start_timestep": 1000}, "start_timestep"),
        ({"latents": torch.zeros(1, 8, 4, 4)}, r"latents: expected shape \(1, 8, 8, 8\)"),
        ({"generator": [torch.Generator()] * 2}, "generator: expected one or 1"),
        ({"lq": Image.new("RGB", (64, 60))}, "lq: expected a square face crop, found 64x60 px"),
        ({"lq": "face.png"}, "lq: expected PIL images"),
        ({"lq": []}, "lq: expected at least one image"),
        ({"lq": torch.zeros(1, 1, 64, 64)}, r"lq: expected a \(B, 3, H, W\) tensor"),
        ({"lq": torch.zeros(1, 3, 64, 32)}, "lq: expected square"),
        ({"lq": torch.full((1, 3, 64, 64), float("nan"))}, "lq: expected finite"),
        ({"lq": torch.full((1, 3, 64, 64), 200.0)}, r"lq: expected values in \[-1, 1\]"),
    ],
)
def test_bad_arguments(pipeline: ReFLDMPipeline, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        pipeline(**{"lq": picture(), **arguments})


def test_bad_references(pipeline: ReFLDMPipeline) -> None:
    with pytest.raises(UsageError, match="references: expected at least one image, found none"):
        pipeline.encode_references([])
    two_rows = pipeline.encode_references([picture()])
    doubled = {name: (k.repeat(2, 1, 1), v.repeat(2, 1, 1)) for name, (k, v) in two_rows.layers.items()}
    cache = type(two_rows)(doubled, 1, "each")
    with pytest.raises(UsageError, match="cache of 1 or 3 rows"):
        pipeline(torch.zeros(3, 3, 64, 64), cache, 1)


def test_parts_must_fit() -> None:
    with pytest.raises(UsageError, match="reference_encoding"):
        tiny_pipeline(reference_encoding="all")
    made = tiny_pipeline()
    with pytest.raises(UsageError, match=r"expected 16 input channels \(24 with a guide\) and 8 output"):
        ReFLDMPipeline(made.autoencoder, type(made.unet)(**{**made.unet.config, "in_channels": 8}), made.scheduler)
