"""The metrics: each compares a restored face with its truth and gives one number per face."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from facefix.methods.base import Pixels
from facefix.metrics.identity import ArcFace, DlibFaceNet, IdentityNetwork
from facefix.metrics.perceptual import PerceptualDistance
from facefix.metrics.pixels import psnr, ssim

Scores = dict[str, NDArray[np.float64]]
"""Metric name -> (N,) one number per face."""

_LPIPS_BACKBONE = "vgg16-397923af.pth"


@dataclass(frozen=True, slots=True)
class Metric:
    """What a number means."""

    name: str
    better: Literal["higher", "lower"]
    digits: int
    """after the point, where it is printed"""


class MetricSet:
    """Every metric whose weights are installed, on one device."""

    def __init__(
        self, identity: Sequence[IdentityNetwork], perceptual: PerceptualDistance, lpips: Any, device: torch.device
    ) -> None:
        """``lpips``: a module that gives the LPIPS of two batches in [-1, 1], or None."""
        self.identity = tuple(identity)
        self.perceptual = perceptual
        self.lpips = lpips
        self.device = device

    @classmethod
    def load(cls, device: torch.device, arcface: Path | None = None) -> MetricSet:
        """Load what is installed; ``arcface``: an insightface ONNX file to use besides dlib.

        Raises WeightsUnavailable without the weights of EfficientNet-Lite0 or of dlib's recogniser.
        """
        identity: list[Any] = [DlibFaceNet().to(device)]
        if arcface is not None:
            identity.append(ArcFace(arcface).to(device))
        return cls(identity, PerceptualDistance().to(device), _load_lpips(device), device)

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """What ``score`` gives, in the order of a table."""
        listed = [Metric("PSNR dB", "higher", 2), Metric("SSIM", "higher", 3)]
        for network in self.identity:
            listed.append(Metric(f"{network.name} distance", "lower", 3))
            listed.append(Metric(f"{network.name} cosine", "higher", 4))
        listed.append(Metric(self.perceptual.name, "lower", 3))
        if self.lpips is not None:
            listed.append(Metric("LPIPS (VGG)", "lower", 3))
        return tuple(listed)

    @torch.inference_mode()
    def score(self, results: Sequence[Pixels], truth: Pixels) -> Scores:
        """Every metric of each of ``results`` against ``truth``, all (512, 512, 3)."""
        target = self._to_tensor([truth])
        embeddings = [network.embed(target * 2 - 1).float() for network in self.identity]
        features = self.perceptual.features(target * 2 - 1)
        rows = []
        for result in results:
            found = self._to_tensor([result])
            row = {"PSNR dB": psnr(found, target), "SSIM": ssim(found, target)}
            for network, theirs in zip(self.identity, embeddings, strict=True):
                ours = network.embed(found * 2 - 1).float()
                row[f"{network.name} distance"] = (ours - theirs).norm(dim=1)
                row[f"{network.name} cosine"] = F.cosine_similarity(ours, theirs, dim=1)
            row[self.perceptual.name] = self.perceptual(found * 2 - 1, features)
            if self.lpips is not None:
                row["LPIPS (VGG)"] = self.lpips(found * 2 - 1, target * 2 - 1).flatten()
            rows.append({name: float(value) for name, value in row.items()})
        return {name: np.array([row[name] for row in rows]) for name in rows[0]}

    def _to_tensor(self, crops: Sequence[Pixels]) -> Tensor:
        """(B, 3, 512, 512) in [0, 1]."""
        stacked = torch.from_numpy(np.stack(crops)).to(self.device)
        return stacked.movedim(-1, 1).float() / 255


def installed_arcface() -> Path | None:
    """insightface's recognition network of the weights ``buffalo_l``, where they and onnx2torch are installed."""
    from facefix.weights.catalogue import weights_dir

    path = weights_dir() / "buffalo_l" / "w600k_r50.onnx"
    return path if path.is_file() and find_spec("onnx2torch") is not None else None


def _load_lpips(device: torch.device) -> Any:
    """LPIPS (Zhang et al. 2018, VGG) where the package and its backbone lie on this machine; nothing is downloaded."""
    backbone = Path(torch.hub.get_dir()) / "checkpoints" / _LPIPS_BACKBONE
    if find_spec("lpips") is None or not backbone.is_file():
        return None
    return import_module("lpips").LPIPS(net="vgg", verbose=False).to(device).eval().requires_grad_(False)
