"""Every stage against the published script on tiny networks: three steps, one step, colouring."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from golden_interlcm import GATE, relative_rms
from PIL import Image

from facefix.methods.interlcm.pipeline import InterLCMPipeline
from facefix.methods.interlcm.spatial import guidance_embedding, lcm_scheduler, predict, spatial_residuals
from facefix.methods.interlcm.visual import VisualEncoder, config_of
from facefix.networks.colour_fix import adain, fix_colours, grey_like, is_grey, wavelet, wavelet_bands
from facefix.networks.images import pixels_to_tensor, tensor_to_pixels

Arrays = dict[str, np.ndarray]


def torch_of(arrays: Arrays, name: str) -> torch.Tensor:
    return torch.from_numpy(arrays[name])


def lq_of(arrays: Arrays, letter: str) -> torch.Tensor:
    return pixels_to_tensor(arrays[f"image_{letter}"])[None]


def run(pipeline: InterLCMPipeline, arrays: Arrays, name: str, **options: Any) -> tuple[Any, list[torch.Tensor]]:
    """The pipeline's result with the published noise, and what each step gave."""
    steps = pipeline.config.steps[0]
    noise = [torch_of(arrays, f"{name}.noise{number}") for number in range(steps)]
    scheduler, timesteps = pipeline.timesteps(steps)
    seen: list[torch.Tensor] = []

    def noised(_: Any, step: int, __: Any, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor] | None:
        seen.append(state["denoised"])
        if step + 1 == steps:
            return None
        next_timestep = timesteps[step + 1 : step + 2]
        return {"latents": scheduler.add_noise(state["denoised"], noise[step + 1], next_timestep)}

    picture = Image.fromarray(arrays[f"image_{name.split('.')[1]}"])
    result = pipeline(picture, latents=noise[0], callback_on_step_end=noised, **options).images
    return result, seen


def assert_same_levels(found: Any, expected: np.ndarray) -> None:
    levels = np.asarray(found).astype(int) - expected.astype(int)
    assert np.abs(levels).max() <= 1
    assert np.count_nonzero(levels) <= 1e-3 * levels.size


@pytest.mark.parametrize("form", ["3step", "1step"])
def test_chain(request: pytest.FixtureRequest, arrays: Arrays, form: str) -> None:
    pipeline = request.getfixturevalue({"3step": "three_steps", "1step": "one_step"}[form])
    steps = int(form[0])
    timesteps = pipeline.timesteps(steps)[1].tolist()
    assert timesteps == arrays[f"{form}.a.timesteps"].tolist()[1:]
    assert relative_rms(pipeline.encode_tokens(lq_of(arrays, "a")), arrays[f"{form}.a.visual_tokens"]) <= GATE
    latents, denoised = run(pipeline, arrays, f"{form}.a", output_type="latent")
    for number, found in enumerate(denoised, start=1):
        assert relative_rms(found, arrays[f"{form}.a.step{number}.denoised"]) <= GATE
    assert torch.equal(latents, denoised[-1])


def test_picture(three_steps: InterLCMPipeline, arrays: Arrays) -> None:
    images, _ = run(three_steps, arrays, "3step.a")
    assert_same_levels(images[0], arrays["3step.a.u8_file"])


@torch.no_grad()
def test_first_step(three_steps: InterLCMPipeline, arrays: Arrays) -> None:
    lq, z0 = lq_of(arrays, "a"), torch_of(arrays, "3step.a.z0")
    assert relative_rms(three_steps.encode(lq), arrays["3step.a.z0"]) <= GATE
    tokens = torch_of(arrays, "3step.a.visual_tokens")
    scheduler, timesteps = three_steps.timesteps(3)
    z = scheduler.add_noise(z0, torch_of(arrays, "3step.a.noise0"), timesteps[:1])
    residuals = spatial_residuals(three_steps.controlnet, z, timesteps[0], tokens, lq)
    assert relative_rms(residuals[1], arrays["3step.a.step1.control_mid"]) <= GATE
    predicted = predict(three_steps.unet, z, timesteps[0], tokens, residuals, 8.0)
    assert relative_rms(predicted, arrays["3step.a.step1.eps"]) <= GATE


