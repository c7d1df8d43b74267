"""dlib's face networks in torch, with the weights read from dlib's own files.

dlib computes them on one core with the interpreter lock held; in torch they run several times faster, in threads, on
any device, and with gradients. The architectures are those of dlib's examples ``dnn_face_recognition_ex.cpp`` and
``dnn_mmod_face_detection_ex.cpp``; tests compare the numbers with dlib's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from facefix.errors import CheckpointError

PIXEL_MEAN = (122.782, 117.001, 104.298)
"""Mean red, green, blue that dlib's input layers subtract before they divide by 256."""

CHIP_SIZE = 150
DETECTION_WINDOW = 80
"""Side in pixels of the face that the detection network responds to."""
DETECTION_STRIDE = 8


def load_recognition_network(path: Path) -> RecognitionNetwork:
    """Read ``dlib_face_recognition_resnet_model_v1.dat``. Raises CheckpointError when the file is something else."""
    layers = list(_read_layers(path))
    convolutions = [layer for layer in layers if layer.kind == "con"]
    affines = [layer for layer in layers if layer.kind == "affine"]
    projections = [layer for layer in layers if layer.kind == "fc"]
    if (len(convolutions), len(affines), len(projections)) != (29, 29, 1):
        raise CheckpointError(
            f"{path}: expected dlib's recognition network (29 convolutions), found {len(convolutions)}"
        )
    network = RecognitionNetwork()
    for convolution, weights, affine in zip(network.convolutions(), convolutions, affines, strict=True):
        _fold(convolution, weights, scale=affine.first, shift=affine.second)
    with torch.no_grad():
        network.projection.weight.copy_(torch.from_numpy(projections[0].first.reshape(256, 128).T.copy()))
    return network.eval().requires_grad_(False)


def load_detection_network(path: Path) -> DetectionNetwork:
    """Read ``mmod_human_face_detector.dat``. Raises CheckpointError when the file is something else."""
    layers = list(_read_layers(path))
    convolutions = [layer for layer in layers if layer.kind == "con"]
    norms = [layer for layer in layers if layer.kind == "bn"]
    if (len(convolutions), len(norms)) != (7, 6):
        raise CheckpointError(f"{path}: expected dlib's detection network (7 convolutions), found {len(convolutions)}")
    network = DetectionNetwork()
    for convolution, weights, norm in zip(network.hidden, convolutions, norms, strict=False):
        scale = norm.first / np.sqrt(norm.variance + norm.epsilon)
        _fold(convolution, weights, scale=scale, shift=norm.second - norm.mean * scale)
    _fold(network.score, convolutions[-1], scale=np.ones(1, np.float32), shift=np.zeros(1, np.float32))
    return network.eval().requires_grad_(False)


