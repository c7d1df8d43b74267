"""How a denoiser in patches does on people that it was never trained on: latent errors, identity, sheets."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers import UNet2DModel, VQModel
from numpy.typing import NDArray
from torch import Tensor

from facefix.datasets.degradation import degrade
from facefix.datasets.faces import TrainingFace
from facefix.methods.patches.config import PatchTraining
from facefix.methods.patches.records import FULL_PX, GuideMaker, picture
from facefix.metrics.identity import DlibFaceNet
from facefix.metrics.perceptual import PerceptualDistance
from facefix.networks.autoencoder import decode, encode
from facefix.networks.cachekv import reference_pass
from facefix.networks.landmarks import LandmarkNetwork
from facefix.networks.patches import Patches, with_detail
from facefix.networks.reference_cache import Branch
from facefix.networks.survival import SurvivalNetwork
from facefix.training.runs import Sheet

_SEED = 7
_LAST = 999
_MOST = 3


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Faces of held-out people, one each, and what is known of them. Latents are (N, 8, h, w)."""

    faces: Tensor
    good: Tensor
    lq: dict[str, Tensor]
    """preset -> latents"""
    guides: dict[str, Tensor]
    """``severe right``, ``severe wrong``, ``severe``: without references, ``moderate right``, ``moderate``"""
    pictures: dict[str, Tensor]
    """the same guides, (N, 3, 512, 512) uint8"""
    right: list[Tensor]
    """(n, 8, h, w) each"""
    wrong: list[Tensor]
    truth: Tensor
    """(N, 3, 512, 512) uint8"""
    low: Tensor
    reference: Tensor

    @classmethod
    def of(
        cls,
        config: PatchTraining,
        faces: Sequence[TrainingFace],
        outside: Sequence[int],
        good: NDArray[np.float16],
        autoencoder: VQModel,
    ) -> HeldOut:
        """Made once for a bank and kept in it."""
        path = config.bank / f"held-out-{config.seed}-{config.held_out}.pt"
        if not path.exists():
            torch.save(_make(config, faces, outside, good, autoencoder), path)
        return cls(**torch.load(path, weights_only=True))


@torch.no_grad()
def _make(
    config: PatchTraining,
    faces: Sequence[TrainingFace],
    outside: Sequence[int],
    good: NDArray[np.float16],
    autoencoder: VQModel,
) -> dict[str, Any]:
    sizes = np.load(config.bank / "sizes.npy")
    mix = config.records
    maker = GuideMaker(
        LandmarkNetwork.from_pretrained(mix.landmarks).eval(), SurvivalNetwork.from_pretrained(mix.survival).eval()
    )
    people: dict[str, int] = {}
    for face in sorted(outside, key=lambda n: -int(sizes[n])):
        people.setdefault(faces[face].identity, face)
    chosen = list(people.values())
    others = [faces[face].references[0] for face in chosen]
    strangers = [*others[1:], others[0]]
    rows: dict[str, list[Tensor]] = {
        name: [] for name in ("severe", "moderate", "right", "wrong", "mild right", "clean", "mild clean")
    }
    drawn: dict[str, list[Tensor]] = defaultdict(list)
    pictures: dict[str, list[Tensor]] = {"truth": [], "low": [], "reference": []}

    encoder = copy.deepcopy(autoencoder).to(torch.bfloat16)

    def latents(image: Tensor) -> Tensor:
        return encode(encoder, (image.clamp(0, 1) * 2 - 1).to(torch.bfloat16))[0].float()

    for face, other, stranger in zip(chosen, others, strangers, strict=True):
        truth = picture(faces[face].path)
        low = {name: degrade(truth, [face], name) for name in ("severe", "moderate")}
        rows["severe"].append(latents(low["severe"]))
        rows["moderate"].append(latents(low["moderate"]))
        for name, preset, n in (
            ("right", "severe", other),
            ("wrong", "severe", stranger),
            ("clean", "severe", None),
            ("mild right", "moderate", other),
            ("mild clean", "moderate", None),
        ):
            guide = maker(low[preset], None if n is None else picture(faces[n].path))
            rows[name].append(latents(guide))
            drawn[name].append((guide[0] * 255).round().byte())
        for name, image in (("truth", truth), ("low", low["severe"]), ("reference", picture(faces[other].path))):
            pictures[name].append((image[0] * 255).round().byte())
    stacked = {name: torch.stack(parts) for name, parts in rows.items()}

    def references(face: int) -> Tensor:
        names = faces[face].references[:_MOST]
        return torch.from_numpy(np.stack([good[n, 0] for n in names]).astype(np.float32))

    right = [references(face) for face in chosen]
    return {
        "faces": torch.tensor(chosen),
        "good": torch.from_numpy(good[chosen, 0].astype(np.float32)),
        "lq": {"severe": stacked["severe"], "moderate": stacked["moderate"]},
        "guides": {name: stacked[part] for name, part in _GUIDES.items()},
        "pictures": {name: torch.stack(drawn[part]) for name, part in _GUIDES.items()},
        "right": right,
        "wrong": [*right[1:], right[0]],
        **{name: torch.stack(parts) for name, parts in pictures.items()},
    }


