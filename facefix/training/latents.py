"""Latents of a frozen autoencoder, computed once: good faces, degraded faces, augmented references.

A bank is a folder of shards, each written at once, so that a killed computation goes on where it was.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from diffusers import VQModel
from safetensors.torch import load_file, save_file
from torch import Tensor

from facefix.diffusion.autoencoder import encode
from facefix.diffusion.images import resize
from facefix.errors import UsageError
from facefix.training.config import Bank, Machine
from facefix.training.dataset import TrainingFace, load_native
from facefix.training.degradation import degrade
from facefix.training.loop import autocast
from facefix.training.references import ALIGNED, PUBLISHED, SAME_PICTURE, augment

_SHARD_FACES = 32
_FULL_PX = 512


@dataclass(frozen=True, slots=True)
class LatentBank:
    """Latents of N faces, fp16, (.., 8, h, w) with h = w = size / 8."""

    good: Tensor
    """(N, 2, 8, h, w): as they are, and mirrored"""
    degraded: Tensor
    """(N, V, 8, h, w): version v of face i is mirrored where i + v is odd"""
    references: Tensor
    """(N, R, 8, h, w): of an aligned bank, version r of face i is mirrored where i + r is odd"""

    def to(self, device: torch.device) -> LatentBank:
        """The same bank on another device."""
        return LatentBank(self.good.to(device), self.degraded.to(device), self.references.to(device))

    def residual_scale(self) -> float:
        """Standard deviation of good minus degraded latents."""
        total, count = 0.0, 0
        for version in range(self.degraded.shape[1]):
            mirrored = (torch.arange(len(self.good), device=self.good.device) + version) % 2
            chosen = self.good[torch.arange(len(self.good), device=self.good.device), mirrored]
            difference = chosen.float() - self.degraded[:, version].float()
            total += float(difference.square().sum())
            count += difference.numel()
        return math.sqrt(total / count)


class BankBuilder:
    """Computes the shards that are missing and reads them all."""

    def __init__(
        self, settings: Bank, faces: Sequence[TrainingFace], size: int, autoencoder: VQModel, machine: Machine
    ) -> None:
        self.settings, self.faces, self.size = settings, faces, size
        self.autoencoder, self.machine = autoencoder, machine
        self.device = next(autoencoder.parameters()).device

    def bank(self) -> LatentBank:
        """The whole bank. Raises UsageError when the folder holds a bank of other faces or another autoencoder."""
        self._check()
        shards = [self._shard(number) for number in range(-(-len(self.faces) // _SHARD_FACES))]
        return LatentBank(
            *(torch.cat([shard[part] for shard in shards]) for part in ("good", "degraded", "references"))
        )

    def _check(self) -> None:
        """Compare, or write, what the bank was made of."""
        digest = hashlib.sha256()
        for name, weight in self.autoencoder.state_dict().items():
            digest.update(name.encode())
            digest.update(weight.detach().cpu().float().numpy().tobytes())
        facts = {
            "autoencoder": digest.hexdigest(),
            "size": self.size,
            "presets": self.settings.presets,
            "references": self.settings.references,
            **({"aligned": True} if self.settings.aligned else {}),
            "faces": [face.path.name for face in self.faces],
        }
        path = self.settings.path / "bank.json"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(facts) + "\n", encoding="utf-8")
        recorded = json.loads(path.read_text(encoding="utf-8"))
        if differing := [key for key, value in facts.items() if recorded.get(key) != value]:
            raise UsageError(f"{path.parent}: expected a bank with the same {differing}; name another bank.path")

    def _shard(self, number: int) -> dict[str, Tensor]:
        path = self.settings.path / f"{number:05d}.safetensors"
        if not path.exists():
            first = number * _SHARD_FACES
            rows = [self._face(index) for index in range(first, min(first + _SHARD_FACES, len(self.faces)))]
            shard = {part: torch.stack([row[part] for row in rows]) for part in rows[0]}
            temporary = path.with_name(f".{path.name}.{os.getpid()}")
            save_file(shard, temporary)
            os.replace(temporary, path)
        return load_file(path)

    @torch.no_grad()
    def _face(self, index: int) -> dict[str, Tensor]:
        native = load_native(self.faces[index].path).to(self.device)[None].float() / 255  # (1, 3, H, W)
        # Degrade at 512 where there are 512 px: this is what the network will meet. Else the same damage, scaled.
        native = resize(native, min(_FULL_PX, max(native.shape[-1], self.size))).clamp(0, 1)
        pictures = resize(native, self.size).clamp(0, 1)
        good = torch.cat([pictures, pictures.flip(3)])
        degraded = torch.cat(list(self._degraded(native, index)))
        seeds = [index * 1000 + number for number in range(self.settings.references)]
        strength = PUBLISHED if self.faces[index].references else SAME_PICTURE
        references = augment(
            pictures.expand(len(seeds), -1, -1, -1), seeds, ALIGNED if self.settings.aligned else strength
        )
        if self.settings.aligned:
            mirrored = torch.tensor([(index + number) % 2 == 1 for number in range(len(seeds))], device=self.device)
            references = torch.where(mirrored.view(-1, 1, 1, 1), references.flip(3), references)
        parts = {"good": good, "degraded": degraded, "references": references}
        latents = self._encode(torch.cat(list(parts.values())) * 2 - 1)
        lengths = [len(part) for part in parts.values()]
        return {name: part.contiguous() for name, part in zip(parts, latents.split(lengths), strict=True)}

    def _degraded(self, native: Tensor, index: int) -> Iterator[Tensor]:
        version = 0
        for preset, count in self.settings.presets.items():
            for _ in range(count):
                picture = native.flip(3) if (index + version) % 2 else native
                seed = index * 1000 + version
                low = degrade(picture, [seed], preset, scale=native.shape[-1] / _FULL_PX)
                yield resize(low, self.size).clamp(0, 1)
                version += 1

    def _encode(self, images: Tensor) -> Tensor:
        """(n, 3, S, S) -> (n, 8, h, w) fp16 on the CPU."""
        if self.machine.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        with autocast(self.device, self.machine):
            latents = torch.cat([encode(self.autoencoder, part) for part in images.split(8)])
        return latents.half().cpu()
