"""CacheKV: one cache for any batch, in any order, in several threads; composed, split, moved; wrong use refused."""

from __future__ import annotations

import threading

import golden
import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor2_0
from tiny import tiny_pipeline

from facefix import ReferenceCache, ReFLDMPipeline
from facefix.errors import UsageError
from facefix.networks import attention, blocks
from facefix.networks.cachekv import attention_layers, denoise, install_cachekv, reference_pass, with_references
from facefix.networks.reference_cache import Branch
from facefix.networks.unet import build_unet, unet_config


@pytest.fixture(scope="module")
def pipeline() -> ReFLDMPipeline:
    return tiny_pipeline()


def faces(count: int, seed: int) -> torch.Tensor:
    return torch.rand(count, 3, 64, 64, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def noise(count: int, seed: int = 7) -> torch.Tensor:
    return torch.randn(count, 8, 8, 8, generator=torch.Generator().manual_seed(seed))


def restore(pipeline: ReFLDMPipeline, lq: torch.Tensor, cache: ReferenceCache, start: torch.Tensor) -> torch.Tensor:
    return pipeline(lq, cache, 3, 1.5, latents=start, output_type="latent").images


def test_without_references_it_is_plain_self_attention() -> None:
    torch.manual_seed(0)
    unet = build_unet(unet_config((16, 32), layers_per_block=1, norm_num_groups=8, attention_head_dim=8)).eval()
    sample = torch.randn(2, 16, 8, 8)
    with torch.no_grad():
        ours = denoise(unet, sample, 500)
        for layer in attention_layers(unet).values():
            layer.set_processor(AttnProcessor2_0())
        theirs = unet(sample, 500).sample
    assert torch.allclose(ours, theirs, atol=1e-5)


def test_copies_of_a_batch_part_ways_at_the_first_attention(pipeline: ReFLDMPipeline) -> None:
    """A guidance pair computed from one batch equals the pair spelled out."""
    generator = torch.Generator().manual_seed(3)
    sample = torch.randn(3, 16, 8, 8, generator=generator)
    with torch.no_grad():
        cache = reference_pass(pipeline.unet, torch.randn(2, 8, 8, 8, generator=generator))
        branches = [Branch(slice(0, 3), cache, copies=2), Branch(slice(3, 6), cache)]
        timesteps = torch.tensor([5, 500, 999])
        pair = denoise(pipeline.unet, sample, timesteps, branches, copies=2)
        spelled_out = denoise(pipeline.unet, sample.repeat(2, 1, 1, 1), timesteps.repeat(2), branches)
    assert pair.shape == (6, 8, 8, 8)
    assert golden.relative_rms(pair, spelled_out) <= 1e-5
    assert not torch.allclose(pair[:3], pair[3:], atol=1e-3)


def test_joined_attention_is_the_definition(pipeline: ReFLDMPipeline) -> None:
    """Fused parts merged by their log-sum-exp equal softmax over own and n copied reference tokens."""
    generator = torch.Generator().manual_seed(3)
    sample = torch.randn(2, 16, 8, 8, generator=generator)
    latents = torch.randn(1, 8, 8, 8, generator=generator)
    with torch.no_grad():
        one = reference_pass(pipeline.unet, latents)
        copied = reference_pass(pipeline.unet, latents.repeat(4, 1, 1, 1))
        merged = denoise(pipeline.unet, sample, 300, [Branch(slice(None), one, copies=4)])
        spelled_out = denoise(pipeline.unet, sample, 300, [Branch(slice(None), copied)])
    pipeline.unet.requires_grad_(True)  # with gradients the tokens are joined instead
    joined = denoise(pipeline.unet, sample, 300, [Branch(slice(None), one, copies=4)])
    assert torch.allclose(merged, spelled_out, atol=1e-5)
    assert torch.allclose(joined, merged, atol=1e-5)
    assert not torch.allclose(denoise(pipeline.unet, sample, 300, [Branch(slice(None), one)]), merged, atol=1e-3)


@pytest.mark.skipif(not blocks.multiplies_bf16(), reason="needs a processor with bf16 products")
@pytest.mark.parametrize("largest", [attention.LARGEST_LOGIT, 0.0])
@torch.no_grad()
def test_attention_in_products(monkeypatch: pytest.MonkeyPatch, largest: float) -> None:
    """In bf16, in chunks, with a shared cache, one per row, and a row that reads none."""
    monkeypatch.setattr(attention, "LOGITS_AT_ONCE", 1000 // torch.get_num_threads())
    monkeypatch.setattr(attention, "LARGEST_LOGIT", largest)
    generator = torch.Generator().manual_seed(3)

    def tokens(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, 32, generator=generator).bfloat16()

    query, key, value = tokens(6, 23), tokens(6, 23), tokens(6, 23)
    shared, per_row = (ReferenceCache({"layer": (tokens(*s), tokens(*s))}, 1) for s in ((1, 40), (2, 40)))
    branches = (Branch(slice(0, 2), shared, copies=5), Branch(slice(2, 4), per_row), Branch(slice(4, 5), shared))
    found = attention._attend(query, key, value, 4, "layer", branches)
    exact = tuple(Branch(b.rows, b.cache.to(dtype=torch.float32), b.copies) for b in branches if b.cache is not None)
    expected = attention._attend(query.float(), key.float(), value.float(), 4, "layer", exact)
    assert found.dtype == torch.bfloat16
    for one, other in zip(found.float(), expected, strict=True):
        assert golden.relative_rms(one, other) < 1.5e-2


@pytest.mark.skipif(not blocks.multiplies_bf16(), reason="needs a processor with bf16 products")
@pytest.mark.parametrize("scale", [1e2, 1e4, -1e4, 1e18])
@torch.no_grad()
def test_attention_in_products_with_logits_out_of_range(scale: float) -> None:
    """Each query finds its key however large the logits are, and nothing overflows or vanishes."""
    one_hot = torch.eye(8).bfloat16()[None]
    value = torch.randn(1, 8, 8, generator=torch.Generator().manual_seed(3)).bfloat16()
    found = attention._attend(one_hot * scale, one_hot, value, 1, "layer", ())
    others = (value.float().sum(1, keepdim=True) - value.float()) / 7
    assert torch.allclose(found.float(), value.float() if scale > 0 else others, atol=1e-2)


def test_gradients_reach_the_references(pipeline: ReFLDMPipeline) -> None:
    latents = torch.randn(2, 3, 8, 8, 8, requires_grad=True)  # two rows with three references each
    cache = reference_pass(pipeline.unet, latents)
    assert cache.num_references == 3
    with_references(pipeline.unet, torch.randn(2, 16, 8, 8), torch.tensor([10, 900]), cache).square().sum().backward()
    assert latents.grad is not None
    assert float(latents.grad.abs().min(dim=4).values.max()) > 0


def test_a_face_in_a_batch_equals_the_face_alone(pipeline: ReFLDMPipeline) -> None:
    cache = pipeline.encode_references(faces(3, seed=1))
    lq, start = faces(8, seed=2), noise(8)
    together = restore(pipeline, lq, cache, start)
    order = torch.tensor([5, 0, 7, 2, 1, 6, 3, 4])
    shuffled = restore(pipeline, lq[order], cache, start[order])
    for face in range(8):
        alone = restore(pipeline, lq[face : face + 1], cache, start[face : face + 1])
        assert golden.relative_rms(together[face], alone[0]) <= 1e-5
    assert golden.relative_rms(shuffled, together[order]) <= 1e-5


def test_two_people_in_flight_on_one_model(pipeline: ReFLDMPipeline) -> None:
    caches = [pipeline.encode_references(faces(count, seed=count)) for count in (1, 4)]
    lq, start = faces(3, seed=9), noise(3)
    expected = [restore(pipeline, lq, cache, start) for cache in caches]
    assert not torch.allclose(expected[0], expected[1], atol=1e-3)
    found: list[list[torch.Tensor]] = [[], []]
    together = threading.Barrier(2)

    def run(person: int) -> None:
        for _ in range(5):
            together.wait(timeout=60)
            found[person].append(restore(pipeline, lq, caches[person], start))

    threads = [threading.Thread(target=run, args=(person,)) for person in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for person in (0, 1):
        assert len(found[person]) == 5
        assert all(golden.relative_rms(result, expected[person]) <= 1e-5 for result in found[person])


def test_order_of_references_does_not_matter(pipeline: ReFLDMPipeline) -> None:
    references, lq, start = faces(3, seed=4), faces(1, seed=5), noise(1)
    one = restore(pipeline, lq, pipeline.encode_references(references), start)
    other = restore(pipeline, lq, pipeline.encode_references(references.flip(0)), start)
    assert golden.relative_rms(one, other) <= 1e-5


def test_compose_and_split(pipeline: ReFLDMPipeline) -> None:
    references = faces(3, seed=6)
    whole = pipeline.encode_references(references, sources=["a", "b", "c"])
    singles = [pipeline.encode_references(references[i : i + 1], sources=[name]) for i, name in enumerate("abc")]
    composed = ReferenceCache.compose(singles)
    assert composed.sources == whole.sources == ("a", "b", "c")
    assert composed.num_references == 3
    assert composed.nbytes == whole.nbytes == sum(single.nbytes for single in singles)
    for name, (key, value) in whole.layers.items():
        assert torch.allclose(composed.layers[name][0], key, atol=1e-5)
        assert torch.allclose(composed.layers[name][1], value, atol=1e-5)
    for part, single in zip(whole.split(), singles, strict=True):
        assert part.sources == single.sources
        assert all(torch.allclose(part.layers[name][0], single.layers[name][0], atol=1e-5) for name in part.layers)


def test_the_cache_does_not_change(pipeline: ReFLDMPipeline) -> None:
    cache = pipeline.encode_references(faces(2, seed=8))
    before = {name: (key.clone(), value.clone()) for name, (key, value) in cache.layers.items()}
    restore(pipeline, faces(4, seed=1), cache, noise(4))
    for name, (key, value) in cache.layers.items():
        assert torch.equal(key, before[name][0])
        assert torch.equal(value, before[name][1])
    with pytest.raises(AttributeError):
        cache.num_references = 5  # type: ignore[misc]
    with pytest.raises(TypeError):
        cache.layers["x"] = cache.layers[next(iter(cache.layers))]  # type: ignore[index]


def test_moving_a_cache(pipeline: ReFLDMPipeline) -> None:
    cache = pipeline.encode_references(faces(2, seed=8))
    half = cache.to(dtype=torch.bfloat16)
    assert half.dtype == torch.bfloat16
    assert half.nbytes * 2 == cache.nbytes
    assert cache.to("cpu", torch.float32) is cache


def test_wrong_caches_are_refused(pipeline: ReFLDMPipeline) -> None:
    cache = pipeline.encode_references(faces(1, seed=8))
    strip = tiny_pipeline(reference_encoding="strip").encode_references(faces(2, seed=8))
    with pytest.raises(UsageError, match="'strip'"):
        ReferenceCache.compose([cache, strip])
    with pytest.raises(UsageError, match="'strip'"):
        strip.split()
    with pytest.raises(UsageError, match="at least one"):
        ReferenceCache.compose([])
    other = build_unet(unet_config((16, 64), layers_per_block=1, norm_num_groups=8, attention_head_dim=8))
    with pytest.raises(UsageError, match="made by this model"):
        with_references(other, torch.zeros(1, 16, 8, 8), 0, cache)
    with pytest.raises(UsageError, match="bfloat16"):
        with_references(pipeline.unet, torch.zeros(1, 16, 8, 8), 0, cache.to(dtype=torch.bfloat16))
    plain = build_unet(unet_config((16, 32), layers_per_block=1, norm_num_groups=8, attention_head_dim=8))
    for layer in attention_layers(plain).values():
        layer.set_processor(AttnProcessor2_0())
    with pytest.raises(UsageError, match="install_cachekv"):
        reference_pass(plain, torch.zeros(1, 8, 8, 8))
    assert reference_pass(install_cachekv(plain), torch.zeros(1, 8, 8, 8)).num_references == 1
