"""Losses on decoded pieces of predictions: L1, perceptual distance and, around the face, identity."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from diffusers import VQModel
from torch import Tensor

from facefix.datasets.degradation import ARCHIVE, targets
from facefix.datasets.faces import TrainingFace, load_pixels
from facefix.device import DTYPES
from facefix.methods.patches.config import DecodedTermSettings
from facefix.methods.patches.draws import Samples
from facefix.methods.patches.records import FULL_PX, Records
from facefix.metrics.identity import DlibFaceNet
from facefix.metrics.perceptual import PerceptualDistance
from facefix.networks.autoencoder import DOWNSAMPLE_FACTOR, decode
from facefix.networks.images import to_network
from facefix.networks.patches import with_detail
from facefix.training.config import Machine
from facefix.training.loop import autocast

_FACE_CENTRE = (0.56, 0.5)
"""row and column of the middle between brows and chin, as fractions of the crop"""


class WindowTerms:
    """Decodes pieces of a few predictions and compares them with the true pictures."""

    def __init__(
        self,
        settings: DecodedTermSettings,
        autoencoder: VQModel,
        faces: Sequence[TrainingFace],
        records: Records,
        machine: Machine,
    ) -> None:
        self.settings, self.autoencoder, self.faces, self.records = settings, autoencoder, faces, records
        self.machine = machine
        self.plain = copy.deepcopy(autoencoder).to(DTYPES[machine.dtype])
        self.perceptual = PerceptualDistance()
        self.identity = DlibFaceNet() if settings.identity and settings.faces else None
        self._pixels: dict[int, Tensor] = {}
        self._embeddings: dict[tuple[int, int, int | None], Tensor] = {}

    def __call__(
        self, guess: Tensor, detail: Tensor, batch: Samples, large: Tensor, random: np.random.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        """Weighted sum of the losses, and each one's value.

        Args:
            guess: (B, 8, h, w) predicted latents, with gradient.
            detail: (B, 1, h, w) how much of the guides' detail is kept, with gradient.
            large: (B,) whether the true picture has 512 px of its own; only such are decoded.
        """
        settings = self.settings
        rows = random.permutation(np.flatnonzero(large.numpy()))[: settings.faces + settings.pieces]
        whole, pieces = rows[: settings.faces].tolist(), rows[settings.faces :].tolist()
        total = guess.new_zeros(())
        values: dict[str, float] = {}
        for kind, chosen, side in (("face", whole, settings.face_window), ("piece", pieces, settings.piece_window)):
            if not chosen:
                continue
            corners = [_corner(guess.shape[-1], side, kind == "face", random) for _ in chosen]
            decoded, truths, wanted = self._pieces(guess, detail, batch, chosen, corners, side)
            with autocast(guess.device, self.machine):
                l1, distance = (decoded - wanted).abs().mean(), self.perceptual(decoded, wanted).mean()
            total = total + len(chosen) / len(rows) * (settings.l1 * l1 + settings.perceptual * distance)
            values |= {f"{kind}_l1": float(l1.detach()), f"{kind}_perceptual": float(distance.detach())}
            if kind == "face" and self.identity is not None:
                term = self._identity_term(decoded, truths, corners[0], batch, chosen)
                total = total + settings.identity * term
                values["identity"] = float(term.detach())
        return total, values

    def _pieces(
        self,
        guess: Tensor,
        detail: Tensor,
        batch: Samples,
        chosen: Sequence[int],
        corners: Sequence[tuple[int, int]],
        side: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Decoded pieces, the whole true pictures, and their pieces: (n, 3, s, s), (n, 3, 512, 512), (n, 3, s, s)."""

        def cut(tensors: Sequence[Tensor], scale: int = 1) -> Tensor:
            places = [(scale * y, scale * x) for y, x in corners]
            length = scale * side
            parts = [t[:, y : y + length, x : x + length] for t, (y, x) in zip(tensors, places, strict=True)]
            return torch.stack(parts)

        truths = torch.stack([self._truth(batch, row) for row in chosen])
        guides = cut([self.records.picture(*batch.guides[row]) for row in chosen], DOWNSAMPLE_FACTOR)
        with torch.no_grad(), torch.autocast(guess.device.type, enabled=False):
            latents = cut([batch.guide[row] for row in chosen]).to(next(self.plain.parameters()).dtype)
            lost = guides - decode(self.plain, latents, quantized=False).float()
        with autocast(guess.device, self.machine):
            found = decode(self.autoencoder, cut([guess[row] for row in chosen]), quantized=False).float()
        decoded = with_detail(found, lost, torch.zeros_like(lost), cut([detail[row] for row in chosen]))
        return decoded, truths, cut(list(truths), DOWNSAMPLE_FACTOR)

    def _identity_term(
        self, decoded: Tensor, truths: Tensor, corner: tuple[int, int], batch: Samples, chosen: Sequence[int]
    ) -> Tensor:
        network = cast(Any, self.identity)
        y, x = (DOWNSAMPLE_FACTOR * place for place in corner)
        side = decoded.shape[-1]
        faces = truths.clone()
        faces[:, :, y : y + side, x : x + side] = decoded
        with autocast(decoded.device, self.machine):
            found = network.embed(faces)
        wanted = []
        for row, truth in zip(chosen, truths, strict=True):
            key = (int(batch.faces[row]), int(batch.mirrored[row]), batch.tones[row])
            if key not in self._embeddings:
                with torch.no_grad():
                    self._embeddings[key] = network.embed(truth[None]).float()
            wanted.append(self._embeddings[key])
        term: Tensor = network.dissimilarity(found.float(), torch.cat(wanted)).mean()
        return term

    def _truth(self, batch: Samples, row: int) -> Tensor:
        """(3, 512, 512) in [-1, 1]."""
        face, tone = int(batch.faces[row]), batch.tones[row]
        if face not in self._pixels:
            self._pixels[face] = load_pixels(self.faces[face].path, FULL_PX)
        pixels = self._pixels[face].flip(2) if batch.mirrored[row] else self._pixels[face]
        if tone is not None:
            return targets(pixels[None].float() / 255, [tone], ARCHIVE)[0] * 2 - 1
        return to_network(pixels)


def _corner(extent: int, side: int, centred: bool, random: np.random.Generator) -> tuple[int, int]:
    """Top and left of a piece: around the face, or anywhere, the face's middle more often than the rim."""
    places = []
    for centre in _FACE_CENTRE:
        middle = round(centre * extent - side / 2)
        start = middle if centred else round(middle + random.normal(0, extent / 6))
        places.append(min(max(start, 0), extent - side))
    return places[0], places[1]
