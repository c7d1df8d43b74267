"""The tiny published model: its weights as checkpoints in the official layouts, its inputs and outputs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

FOLDER = Path(__file__).parent / "data" / "golden"
CONFIG = FOLDER / "small.yaml"


def arrays() -> dict[str, np.ndarray]:
    """Everything in golden.npz by name."""
    with np.load(FOLDER / "golden.npz") as stored:
        return {name: stored[name] for name in stored.files}


def weights(name: str) -> dict[str, torch.Tensor]:
    """A state dict with the official names."""
    with np.load(FOLDER / name) as stored:
        return {key: torch.from_numpy(stored[key]) for key in stored.files}


def write_checkpoints(folder: Path) -> Mapping[str, Path]:
    """The official layouts: ``flat`` and ``lightning`` denoiser checkpoints, and the ``vqgan`` under state_dict."""
    denoiser, vqgan = weights("refldm_small_unet.npz"), weights("vqgan_small.npz")
    for prefix in ("first_stage_model.", "cond_stage_model.lq_image.", "cond_stage_model.ref_image."):
        denoiser.update({prefix + name: tensor for name, tensor in vqgan.items()})
    paths = {name: folder / f"{name}.ckpt" for name in ("flat", "lightning", "vqgan")}
    torch.save(denoiser, paths["flat"])
    torch.save({"state_dict": denoiser, "epoch": 1, "global_step": 10}, paths["lightning"])
    torch.save({"state_dict": {**vqgan, "loss.logvar_like_extra": torch.zeros(3)}, "epoch": 1}, paths["vqgan"])
    return paths


def image(pixels: np.ndarray) -> torch.Tensor:
    """uint8 (H, W, 3) -> (1, 3, H, W) in [-1, 1]."""
    return (torch.from_numpy(pixels).float() / 127.5 - 1).permute(2, 0, 1)[None]


def relative_rms(found: torch.Tensor, expected: torch.Tensor) -> float:
    """rms of the difference over the standard deviation of what is expected."""
    found, expected = found.double(), expected.double()
    return float((found - expected).square().mean().sqrt() / expected.std())
