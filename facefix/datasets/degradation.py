"""Low-quality faces made from good ones, as ReF-LDM (and GFPGAN before it) makes them.

Blur with a 41 x 41 Gaussian, downsample, Gaussian noise, JPEG, upsample, round. Every image has its own seed, so an
image comes out the same in any batch. Parameters are drawn on the CPU; the noise is drawn on the device of the image,
so CPU and CUDA give different noise of the same strength.

The published ranges speak of 512 x 512 crops. For smaller pictures of the same framing give ``scale`` (0.5 at 256 px):
blur, kernel and factor shrink with it, so that the small low-quality image in the middle has the same number of pixels
and looks the same; only a factor that would fall below 1 (the picture has not that many pixels to lose) stays at 1.

The preset ``archive`` is made otherwise, of all that happens to old photographs (:mod:`facefix.training.archive`); what
its faces should be restored to is not the picture that was degraded but that picture in the photo's tone: ``targets``.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import numpy as np
import scipy.fft
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from facefix.datasets import jpeg as torch_jpeg
from facefix.errors import UsageError
from facefix.training import archive

Jpeg = Literal["pillow", "torch"]

KERNEL_RADIUS = 20
"""Pixels at 512: the kernel is 41 x 41, also where a wide Gaussian would need more."""

_SMALLEST_SIGMA = 0.05
"""Below this a sampled Gaussian is a single pixel to float32 precision, and its inverse covariance overflows."""


@dataclass(frozen=True, slots=True)
class Ranges:
    """Uniform ranges that degradations are drawn from; lengths in pixels of a 512 x 512 crop."""

    sigma: tuple[float, float]
    """standard deviation of the blur in pixels"""
    factor: tuple[float, float]
    """downsampling"""
    noise: tuple[float, float]
    """standard deviation in levels of 0..255"""
    quality: tuple[float, float]
    """JPEG quality, cut to an integer after the draw"""


RANGES: Mapping[str, Ranges] = MappingProxyType(
    {
        "spec": Ranges(sigma=(0, 16), factor=(1, 32), noise=(0, 20), quality=(30, 100)),
        "severe": Ranges(sigma=(8, 16), factor=(8, 32), noise=(0, 20), quality=(30, 100)),
        "moderate": Ranges(sigma=(0, 8), factor=(1, 8), noise=(0, 15), quality=(60, 100)),
        "mild": Ranges(sigma=(0, 2.5), factor=(1, 2.5), noise=(0, 8), quality=(70, 100)),
    }
)
"""``spec``: ReF-LDM's training. ``severe`` and ``moderate``: its two published test sets. ``mild``: a telephone's
pictures of somebody at a distance."""

ARCHIVE = "archive"

PRESETS = (*RANGES, ARCHIVE)
"""Names of all presets."""


@dataclass(frozen=True, slots=True)
class Degradation:
    """What happens to one image; lengths in pixels of a 512 x 512 crop."""

    sigma_x: float
    sigma_y: float
    rotation: float
    """of the blur's axes, radians"""
    factor: float
    noise: float
    """standard deviation in levels of 0..255"""
    quality: int
    noise_seed: int

    def scaled(self, scale: float) -> Degradation:
        """The same damage to a picture ``scale`` times as large as 512 x 512."""
        return Degradation(
            sigma_x=self.sigma_x * scale,
            sigma_y=self.sigma_y * scale,
            rotation=self.rotation,
            factor=max(1.0, self.factor * scale),
            noise=self.noise,
            quality=self.quality,
            noise_seed=self.noise_seed,
        )

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the low-quality picture of a ``height`` x ``width`` image."""
        return max(1, int(height // self.factor)), max(1, int(width // self.factor))


def ranges_of(preset: str | Ranges) -> Ranges:
    """``preset`` by name. Raises UsageError for a name that is not one of RANGES."""
    if isinstance(preset, Ranges):
        return preset
    if preset not in RANGES:
        raise UsageError(f"degradation: expected one of {', '.join(RANGES)}, found {preset!r}")
    return RANGES[preset]


def draw(preset: str | Ranges, seed: int) -> Degradation:
    """The degradation that belongs to ``seed``: blur isotropic or not with equal chance, everything else uniform."""
    ranges = ranges_of(preset)
    random = np.random.default_rng(seed)
    isotropic = random.random() < 0.5
    sigma_x, sigma_y = random.uniform(*ranges.sigma, size=2)
    rotation = random.uniform(-math.pi, math.pi)
    return Degradation(
        sigma_x=float(sigma_x),
        sigma_y=float(sigma_x if isotropic else sigma_y),
        rotation=0.0 if isotropic else float(rotation),
        factor=float(random.uniform(*ranges.factor)),
        noise=float(random.uniform(*ranges.noise)),
        quality=int(random.uniform(*ranges.quality)),
        noise_seed=int(random.integers(2**62)),
    )


def degrade(
    images: Tensor,
    seeds: Sequence[int],
    preset: str | Ranges = "spec",
    *,
    scale: float = 1.0,
    jpeg: Jpeg = "pillow",
) -> Tensor:
    """Low-quality versions of ``images`` (B, 3, H, W), RGB in [0, 1], one seed each; same shape and range, 256 levels.

    ``scale``: size of the images relative to 512 (module docstring). ``jpeg``: ``pillow`` compresses for real, on the
    CPU; ``torch`` repeats libjpeg's arithmetic on the images' device and differs by a level here and there.
    ``archive`` is always computed on the CPU with libjpeg.
    Raises UsageError for an unknown preset or a number of seeds that does not fit.
    """
    if preset == ARCHIVE:
        _check(images, seeds)
        return archive.degrade(images.float(), seeds, scale=scale)
    _known(preset)
    return apply(images, [draw(preset, seed) for seed in seeds], scale=scale, jpeg=jpeg)


def targets(images: Tensor, seeds: Sequence[int], preset: str | Ranges = "spec") -> Tensor:
    """What ``degrade(images, seeds, preset)`` should be restored to; same shape and range.

    The images themselves, but for ``archive``: there in the tone and light that each photo has, so that a grey photo's
    target is grey. Raises UsageError as ``degrade`` does.
    """
    if preset != ARCHIVE:
        _known(preset)
        return images
    _check(images, seeds)
    return archive.targets(images.float(), seeds)


def _known(preset: str | Ranges) -> None:
    if isinstance(preset, str) and preset not in PRESETS:
        raise UsageError(f"degradation: expected one of {', '.join(PRESETS)}, found {preset!r}")


def apply(images: Tensor, degradations: Sequence[Degradation], *, scale: float = 1.0, jpeg: Jpeg = "pillow") -> Tensor:
    """``degrade`` with the degradations given, one for each image."""
    _check(images, degradations)
    fitted = [degradation.scaled(scale) for degradation in degradations]
    result = torch.empty_like(images, dtype=torch.float32)
    for group in _alike_in_size(fitted, images.shape[2], images.shape[3]):
        members = torch.tensor(group, device=images.device)
        with torch.autocast(images.device.type, enabled=False):
            result[members] = _degrade_group(images[members].float(), [fitted[i] for i in group], scale, jpeg)
    return result


def _check(images: Tensor, each: Sequence[object]) -> None:
    if images.ndim != 4 or images.shape[1] != 3 or len(each) != len(images):
        raise UsageError(
            f"degradation: expected images (B, 3, H, W) and one degradation or seed for each, "
            f"found shape {tuple(images.shape)} and {len(each)}"
        )


def _alike_in_size(degradations: Sequence[Degradation], height: int, width: int) -> Iterable[list[int]]:
    """Indices grouped by the power of two that holds the small picture, so that a shared canvas wastes little."""
    groups: dict[int, list[int]] = {}
    for index, degradation in enumerate(degradations):
        groups.setdefault(max(degradation.size(height, width)).bit_length(), []).append(index)
    return groups.values()


def _degrade_group(images: Tensor, degradations: Sequence[Degradation], scale: float, jpeg: Jpeg) -> Tensor:
    height, width = images.shape[2:]
    sizes = torch.tensor([degradation.size(height, width) for degradation in degradations])
    blurred = blur(images, degradations, radius=max(1, round(KERNEL_RADIUS * scale)))
    small = _resize_down(blurred, sizes)
    small = (small + _noise(small, sizes, degradations)).clamp_(0, 1)
    qualities = [degradation.quality for degradation in degradations]
    small = (_pillow_jpeg if jpeg == "pillow" else torch_jpeg.compress)(small, sizes, qualities)
    large = _resize_up(small, sizes, height, width)
    return large.mul_(255).round_().clamp_(0, 255).div_(255)


def kernels(degradations: Sequence[Degradation], radius: int) -> Tensor:
    """(B, 2 radius + 1, 2 radius + 1) Gaussian kernels that sum to 1; x runs along the last axis."""
    sigma_x = torch.tensor([d.sigma_x for d in degradations], dtype=torch.float64).clamp_min(_SMALLEST_SIGMA)
    sigma_y = torch.tensor([d.sigma_y for d in degradations], dtype=torch.float64).clamp_min(_SMALLEST_SIGMA)
    rotation = torch.tensor([d.rotation for d in degradations], dtype=torch.float64)
    cos, sin = rotation.cos()[:, None, None], rotation.sin()[:, None, None]
    offsets = torch.arange(-radius, radius + 1, dtype=torch.float64)
    y, x = torch.meshgrid(offsets, offsets, indexing="ij")
    along = (cos * x + sin * y) / sigma_x[:, None, None]
    across = (cos * y - sin * x) / sigma_y[:, None, None]
    weights = torch.exp(-0.5 * (along.square() + across.square()))
    return (weights / weights.sum(dim=(1, 2), keepdim=True)).float()


def blur(images: Tensor, degradations: Sequence[Degradation], radius: int) -> Tensor:
    """``images`` (B, 3, H, W) filtered with their own kernels, border mirrored about the edge pixel.

    By FFT: on two CPU cores a 512 x 512 picture takes a seventh of the time of the direct convolution.
    """
    height, width = images.shape[2:]
    reach_y, reach_x = min(radius, height - 1), min(radius, width - 1)
    padded = F.pad(images, (reach_x, reach_x, reach_y, reach_y), mode="reflect")
    if (reach_y, reach_x) != (radius, radius):
        padded = F.pad(padded, (radius - reach_x,) * 2 + (radius - reach_y,) * 2, mode="replicate")
    extent = [scipy.fft.next_fast_len(size, real=True) for size in padded.shape[2:]]
    spectrum = torch.fft.rfft2(padded, s=extent)  # (B, 3, h, w // 2 + 1)
    # The kernels are symmetric about their centre, so convolution and cv2's correlation are the same.
    transfer = torch.fft.rfft2(kernels(degradations, radius).to(images.device), s=extent)[:, None]
    filtered: Tensor = torch.fft.irfft2(spectrum * transfer, s=extent)
    return filtered[:, :, 2 * radius : 2 * radius + height, 2 * radius : 2 * radius + width]


def _canvas(sizes: Tensor) -> tuple[int, int]:
    """Height and width of the canvas that holds every small picture in whole 16 x 16 JPEG units."""
    height, width = (-(-int(extent) // 16) * 16 for extent in sizes.amax(dim=0))
    return height, width


def _sample(images: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """Bilinear samples of ``images`` (B, 3, H, W) at pixel rows ``y`` (B, h) and columns ``x`` (B, w)."""
    height, width = images.shape[2:]
    rows = ((2 * y + 1) / height - 1)[:, :, None].expand(-1, -1, x.shape[1])
    columns = ((2 * x + 1) / width - 1)[:, None, :].expand(-1, y.shape[1], -1)
    grid = torch.stack([columns, rows], dim=-1).to(images.device, images.dtype)  # (B, h, w, 2)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)


def _resize_down(images: Tensor, sizes: Tensor) -> Tensor:
    """Each image at its own size (B, 2) on a common canvas (B, 3, h, w), last row and column repeated to fill it."""
    places = []
    for axis, canvas in enumerate(_canvas(sizes)):
        small = sizes[:, axis, None].double()  # (B, 1)
        index = torch.minimum(torch.arange(canvas, dtype=torch.float64)[None], small - 1)
        places.append((index + 0.5) * (images.shape[2 + axis] / small) - 0.5)
    return _sample(images, *places)


def _resize_up(canvas: Tensor, sizes: Tensor, height: int, width: int) -> Tensor:
    """The pictures of ``sizes`` (B, 2) on ``canvas`` (B, 3, h, w), each resized to ``height`` x ``width``."""
    places = []
    for axis, extent in enumerate((height, width)):
        small = sizes[:, axis, None].double()
        place = (torch.arange(extent, dtype=torch.float64)[None] + 0.5) * (small / extent) - 0.5
        places.append(torch.minimum(place.clamp_min(0), small - 1))
    return _sample(canvas, *places)


def _noise(canvas: Tensor, sizes: Tensor, degradations: Sequence[Degradation]) -> Tensor:
    """Colour noise for each small picture on a canvas like ``canvas``, its last row and column repeated."""
    noise = torch.empty_like(canvas)
    for index, (degradation, (height, width)) in enumerate(zip(degradations, sizes.tolist(), strict=True)):
        generator = torch.Generator(canvas.device).manual_seed(degradation.noise_seed)
        picture = torch.randn((1, 3, height, width), generator=generator, device=canvas.device)
        fill = (0, canvas.shape[3] - width, 0, canvas.shape[2] - height)
        noise[index] = F.pad(picture * (degradation.noise / 255), fill, mode="replicate")[0]
    return noise


def _pillow_jpeg(canvas: Tensor, sizes: Tensor, qualities: Sequence[int]) -> Tensor:
    """Compress and decompress the pictures of ``sizes`` on ``canvas`` (B, 3, h, w) in [0, 1] with libjpeg, 4:2:0."""
    result = canvas.cpu().clone()
    for picture, (height, width), quality in zip(result, sizes.tolist(), qualities, strict=True):
        pixels = (picture[:, :height, :width] * 255).round().to(torch.uint8).permute(1, 2, 0)
        buffer = io.BytesIO()
        Image.fromarray(pixels.contiguous().numpy()).save(buffer, "JPEG", quality=quality)
        decoded = np.array(Image.open(buffer))
        picture[:, :height, :width] = torch.from_numpy(decoded).permute(2, 0, 1) / 255
    return result.to(canvas.device)
