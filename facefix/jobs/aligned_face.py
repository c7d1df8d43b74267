"""Restore one aligned crop: the counterpart of the published inference script."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image, UnidentifiedImageError

from facefix.errors import PhotoError, UsageError
from facefix.files import atomic
from facefix.methods.base import SamplingSettings
from facefix.methods.refldm.restorer import ReFLDMRestorer
from facefix.weights.catalogue import best_installed_model, find_model

OUTPUT_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP", ".tif": "TIFF", ".tiff": "TIFF"}


def restore_crop(
    lq: Path,
    references: Sequence[Path],
    output: Path,
    *,
    model: str | None,
    device: torch.device,
    dtype: torch.dtype,
    settings: SamplingSettings,
) -> Path:
    """Restore one aligned crop with reference crops of the same person and write the result.

    :raises UsageError: an argument cannot be used; nothing was written.
    :raises PhotoError: an image cannot be read.
    :raises WeightsUnavailable: the model is not installed.
    """
    if output.suffix.lower() not in OUTPUT_FORMATS:
        raise UsageError(f"--output: expected a name ending in {', '.join(OUTPUT_FORMATS)}, found {output.name!r}")
    if any(output.resolve() == path.resolve() for path in [lq, *references]):
        raise UsageError(f"--output: expected a new file, found {output}, which is an input")
    crop = read_crop(lq)
    pictures = [read_crop(path) for path in references]
    restorer = ReFLDMRestorer.load(
        find_model(model or best_installed_model()), name=model, device=device, dtype=dtype, settings=settings
    )
    pipeline = restorer.pipeline
    if not pictures and pipeline.config.needs_references:
        raise UsageError(f"--ref: expected at least one reference (model {restorer.name} needs them), found none")
    cache = pipeline.encode_references(pictures, [str(path) for path in references]) if pictures else None
    restored = pipeline(
        [crop], cache, settings.steps, settings.guidance_scale, latents=restorer.start_noise([settings.seed])
    ).images[0]
    return write_image(restored, output)


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
