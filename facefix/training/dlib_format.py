"""Reads the layers of a network that dlib has serialized (dlib/serialize.h and dlib/dnn of versions 19 and 20).

Numbers are stored as a byte that tells the number of bytes and the sign, and then those bytes, lowest first; floats as
a mantissa and a binary exponent in that form; tensors as their four dimensions and raw little-endian float32. A network
is stored as the nested structure first, outermost layer first, and then the layers themselves, input first.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from facefix.errors import CheckpointError

Parameters = NDArray[np.float32]

_FLAGS = 3
_STATE_TENSORS = 3
"""Every layer ends with three flags and the (empty) tensors of its gradient, output and parameter gradient."""


@dataclass(frozen=True, slots=True, eq=False)
class DlibLayer:
    """One layer: its serialized name, its settings in the order they are stored, and its parameters as one vector."""

    name: str
    settings: tuple[int, ...]
    parameters: Parameters


class _Reader:
    def __init__(self, data: bytes) -> None:
        self.data = data
        self.position = 0

    def take(self, count: int) -> bytes:
        taken = self.data[self.position : self.position + count]
        if count < 0 or len(taken) != count:
            raise ValueError(f"ends at byte {len(self.data)} inside a value")
        self.position += count
        return taken

    def integer(self) -> int:
        (control,) = self.take(1)
        count = control & 0x0F
        if not 1 <= count <= 8 or control & 0x70:
            raise ValueError(f"no integer at byte {self.position - 1}")
        value = int.from_bytes(self.take(count), "little")
        return -value if control & 0x80 else value

    def integers(self, count: int) -> tuple[int, ...]:
        return tuple(self.integer() for _ in range(count))

    def real(self) -> float:
        mantissa, exponent = self.integers(2)
        return float(np.ldexp(float(mantissa), exponent))

    def text(self) -> str:
        return self.take(self.integer()).decode("ascii")

    def tensor(self) -> Parameters:
        if (version := self.integer()) != 2:
            raise ValueError(f"tensor of version {version} at byte {self.position}, expected 2")
        count = int(np.prod(self.integers(4)))
        return np.frombuffer(self.take(4 * count), dtype="<f4").astype(np.float32)


def read_metric_network(path: Path) -> list[DlibLayer]:
    """The layers of a metric-learning network (``loss_metric_2``) on ``input_rgb_image_sized``, input first.

    Raises CheckpointError when ``path`` is not such a file.
    """
    reader = _Reader(path.read_bytes())
    try:
        layers = _read_layers(reader)
    except (ValueError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: expected a network serialized by dlib: {error}") from error
    return layers


def _read_layers(reader: _Reader) -> list[DlibLayer]:
    reader.integer()
    if (loss := reader.text()) != "loss_metric_2":
        raise ValueError(f"loss layer {loss!r}, expected 'loss_metric_2'")
    reader.real()
    reader.real()
    while reader.data[reader.position + 1] <= 3:  # the versions of the nested layers; a name is longer
        reader.integer()
    if (name := reader.text()) != "input_rgb_image_sized":
        raise ValueError(f"input layer {name!r}, expected 'input_rgb_image_sized'")
    means = np.array([reader.real() for _ in range(3)], dtype=np.float32)
    layers = [DlibLayer(name, reader.integers(2), means)]
    while reader.position < len(reader.data):
        layers.append(_read_layer(reader))
        reader.take(_FLAGS)
        for _ in range(_STATE_TENSORS):
            reader.tensor()
        if len(layers) == 2:
            reader.integer()  # only the layer next to the input stores how many samples it makes of one
    return layers


def _read_layer(reader: _Reader) -> DlibLayer:
    name = reader.text()
    nothing = np.empty(0, dtype=np.float32)
    if name == "con_4":
        parameters = reader.tensor()
        settings = reader.integers(7)  # filters, rows, columns, stride y and x, padding y and x
        _skip_views_and_rates(reader, numbers=0)
        return DlibLayer(name, settings, parameters)
    if name == "affine_":
        parameters = reader.tensor()
        reader.integers(2 * 5 + 1)  # where gamma and beta lie in it, and the kind of layer it was trained as
        return DlibLayer(name, (), parameters)
    if name == "fc_2":
        settings = reader.integers(2)  # outputs, inputs
        parameters = reader.tensor()
        _skip_views_and_rates(reader, numbers=1)  # whether it has a bias
        return DlibLayer(name, settings, parameters)
    if name in ("max_pool_2", "avg_pool_2"):
        return DlibLayer(name, reader.integers(6), nothing)  # rows, columns, stride y and x, padding y and x
    if name in ("relu_", "add_prev_"):
        return DlibLayer(name, (), nothing)
    raise ValueError(f"unknown layer {name!r} at byte {reader.position}")


def _skip_views_and_rates(reader: _Reader, numbers: int) -> None:
    reader.integers(2 * 5 + numbers)  # where weights and biases lie in the parameters
    for _ in range(4):  # factors of the learning rate and weight decay of both
        reader.real()
