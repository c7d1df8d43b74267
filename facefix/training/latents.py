"""Latents of a frozen autoencoder, computed once: good faces, degraded faces, augmented references.

A bank is a folder of shards, each written at once, so that a killed computation goes on where it was.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from diffusers import VQModel
from safetensors.torch import load_file, save_file
from torch import Tensor

from facefix.datasets.augment import ALIGNED, PUBLISHED, SAME_PICTURE, augment
from facefix.datasets.degradation import degrade
from facefix.datasets.faces import TrainingFace, load_native
from facefix.errors import UsageError
from facefix.files.atomic import replacing
from facefix.networks.autoencoder import encode
from facefix.networks.guide import complete
from facefix.networks.images import resize
from facefix.training.config import Bank, Machine
from facefix.training.loop import autocast

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
    """(N, R, 8, h, w): of a guided bank, version r of face i is mirrored where i + r is odd"""
    guides: Tensor | None = None
    """(N, V, 8, h, w) of a guided bank: each degraded version completed with a reference's detail"""

    def to(self, device: torch.device) -> LatentBank:
        """The same bank on another device."""
        guides = None if self.guides is None else self.guides.to(device)
        return LatentBank(self.good.to(device), self.degraded.to(device), self.references.to(device), guides)

    def residual_scale(self) -> float:
        """Standard deviation of good minus degraded latents, or minus guides where there are any."""
        total, count = 0.0, 0
        base = self.degraded if self.guides is None else self.guides
        for version in range(base.shape[1]):
            mirrored = (torch.arange(len(self.good), device=self.good.device) + version) % 2
            chosen = self.good[torch.arange(len(self.good), device=self.good.device), mirrored]
            difference = chosen.float() - base[:, version].float()
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
        return LatentBank(**{part: torch.cat([shard[part] for shard in shards]) for part in shards[0]})

    def _check(self) -> None:
        """Compare, or write, what the bank was made of."""
        digest = hashlib.sha256()
        encoder = {
            name: weight
            for name, weight in self.autoencoder.state_dict().items()
            if name.startswith(("encoder.", "quant_conv."))  # the decoder may still be trained
        }
        for name, weight in encoder.items():
            digest.update(name.encode())
            digest.update(weight.detach().cpu().float().numpy().tobytes())
        facts = {
            "autoencoder": digest.hexdigest(),
            "size": self.size,
            "presets": self.settings.presets,
            "references": self.settings.references,
            **({"guided": True} if self.settings.guided else {}),
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
            with replacing(path, durable=False) as temporary:
                save_file(shard, temporary)
        return load_file(path)

    @torch.no_grad()
    def _face(self, index: int) -> dict[str, Tensor]:
        native = load_native(self.faces[index].path).to(self.device)[None].float() / 255  # (1, 3, H, W)
        # Degrade at 512 where there are 512 px: this is what the network will meet. Else the same damage, scaled.
        native = resize(native, min(_FULL_PX, max(native.shape[-1], self.size))).clamp(0, 1)
        pictures = resize(native, self.size).clamp(0, 1)
        good = torch.cat([pictures, pictures.flip(3)])
        low = list(self._degraded(native, index))
        degraded = torch.cat([resize(picture, self.size).clamp(0, 1) for picture in low])
        seeds = [index * 1000 + number for number in range(self.settings.references)]
        strength = PUBLISHED if self.faces[index].references else SAME_PICTURE
        references = augment(
            pictures.expand(len(seeds), -1, -1, -1), seeds, ALIGNED if self.settings.guided else strength
        )
        if self.settings.guided:
            mirrored = torch.tensor([(index + number) % 2 == 1 for number in range(len(seeds))], device=self.device)
            references = torch.where(mirrored.view(-1, 1, 1, 1), references.flip(3), references)
        parts = {"good": good, "degraded": degraded, "references": references}
        if self.settings.guided:
            parts["guides"] = torch.cat(list(self._guides(native, low, index)))
        latents = self._encode(torch.cat(list(parts.values())) * 2 - 1)
        lengths = [len(part) for part in parts.values()]
        return {name: part.contiguous() for name, part in zip(parts, latents.split(lengths), strict=True)}

    def _degraded(self, native: Tensor, index: int) -> Iterator[Tensor]:
        version = 0
        for preset, count in self.settings.presets.items():
            for _ in range(count):
                picture = native.flip(3) if (index + version) % 2 else native
                seed = index * 1000 + version
                yield degrade(picture, [seed], preset, scale=native.shape[-1] / _FULL_PX)
                version += 1

    def _guides(self, native: Tensor, low: Sequence[Tensor], index: int) -> Iterator[Tensor]:
        """Each degraded picture completed with another of the person, or as it is where there is no other."""
        others = self.faces[index].references
        for version, picture in enumerate(low):
            guide = picture
            if others:
                other = load_native(self.faces[others[version % len(others)]].path).to(self.device)[None].float() / 255
                reference = resize(other, native.shape[-1]).clamp(0, 1)
                reference = reference.flip(3) if (index + version) % 2 else reference
                guide = (complete(picture * 2 - 1, reference * 2 - 1) + 1) / 2
            yield resize(guide, self.size).clamp(0, 1)

    def _encode(self, images: Tensor) -> Tensor:
        """(n, 3, S, S) -> (n, 8, h, w) fp16 on the CPU."""
        if self.machine.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        with autocast(self.device, self.machine):
            latents = torch.cat([encode(self.autoencoder, part) for part in images.split(8)])
        return latents.half().cpu()
