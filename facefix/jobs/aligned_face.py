"""Restore one aligned crop: the counterpart of the published inference script."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from facefix.errors import PhotoError, UsageError
from facefix.files import atomic
from facefix.methods import registry
from facefix.methods.base import LoadOptions, Pixels, SamplingSettings
from facefix.weights.catalogue import best_installed_model, find_model

OUTPUT_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP", ".tif": "TIFF", ".tiff": "TIFF"}


@dataclass(frozen=True, slots=True)
class CropRequest:
    """One aligned crop, its references, and where the result goes."""

    lq: Path
    references: Sequence[Path]
    output: Path


def restore_crop(
    request: CropRequest,
    *,
    model: str | None,
    device: torch.device,
    dtype: torch.dtype,
    sampling: SamplingSettings,
    say: Callable[[str], None] = lambda _note: None,
) -> Path:
    """Restore one aligned crop with reference crops of the same person and write the result.

    :param model: name or folder; None: the best that is installed.
    :param say: told what the user should know: a crop that was resized, references that the model does not take.
    :raises UsageError: an argument cannot be used; nothing was written.
    :raises PhotoError: an image cannot be read.
    :raises WeightsUnavailable: the model is not installed.
    """
    output, paths = request.output, request.references
    if output.suffix.lower() not in OUTPUT_FORMATS:
        raise UsageError(f"--output: expected a name ending in {', '.join(OUTPUT_FORMATS)}, found {output.name!r}")
    if any(output.resolve() == path.resolve() for path in [request.lq, *paths]):
        raise UsageError(f"--output: expected a new file, found {output}, which is an input")
    crop = read_crop(request.lq)
    pictures = [read_crop(path) for path in paths]
    name = model or best_installed_model()
    restorer = registry.load(find_model(name), LoadOptions(Path(name).name, device, dtype, sampling))
    if not pictures and restorer.references == "needed":
        raise UsageError(f"--ref: expected at least one reference (model {restorer.name} needs them), found none")
    if pictures and restorer.references == "none":
        say(f"--ref: model {restorer.name} takes no references; they are not used")
        pictures = []
    size = restorer.crop_size
    faces = [_at_size(picture, size, "references", say) for picture in pictures]
    prepared = restorer.prepare(faces, [str(path) for path in paths]) if faces else None
    (restored,) = restorer.restore([_at_size(crop, size, "lq", say)], prepared)
    return write_image(Image.fromarray(restored), output)


def _at_size(picture: Image.Image, size: int, argument: str, say: Callable[[str], None]) -> Pixels:
    """(size, size, 3) pixels, resized bicubically as the published code does."""
    if picture.width != size:
        say(f"{argument}: resized from {picture.width} to {size} px")
        picture = picture.resize((size, size), Image.Resampling.BICUBIC)
    return np.array(picture)


def read_crop(path: Path) -> Image.Image:
    """An RGB image that must be square.

    :raises PhotoError: the file is not an image, or not square.
    """
    try:
        with Image.open(path) as opened:
            image = opened.convert("RGB")
    except FileNotFoundError as error:
        raise UsageError(f"{path}: expected an image file, found nothing") from error
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise PhotoError(f"{path}: expected an image, found a file that cannot be read as one ({error})") from error
    if image.width != image.height:
        raise PhotoError(
            f"{path}: expected a square aligned face crop, found {image.width}x{image.height} px; "
            "use `facefix restore` for whole photos"
        )
    return image


def write_image(image: Image.Image, output: Path) -> Path:
    """Write an image so that it appears whole or not at all."""
    encoded = io.BytesIO()
    image.save(encoded, format=OUTPUT_FORMATS[output.suffix.lower()])
    try:
        atomic.write_bytes(encoded.getvalue(), output)
    except PhotoError as error:
        raise UsageError(f"--output: expected a place that can be written, found {output}: {error}") from error
    return output
