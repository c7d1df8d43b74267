"""Muon for convolutions: momentum, made orthogonal (Jordan et al. 2024, kellerjordan.github.io/posts/muon).

torch's own Muon takes matrices only; here a convolution's kernel is a matrix of outputs x (inputs x places), as in
Jordan's CIFAR speed runs. Where a network is far from trained it needs about half the steps of AdamW.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import nn

_QUINTIC = (3.4445, -4.7750, 2.0315)
"""coefficients of the Newton-Schulz step that Jordan fitted: singular values end near 1, not at it, but fast"""


def orthogonalised(matrix: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """(n, m) -> (n, m), about U V^T of the matrix's singular value decomposition."""
    a, b, c = _QUINTIC
    x = matrix / (matrix.norm() + 1e-7)
    if transposed := x.shape[0] > x.shape[1]:
        x = x.T
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    result: torch.Tensor = x.T if transposed else x
    return result


class Muon(torch.optim.Optimizer):
    """Nesterov momentum with orthogonal updates, for weights of two or more dimensions."""

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        lr: float,
        momentum: float = 0.9,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Set up an optimiser of ``parameters``, matrices or kernels.

        Args:
            dtype: of the orthogonalisation; bfloat16 is exact enough for it and takes less than half the time.
        """
        super().__init__(parameters, {"lr": lr, "momentum": momentum})
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update; parameters without gradient stay."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                average = self.state[parameter].setdefault("average", torch.zeros_like(parameter))
                average.lerp_(parameter.grad, 1 - group["momentum"])
                update = parameter.grad.lerp(average, group["momentum"]).reshape(parameter.shape[0], -1)
                # a tall matrix's orthogonal update has columns of norm 1, so rows shrink with its height
                scale = max(1.0, update.shape[0] / update.shape[1]) ** 0.5
                direction = orthogonalised(update.to(self.dtype)).to(parameter.dtype)
                parameter.add_(direction.view_as(parameter), alpha=-group["lr"] * scale)


class Optimisers:
    """The optimisers of a network as one: AdamW for everything, or Muon for inner kernels and AdamW for the rest."""

    def __init__(
        self,
        network: nn.Module,
        kind: Literal["adamw", "muon"],
        learning_rate: float,
        muon_rate: float,
        decay: float,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        inner = [p for name, p in network.named_parameters() if kind == "muon" and _is_inner(name, p)]
        chosen = {id(parameter) for parameter in inner}
        rest = [p for p in network.parameters() if p.requires_grad and id(p) not in chosen]
        self._optimisers: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(rest, learning_rate, betas=(0.9, 0.99), weight_decay=decay)
        ]
        self._rates = [learning_rate]
        if inner:
            self._optimisers.append(Muon(inner, muon_rate, dtype=dtype))
            self._rates.append(muon_rate)

    def step(self, factor: float) -> None:
        """Update with ``factor`` times the learning rates, then drop the gradients."""
        for optimiser, rate in zip(self._optimisers, self._rates, strict=True):
            for group in optimiser.param_groups:
                group["lr"] = rate * factor
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)

    def zero_grad(self) -> None:
        """Drop the gradients without an update."""
        for optimiser in self._optimisers:
            optimiser.zero_grad(set_to_none=True)

    def state_dict(self) -> list[dict[str, Any]]:
        """For the checkpoint."""
        return [optimiser.state_dict() for optimiser in self._optimisers]

    def load_state_dict(self, states: list[dict[str, Any]]) -> None:
        """What :meth:`state_dict` gave."""
        for optimiser, state in zip(self._optimisers, states, strict=True):
            optimiser.load_state_dict(state)


def _is_inner(name: str, parameter: nn.Parameter) -> bool:
    """Kernels and matrices inside the network, not the first and last ones, embeddings or norms."""
    outer = ("conv_in", "conv_out", "quant_conv", "quantize", "time_embedding")
    return parameter.requires_grad and parameter.ndim >= 2 and not any(part in name for part in outer)