@torch.no_grad()
@pytest.mark.parametrize("form", ["3step", "1step"])
def test_every_stage_by_itself(request: pytest.FixtureRequest, all_arrays: Arrays, form: str) -> None:
    """Each stage fed with the published input of that stage."""
    pipeline = request.getfixturevalue({"3step": "three_steps", "1step": "one_step"}[form])
    rows: list[tuple[str, torch.Tensor]] = []
    lq = lq_of(all_arrays, "a")
    tower = pipeline.image_encoder
    rows += [("3step.a.lq", lq), ("3step.a.clip_input", tower.prepare(lq)), ("3step.a.clip_tokens", tower(lq))]
    x = torch_of(all_arrays, "3step.a.clip_tokens")
    for number, block in enumerate(pipeline.visual_encoder.blocks):
        x = block(x)
        if f"{form}.a.visual_encoder_block{number}" in all_arrays:
            rows.append((f"{form}.a.visual_encoder_block{number}", x))
    rows.append((f"{form}.a.visual_tokens", x))
    posterior = pipeline.vae.encode(lq).latent_dist
    rows += [("3step.a.posterior_mean", posterior.mean), ("3step.a.posterior_logvar", posterior.logvar)]
    rows.append((f"{form}.a.z0", pipeline.encode(lq)))
    scheduler, timesteps = pipeline.timesteps(int(form[0]))
    noisy = scheduler.add_noise(*(torch_of(all_arrays, f"{form}.a.{name}") for name in ("z0", "noise0")), timesteps[:1])
    rows += [(f"{form}.a.z_LQ", noisy), ("3step.a.guidance_embedding", guidance_embedding(8.0, 256))]
    tokens = torch_of(all_arrays, f"{form}.a.visual_tokens")
    for number, timestep in enumerate(timesteps, start=1):
        step = f"{form}.a.step{number}"
        assert int(timestep) == int(all_arrays[f"{step}.t"])
        z = torch_of(all_arrays, f"{step}.z_in")
        residuals = spatial_residuals(pipeline.controlnet, z, timestep, tokens, lq)
        controls = [*((f"control_down{n}", part) for n, part in enumerate(residuals[0])), ("control_mid", residuals[1])]
        rows += [(f"{step}.{name}", part) for name, part in controls if f"{step}.{name}" in all_arrays]
        rows.append((f"{step}.eps", predict(pipeline.unet, z, timestep, tokens, residuals, 8.0)))
        given = torch_of(all_arrays, f"{step}.eps")
        rows.append((f"{step}.denoised", scheduler.step(given, timestep, z, return_dict=False)[1]))
    rows.append((f"{form}.a.decoded", pipeline.decode(torch_of(all_arrays, f"{form}.a.step{form[0]}.denoised"))))
    decoded = torch_of(all_arrays, f"{form}.a.decoded")
    for kind in ("wavelet", "adain"):
        if f"{form}.a.{kind}" in all_arrays:
            rows.append((f"{form}.a.{kind}", fix_colours(decoded, lq, kind)))
    compared = {name: relative_rms(found, all_arrays[name]) for name, found in rows}
    assert {name: error for name, error in compared.items() if error > GATE} == {}


@pytest.mark.parametrize(("form", "letter", "last"), [("3step", "b", 3), ("3step", "c", 3), ("1step", "b", 1)])
def test_other_pictures(request: pytest.FixtureRequest, all_arrays: Arrays, form: str, letter: str, last: int) -> None:
    """``c`` is grey: its picture gets the grey treatment."""
    pipeline = request.getfixturevalue({"3step": "three_steps", "1step": "one_step"}[form])
    images, denoised = run(pipeline, all_arrays, f"{form}.{letter}")
    assert relative_rms(denoised[-1], all_arrays[f"{form}.{letter}.step{last}.denoised"]) <= GATE
    assert_same_levels(images[0], all_arrays[f"{form}.{letter}.u8_file"])


def _with(pipeline: InterLCMPipeline, **settings: Any) -> InterLCMPipeline:
    parts = {name: getattr(pipeline, name) for name in ("vae", "unet", "controlnet", "visual_encoder", "image_encoder")}
    other = InterLCMPipeline(**parts, scheduler=pipeline.scheduler, steps=pipeline.config.steps, **settings)
    other.set_progress_bar_config(disable=True)
    return other


