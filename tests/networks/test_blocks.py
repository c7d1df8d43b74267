"""Blocks run channels-last in strips, and Winograd's convolutions, against the same in float64."""

from __future__ import annotations

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import golden
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers.models.downsampling import Downsample2D
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D
from torch import nn

from facefix import ReFLDMPipeline
from facefix.methods.refldm.convert import import_refldm
from facefix.networks import blocks
from facefix.networks.autoencoder import autoencoder_config, build_autoencoder, decode, encode
from facefix.networks.unet import build_unet
from facefix.networks.winograd import PlainConvolution, RowConvolution, UpsamplingConvolution

EXACT = 1e-6
"""rms of the error over the standard deviation of the result, in float64"""


@pytest.fixture(autouse=True)
def small_strips(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several strips in every map of these tests."""
    monkeypatch.setattr(blocks, "STRIP_BYTES", 2**15)


def random(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def resnet(channels: int, out_channels: int, embedding: int | None = None) -> ResnetBlock2D:
    torch.manual_seed(0)
    block = ResnetBlock2D(in_channels=channels, out_channels=out_channels, temb_channels=embedding, groups=16)
    for norm in (block.norm1, block.norm2):
        nn.init.normal_(norm.weight, 1, 0.3)
        nn.init.normal_(norm.bias, 0, 0.3)
    return block.eval()


def in_float64(module: nn.Module, *inputs: torch.Tensor | None) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = copy.deepcopy(module).double()(*(x if x is None else x.double() for x in inputs))
    return result


@pytest.mark.parametrize("kind", [RowConvolution, PlainConvolution])
@pytest.mark.parametrize(
    ("channels", "out_channels", "height", "width"), [(160, 160, 16, 9), (48, 96, 4, 1), (7, 5, 8, 6)]
)
@torch.no_grad()
def test_strip_convolutions(kind: type, channels: int, out_channels: int, height: int, width: int) -> None:
    x, weight = random(2, channels, height, width), random(out_channels, channels, 3, 3, seed=2)
    expected = F.conv2d(x.double(), weight.double(), padding=1).permute(0, 2, 3, 1)
    padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, 0, 0, 1, 1)).contiguous()
    out = torch.full((2, height, width, out_channels), float("nan"))
    kind(weight)(padded, out, add=False)
    assert golden.relative_rms(out, expected) < EXACT
    kind(weight)(padded, out, add=True)
    assert golden.relative_rms(out, 2 * expected) < EXACT


@pytest.mark.parametrize(
    ("channels", "out_channels", "height", "width"), [(64, 64, 8, 8), (48, 80, 5, 7), (6, 3, 1, 1)]
)
@torch.no_grad()
def test_upsampling_convolution(channels: int, out_channels: int, height: int, width: int) -> None:
    x, weight = random(2, channels, height, width), random(out_channels, channels, 3, 3, seed=2)
    enlarged = F.interpolate(x.double(), scale_factor=2, mode="nearest")
    expected = F.conv2d(enlarged, weight.double(), padding=1).permute(0, 2, 3, 1)
    out = torch.full((2, 2 * height, 2 * width, out_channels), float("nan"))
    UpsamplingConvolution(weight)(F.pad(x.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1)).contiguous(), out)
    assert golden.relative_rms(out, expected) < EXACT


@pytest.mark.parametrize("embedding", [None, 24])
@pytest.mark.parametrize(
    ("batch", "channels", "out_channels", "height", "width"),
    [(1, 48, 48, 32, 24), (2, 64, 48, 12, 7), (5, 48, 96, 9, 5), (3, 64, 64, 1, 3), (1, 48, 48, 30, 16)],
)
@torch.no_grad()
def test_residual_block(
    embedding: int | None, batch: int, channels: int, out_channels: int, height: int, width: int
) -> None:
    block = resnet(channels, out_channels, embedding)
    x = 2 * random(batch, channels, height, width) + 1
    timestep = None if embedding is None else random(batch, embedding, seed=3)
    expected = in_float64(block, x, timestep)
    before = x.clone()
    found = blocks.residual_block(block, x, timestep)
    assert torch.equal(x, before)
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert golden.relative_rms(found, expected) < EXACT
    found = blocks.residual_block(block, x.clone(), timestep, in_place=True)
    assert golden.relative_rms(found, expected) < EXACT


@torch.no_grad()
def test_changed_size_and_ends_of_networks() -> None:
    torch.manual_seed(0)
    x = random(2, 64, 12, 20)
    up = Upsample2D(64, use_conv=True, out_channels=64)
    assert golden.relative_rms(blocks.upsample(up, x), in_float64(up, x)) < EXACT
    for padding in (0, 1):
        down = Downsample2D(64, use_conv=True, padding=padding)
        assert golden.relative_rms(blocks.downsample(down, x), in_float64(down, x)) < EXACT
    ends = nn.Sequential(nn.GroupNorm(32, 64), nn.SiLU(), nn.Conv2d(64, 3, 3, padding=1))
    found = blocks.norm_act_conv(ends[0], ends[1], ends[2], x)
    assert golden.relative_rms(found, in_float64(ends, x)) < EXACT


@pytest.mark.parametrize("mean", [0.0, 5.0, 50.0])
@torch.no_grad()
def test_group_norm_is_as_exact_as_the_planar_one(mean: float) -> None:
    norm = nn.GroupNorm(16, 48)
    x = random(2, 48, 64, 48) + mean
    expected = in_float64(norm, x)
    found = blocks.normalize(norm, blocks.channels_last(x)).permute(0, 3, 1, 2)
    assert golden.relative_rms(found, expected) <= max(1.5 * golden.relative_rms(norm(x), expected), 1e-7)


@torch.no_grad()
def test_the_autoencoder() -> None:
    torch.manual_seed(0)
    config = autoencoder_config((48, 48, 64, 96), layers_per_block=1, codes=16, norm_num_groups=16)
    model = build_autoencoder(config).eval()
    exact = copy.deepcopy(model).double()
    images = random(1, 3, 64, 96).clamp(-1, 1)
    before = images.clone()
    assert golden.relative_rms(encode(model, images), exact.encode(images.double()).latents) < 3 * EXACT
    assert torch.equal(images, before)
    latents = random(1, 8, 8, 12)
    expected = exact.decode(latents.double(), force_not_quantize=True).sample
    assert golden.relative_rms(decode(model, latents, quantized=False), expected) < 5 * EXACT


@pytest.mark.parametrize("config", ["refldm", "small"])
@torch.no_grad()
def test_every_wide_block_of_the_networks_runs_in_strips(config: str) -> None:
    """diffusers names the same normalisation differently in encoder, decoder and denoiser."""
    with torch.device("meta"):
        networks = (build_autoencoder(config).eval(), build_unet(config).eval())
    for network in networks:
        for name, block in network.named_modules():
            if isinstance(block, ResnetBlock2D) and min(block.in_channels, block.out_channels) >= blocks.MIN_CHANNELS:
                assert blocks._is_plain(block), name


@pytest.mark.skipif(not blocks.multiplies_bf16(), reason="needs a processor with bf16 products")
@pytest.mark.parametrize(("batch", "channels", "out_channels", "height"), [(2, 64, 48, 12), (1, 160, 160, 32)])
@torch.no_grad()
def test_residual_block_in_bf16(batch: int, channels: int, out_channels: int, height: int) -> None:
    """About as near to the truth as the block itself in bf16."""
    block = resnet(channels, out_channels, 32)
    x, timestep = 2 * random(batch, channels, height, 16) + 1, random(batch, 32, seed=3)
    expected = in_float64(block, x, timestep)
    half, x, timestep = block.bfloat16(), x.bfloat16(), timestep.bfloat16()
    found = blocks.residual_block(half, x, timestep)
    assert found.dtype == torch.bfloat16
    assert golden.relative_rms(found, expected) < 2.5 * golden.relative_rms(half(x, timestep), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
@torch.no_grad()
def test_other_dtypes_run_the_block_itself(dtype: torch.dtype) -> None:
    block, x = resnet(48, 48).to(dtype), random(1, 48, 8, 8).to(dtype)
    assert torch.equal(blocks.residual_block(block, x), block(x, None))


def test_gradients_flow() -> None:
    block, x = resnet(48, 48), random(1, 48, 8, 8).requires_grad_()
    blocks.residual_block(block, x).square().sum().backward()
    assert x.grad is not None
    assert float(x.grad.abs().sum()) > 0
    assert block.conv1.weight.grad is not None
    assert float(block.conv1.weight.grad.abs().sum()) > 0


@torch.no_grad()
def test_changed_weights_are_seen() -> None:
    block, x = resnet(48, 48), random(1, 48, 8, 8)
    blocks.residual_block(block, x)
    other = resnet(48, 48)
    for parameter in other.parameters():
        parameter.mul_(0.5)
    changes = (
        lambda: block.conv1.weight.mul_(1.5),
        lambda: block.load_state_dict(other.state_dict()),
        lambda: setattr(block.conv2.weight, "data", random(48, 48, 3, 3, seed=4)),
        lambda: setattr(block, "conv2", nn.Conv2d(48, 48, 3, padding=1)),
        lambda: block.bfloat16().float(),
    )
    for change in changes:
        change()
        assert golden.relative_rms(blocks.residual_block(block, x), in_float64(block, x, None)) < EXACT


@torch.no_grad()
def test_nothing_is_added_to_the_model() -> None:
    block, x = resnet(48, 48), random(1, 48, 8, 8)
    names = set(block.state_dict())
    found = blocks.residual_block(block, x)
    assert set(block.state_dict()) == names
    for copied in (copy.deepcopy(block), pickle.loads(pickle.dumps(block))):
        assert torch.equal(blocks.residual_block(copied, x), found)


@torch.no_grad()
def test_several_threads_on_one_block() -> None:
    block = resnet(48, 48)
    inputs = [random(1, 48, 16, 16, seed=seed) for seed in range(8)]
    fresh = copy.deepcopy(block)
    expected = [blocks.residual_block(fresh, x) for x in inputs]

    def run(x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():  # grad mode is each thread's own
            return blocks.residual_block(block, x)

    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(run, inputs))
    for one, other in zip(found, expected, strict=True):
        assert golden.relative_rms(one, other) < EXACT


@torch.no_grad()
def test_published_outputs_with_every_block_in_strips(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The golden model is so narrow that most of its blocks run as they are: here all of them run in strips."""
    monkeypatch.setattr(blocks, "MIN_CHANNELS", 1)
    folder = tmp_path_factory.mktemp("golden")
    paths, arrays = golden.write_checkpoints(folder), golden.arrays()
    pipeline = ReFLDMPipeline.from_pretrained(
        import_refldm(paths["flat"], paths["vqgan"], golden.CONFIG, folder / "model")
    )
    pipeline.set_progress_bar_config(disable=True)

    def differs(found: torch.Tensor, expected: np.ndarray) -> float:
        return golden.relative_rms(found, torch.from_numpy(expected))

    lq = golden.image(arrays["lq_u8"])
    cache = pipeline.encode_references(torch.cat([golden.image(arrays[f"ref{i}_u8"]) for i in range(3)]))
    start = torch.from_numpy(arrays["xT"])
    found = pipeline(lq, cache, num_inference_steps=5, latents=start, output_type="latent").images
    assert differs(pipeline._encode(lq), arrays["lq_latent"]) <= 1e-5
    assert differs(found, arrays["ddim5_cfg1.5.z"]) <= 1e-5
    assert differs(pipeline.decode(torch.from_numpy(arrays["ddim5_cfg1.5.z"])), arrays["decoded"]) <= 1e-5
