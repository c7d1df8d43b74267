"""3x3 convolutions with fewer multiplications, for the CPU without gradients.

``RowConvolution`` is Winograd's F(4, 3) along the height (Lavin & Gray, arXiv 1509.09308): four rows of output from six
rows of input by six 1x3 convolutions instead of twelve. Along one axis only, and with the interpolation points
0, +-1/sqrt 2, +-sqrt 2 and infinity, it is nearly as exact as the plain convolution: rms error 3.3e-7 against 2.2e-7 of
the output's standard deviation (160 channels). What remains are convolutions of oneDNN at their full speed and sums of
whole rows.

``UpsamplingConvolution`` is nearest x2 upsampling and a convolution in one: every 2x2 of output comes from 3x3 products
on the small map instead of 36, because neighbouring rows and columns of the enlarged map are equal.

Feature maps are channels-last: (B, H, W, C). Weights are transformed once in float64 and kept in the order that oneDNN
wants them in.
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F

INNER, OUTER = 0.5**0.5, 2.0**0.5
ROWS = 4
"""rows of output that are made together"""


class StripConvolution(Protocol):
    """A 3x3 convolution with padding 1 that is run over strips of rows."""

    rows: int
    """strips hold a multiple of this many rows"""

    def __call__(self, padded: torch.Tensor, out: torch.Tensor, *, add: bool) -> None:
        """Convolve rows that come with the row above and the row below them.

        :param padded: (B, R + 2, W, C), contiguous.
        :param out: (B, R, W, O), is overwritten or, with ``add``, added to.
        """


class PackedConvolution:
    """A convolution whose weights are not reordered in every call, where torch is built with oneDNN.

    oneDNN chooses the order by what it sees at the first call. For 1x1 kernels its choice depends much on the number of
    pixels, and the wrong order is twenty times slower, so weights are kept for several sizes.

    :param weight: (O, C / groups, kh, kw).
    """

    SIZES = 4

    def __init__(
        self,
        weight: torch.Tensor,
        *,
        stride: tuple[int, ...] = (1, 1),
        padding: tuple[int, ...] = (0, 0),
        groups: int = 1,
    ) -> None:
        self.plain: torch.Tensor | None = weight.detach().contiguous(memory_format=torch.channels_last)
        self.geometry = (list(padding), list(stride), [1, 1], groups)
        self.by_size = tuple(weight.shape[2:]) == (1, 1)
        self.reordered: dict[torch.Size | None, torch.Tensor] = {}

    def __call__(self, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """(B, H, W, C) -> (B, H', W', O)."""
        planes = x.permute(0, 3, 1, 2)
        if torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_reorder_convolution_weight"):
            result: torch.Tensor = torch.ops.mkldnn._convolution_pointwise(
                planes, self._reordered_for(planes), bias, *self.geometry, "none", [], ""
            )
        else:
            assert self.plain is not None
            padding, stride, dilation, groups = self.geometry
            result = F.conv2d(planes, self.plain, bias, stride, padding, dilation, groups)
        return result.permute(0, 2, 3, 1)

    def _reordered_for(self, planes: torch.Tensor) -> torch.Tensor:
        size = planes.shape if self.by_size else None
        weight = self.reordered.get(size)
        if weight is None:
            plain = self.plain
            if plain is None:  # another thread was first
                return self.reordered[size]
            weight = torch.ops.mkldnn._reorder_convolution_weight(plain, *self.geometry, list(planes.shape))
            kept = list(self.reordered.items())[1 - self.SIZES :]
            self.reordered = dict([*kept, (size, weight)])
            if not self.by_size:
                self.plain = None
        return weight


class PlainConvolution:
    """The convolution as it is."""

    rows = 1

    def __init__(self, weight: torch.Tensor) -> None:
        self.convolve = PackedConvolution(weight, padding=(0, 1))

    def __call__(self, padded: torch.Tensor, out: torch.Tensor, *, add: bool) -> None:
        result = self.convolve(padded)
        if add:
            out.add_(result)
        else:
            out.copy_(result)


class RowConvolution:
    """Winograd's F(4, 3) along the height.

    :param weight: (O, C, 3, 3).
    """

    rows = ROWS

    def __init__(self, weight: torch.Tensor) -> None:
        self.channels = weight.shape[1]
        transformed = torch.einsum("kj,ocjw->kocw", _weight_transform().to(weight.device), weight.detach().double())
        by_group = transformed.to(weight.dtype).flatten(0, 1).unsqueeze(2)  # (6 O, C, 1, 3)
        self.convolve = PackedConvolution(by_group, padding=(0, 1), groups=6)

    def __call__(self, padded: torch.Tensor, out: torch.Tensor, *, add: bool) -> None:
        products = self.convolve(_input_transform(padded).flatten(3)).unflatten(3, (6, -1))  # (B, R/4, W, 6, O)
        _output_transform(products, out, add=add)


def _weight_transform() -> torch.Tensor:
    """(6, 3): 3 weights of a column to 6, scaled so that the second row of output is a plain sum of products."""
    points = [0.0, INNER, -INNER, OUTER, -OUTER]
    matrix = torch.zeros(6, 3, dtype=torch.float64)
    for i, point in enumerate(points):
        others = torch.tensor([point - other for j, other in enumerate(points) if j != i], dtype=torch.float64)
        powers = torch.tensor([1.0, point, point**2], dtype=torch.float64)
        matrix[i] = (abs(point) or 1.0) * powers / others.prod()
    matrix[5, 2] = 1.0
    return matrix


def _input_transform(padded: torch.Tensor) -> torch.Tensor:
    """(B, R + 2, W, C) -> (B, R/4, W, 6, C): what the six convolutions see of every six rows."""
    batch, rows, width, channels = padded.shape
    groups = (rows - 2) // ROWS
    per_image, per_row, per_column, _ = padded.stride()
    d = padded.as_strided(
        (6, batch, groups, width, channels),
        (per_row, per_image, ROWS * per_row, per_column, 1),
        padded.storage_offset(),
    )
    transformed = padded.new_empty(batch, groups, width, 6, channels)
    t = transformed.permute(3, 0, 1, 2, 4)  # (6, B, R/4, W, C)
    torch.add(d[0:2], d[4:6], out=t[0::5])
    t[0::5].sub_(d[2:4], alpha=INNER**2 + OUTER**2)
    for first, point, other in ((1, INNER, OUTER), (3, OUTER, INNER)):
        odd, even = torch.sub(d[3:5], d[1:3], alpha=other**2)
        torch.add(even, odd, alpha=point, out=t[first])
        torch.sub(even, odd, alpha=point, out=t[first + 1])
    return transformed


def _output_transform(products: torch.Tensor, out: torch.Tensor, *, add: bool) -> None:
    """(B, R/4, W, 6, O) products -> (B, R, W, O)."""
    m = products.permute(3, 0, 1, 2, 4)  # (6, B, R/4, W, O)
    y = out.unflatten(1, (-1, ROWS)).permute(2, 0, 1, 3, 4)  # (4, B, R/4, W, O)
    inner_sum, outer_sum = m[1:4:2] + m[2:5:2]
    inner_difference, outer_difference = m[1:4:2] - m[2:5:2]
    if add:
        y[0].add_(m[0]).add_(inner_sum, alpha=1 / INNER).add_(outer_sum, alpha=1 / OUTER)
        y[1].add_(inner_difference).add_(outer_difference)
        y[2].add_(inner_sum, alpha=INNER).add_(outer_sum, alpha=OUTER)
        y[3].add_(m[5]).add_(inner_difference, alpha=INNER**2).add_(outer_difference, alpha=OUTER**2)
        return
    torch.add(m[0], inner_sum, alpha=1 / INNER, out=y[0]).add_(outer_sum, alpha=1 / OUTER)
    torch.add(inner_difference, outer_difference, out=y[1])
    torch.mul(inner_sum, INNER, out=y[2]).add_(outer_sum, alpha=OUTER)
    torch.add(m[5], inner_difference, alpha=INNER**2, out=y[3]).add_(outer_difference, alpha=OUTER**2)


class UpsamplingConvolution:
    """Nearest x2 upsampling followed by a 3x3 convolution with padding 1.

    With rows a, b, c of the small map above one another, the enlarged map's rows are a a b b c c, and its two rows of
    output at b are w0 a + (w1 + w2) b and (w0 + w1) b + w2 c. Both come from the products w0 (a - b),
    (w0 + w1 + w2) b and w2 (c - b). The same along the width.

    :param weight: (O, C, 3, 3).
    """

    def __init__(self, weight: torch.Tensor) -> None:
        matrix = torch.tensor([[1, 0, 0], [1, 1, 1], [0, 0, 1]], dtype=torch.float64, device=weight.device)
        transformed = torch.einsum("ri,ocij,sj->rsoc", matrix, weight.detach().double(), matrix)
        self.convolve = PackedConvolution(transformed.to(weight.dtype).flatten(0, 2)[:, :, None, None], groups=9)

    def __call__(self, padded: torch.Tensor, out: torch.Tensor) -> None:
        """:param padded: (B, R + 2, W + 2, C) of the small map. :param out: (B, 2 R, 2 W, O), is overwritten."""
        batch, rows, width, channels = padded[:, 2:, 2:].shape
        middle = padded[:, 1:-1]  # (B, R, W + 2, C)
        parts = padded.new_empty(batch, rows, width, 3, 3, channels)
        for row, above in enumerate((padded[:, :-2] - middle, middle, padded[:, 2:] - middle)):
            torch.sub(above[:, :, :-2], above[:, :, 1:-1], out=parts[:, :, :, row, 0])
            parts[:, :, :, row, 1] = above[:, :, 1:-1]
            torch.sub(above[:, :, 2:], above[:, :, 1:-1], out=parts[:, :, :, row, 2])
        products = self.convolve(parts.flatten(3)).unflatten(3, (3, 3, -1))  # (B, R, W, 3, 3, O)
        pairs = products[:, :, :, :2] + products[:, :, :, 1:]  # (B, R, W, 2, 3, O)
        quads = out.unflatten(2, (width, 2)).unflatten(1, (rows, 2)).permute(0, 1, 3, 2, 4, 5)  # (B, R, W, 2, 2, O)
        torch.add(pairs[:, :, :, :, :2], pairs[:, :, :, :, 1:], out=quads)
