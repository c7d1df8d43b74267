"""Losses on the picture that a prediction decodes to: pixels, perceptual distance, identity (arXiv 2412.05043)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from diffusers import VQModel
from torch import Tensor

from facefix.datasets.faces import TrainingFace, load_pixels
from facefix.metrics.identity import identity_network
from facefix.metrics.perceptual import PerceptualDistance
from facefix.networks.autoencoder import DOWNSAMPLE_FACTOR, decode
from facefix.networks.images import to_network
from facefix.training.config import DecodedLosses
from facefix.training.losses import identity_weight

_FACE_CENTRE = (0.56, 0.5)
"""row and column of the middle between brows and chin in FFHQ's framing, as fractions of the crop"""


class DecodedTerms:
    """Decodes a few predictions and compares them with the truth."""

    def __init__(
        self, settings: DecodedLosses, autoencoder: VQModel, faces: Sequence[TrainingFace], size: int, *, quantize: bool
    ) -> None:
        self.settings, self.autoencoder, self.faces, self.size = settings, autoencoder, faces, size
        self.quantize = quantize
        device = next(autoencoder.parameters()).device
        self.perceptual = PerceptualDistance().to(device) if settings.perceptual else None
        wants_identity = settings.identity and settings.identity_weighting != "none"
        self.identity = cast(Any, identity_network(settings.identity_network)).to(device) if wants_identity else None
        self._pixels: dict[int, Tensor] = {}
        self._embeddings: dict[tuple[int, int], Tensor] = {}

    def __call__(
        self, guess: Tensor, good: Tensor, faces: Tensor, mirrored: Tensor, alphas_cumprod: Tensor
    ) -> tuple[Tensor, dict[str, float]]:
        """Weighted sum of the losses, and each one's value.

        :param guess: (n, 8, h, w) predicted latents, with gradient.
        :param good: (n, 8, h, w) latents of the truth.
        :param faces: (n,) indices of faces; ``mirrored`` (n,) 0 or 1.
        :param alphas_cumprod: (n,) noise levels of the samples.
        """
        truth = self._truth(good, faces, mirrored)
        rows, columns = self._window(guess)
        decoded = decode(self.autoencoder, guess[:, :, rows, columns], quantized=self.quantize).float()
        pixels = tuple(slice(part.start * DOWNSAMPLE_FACTOR, part.stop * DOWNSAMPLE_FACTOR) for part in (rows, columns))
        wanted = truth[:, :, pixels[0], pixels[1]]
        total, values = guess.new_zeros(()), {}
        if self.settings.l1:
            error = (decoded - wanted).abs().mean()
            total, values["decoded_l1"] = total + self.settings.l1 * error, float(error.detach())
        if self.perceptual is not None:
            distance = self.perceptual(decoded, wanted).mean()
            total, values["perceptual"] = total + self.settings.perceptual * distance, float(distance.detach())
        if self.identity is not None:
            face = truth.clone()
            face[:, :, pixels[0], pixels[1]] = decoded
            distances = self.identity.dissimilarity(self.identity.embed(face), self._identities(truth, faces, mirrored))
            weights = identity_weight(alphas_cumprod, self.settings.identity_weighting)
            total = total + self.settings.identity * (weights * distances).mean()
            values["identity"] = float(distances.detach().mean())
        return total, values

    def _window(self, latents: Tensor) -> tuple[slice, slice]:
        """Rows and columns of the latents that are decoded: all, or a square about the face's centre."""
        extents = latents.shape[2:]
        side = min(self.settings.window or extents[0], *extents)
        starts = (
            min(max(round(centre * extent - side / 2), 0), extent - side)
            for centre, extent in zip(_FACE_CENTRE, extents, strict=True)
        )
        rows, columns = (slice(start, start + side) for start in starts)
        return rows, columns

    @torch.no_grad()
    def _truth(self, good: Tensor, faces: Tensor, mirrored: Tensor) -> Tensor:
        """(n, 3, S, S): what the autoencoder makes of the truth, or the truth itself."""
        if self.settings.truth == "reconstruction":
            return decode(self.autoencoder, good, quantized=self.quantize).float()
        pictures = []
        for face, flip in zip(faces.tolist(), mirrored.tolist(), strict=True):
            if face not in self._pixels:
                self._pixels[face] = load_pixels(self.faces[face].path, self.size)
            picture = self._pixels[face]
            pictures.append(picture.flip(2) if flip else picture)
        return to_network(torch.stack(pictures).to(good.device))

    @torch.no_grad()
    def _identities(self, truth: Tensor, faces: Tensor, mirrored: Tensor) -> Tensor:
        """(n, D) embeddings of the truth, each computed once."""
        keys = list(zip(faces.tolist(), mirrored.tolist(), strict=True))
        for key, picture in zip(keys, truth, strict=True):
            if key not in self._embeddings:
                self._embeddings[key] = cast(Any, self.identity).embed(picture[None]).float()
        return torch.cat([self._embeddings[key] for key in keys])
