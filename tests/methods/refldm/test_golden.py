"""Every stage against outputs of the published implementation, imported from checkpoints in both official layouts."""

from __future__ import annotations

from pathlib import Path

import golden
import numpy as np
import pytest
import torch

from facefix import ReFLDMPipeline
from facefix.methods.refldm.convert import import_refldm
from facefix.networks.autoencoder import code_indices, decode, quantize
from facefix.networks.cachekv import denoise, with_references
from facefix.networks.images import tensor_to_pixels
from facefix.networks.reference_cache import Branch, ReferenceCache
from facefix.networks.schedule import ddim_scheduler, prepare, published_alphas_cumprod

GATE = 1e-5


def quiet(pipeline: ReFLDMPipeline) -> ReFLDMPipeline:
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module", params=["flat", "lightning", "saved again"])
def pipeline(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ReFLDMPipeline:
    folder = tmp_path_factory.mktemp("golden")
    paths = golden.write_checkpoints(folder)
    layout = "flat" if request.param == "saved again" else request.param
    made = import_refldm(paths[layout], paths["vqgan"], golden.CONFIG, folder / "model")
    loaded = ReFLDMPipeline.from_pretrained(made)
    if request.param == "saved again":
        loaded.save_pretrained(folder / "again")
        loaded = ReFLDMPipeline.from_pretrained(folder / "again")
    return quiet(loaded)


@pytest.fixture(scope="module")
def arrays() -> dict[str, np.ndarray]:
    return golden.arrays()


@pytest.fixture(scope="module")
def lq(arrays: dict[str, np.ndarray]) -> torch.Tensor:
    return golden.image(arrays["lq_u8"])


@pytest.fixture(scope="module")
def references(arrays: dict[str, np.ndarray]) -> torch.Tensor:
    return torch.cat([golden.image(arrays[f"ref{i}_u8"]) for i in range(3)])


@pytest.fixture(scope="module")
def cache(pipeline: ReFLDMPipeline, references: torch.Tensor) -> ReferenceCache:
    return pipeline.encode_references(references)


def assert_equals(found: torch.Tensor, expected: np.ndarray, max_abs: float) -> None:
    wanted = torch.from_numpy(expected)
    assert found.shape == wanted.shape
    assert golden.relative_rms(found, wanted) <= GATE
    assert float((found.double() - wanted.double()).abs().max()) <= max_abs


@torch.no_grad()
def test_lq_latent(pipeline: ReFLDMPipeline, arrays: dict[str, np.ndarray], lq: torch.Tensor) -> None:
    assert_equals(pipeline._encode(lq), arrays["lq_latent"], 5e-5)


@torch.no_grad()
def test_reference_latents(pipeline: ReFLDMPipeline, arrays: dict[str, np.ndarray], references: torch.Tensor) -> None:
    strip = torch.cat(pipeline._encode_strip(references).unbind(0), dim=2)[None]
    assert_equals(strip, arrays["refs_latent_strip"], 5e-5)
    each = torch.cat(pipeline._encode(references).unbind(0), dim=2)[None]
    assert_equals(each, arrays["refs_latent_each"], 5e-5)


def test_keys_and_values(cache: ReferenceCache, arrays: dict[str, np.ndarray]) -> None:
    assert cache.num_references == 3
    assert len(cache.layers) == int(arrays["n_attn_layers"])
    layers = list(cache.layers.values())
    for layer in (0, 6):
        for number in range(3):
            expected = arrays[f"kv_layer{layer}_ref{number}"].astype(np.float32)  # (2, heads, dim, T)
            _, heads, dim, tokens = expected.shape
            for part in (0, 1):
                mine = layers[layer][part].view(3, tokens, heads, dim)[number].permute(1, 2, 0).numpy()
                assert np.abs(mine - expected[part]).max() <= 4e-3
    for layer, (key, value) in enumerate(layers):
        for number in range(3):
            k, v = (part.view(3, -1)[number].double() for part in (key, value))
            sums = torch.stack([k.sum(), k.square().sum(), v.sum(), v.square().sum()]).numpy()
            expected = arrays["kv_sums"][layer, number]
            assert np.abs(sums - expected).max() <= 1e-4 * max(expected[1], expected[3])


@torch.no_grad()
@pytest.mark.parametrize("timestep", [999, 500, 19])
def test_prediction(
    pipeline: ReFLDMPipeline, cache: ReferenceCache, arrays: dict[str, np.ndarray], lq: torch.Tensor, timestep: int
) -> None:
    latents = pipeline._encode(lq)
    sample = torch.cat([torch.from_numpy(arrays[f"x_t{timestep}"]), latents], dim=1)
    null = Branch(slice(None), pipeline.null_cache(latents), copies=3)
    found = with_references(pipeline.unet, sample, timestep, cache)
    assert_equals(found, arrays[f"eps_refs_t{timestep}"], 5e-5)
    assert_equals(denoise(pipeline.unet, sample, timestep, [null]), arrays[f"eps_nullrefs_t{timestep}"], 5e-5)
    assert_equals(with_references(pipeline.unet, sample, timestep, None), arrays[f"eps_norefs_t{timestep}"], 5e-5)


@pytest.mark.parametrize(
    ("name", "steps", "guidance_scale"), [("ddim5_cfg1.5", 5, 1.5), ("ddim5_cfg1.0", 5, 1.0), ("ddim3_cfg1.5", 3, 1.5)]
)
def test_sampling(
    pipeline: ReFLDMPipeline,
    cache: ReferenceCache,
    arrays: dict[str, np.ndarray],
    lq: torch.Tensor,
    name: str,
    steps: int,
    guidance_scale: float,
) -> None:
    seen: list[int] = []
    inner: list[torch.Tensor] = []

    def note(_: ReFLDMPipeline, __: int, timestep: torch.Tensor, state: dict[str, torch.Tensor]) -> None:
        seen.append(int(timestep))
        inner.append(state["latents"])

    start = torch.from_numpy(arrays["xT"])
    found = pipeline(
        lq, cache, steps, guidance_scale, latents=start, output_type="latent", callback_on_step_end=note
    ).images
    assert seen == arrays[f"{name}.timesteps"].tolist()
    assert_equals(found, arrays[f"{name}.z"], 1e-4)
    if f"{name}.x_inter" in arrays:
        for step, latents in enumerate(inner, start=1):
            assert_equals(latents, arrays[f"{name}.x_inter"][step : step + 1], 1e-4)


def test_uniform_spacing(
    pipeline: ReFLDMPipeline, cache: ReferenceCache, arrays: dict[str, np.ndarray], lq: torch.Tensor
) -> None:
    uniform = ddim_scheduler(timestep_spacing="leading", steps_offset=1)
    other = quiet(ReFLDMPipeline(pipeline.autoencoder, pipeline.unet, uniform))
    start = torch.from_numpy(arrays["xT"])
    found = other(lq, cache, 5, 1.5, latents=start, output_type="latent").images
    assert_equals(found, arrays["ddim5_cfg1.5_uniform.z"], 1e-4)


def test_codes_and_decoding(pipeline: ReFLDMPipeline, arrays: dict[str, np.ndarray]) -> None:
    z = torch.from_numpy(arrays["ddim5_cfg1.5.z"])
    with torch.no_grad():
        assert code_indices(pipeline.autoencoder, z).flatten().tolist() == arrays["code_indices"].tolist()
        assert_equals(quantize(pipeline.autoencoder, z), arrays["z_quantized"], 1e-5)
        decoded = pipeline.decode(z)
        assert_equals(decoded, arrays["decoded"], 1e-4)
        plain = decode(pipeline.autoencoder, z, quantized=False).numpy()
        assert np.abs(plain - arrays["decoded_not_quantized"].astype(np.float32)).max() <= 4e-3
    levels = tensor_to_pixels(decoded)[0].astype(int) - arrays["decoded_u8"].astype(int)
    assert np.abs(levels).max() <= 1
    assert np.count_nonzero(levels) <= 10


def test_schedule(arrays: dict[str, np.ndarray]) -> None:
    found = published_alphas_cumprod(0.0015, 0.0155, 1000).numpy()
    assert np.abs(found - arrays["alphas_cumprod"]).max() <= 1e-7
    scheduler, _ = prepare(ddim_scheduler(), 5, torch.device("cpu"), None)
    assert np.abs(scheduler.betas.numpy() - arrays["betas"]).max() <= 1e-7
    used = scheduler.alphas_cumprod[scheduler.timesteps].numpy()
    assert np.array_equal(used[::-1], arrays["ddim5_cfg1.5.alphas"])
    assert float(scheduler.final_alpha_cumprod) == pytest.approx(float(arrays["ddim5_cfg1.5.alphas_prev"][0]), abs=1e-7)


@torch.no_grad()
def test_bf16_stays_close(
    pipeline: ReFLDMPipeline, arrays: dict[str, np.ndarray], lq: torch.Tensor, tmp_path: Path
) -> None:
    pipeline.save_pretrained(tmp_path)
    half = quiet(ReFLDMPipeline.from_pretrained(tmp_path, torch_dtype=torch.bfloat16))
    references = torch.cat([golden.image(arrays[f"ref{i}_u8"]) for i in range(3)])
    cache = half.encode_references(references)
    assert cache.dtype == torch.bfloat16
    sample = torch.cat([torch.from_numpy(arrays["x_t500"]), torch.from_numpy(arrays["lq_latent"])], dim=1)
    found = with_references(half.unet, sample.bfloat16(), 500, cache)
    assert golden.relative_rms(found, torch.from_numpy(arrays["eps_refs_t500"])) <= 3e-2
    z = half(lq, cache, 5, 1.5, latents=torch.from_numpy(arrays["xT"]), output_type="latent").images
    assert golden.relative_rms(z, torch.from_numpy(arrays["ddim5_cfg1.5.z"])) <= 5e-2
    codes = code_indices(half.autoencoder, torch.from_numpy(arrays["ddim5_cfg1.5.z"]))
    assert codes.flatten().tolist() == arrays["code_indices"].tolist()
