"""Rotary code: products of queries and keys depend on where tokens lie to each other, in the same way at every size."""

from __future__ import annotations

import pytest
import torch
from diffusers import UNet2DModel

from facefix.errors import UsageError
from facefix.networks.cachekv import attention_layers, install_cachekv, reference_pass, with_references
from facefix.networks.rope import RotaryCode, start_at_the_same_place
from facefix.networks.unet import unet_config

CODE = RotaryCode()


def logits(query: torch.Tensor, key: torch.Tensor, side: int) -> torch.Tensor:
    """(T, T) products of the same query and key put at every place."""
    places = torch.ones(1, side * side, 1)
    rotated = (CODE.rotate(places * vector, side, side, 1)[0] for vector in (query, key))
    return torch.matmul(next(rotated), next(rotated).T)


def test_only_the_offset_counts() -> None:
    generator = torch.Generator().manual_seed(0)
    query, key = torch.randn(2, 1, 1, 32, generator=generator)
    found = logits(query, key, 8).view(8, 8, 8, 8)  # rows and columns of the query, of the key
    assert torch.allclose(found[1, 2, 3, 5], found[4, 1, 6, 4], atol=1e-4)
    assert not torch.allclose(found[1, 2, 3, 5], found[1, 2, 5, 3], atol=1e-2)


def test_places_are_fractions_of_the_side() -> None:
    """The middle of the second of two tokens lies between the third and the fourth of four."""
    query = torch.randn(1, 1, 32, generator=torch.Generator().manual_seed(1))
    coarse = CODE.rotate(query.expand(1, 4, -1), 2, 2, 1).view(2, 2, 32)
    odd = CODE.rotate(query.expand(1, 36, -1), 6, 6, 1).view(6, 6, 32)
    assert torch.allclose(coarse[1, 0], odd[4, 1], atol=1e-5)


def test_lengths_stay_and_heads_are_apart() -> None:
    x = torch.randn(2, 16, 64, generator=torch.Generator().manual_seed(2))
    rotated = CODE.rotate(x, 4, 4, 2)
    assert torch.allclose(rotated.norm(dim=2), x.norm(dim=2), atol=1e-4)
    assert torch.allclose(rotated[..., :32], CODE.rotate(x[..., :32], 4, 4, 1), atol=1e-6)
    with pytest.raises(UsageError, match="multiple of 4"):
        CODE.rotate(x, 4, 4, 32)


def unet(rotary: RotaryCode | None) -> UNet2DModel:
    torch.manual_seed(3)
    config = unet_config((32, 64), layers_per_block=1, norm_num_groups=8, sample_size=8)
    return install_cachekv(UNet2DModel(**config).eval(), rotary)


def test_a_moved_reference_is_told_apart_only_with_positions() -> None:
    """Without a code a reference's tokens are a set; with one it matters where they lie."""
    generator = torch.Generator().manual_seed(4)
    sample = torch.randn(1, 16, 8, 8, generator=generator)
    latents = torch.randn(1, 8, 8, 8, generator=generator)
    changes = []
    for rotary in (None, CODE):
        network = unet(rotary)
        with torch.no_grad():
            cache = reference_pass(network, latents)
            layers = {name: tuple(part.flip(1) for part in pair) for name, pair in cache.layers.items()}
            turned = type(cache)(layers, 1, "each")  # type: ignore[arg-type]
            results = [with_references(network, sample, 500, read) for read in (cache, turned)]
        changes.append(float((results[0] - results[1]).abs().max()))
    assert changes[0] < 1e-5  # a set
    # the keys of the second were turned by the places that they had, so its order does not matter either
    assert changes[1] < 1e-5
    network = unet(CODE)
    with torch.no_grad():
        results = [
            with_references(network, sample, 500, reference_pass(network, part)) for part in (latents, latents.flip(3))
        ]
    assert float((results[0] - results[1]).abs().max()) > 1e-4


@torch.no_grad()
def test_new_layers_look_at_their_own_place() -> None:
    network = unet(CODE)
    layer = next(iter(attention_layers(network).values()))
    start_at_the_same_place(layer, 6.0)
    side, heads = 8, layer.heads
    tokens = torch.zeros(1, side * side, layer.to_q.in_features)  # nothing but place
    query, key = (CODE.rotate(to(tokens), side, side, heads) for to in (layer.to_q, layer.to_k))
    dim = query.shape[2] // heads
    products = torch.einsum("btd,bsd->bts", query[..., :dim], key[..., :dim])[0] * dim**-0.5
    assert torch.equal(products.argmax(1), torch.arange(side * side))
    assert float(products.diagonal().mean()) == pytest.approx(6.0, abs=1e-3)
    last = torch.einsum("btd,bsd->bts", query[..., -dim:], key[..., -dim:])
    assert float(last.abs().max()) == 0.0
