"""The pipeline on random networks: batches, seeds, forms of steps, save and load, what is left out, bad input."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from golden_interlcm import relative_rms
from PIL import Image
from tiny_interlcm import tiny_pipeline

from facefix.errors import NotFiniteError, UsageError
from facefix.methods.interlcm.networks import ClipVisionTower
from facefix.methods.interlcm.pipeline import Ablation, InterLCMPipeline


@pytest.fixture(scope="module")
def pipeline() -> InterLCMPipeline:
    return tiny_pipeline()


def faces(count: int) -> list[Image.Image]:
    random = np.random.default_rng(0)
    return [Image.fromarray(random.integers(0, 256, (64, 64, 3), dtype=np.uint8)) for _ in range(count)]


def generators(seeds: list[int]) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_a_face_in_a_batch_of_eight_is_the_face_alone(pipeline: InterLCMPipeline, steps: int) -> None:
    batch, seeds = faces(8), list(range(10, 18))
    together = pipeline(batch, steps, generators(seeds), output_type="pt").images
    for row, (face, seed) in enumerate(zip(batch, seeds, strict=True)):
        alone = pipeline(face, steps, generators([seed]), output_type="pt").images
        assert relative_rms(together[row : row + 1], alone.numpy()) <= 1e-5


def test_published_networks_in_a_batch(three_steps: InterLCMPipeline) -> None:
    random = np.random.default_rng(1)
    batch = [Image.fromarray(random.integers(0, 256, (128, 128, 3), dtype=np.uint8)) for _ in range(8)]
    together = three_steps(batch, generator=generators(list(range(8))), output_type="pt").images
    for row, face in enumerate(batch):
        alone = three_steps(face, generator=generators([row]), output_type="pt").images
        assert relative_rms(together[row : row + 1], alone.numpy()) <= 1e-5


def test_the_seed_decides(pipeline: InterLCMPipeline) -> None:
    face = faces(1)
    first, again, other = (pipeline(face, 2, generators([seed]), output_type="pt").images for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other, atol=1e-3)


def test_steps_that_the_model_was_trained_for(pipeline: InterLCMPipeline) -> None:
    assert pipeline.check_steps(None) == 3
    assert pipeline.timesteps(3)[1].tolist() == [759, 499, 259]
    assert pipeline.timesteps(1)[1].tolist() == [499]
    assert pipeline.timesteps(3, from_noise=True)[1].tolist() == [999, 679, 339]
    for wrong in (0, 4, True, 1.5):
        with pytest.raises(UsageError, match="3 or 1 or 2, which this model was trained for"):
            pipeline(faces(1), wrong)  # type: ignore[arg-type]
    for steps in ((), (0,), (50,), (2.0,), (True,)):
        with pytest.raises(UsageError, match="steps"):
            tiny_pipeline(steps=steps)


def test_saved_and_loaded_again(pipeline: InterLCMPipeline, tmp_path: Path) -> None:
    pipeline.save_pretrained(tmp_path)
    loaded = InterLCMPipeline.from_pretrained(tmp_path, local_files_only=True)
    loaded.set_progress_bar_config(disable=True)
    assert loaded.config.steps == [3, 1, 2]
    expected, found = (p(faces(2), generator=generators([1, 2]), output_type="pt").images for p in (pipeline, loaded))
    assert torch.equal(found, expected)


def test_latents_are_scaled_to_unit_variance_and_back() -> None:
    plain, scaled = tiny_pipeline(), tiny_pipeline(latent_scale=0.5)
    pixels = torch.rand(2, 3, 64, 64) * 2 - 1
    latents = plain.encode(pixels)
    assert torch.allclose(scaled.encode(pixels), latents * 0.5)
    with torch.no_grad():
        assert torch.allclose(scaled.decode(latents * 0.5), plain.decode(latents), atol=1e-5)


def test_what_is_left_out_has_an_effect(pipeline: InterLCMPipeline) -> None:
    face = faces(2)
    tokens = pipeline.encode_tokens(torch.rand(2, 3, 64, 64) * 2 - 1)
    variants = [Ablation(), Ablation(from_noise=True), Ablation(spatial_scale=0.0), Ablation(tokens=tokens)]
    results = [
        pipeline(face, 2, generators([1, 2]), output_type="latent", ablation=variant).images for variant in variants
    ]
    for number, first in enumerate(results):
        for second in results[:number]:
            assert float((first - second).abs().max()) > 1e-3


def test_the_spatial_encoder_off_is_the_unet_alone(pipeline: InterLCMPipeline) -> None:
    zeroed = copy.copy(pipeline)
    zeroed.controlnet = copy.deepcopy(pipeline.controlnet)
    zero_convolutions = [*zeroed.controlnet.controlnet_down_blocks, zeroed.controlnet.controlnet_mid_block]
    for convolution in zero_convolutions:
        torch.nn.init.zeros_(convolution.weight)
        torch.nn.init.zeros_(convolution.bias)
    off = pipeline(faces(1), 1, generators([1]), output_type="latent", ablation=Ablation(spatial_scale=0.0)).images
    without = zeroed(faces(1), 1, generators([1]), output_type="latent").images
    assert torch.allclose(off, without, atol=1e-5)


def test_grey_faces_stay_grey_beside_coloured_ones(pipeline: InterLCMPipeline) -> None:
    coloured, other = faces(2)
    grey = other.convert("L").convert("RGB")
    first, second = pipeline([coloured, grey], generator=generators([1, 2])).images
    red, green, blue = np.moveaxis(np.asarray(second), 2, 0)
    assert np.array_equal(red, green)
    assert np.array_equal(red, blue)
    assert not np.array_equal(np.asarray(first)[..., 0], np.asarray(first)[..., 1])


def test_callback_sees_and_changes_latents(pipeline: InterLCMPipeline) -> None:
    seen: list[int] = []

    def zero(
        _: InterLCMPipeline, step: int, timestep: torch.Tensor, state: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        seen.append(int(timestep))
        assert state["denoised"].shape == (1, 8, 8, 8)
        return {"latents": torch.zeros_like(state["latents"])}

    latents = pipeline(faces(1), 2, output_type="latent", callback_on_step_end=zero).images
    assert seen == [679, 339]
    assert float(latents.abs().max()) == 0


def test_bad_input(pipeline: InterLCMPipeline) -> None:
    with pytest.raises(UsageError, match="square"):
        pipeline(Image.new("RGB", (64, 32)))
    with pytest.raises(UsageError, match="one per face"):
        pipeline(faces(2), 1, generators([1]))
    with pytest.raises(UsageError, match=r"latents: expected shape \(2, 8, 8, 8\)"):
        pipeline(faces(2), 1, latents=torch.zeros(1, 8, 8, 8))
    with pytest.raises(UsageError, match="output_type"):
        pipeline(faces(1), output_type="np")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="colour_fix"):
        tiny_pipeline(colour_fix="sepia")
    with pytest.warns(UserWarning, match="resized from 32 to 64"):
        assert pipeline(Image.new("RGB", (32, 32)), 1).images[0].size == (64, 64)


def test_networks_that_do_not_fit_together(pipeline: InterLCMPipeline) -> None:
    parts = {name: getattr(pipeline, name) for name in ("vae", "unet", "controlnet", "visual_encoder", "scheduler")}
    tower = ClipVisionTower(patch_size=16, grid=3, width=64, layers=1)
    with pytest.raises(UsageError, match="expected 5 tokens for this Visual Encoder, found 10"):
        InterLCMPipeline(**parts, image_encoder=tower)


def test_a_result_that_is_not_finite() -> None:
    broken = tiny_pipeline()
    broken.unet.conv_out.bias.data[:] = torch.nan
    with pytest.raises(NotFiniteError, match="2 of 2 faces"):
        broken(faces(2), 1)
