"""Losses, optimiser, checkpoint and loop parts against definitions worked out here."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from facefix.errors import CheckpointError
from facefix.networks.autoencoder import build_autoencoder, quantize
from facefix.training.checkpoint import load_checkpoint, save_checkpoint
from facefix.training.config import Schedule
from facefix.training.loop import Moment, rate_factor
from facefix.training.losses import (
    PatchDiscriminator,
    adversarial_weight,
    codebook_loss,
    hinge_loss,
    identity_weight,
    nearest_codes,
)
from facefix.training.optimiser import Muon, Optimisers, orthogonalised
from facefix.training.runs import psnr


def test_nearest_codes_agree_with_the_autoencoder() -> None:
    torch.manual_seed(0)
    network = build_autoencoder("small")
    latents = torch.randn(2, 8, 5, 4) / 256
    found = nearest_codes(network.quantize.embedding.weight, latents)
    assert torch.allclose(found, quantize(network, latents), atol=1e-6)


def test_the_codebook_loss_pulls_codes_and_latents() -> None:
    codes = torch.tensor([[1.0, 0.0], [0.0, 1.0]], requires_grad=True)
    latents = torch.tensor([0.8, 0.0]).view(1, 2, 1, 1).requires_grad_()
    loss = codebook_loss(latents, nearest_codes(codes, latents), 0.25)
    loss.backward()  # type: ignore[no-untyped-call]
    assert float(loss.detach()) == pytest.approx(1.25 * 0.04 / 2)
    assert codes.grad is not None and latents.grad is not None
    assert torch.allclose(codes.grad, torch.tensor([[0.2, 0.0], [0.0, 0.0]]))
    assert torch.allclose(latents.grad.flatten(), torch.tensor([-0.05, 0.0]))


def test_the_discriminator_learns_to_tell_sharp_from_blurred() -> None:
    torch.manual_seed(0)
    network = PatchDiscriminator(width=8)
    optimiser = torch.optim.Adam(network.parameters(), 2e-3)
    for _ in range(30):
        real = torch.randn(4, 3, 32, 32).clamp(-1, 1)
        loss = hinge_loss(network(real), network(F.avg_pool2d(real, 5, 1, 2)))
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    real = torch.randn(4, 3, 32, 32).clamp(-1, 1)
    with torch.no_grad():
        logits = network(real)
        assert logits.shape[2] > 1  # a logit per patch
        assert float(logits.mean()) > float(network(F.avg_pool2d(real, 5, 1, 2)).mean()) + 0.5


def test_the_adversarial_weight_balances_gradients() -> None:
    layer = nn.Conv2d(3, 3, 1)
    output = layer(torch.randn(1, 3, 8, 8))
    weight = adversarial_weight(output.square().mean(), 10 * output.square().mean(), layer.weight)
    assert float(weight) == pytest.approx(0.1, rel=1e-2)


def test_identity_weights_are_the_ablation() -> None:
    abar = torch.tensor([0.04, 1.0])
    assert identity_weight(abar, "sqrt_abar").tolist() == pytest.approx([0.2, 1.0])
    assert identity_weight(abar, "naive").tolist() == [1.0, 1.0]
    assert identity_weight(abar, "none").tolist() == [0.0, 0.0]


@pytest.mark.parametrize("shape", [(6, 20), (20, 6)])
def test_orthogonal_updates_have_singular_values_near_one(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    values = torch.linalg.svdvals(orthogonalised(matrix))
    assert 0.5 < float(values.min()) <= float(values.max()) < 1.4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_muon_goes_down_and_resumes(dtype: torch.dtype) -> None:
    def problem() -> tuple[nn.Module, Optimisers]:
        torch.manual_seed(0)
        network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.SiLU(), nn.Conv2d(8, 3, 3, padding=1))
        return network, Optimisers(network, "muon", 1e-3, 0.02, 0.0, dtype)

    images = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(2))

    def descend(network: nn.Module, optimisers: Optimisers, steps: int) -> float:
        for _ in range(steps):
            loss = (network(images) - images).square().mean()
            loss.backward()
            optimisers.step(1.0)
        return float(loss.detach())

    network, optimisers = problem()
    first = descend(network, optimisers, 1)
    descend(network, optimisers, 19)
    weights, state = copy.deepcopy((network.state_dict(), optimisers.state_dict()))
    again, resumed = problem()
    again.load_state_dict(weights)
    resumed.load_state_dict(state)
    assert descend(network, optimisers, 20) == pytest.approx(descend(again, resumed, 20), rel=1e-4)
    assert descend(network, optimisers, 1) < 0.5 * first
    assert any(isinstance(optimiser, Muon) for optimiser in optimisers._optimisers)


def test_a_broken_checkpoint_is_named(tmp_path: Path) -> None:
    path = tmp_path / "run" / "checkpoint.pt"
    save_checkpoint(path, {"step": 3, "weights": torch.ones(2)})
    assert load_checkpoint(path)["step"] == 3
    assert [entry.name for entry in path.parent.iterdir()] == ["checkpoint.pt"]
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(CheckpointError, match=r"checkpoint\.pt"):
        load_checkpoint(path)


def test_the_rate_warms_up_and_decays() -> None:
    schedule = Schedule(steps=100, batch=1, learning_rate=1.0, warmup_steps=10, final_rate=0.1)
    rates = [rate_factor(schedule, Moment(step, step / 100, 1)) for step in range(101)]
    assert rates[0] == pytest.approx(0.1, rel=0.01)
    assert max(rates) == rates[9] or max(rates) == rates[10]
    assert rates[100] == pytest.approx(0.1)


def test_steps_have_random_numbers_of_their_own() -> None:
    first = torch.rand(3, generator=Moment(5, 0.1, 1).generator())
    assert torch.equal(first, torch.rand(3, generator=Moment(5, 0.9, 1).generator()))
    assert not torch.equal(first, torch.rand(3, generator=Moment(6, 0.1, 1).generator()))
    assert not torch.equal(first, torch.rand(3, generator=Moment(5, 0.1, 2).generator()))


def test_psnr() -> None:
    truth = torch.zeros(2, 3, 4, 4)
    assert psnr(truth + 0.2, truth) == pytest.approx(20.0, abs=1e-3)
