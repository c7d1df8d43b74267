"""The crossing between pictures and network tensors: PIL or uint8 pixels <-> (B, 3, H, W) floats in [-1, 1]."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from facefix.errors import UsageError

Images = Image.Image | Sequence[Image.Image] | torch.Tensor


def to_tensor(images: Images, size: int, *, argument: str) -> torch.Tensor:
    """(B, 3, size, size) float32 in [-1, 1].

    Pictures of another size are resized (bicubic, as the published code does) and a warning says so.

    :param images: one PIL image, several, or a (B, 3, H, W) or (3, H, W) tensor in [-1, 1].
    :param argument: name of the argument, for messages.
    :raises UsageError: not images, not square, or values out of range.
    """
    if isinstance(images, torch.Tensor):
        return _fit_tensor(images, size, argument)
    pictures = [images] if isinstance(images, Image.Image) else list(images)
    if not pictures:
        raise UsageError(f"{argument}: expected at least one image, found none")
    return torch.stack([_picture_to_tensor(picture, size, argument) for picture in pictures])


def _picture_to_tensor(picture: Image.Image, size: int, argument: str) -> torch.Tensor:
    if not isinstance(picture, Image.Image):
        raise UsageError(f"{argument}: expected PIL images or one tensor, found {type(picture).__name__}")
    if picture.width != picture.height:
        raise UsageError(
            f"{argument}: expected a square face crop, found {picture.width}x{picture.height} px; align it first"
        )
    if picture.width != size:
        warnings.warn(f"{argument}: resized from {picture.width} to {size} px", stacklevel=5)
        picture = picture.convert("RGB").resize((size, size), Image.Resampling.BICUBIC)
    return pixels_to_tensor(np.asarray(picture.convert("RGB")))


def _fit_tensor(images: torch.Tensor, size: int, argument: str) -> torch.Tensor:
    if images.dim() == 3:
        images = images[None]
    if images.dim() != 4 or images.shape[1] != 3 or images.shape[0] == 0:
        raise UsageError(f"{argument}: expected a (B, 3, H, W) tensor, found {tuple(images.shape)}")
    if images.shape[2] != images.shape[3]:
        raise UsageError(f"{argument}: expected square face crops, found {images.shape[3]}x{images.shape[2]} px")
    if not images.is_floating_point() or not bool(torch.isfinite(images).all()):
        raise UsageError(f"{argument}: expected finite floats in [-1, 1], found {images.dtype} or NaN or infinity")
    if float(images.abs().max()) > 1.5:
        raise UsageError(
            f"{argument}: expected values in [-1, 1], found {float(images.min()):.3g} to {float(images.max()):.3g}"
        )
    if images.shape[2] != size:
        warnings.warn(f"{argument}: resized from {images.shape[2]} to {size} px", stacklevel=5)
        images = resize(images.float(), size).clamp(-1, 1)
    return images.float()


def resize(images: torch.Tensor, size: int) -> torch.Tensor:
    """(B, 3, size, size): bicubic, antialiased where it shrinks."""
    if images.shape[-1] == size:
        return images
    return F.interpolate(images, size=(size, size), mode="bicubic", antialias=True, align_corners=False)


def to_network(levels: torch.Tensor) -> torch.Tensor:
    """Levels 0..255 of any shape and type to float32 -1..1."""
    return levels.float() / 127.5 - 1


def pixels_to_tensor(pixels: np.ndarray) -> torch.Tensor:
    """uint8 (..., H, W, 3) to float32 (..., 3, H, W): x / 127.5 - 1."""
    return to_network(torch.from_numpy(np.array(pixels))).movedim(-1, -3).contiguous()


def tensor_to_pixels(images: torch.Tensor, *, nearest: bool = False) -> np.ndarray:
    """Floats (..., 3, H, W) in [-1, 1] to uint8 (..., H, W, 3).

    :param nearest: round to the nearest level; otherwise truncate as the published code does (half a level darker).
    """
    levels = images.float().add(1).div(2).clamp(0, 1).mul(255)
    levels = levels.round() if nearest else levels
    return levels.movedim(-3, -1).to("cpu", torch.uint8).numpy()


def tensor_to_pil(images: torch.Tensor, *, nearest: bool = False) -> list[Image.Image]:
    """One PIL image per row of a (B, 3, H, W) tensor in [-1, 1]."""
    return [Image.fromarray(pixels) for pixels in tensor_to_pixels(images, nearest=nearest)]
