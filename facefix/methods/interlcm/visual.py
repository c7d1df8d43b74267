"""The Visual Encoder: visual tokens of the LQ face to the tokens that a text-to-image U-Net attends to."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from facefix.errors import UsageError

NORM_EPS = 1e-6


class VisualEncoder(ModelMixin, ConfigMixin):  # type: ignore[misc]  # diffusers is not followed
    """A residual network of 1-D convolutions in which *tokens are channels and features are the length*.

    The length is first cut to 1/n of ``length`` for n widths, then grows by 1/n after each width (768: 256, 512, 768).
    Module names are those of the published checkpoints: ``blocks.N`` in the order of computation.

    :param in_tokens: tokens that come in, of any number of features.
    :param out_tokens: tokens that go out, of ``length`` features.
    :param length: features of a token that goes out.
    :param widths: channels of the levels, the last computed one first in the list: the published (128, 256, 512).
    :param layers_per_block: residual blocks a level.
    :param norm_num_groups: groups of every normalisation; divides all widths.
    :raises UsageError: the sizes do not fit together.
    """

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        in_tokens: int = 197,
        out_tokens: int = 77,
        length: int = 768,
        widths: tuple[int, ...] = (128, 256, 512),
        layers_per_block: int = 2,
        norm_num_groups: int = 32,
    ) -> None:
        super().__init__()
        if not widths or any(width % norm_num_groups for width in widths) or length < len(widths):
            raise UsageError(
                f"widths: expected multiples of {norm_num_groups}, no more of them than the length {length}, found "
                f"{tuple(widths)}"
            )
        levels = list(reversed(widths))
        lengths = [length * level // len(levels) for level in range(1, len(levels) + 1)]
        widest = levels[0]
        blocks: list[nn.Module] = [nn.Conv1d(in_tokens, widest, 3, padding=1), _Resize(widest, lengths[0])]
        blocks += [_ResBlock(widest, widest, norm_num_groups), _Attention(widest, norm_num_groups)]
        blocks += [_ResBlock(widest, widest, norm_num_groups)]
        before = widest
        for number, width in enumerate(levels):
            for _ in range(layers_per_block):
                blocks.append(_ResBlock(before, width, norm_num_groups))
                if width == widest:
                    blocks.append(_Attention(width, norm_num_groups))
                before = width
            if number + 1 < len(levels):
                blocks.append(_Resize(width, lengths[number + 1]))
        blocks += [_norm(before, norm_num_groups), nn.Conv1d(before, out_tokens, 3, padding=1)]
        self.blocks = nn.ModuleList(blocks)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, in_tokens, features) -> (B, out_tokens, length)."""
        x = tokens.to(self.dtype)
        for block in self.blocks:
            x = block(x)
        return x


class _Resize(nn.Module):
    """The nearest of the given positions (index i in / out, rounded down), then a convolution."""

    def __init__(self, width: int, length: int) -> None:
        super().__init__()
        self.length = length
        self.conv = nn.Conv1d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, L) -> (B, C, length)."""
        resized: Tensor = self.conv(F.interpolate(x, size=self.length, mode="nearest"))
        return resized


class _ResBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, groups: int) -> None:
        super().__init__()
        self.norm1 = _norm(inputs, groups)
        self.conv1 = nn.Conv1d(inputs, outputs, 3, padding=1)
        self.norm2 = _norm(outputs, groups)
        self.conv2 = nn.Conv1d(outputs, outputs, 3, padding=1)
        if inputs != outputs:
            self.conv_out = nn.Conv1d(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, L) -> (B, C', L)."""
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        shortcut = self.conv_out(x) if hasattr(self, "conv_out") else x
        result: Tensor = h + shortcut
        return result


class _Attention(nn.Module):
    """One head; the positions are the features, the vectors are the channels."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.norm = _norm(width, groups)
        self.q, self.k, self.v, self.proj_out = (nn.Conv1d(width, width, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, L) -> (B, C, L)."""
        h = self.norm(x)
        q, k, v = (project(h).transpose(1, 2) for project in (self.q, self.k, self.v))  # (B, L, C)
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)  # scaled by C^-0.5
        result: Tensor = x + self.proj_out(attended)
        return result


def _norm(width: int, groups: int) -> nn.GroupNorm:
    return nn.GroupNorm(groups, width, eps=NORM_EPS)


def config_of(weights: dict[str, torch.Tensor], length: int) -> dict[str, object]:
    """The configuration of a published state dict, told by its names and shapes.

    :param length: features of a token, which convolutions do not tell.
    :raises KeyError: a block is missing or is not of a kind that the network has.
    """
    count = 1 + max(int(name.split(".")[1]) for name in weights if name.startswith("blocks."))
    # Residual blocks between the last two resizings are one level; the first two belong to none.
    levels: list[list[int]] = [[]]
    for number in range(2, count - 2):
        if f"blocks.{number}.conv1.weight" in weights:
            levels[-1].append(int(weights[f"blocks.{number}.conv1.weight"].shape[0]))
        elif f"blocks.{number}.conv.weight" in weights:
            levels.append([])
    first, last = weights["blocks.0.weight"], weights[f"blocks.{count - 1}.weight"]
    levels[0] = levels[0][2:]
    if not all(levels) or any(a != b for level in levels for a, b in pairwise(level)):
        raise KeyError("blocks")
    return {
        "in_tokens": int(first.shape[1]),
        "out_tokens": int(last.shape[0]),
        "length": length,
        "widths": tuple(level[0] for level in reversed(levels)),
        "layers_per_block": len(levels[-1]),
    }
