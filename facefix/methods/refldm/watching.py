"""How a denoiser in training does on people that it is not trained on: latent errors, and a sheet of pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from diffusers import UNet2DModel
from torch import Tensor, nn

from facefix.datasets.degradation import degrade
from facefix.datasets.faces import TrainingFace, load_pixels
from facefix.methods.refldm.objective import DenoisingObjective
from facefix.methods.refldm.pipeline import ReFLDMPipeline
from facefix.networks.cachekv import denoise, reference_pass
from facefix.networks.images import resize, to_network
from facefix.networks.reference_cache import Branch
from facefix.training.draws import Draws
from facefix.training.runs import Sheet

_SEED = 7
_ROWS_AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Faces of people held out from training."""

    indices: Sequence[int]
    draws: Draws
    objective: DenoisingObjective

    def errors(self, network: nn.Module) -> Mapping[str, float]:
        """Squared error of the latents after one step from pure noise.

        With the right references, with another person's, with none; ``lq`` is the error of the degraded latents. A
        guided denoiser has the right guide even where CacheKV holds another person's references.
        """
        if not self.indices:
            return {}
        generator = torch.Generator().manual_seed(_SEED)
        bank, indices = self.draws.bank, list(self.indices)
        faces = torch.tensor(indices)
        sides = faces % 2 if self.draws.aligned else None
        right = self.draws.references(faces, generator, sides)
        wrong = self.draws.references(torch.tensor([self.stranger(face) for face in indices]), generator, sides)
        good = bank.good[indices, :][torch.arange(len(faces)), faces % 2].float()  # version 0
        lq = bank.degraded[indices, 0].float()
        noise = torch.randn(good.shape, generator=generator).to(good.device)
        guides = lq if bank.guides is None else bank.guides[indices, 0].float()
        errors = {"lq": float((lq - good).square().mean())}
        if self.objective.guided:
            errors["guide"] = float((guides - good).square().mean())
        for name, references in (("right", right), ("wrong", wrong), ("none", right[:0])):
            guess = self._guess(network, (noise, lq, lq if name == "none" else guides), references)
            errors[name] = float((guess - good).square().mean())
        return errors

    def _guess(self, network: nn.Module, seen: tuple[Tensor, Tensor, Tensor], references: Tensor) -> Tensor:
        """Clean latents of all held-out faces, from noise, LQ latents and what a residual is relative to."""
        unet = cast(UNet2DModel, network)
        noise, lq, base = seen
        last = len(self.objective.noise.alphas_cumprod) - 1
        guesses = []
        for rows in torch.arange(len(noise)).split(_ROWS_AT_ONCE):
            timesteps = torch.full((len(rows),), last, device=noise.device)
            mine = references[rows] if len(references) else references
            branches = (Branch(slice(None), reference_pass(unet, mine)),) if len(mine) else ()
            image = self.objective.seen(noise[rows], lq[rows], base[rows])
            predicted = denoise(unet, image, timesteps, branches).float()
            guesses.append(self.objective.guess(predicted, noise[rows], base[rows], timesteps))
        return torch.cat(guesses)

    def stranger(self, face: int) -> int:
        """The next held-out face of another person."""
        faces = self.draws.faces
        others = [other for other in self.indices if faces[other].identity != faces[face].identity]
        return next((other for other in others if other > face), others[0])


@dataclass(frozen=True, slots=True)
class SheetMaker:
    """Rows of a sheet: severe LQ, result, result with a stranger's reference, result without, reference, truth."""

    faces: Sequence[TrainingFace]
    size: int
    """px"""
    pipeline: ReFLDMPipeline

    def row(self, face: int, stranger: int) -> list[Tensor]:
        """Six (3, S, S) pictures of one face in [-1, 1]."""
        truth = self._picture(face)
        own = self._picture((self.faces[face].references or (face,))[0])
        low = degrade((truth + 1) / 2, [face], "severe", scale=truth.shape[-1] / 512) * 2 - 1
        results = []
        crops = resize(low, self.pipeline.crop_size).clamp(-1, 1)
        for reference in (own, self._picture(stranger), None):
            cache = None
            if reference is not None:
                cache = self.pipeline.encode_references(resize(reference, self.pipeline.crop_size).clamp(-1, 1))
            generator = torch.Generator(truth.device).manual_seed(_SEED)
            images = self.pipeline(crops, cache, generator=generator, output_type="pt").images
            results.append(resize(images, self.size)[0].clamp(-1, 1))
        return [low[0], *results, own[0], truth[0]]

    def _picture(self, face: int) -> Tensor:
        pixels = to_network(load_pixels(self.faces[face].path, self.size))[None].to(self.pipeline.unet.device)
        return resize(pixels, self.size).clamp(-1, 1)


def sheet(held_out: HeldOut, inside: Sequence[int], size: int, rows: int, pipeline: ReFLDMPipeline) -> Sheet:
    """A sheet of so many held-out faces (of trained ones where none is held out), ``size`` px wide each."""
    pipeline.set_progress_bar_config(disable=True)
    pipeline.register_to_config(crop_size=size)
    pool = held_out.indices or inside
    chosen = pool[:: max(1, len(pool) // rows)][:rows]
    maker = SheetMaker(held_out.draws.faces, size, pipeline)
    return [maker.row(face, held_out.stranger(face) if held_out.indices else face) for face in chosen]