def test_grey_is_optional(three_steps: InterLCMPipeline, all_arrays: Arrays) -> None:
    images, _ = run(_with(three_steps, grey=False), all_arrays, "3step.c")
    assert_same_levels(images[0], all_arrays["3step.c.u8_network"])


def test_adain(three_steps: InterLCMPipeline, all_arrays: Arrays) -> None:
    images, _ = run(_with(three_steps, colour_fix="adain"), all_arrays, "3step.a")
    assert_same_levels(images[0], all_arrays["3step.a.u8_adain"])


def test_colouring(one_step: InterLCMPipeline, all_arrays: Arrays) -> None:
    images, denoised = run(_with(one_step, colour_fix="none", grey=False), all_arrays, "colorization.c")
    assert relative_rms(denoised[-1], all_arrays["colorization.c.step1.denoised"]) <= GATE
    assert_same_levels(images[0], all_arrays["colorization.c.u8_file"])


def test_tables(arrays: Arrays) -> None:
    scheduler = lcm_scheduler()
    assert np.abs(scheduler.alphas_cumprod.numpy() - arrays["fn.alphas_cumprod"]).max() <= 1e-7
    for count in (1, 2, 3, 4, 5, 8):
        scheduler.set_timesteps(count)
        assert scheduler.timesteps.tolist() == arrays[f"fn.timesteps_{count}"].tolist()
    scheduler.set_timesteps(4)
    scalings = [scheduler.get_scalings_for_boundary_condition_discrete(t) for t in scheduler.timesteps]
    for position, name in enumerate(("fn.c_skip_4", "fn.c_out_4")):
        found = np.array([float(pair[position]) for pair in scalings])
        assert np.allclose(found, arrays[name], rtol=1e-5, atol=0)
    # half the angles are thousands: float32 angles are exact to 1e-4 at most there
    assert relative_rms(guidance_embedding(8.0, 256), arrays["fn.guidance_embedding_w7.0_dim256"]) <= GATE
    assert relative_rms(guidance_embedding(1.5, 64), arrays["fn.guidance_embedding_w0.5_dim64"]) <= GATE


def test_colour_fixes(arrays: Arrays) -> None:
    content, style = (torch.from_numpy(arrays[f"fn.colorfix_{name}"]) for name in ("content", "style"))
    assert relative_rms(wavelet(content, style), arrays["fn.wavelet"]) <= GATE
    assert relative_rms(wavelet_bands(content)[0], arrays["fn.wavelet_high"]) <= GATE
    assert relative_rms(adain(content, style), arrays["fn.adain"]) <= GATE


def test_rounding(arrays: Arrays) -> None:
    found = tensor_to_pixels(torch.from_numpy(arrays["fn.to_u8_in"]), nearest=True)[0]
    assert np.array_equal(found, arrays["fn.to_u8"])


def test_grey(arrays: Arrays) -> None:
    assert [is_grey(picture) for picture in arrays["fn.gray_cases"]] == arrays["fn.gray_is"].tolist()
    found = grey_like(arrays["fn.gray_restored"], arrays["fn.gray_input"])
    assert np.abs(found - arrays["fn.gray_float"]).max() <= 1e-9
    assert np.array_equal(np.rint(found).clip(0, 255).astype(np.uint8), arrays["fn.gray_u8"])


@torch.no_grad()
def test_visual_encoder_in_published_size(golden_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(golden_folder))
    recipe = __import__("make_ckpts")
    state, tokens = recipe.full_visual_encoder()
    sys.modules.pop("make_ckpts")
    weights = {name: torch.from_numpy(value) for name, value in state.items()}
    encoder = VisualEncoder(**config_of(weights, 768))
    encoder.load_state_dict(weights)
    assert sum(weight.numel() for weight in encoder.parameters()) == 12_960_845
    with np.load(golden_folder / "visual_encoder_full.npz") as stored:
        (name,) = stored.files
        assert relative_rms(encoder(torch.from_numpy(tokens)), stored[name]) <= GATE


def test_configuration_of_the_golden_model(three_steps: InterLCMPipeline) -> None:
    index = json.loads((Path(three_steps.config._name_or_path) / "model_index.json").read_text())
    assert index["steps"] == [3]
    assert three_steps.crop_size == 128
    assert three_steps.latent_shape == (4, 16, 16)
