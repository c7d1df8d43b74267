"""The recipe: one digest that decides whether a photo was done with the same model in the same way.

A restorer that is loaded and a model that is only named have the same recipe, so that an album that is done is known to
be done without loading anything.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from facefix import __version__
from facefix.files.digests import digest, sha256_of
from facefix.methods.base import SamplingSettings

if TYPE_CHECKING:
    import torch

_WEIGHT_FILES = (".json", ".safetensors")


def weights_digest(folder: Path, sha256: Callable[[Path], str] = sha256_of) -> str:
    """Digest over all files of a model, names and contents: any change of weights or configuration changes it.

    :param sha256: gives a file's sha256; one that remembers those of files that have not changed saves reading them.
    :raises OSError: a file cannot be read.
    """
    files = sorted(path for path in folder.rglob("*") if path.suffix in _WEIGHT_FILES)
    return digest([(path.relative_to(folder).as_posix(), sha256(path)) for path in files])


def recipe(weights: str, sampling: SamplingSettings, dtype: torch.dtype, *, without: str = "") -> str:
    """Digest of the version of facefix, the weights, the dtype and the sampling settings.

    :param weights: their :func:`weights_digest`.
    :param without: the part of the method that is left out, in an ablation.
    """
    return digest(
        {
            "version": __version__,
            "weights": weights,
            "dtype": str(dtype).removeprefix("torch."),
            "sampling": asdict(sampling),
            "without": without,
        }
    )
