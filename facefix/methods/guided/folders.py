"""Which model folders are this method's. Costs no torch to import."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

PUBLISHED: Mapping[str, Any] = MappingProxyType(
    {
        "residual": False,
        "keep_detail": False,
        "latent_scale": 1.0,
        "crop_size": None,
        "start_timestep": None,
        "round_pixels": False,
        "unguided": [None, None],
        "unguided_latent_scale": 1.0,
    }
)
"""what a model_index.json says of this method's settings where the model is the published one's kind"""


def is_guided_folder(folder: Path, index: Mapping[str, Any]) -> bool:
    """Whether a folder needs this method although its index names the published one's pipeline.

    Folders written before the two were told apart, ``models/small`` among them, are all called ``ReFLDMPipeline`` and
    all name every setting. One that sets any of this method's to something other than ``PUBLISHED``, or whose denoiser
    has input channels for a guide, is this method's.
    """
    if index.get("_class_name") != "ReFLDMPipeline":
        return False
    if any(index.get(name, published) != published for name, published in PUBLISHED.items()):
        return True
    try:
        unet = json.loads((folder / "unet" / "config.json").read_text(encoding="utf-8"))
        return bool(unet["in_channels"] == 3 * unet["out_channels"])
    except (OSError, ValueError, KeyError, TypeError):
        return False  # a damaged folder: told when it is loaded
