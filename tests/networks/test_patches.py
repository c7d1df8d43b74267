"""A denoiser in patches: patches are cut and joined without loss, and the gate lays the guide over the LQ face."""

from __future__ import annotations

import pytest
import torch
from diffusers import UNet2DModel

from facefix.networks.cachekv import reference_pass
from facefix.networks.patches import Patches, initialise, patch_unet_config, with_detail
from facefix.networks.reference_cache import Branch
from facefix.networks.rope import RotaryCode


@pytest.fixture(scope="module")
def unet() -> UNet2DModel:
    torch.manual_seed(0)
    return initialise(
        UNet2DModel(**patch_unet_config((16, 32), (False, True), norm_num_groups=8)), RotaryCode(), gate=0.0
    ).eval()


def latents(count: int, seed: int) -> torch.Tensor:
    return torch.randn(count, 8, 16, 16, generator=torch.Generator().manual_seed(seed))


def test_cut_and_joined() -> None:
    x, patches = latents(2, 0), Patches(2)
    assert patches.cut(x).shape == (2, 32, 8, 8)
    assert torch.equal(patches.joined(patches.cut(x)), x)


@torch.no_grad()
def test_a_new_denoiser_goes_half_way_to_the_guide(unet: UNet2DModel) -> None:
    lq, guide = latents(2, 1), latents(2, 2)
    found = Patches(2, 0.5).predict(unet, latents(2, 3), lq, guide, 999).residual
    assert torch.allclose(found, (guide - lq) / 0.5 / 2, atol=1e-5)
    assert float(Patches(2, 0.5).predict(unet, latents(2, 3), lq, lq, 999).residual.abs().max()) < 1e-5


@torch.no_grad()
def test_an_open_gate_takes_the_guide(unet: UNet2DModel) -> None:
    lq, guide = latents(1, 1), latents(1, 2)
    unet.conv_out.bias[32:64] = 30.0
    opened = Patches(2).predict(unet, latents(1, 3), lq, guide, 999).residual
    unet.conv_out.bias[32:64] = -30.0
    closed = Patches(2).predict(unet, latents(1, 3), lq, guide, 999).residual
    unet.conv_out.bias[32:64] = 0.0
    assert torch.allclose(lq + opened, guide, atol=1e-4)
    assert torch.allclose(lq + closed, lq, atol=1e-4)


@torch.no_grad()
def test_references_reach_the_result(unet: UNet2DModel) -> None:
    patches = Patches(2)
    torch.nn.init.normal_(unet.conv_out.weight, std=0.1)
    noisy, lq = latents(2, 3), latents(2, 1)
    caches = [reference_pass(unet, patches.cut(latents(1, seed))) for seed in (5, 6)]
    found = [patches.predict(unet, noisy, lq, lq, 999, (Branch(slice(0, 1), cache),)).residual for cache in caches]
    torch.nn.init.zeros_(unet.conv_out.weight)
    assert float((found[0][0] - found[1][0]).abs().max()) > 1e-3
    assert torch.allclose(found[0][1], found[1][1], atol=1e-5)  # the second row reads none


def test_detail_that_decoding_loses_is_kept_where_the_denoiser_says() -> None:
    decoded, guide, blurred = torch.zeros(1, 3, 128, 128), torch.ones(1, 3, 128, 128), torch.full((1, 3, 128, 128), 0.6)
    detail = torch.zeros(1, 1, 16, 16)
    detail[..., 8:] = 1
    found = with_detail(decoded, guide, blurred, detail)
    assert torch.allclose(found[..., 80:], torch.tensor(0.4))
    assert not bool(found[..., :48].any())
