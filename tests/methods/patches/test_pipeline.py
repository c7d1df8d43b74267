"""PatchPipeline: pictures in and out, references by guide and by CacheKV, tones, batches, saving, ablations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import UNet2DModel

from facefix.errors import UsageError
from facefix.methods.base import LoadOptions
from facefix.methods.patches.pipeline import Parts, PatchPipeline
from facefix.methods.registry import load
from facefix.networks.autoencoder import autoencoder_config, build_autoencoder
from facefix.networks.landmarks import LandmarkNetwork
from facefix.networks.patches import initialise, patch_unet_config
from facefix.networks.rope import RotaryCode
from facefix.networks.schedule import ddim_scheduler
from facefix.networks.survival import SurvivalNetwork

PX = 64


def tiny(**config: object) -> PatchPipeline:
    """Works at 64 px; random weights, also where a new denoiser starts at zero."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        autoencoder = build_autoencoder(
            autoencoder_config(
                (16, 16, 16, 16),
                layers_per_block=1,
                codes=32,
                norm_num_groups=8,
                sample_size=PX,
                mid_block_add_attention=False,
            )
        )
        arguments = patch_unet_config((16, 32), (False, True), norm_num_groups=8) | {"sample_size": PX // 16}
        unet = initialise(UNet2DModel(**arguments), RotaryCode())
        torch.nn.init.normal_(unet.conv_out.weight, std=0.05)
        others = LandmarkNetwork().eval(), SurvivalNetwork().eval()
    scheduler = ddim_scheduler(prediction_type="sample", set_alpha_to_one=True)
    made: Any = PatchPipeline
    pipeline: PatchPipeline = made(
        autoencoder.eval(), unet.eval(), scheduler, *others, latent_scale=0.5, rotary=[1.0, 40.0], **config
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def pipeline() -> PatchPipeline:
    return tiny()


def faces(count: int, seed: int) -> torch.Tensor:
    small = torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return torch.nn.functional.interpolate(small, size=(PX, PX), mode="bilinear")


def noise(count: int) -> torch.Tensor:
    return torch.randn(count, 8, 8, 8, generator=torch.Generator().manual_seed(7))


def test_a_batch_is_as_one_by_one(pipeline: PatchPipeline) -> None:
    cache = pipeline.encode_references(faces(2, 1))
    assert pipeline.crop_size == PX
    lq, start = faces(3, 2), noise(3)
    together = pipeline(lq, cache, latents=start, output_type="pt").images
    alone = torch.cat(
        [pipeline(lq[n : n + 1], cache, latents=start[n : n + 1], output_type="pt").images for n in range(3)]
    )
    assert together.shape == (3, 3, PX, PX)
    assert torch.allclose(together, alone, atol=1e-4)


def test_references_reach_the_result_by_both_ways(pipeline: PatchPipeline) -> None:
    caches = [pipeline.encode_references(faces(1, seed)) for seed in (3, 4)]
    lq, start = faces(1, 2), noise(1)

    def difference(parts: Parts) -> float:
        pipeline.parts = parts
        found = [pipeline(lq, cache, latents=start, output_type="pt").images for cache in caches]
        pipeline.parts = Parts()
        return float((found[0] - found[1]).abs().max())

    assert difference(Parts(guide=False)) > 1e-4
    assert difference(Parts(cachekv=False)) > 1e-4
    assert difference(Parts(guide=False, cachekv=False)) == 0.0


def test_guidance_runs_a_second_branch(pipeline: PatchPipeline) -> None:
    cache = pipeline.encode_references(faces(2, 1))
    lq, start = faces(1, 2), noise(1)
    results = [pipeline(lq, cache, 2, scale, latents=start, output_type="latent").images for scale in (1.0, 1.5, 0.0)]
    assert torch.allclose(results[0] - results[2], (results[1] - results[2]) / 1.5, atol=0.05)
    assert not torch.allclose(results[0], results[1], atol=1e-4)


def test_grey_stays_grey_with_colour_references(pipeline: PatchPipeline) -> None:
    grey = faces(1, 2).mean(1, keepdim=True).expand(-1, 3, -1, -1)
    cache = pipeline.encode_references(faces(1, 3))
    (image,) = pipeline(grey, cache, latents=noise(1)).images
    pixels = np.asarray(image)
    assert (pixels[..., 0] == pixels[..., 1]).all()
    assert (pixels[..., 0] == pixels[..., 2]).all()


def test_caches_of_single_references_compose(pipeline: PatchPipeline) -> None:
    references = faces(2, 1)
    whole = pipeline.encode_references(references)
    parts = [pipeline.encode_references(references[n : n + 1]) for n in range(2)]
    composed = type(whole).compose(parts)
    lq, start = faces(1, 2), noise(1)
    one, other = (pipeline(lq, cache, latents=start, output_type="pt").images for cache in (whole, composed))
    assert torch.allclose(one, other, atol=1e-5)


def test_saved_and_loaded_by_the_registry(pipeline: PatchPipeline, tmp_path: Path) -> None:
    pipeline.save_pretrained(tmp_path)
    options = LoadOptions(name="tiny", device=torch.device("cpu"), dtype=torch.float32)
    restorer = load(tmp_path, options)
    crop = ((faces(1, 2)[0].permute(1, 2, 0) + 1) * 127.5).byte().numpy()
    prepared = restorer.prepare([crop])
    (one,) = restorer.restore([crop], prepared, [5])
    (other,) = restorer.ablations["guide"]().restore([crop], prepared, [5])
    assert one.shape == (PX, PX, 3)
    assert (one != other).any()
    assert set(restorer.ablations) == {"guide", "cachekv", "warp"}


def test_another_denoiser_is_refused(pipeline: PatchPipeline) -> None:
    with pytest.raises(UsageError, match="patches of 4"):
        PatchPipeline(
            pipeline.autoencoder,
            pipeline.unet,
            pipeline.scheduler,
            pipeline.landmarks,
            pipeline.survival,
            patch_size=4,
        )
    cache = pipeline.encode_references(faces(1, 3))
    without = type(cache)(cache.layers, 1, "each")
    with pytest.raises(UsageError, match="images"):
        pipeline(faces(1, 2), without)
