"""JPEG compression and decompression in torch: what libjpeg does to pixels at 4:2:0, for a batch on any device.

ITU-T T.81 (blocks, DCT, annex K's tables) and JFIF (colour), with libjpeg's choices: chroma averaged over 2 x 2 pixels,
its scaling of the tables by quality, its triangle filter on the way back ("fancy upsampling"), and integers between
the steps. The entropy coding loses nothing and is left out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

_LUMINANCE = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
_CHROMINANCE = (
    (17, 18, 24, 47, 99, 99, 99, 99),
    (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99),
    (99, 99, 99, 99, 99, 99, 99, 99),
    (99, 99, 99, 99, 99, 99, 99, 99),
    (99, 99, 99, 99, 99, 99, 99, 99),
    (99, 99, 99, 99, 99, 99, 99, 99),
)


def compress(canvas: Tensor, sizes: Tensor, qualities: Sequence[int]) -> Tensor:
    """What JPEG of ``qualities`` (B of 1..100) leaves of pictures that lie at the top left of a common canvas.

    ``canvas`` (B, 3, h, w): RGB in [0, 1], h and w multiples of 16, each picture's last row and column repeated to fill
    it. ``sizes`` (B, 2): height and width of each picture. Returns a canvas of the same shape in 256 levels; what
    lies outside the pictures means nothing. Has no gradient.
    """
    device = canvas.device
    y, cb, cr = _ycbcr((canvas * 255).round_()).unbind(dim=1)  # each (B, h, w)
    scale = _table_scale(torch.tensor(qualities))
    y = _transform_and_quantise(y, _table(_LUMINANCE, scale).to(device))
    chroma = torch.stack([_halve(cb), _halve(cr)], dim=1)  # (B, 2, h / 2, w / 2)
    chroma = _transform_and_quantise(chroma, _table(_CHROMINANCE, scale).to(device)[:, None])
    return _rgb(y, _double(chroma, -(-sizes.to(device) // 2))).div_(255)


def _ycbcr(rgb: Tensor) -> Tensor:
    """(B, 3, h, w) levels of RGB -> Y, Cb, Cr as whole levels (JFIF 1.02, full range)."""
    r, g, b = rgb.unbind(dim=1)
    y = 0.299 * r + 0.587 * g + 0.114 * b
    cb = -0.168735892 * r - 0.331264108 * g + 0.5 * b + 128
    cr = 0.5 * r - 0.418687589 * g - 0.081312411 * b + 128
    # libjpeg rounds Y up at a half but the chroma down, which keeps them at 255 or less.
    return torch.stack([torch.floor(y + 0.5), torch.ceil(cb - 0.5), torch.ceil(cr - 0.5)], dim=1)


def _rgb(y: Tensor, chroma: Tensor) -> Tensor:
    """(B, h, w) luma and (B, 2, h, w) chroma -> (B, 3, h, w) whole levels of RGB."""
    cb, cr = (chroma - 128).unbind(dim=1)
    r = y + torch.floor(1.402 * cr + 0.5)
    g = y + torch.floor(-0.344136286 * cb - 0.714136286 * cr + 0.5)
    b = y + torch.floor(1.772 * cb + 0.5)
    return torch.stack([r, g, b], dim=1).clamp_(0, 255)


def _halve(plane: Tensor) -> Tensor:
    """(B, h, w) -> (B, h / 2, w / 2): 2 x 2 sums rounded with libjpeg's alternating bias of 1 and 2."""
    batch, height, width = plane.shape
    sums = plane.view(batch, height // 2, 2, width // 2, 2).sum(dim=(2, 4))
    bias = 1 + torch.arange(width // 2, device=plane.device) % 2
    return torch.floor((sums + bias) / 4)


def _double(chroma: Tensor, sizes: Tensor) -> Tensor:
    """(B, 2, h, w) -> (B, 2, 2h, 2w) by libjpeg's triangle filter; ``sizes`` (B, 2) are those of the pictures' chroma.

    Each output pixel takes 3/4 of the nearest sample and 1/4 of the next nearest, on both axes.
    """
    batch, _, height, width = chroma.shape
    rows, next_rows = _nearest_two(height, sizes[:, 0])
    columns, next_columns = _nearest_two(width, sizes[:, 1])

    def take(plane: Tensor, index: Tensor, axis: int) -> Tensor:
        shape = [batch, 1, 1, 1]
        shape[axis] = index.shape[1]
        extent = list(plane.shape)
        extent[axis] = index.shape[1]
        return plane.gather(axis, index.view(shape).expand(extent))

    tall = 3 * take(chroma, rows, 2) + take(chroma, next_rows, 2)
    sums = 3 * take(tall, columns, 3) + take(tall, next_columns, 3)
    bias = 8 - torch.arange(2 * width, device=chroma.device) % 2
    return torch.floor((sums + bias) / 16)


def _nearest_two(extent: int, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Indices (B, 2 extent) of the nearest and next nearest sample of each output pixel, kept within ``valid`` (B)."""
    index = torch.arange(2 * extent, device=valid.device)
    last = (valid - 1)[:, None]
    nearest = torch.minimum((index // 2)[None], last)
    next_nearest = torch.minimum((index // 2 + 2 * (index % 2) - 1).clamp_min(0)[None], last)
    return nearest, next_nearest


def _table_scale(qualities: Tensor) -> Tensor:
    """Percentage by which libjpeg scales annex K's tables: 100 at quality 50."""
    qualities = qualities.clamp(1, 100)
    return torch.where(qualities < 50, 5000 // qualities, 200 - 2 * qualities)


def _table(base: tuple[tuple[int, ...], ...], scale: Tensor) -> Tensor:
    """(B, 8, 8) quantisation steps, 1..255."""
    return ((torch.tensor(base) * scale[:, None, None] + 50) // 100).clamp(1, 255).float()


def _dct_matrix(device: torch.device) -> Tensor:
    """(8, 8) float64 orthonormal DCT-II: row k holds the k-th cosine."""
    k, n = torch.meshgrid(*[torch.arange(8, dtype=torch.float64)] * 2, indexing="ij")
    matrix = torch.cos(math.pi / 8 * (n + 0.5) * k) / 2
    matrix[0] /= math.sqrt(2)
    return matrix.to(device)


def _transform_and_quantise(planes: Tensor, table: Tensor) -> Tensor:
    """(B, ..., h, w) levels through DCT, quantisation with ``table`` (B, ..., 8, 8) and back to whole levels."""
    *lead, height, width = planes.shape
    dct = _dct_matrix(planes.device)
    # In float64, so that no setting of matrix products (TF32, autocast) moves a coefficient to another level.
    levels = (planes - 128).double()
    blocks = levels.reshape(*lead, height // 8, 8, width // 8, 8).transpose(-3, -2)  # (.., h/8, w/8, 8, 8)
    table = table[..., None, None, :, :].double()
    # libjpeg's integer DCT gives multiples of 1/8, and then rounds halves away from zero.
    coefficients = torch.round(dct @ blocks @ dct.T * 8) / 8
    quantised = torch.floor(coefficients.abs() / table + 0.5) * coefficients.sign()
    restored = dct.T @ (quantised * table) @ dct
    restored = torch.floor(restored + 128.5).clamp_(0, 255).float()
    return restored.transpose(-3, -2).reshape(*lead, height, width)
