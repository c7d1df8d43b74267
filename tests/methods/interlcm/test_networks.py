"""Image encoders, Visual Encoder, guidance embedding: shapes, published sizes, save and load, wrong sizes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from facefix.errors import UsageError
from facefix.methods.interlcm.networks import ClipVisionTower, LiteTokens
from facefix.methods.interlcm.spatial import guidance_embedding
from facefix.methods.interlcm.visual import VisualEncoder, config_of


def pictures(count: int = 2, side: int = 64) -> torch.Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_published_sizes() -> None:
    with torch.device("meta"):
        tower, encoder = ClipVisionTower(), VisualEncoder()
    assert tower.tokens_shape == (197, 768)
    assert sum(weight.numel() for weight in encoder.parameters()) == 12_960_845
    assert len(encoder.state_dict()) == 110


@torch.no_grad()
def test_clip_tokens_are_normalised_and_its_input_is_not_clamped() -> None:
    torch.manual_seed(0)
    tower = ClipVisionTower(patch_size=8, grid=3, width=128, layers=2).eval()
    tokens = tower(pictures())
    assert tokens.shape == (2, 10, 128)
    assert torch.allclose(tokens.mean(2), torch.zeros(2, 10), atol=1e-5)  # the last normalisation is that of all tokens
    levels = tower.prepare(pictures(1).sign()) * torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(1, 3, 1, 1)
    levels = levels + torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(1, 3, 1, 1)
    assert float(levels.max()) > 1.01
    assert float(levels.min()) < -0.01


@pytest.mark.parametrize("kind", ["clip", "lite", "visual"])
@torch.no_grad()
def test_saved_and_loaded_again(tmp_path: Path, kind: str) -> None:
    torch.manual_seed(0)
    if kind == "visual":
        network, given = VisualEncoder(6, 4, 24, (8, 16), 1, 8).eval(), torch.randn(2, 6, 30)
    else:
        given = pictures()
        network = (ClipVisionTower(8, 3, 64, 1) if kind == "clip" else LiteTokens((1, 4), 4, 64)).eval()
    network.save_pretrained(tmp_path)
    assert torch.equal(type(network).from_pretrained(tmp_path)(given), network(given))


@torch.no_grad()
def test_lite_tokens_are_local_and_of_unit_scale() -> None:
    network = LiteTokens.with_imagenet_weights(blocks=(2, 4), grid=4, input_px=64)
    shape = network.tokens_shape
    assert shape == (16, 24 + 40)
    tokens = network(pictures())
    assert tokens.shape == (2, *shape)
    for part in tokens.split([24, 40], dim=2):
        assert torch.allclose(part.square().mean(2), torch.ones(2, 16), atol=1e-3)
    assert not any(module.training for module in network.train().modules())
    assert not any(weight.requires_grad for weight in network.parameters())


@torch.no_grad()
def test_lite_tokens_with_imagenet_weights() -> None:
    from facefix.metrics.perceptual import load_efficientnet_lite0

    network = LiteTokens.with_imagenet_weights()
    given = pictures(side=224)
    (wanted,) = load_efficientnet_lite0().block_outputs(given, [10])  # 14 x 14 places, as the grid
    wanted = wanted * torch.rsqrt(wanted.square().mean(1, keepdim=True) + 1e-6)
    found = network(given)[..., 40:].transpose(1, 2).unflatten(2, (14, 14))
    assert torch.allclose(found, wanted, atol=1e-4)


@torch.no_grad()
def test_tokens_are_channels_in_the_visual_encoder() -> None:
    torch.manual_seed(0)
    encoder = VisualEncoder(6, 4, 24, (8, 16, 32), 1, 8).eval()
    tokens = torch.randn(3, 6, 24)
    found = encoder(tokens)
    assert found.shape == (3, 4, 24)
    assert torch.allclose(encoder(tokens[1:2]), found[1:2], atol=1e-5)
    # an exchange of tokens is an exchange of the first convolution's channels
    order = torch.tensor([5, 0, 3, 1, 2, 4])
    encoder.blocks[0].weight.data = encoder.blocks[0].weight.data[:, order]
    assert torch.allclose(encoder(tokens[:, order]), found, atol=1e-4)


@pytest.mark.parametrize("widths", [(8, 16), (8, 16, 32), (16, 16, 32)])
def test_the_configuration_is_told_by_the_weights(widths: tuple[int, ...]) -> None:
    encoder = VisualEncoder(6, 4, 24, widths, 2, 8)
    found = config_of(encoder.state_dict(), 24)
    assert VisualEncoder(**found, norm_num_groups=8).state_dict().keys() == encoder.state_dict().keys()
    assert found["widths"] == widths
    assert found["layers_per_block"] == 2


def test_sizes_that_do_not_fit() -> None:
    with pytest.raises(UsageError, match="multiples of 32"):
        VisualEncoder(widths=(100, 200))
    with pytest.raises(UsageError, match="even number"):
        guidance_embedding(8.0, 7)