_GUIDES = {
    "severe right": "right",
    "severe wrong": "wrong",
    "severe": "clean",
    "moderate right": "mild right",
    "moderate": "mild clean",
}

CONDITIONS = {
    # name: preset, guide (made without references where None), references
    "none": ("severe", None, None),
    "kv": ("severe", None, "right"),
    "kv_wrong": ("severe", None, "wrong"),
    "guide": ("severe", "severe right", None),
    "both": ("severe", "severe right", "right"),
    "both_wrong": ("severe", "severe wrong", "wrong"),
    "mod_none": ("moderate", None, None),
    "mod_both": ("moderate", "moderate right", "right"),
}
LOOKED_AT = ("none", "kv", "kv_wrong", "both", "both_wrong", "mod_both")


class Watcher:
    """Measures and draws."""

    def __init__(self, held_out: HeldOut, patches: Patches, autoencoder: VQModel, dtype: torch.dtype) -> None:
        self.held_out, self.patches, self.dtype = held_out, patches, dtype
        self.autoencoder = copy.deepcopy(autoencoder).to(dtype)

    def latents(self, unet: UNet2DModel, condition: str, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        """What one step from noise makes of faces under a condition, and how much of the guides' detail it keeps."""
        preset, guide, references = CONDITIONS[condition]
        data = self.held_out
        results, details = [], []
        generator = torch.Generator().manual_seed(_SEED)
        noise = torch.randn(data.good.shape, generator=generator)
        for row in rows:
            lq = data.lq[preset][row : row + 1]
            laid = data.guides[guide or preset][row : row + 1]
            branches: tuple[Branch, ...] = ()
            if references is not None:
                latents = getattr(data, references)[row]
                branches = (Branch(slice(None), reference_pass(unet, self.patches.cut(latents).to(self.dtype))),)
            found = self.patches.predict(unet, noise[row : row + 1], lq, laid, _LAST, branches)
            results.append(lq + self.patches.latent_scale * found.residual)
            details.append(found.detail)
        return torch.cat(results), torch.cat(details)

    def _ready(self, unet: UNet2DModel) -> UNet2DModel:
        ready: UNet2DModel = copy.deepcopy(unet).to(self.dtype).eval()
        return ready

    @torch.no_grad()
    def measures(self, unet: UNet2DModel, decoded: int) -> dict[str, float]:
        """Mean absolute latent error of every condition; distances of ``decoded`` faces under those looked at."""
        data, unet = self.held_out, self._ready(unet)
        everyone = range(len(data.good))
        values = {"lq": float((data.lq["severe"] - data.good).abs().mean())}
        identity, perceptual = DlibFaceNet(), PerceptualDistance()
        truth = data.truth[:decoded].float() / 127.5 - 1
        wanted = torch.cat([identity.embed(part) for part in truth.split(1)])
        for condition in CONDITIONS:
            found, details = self.latents(unet, condition, everyone)
            values[condition] = float((found - data.good).abs().mean())
            if condition not in LOOKED_AT:
                continue
            distances, features, errors = [], [], []
            for row, part in enumerate(found[:decoded].split(1)):
                image = self._picture(part, details[row : row + 1], condition, row)
                distances.append((identity.embed(image).float() - wanted[row : row + 1]).norm())
                features.append(perceptual(image, truth[row : row + 1]))
                errors.append(10 * torch.log10(4 / (image - truth[row : row + 1]).square().mean()))
            values[f"{condition}_dlib"] = float(torch.stack(distances).mean())
            values[f"{condition}_perceptual"] = float(torch.cat(features).mean())
            values[f"{condition}_psnr"] = float(torch.stack(errors).mean())
        return values

    def _picture(self, latents: Tensor, detail: Tensor, condition: str, row: int) -> Tensor:
        preset, guide, _ = CONDITIONS[condition]
        name = guide or preset
        picture = self.held_out.pictures[name][row : row + 1].float() / 127.5 - 1
        decoded, unchanged = (
            decode(self.autoencoder, part.to(self.dtype), quantized=False).float()
            for part in (latents, self.held_out.guides[name][row : row + 1])
        )
        return with_detail(decoded, picture, unchanged, detail).clamp(-1, 1)

    @torch.no_grad()
    def sheet(self, unet: UNet2DModel, count: int) -> Sheet:
        """Rows of LQ, none, CacheKV right, CacheKV wrong, both, both wrong, moderate both, reference, truth."""
        data, unet = self.held_out, self._ready(unet)
        rows = []
        for row in range(0, len(data.good), max(1, len(data.good) // count))[:count]:
            pictures = [self._picture(*self.latents(unet, name, [row]), name, row)[0] for name in LOOKED_AT]
            low, reference, truth = (part[row].float() / 127.5 - 1 for part in (data.low, data.reference, data.truth))
            rows.append([_half(part) for part in (low, *pictures, reference, truth)])
        return rows


def _half(image: Tensor) -> Tensor:
    return torch.nn.functional.avg_pool2d(image[None], FULL_PX // 256)[0]