class RecognitionNetwork(nn.Module):
    """RGB chips (B, 3, 150, 150), 0..255, to identity embeddings (B, 128): Euclidean distance < 0.6 is one person."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 7, stride=2)
        plan = [(32, 32, 3, False), (32, 64, 4, True), (64, 128, 3, True), (128, 256, 3, True), (256, 256, 1, True)]
        self.blocks = nn.ModuleList(
            _ResidualBlock(before if index == 0 else after, after, down=down and index == 0)
            for before, after, count, down in plan
            for index in range(count)
        )
        self.projection = nn.Linear(256, 128, bias=False)

    def convolutions(self) -> list[nn.Conv2d]:
        """Every convolution, from the input to the output."""
        return [module for module in self.modules() if isinstance(module, nn.Conv2d)]

    def forward(self, chips: Tensor) -> Tensor:
        """(B, 128) embeddings of (B, 3, 150, 150) chips in 0..255, not yet of length 1."""
        x = functional.relu(self.stem(_normalised(chips)))  # (B, 32, 72, 72)
        x = functional.max_pool2d(x, 3, stride=2)  # (B, 32, 35, 35)
        for block in self.blocks:
            x = block(x)
        embeddings: Tensor = self.projection(x.mean(dim=(2, 3)))  # (B, 256, 2, 2) -> (B, 128)
        return embeddings


class _ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions beside an identity, or beside a 2 x 2 mean when the block halves the resolution."""

    def __init__(self, before: int, after: int, *, down: bool) -> None:
        super().__init__()
        self.down = down
        self.first = nn.Conv2d(before, after, 3, stride=2 if down else 1, padding=0 if down else 1)
        self.second = nn.Conv2d(after, after, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = functional.avg_pool2d(x, 2) if self.down else x
        branch = self.second(functional.relu(self.first(x)))
        # dlib adds tensors of different sizes as if the smaller were followed by zeros.
        height, width = max(shortcut.shape[2], branch.shape[2]), max(shortcut.shape[3], branch.shape[3])
        size = (branch.shape[1], height, width)
        return functional.relu(_zero_extended(branch, size) + _zero_extended(shortcut, size))


class DetectionNetwork(nn.Module):
    """RGB image (1, 3, H, W), 0..255, to a map of scores: > 0 where a face of about 80 px is centred.

    One cell per 8 pixels; ``cell_centres`` says where the cells lie.
    """

    def __init__(self) -> None:
        super().__init__()
        plan = [(3, 16, 2), (16, 32, 2), (32, 32, 2), (32, 45, 1), (45, 45, 1), (45, 45, 1)]
        self.hidden = nn.ModuleList(
            nn.Conv2d(before, after, 5, stride=stride, padding=0 if stride == 2 else 2)
            for before, after, stride in plan
        )
        self.score = nn.Conv2d(45, 1, 9, padding=4)

    def forward(self, image: Tensor) -> Tensor:
        """(h, w) scores of one picture (1, 3, H, W) in 0..255."""
        x = _normalised(image)
        for convolution in self.hidden:
            x = functional.relu(convolution(x))
        scores: Tensor = self.score(x)[0, 0]  # (h, w)
        return scores

    @staticmethod
    def cell_centres(cells: NDArray[np.float64]) -> NDArray[np.float64]:
        """Pixels of the image that cells (column or row) of the map look at: three unpadded 5 x 5 steps of stride 2."""
        return cells * DETECTION_STRIDE + 14


def _normalised(pixels: Tensor) -> Tensor:
    mean = torch.tensor(PIXEL_MEAN, dtype=pixels.dtype, device=pixels.device).view(1, 3, 1, 1)
    return (pixels - mean) / 256


def _zero_extended(x: Tensor, size: tuple[int, int, int]) -> Tensor:
    channels, height, width = size
    missing = (0, width - x.shape[3], 0, height - x.shape[2], 0, channels - x.shape[1])
    return functional.pad(x, missing) if any(missing) else x


def _fold(convolution: nn.Module, weights: _Layer, *, scale: NDArray[np.float32], shift: NDArray[np.float32]) -> None:
    """Load a convolution with the per-channel ``scale`` and ``shift`` that follow it multiplied in."""
    assert isinstance(convolution, nn.Conv2d) and convolution.bias is not None
    if weights.first.size != convolution.weight.numel():
        raise CheckpointError(
            f"dlib network: expected {tuple(convolution.weight.shape)} weights, found {weights.first.size}"
        )
    kernel = weights.first.reshape(convolution.weight.shape) * scale.reshape(-1, 1, 1, 1)
    with torch.no_grad():
        convolution.weight.copy_(torch.from_numpy(kernel))
        convolution.bias.copy_(torch.from_numpy(weights.second * scale + shift))


@dataclass(frozen=True)
class _Layer:
    """Weights of one layer of a dlib file: kernel and bias, or gain and offset."""

    kind: str
    first: NDArray[np.float32]
    second: NDArray[np.float32]
    mean: NDArray[np.float32]
    variance: NDArray[np.float32]
    epsilon: float


_NAMES = {b"con_4": "con", b"affine_": "affine", b"bn_con2": "bn", b"fc_2": "fc"}
_NOTHING = np.zeros(0, np.float32)


def _read_layers(path: Path) -> Iterator[_Layer]:
    """The layers with weights of a dlib network, from the input to the output.

    A layer is written as its name followed by its fields, so the names are enough to find the layers.
    """
    content = path.read_bytes()
    found = sorted(
        (position, name) for name in _NAMES for position in _positions(content, bytes((1, len(name))) + name)
    )
    try:
        for position, name in found:
            yield _Cursor(content, position + 2 + len(name)).layer(_NAMES[name])
    except (ValueError, IndexError) as error:
        raise CheckpointError(f"{path}: expected a network written by dlib, found a damaged file ({error})") from error


def _positions(content: bytes, pattern: bytes) -> Iterator[int]:
    position = content.find(pattern)
    while position >= 0:
        yield position
        position = content.find(pattern, position + 1)


class _Cursor:
    """Reads dlib's serialisation: integers with a length byte, floats as mantissa and exponent, tensors raw."""

    def __init__(self, content: bytes, position: int) -> None:
        self.content = content
        self.position = position

    def integer(self) -> int:
        control = self.content[self.position]
        length = control & 0x0F
        if not 1 <= length <= 8:
            raise ValueError(f"no integer at byte {self.position}")
        start = self.position + 1
        self.position = start + length
        value = int.from_bytes(self.content[start : self.position], "little")
        return -value if control & 0x80 else value

    def real(self) -> float:
        mantissa, exponent = self.integer(), self.integer()
        return float(mantissa) * 2.0**exponent

    def tensor(self) -> NDArray[np.float32]:
        version, *shape = (self.integer() for _ in range(5))
        count = int(np.prod(shape))
        if version != 2 or self.position + 4 * count > len(self.content):
            raise ValueError(f"no tensor at byte {self.position}")
        values = np.frombuffer(self.content, "<f4", count, self.position).astype(np.float32)
        self.position += 4 * count
        return values

    def alias_size(self) -> int:
        """Elements of an alias tensor: a view's shape, written without values."""
        _version, *shape = (self.integer() for _ in range(5))
        return int(np.prod(shape))

    def layer(self, kind: str) -> _Layer:
        mean = variance = _NOTHING
        epsilon = 0.0
        if kind == "fc":
            self.integer()  # outputs
            self.integer()  # inputs
            return _Layer(kind, self.tensor(), _NOTHING, mean, variance, epsilon)
        weights = self.tensor()
        if kind == "con":
            for _ in range(7):  # filters, kernel height and width, stride y and x, padding y and x
                self.integer()
        split = self.alias_size()
        self.alias_size()
        if kind == "bn":
            self.tensor()
            self.tensor()
            mean, variance = self.tensor(), self.tensor()
            self.integer()  # number of updates
            self.integer()  # window of the running statistics
            for _ in range(4):  # learning rate and weight decay multipliers
                self.real()
            epsilon = self.real()
        return _Layer(kind, weights[:split], weights[split:], mean, variance, epsilon)
