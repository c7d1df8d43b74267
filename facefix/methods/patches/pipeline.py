"""PatchPipeline: restoration at 512 px in few steps, from the LQ face, a guide, and references through CacheKV."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from diffusers import SchedulerMixin, UNet2DModel, VQModel
from PIL import Image

from facefix.errors import UsageError
from facefix.methods.refldm.pipeline import ReFLDMPipeline, Task
from facefix.networks.cachekv import install_cachekv, reference_pass
from facefix.networks.composition import LaidReferences, compose_guide, lay_references
from facefix.networks.images import tensor_to_pil, tensor_to_pixels
from facefix.networks.landmarks import LandmarkNetwork
from facefix.networks.patches import Patches, with_detail
from facefix.networks.reference_cache import Branch, ReferenceCache
from facefix.networks.rope import RotaryCode
from facefix.networks.survival import SurvivalNetwork
from facefix.networks.tone import tone_of


@dataclass(frozen=True, slots=True)
class Parts:
    """What of the method is used; an evaluation leaves one out to measure what it is worth."""

    guide: bool = True
    """else the guide is made without references"""
    cachekv: bool = True
    """else the denoiser does not read the references' keys and values, and knows them by the guide alone"""
    warp: bool = True
    """else the guide is made from references as they lie"""


class PatchPipeline(ReFLDMPipeline):
    """Restores 512 px LQ face crops with a denoiser that sees patches of latents (:mod:`facefix.networks.patches`).

    The denoiser diffuses the difference between the HQ and the LQ latents and predicts it directly. It is given the LQ
    latents, the latents of a guide (:mod:`facefix.networks.composition`), and all references through CacheKV, whose
    queries and keys carry a position code. Without references the guide is the LQ face, cleaned. Its finest detail,
    which latents cannot carry, is kept as far as the denoiser says. A photo of a single tone (grey, sepia) keeps it.
    Called as :class:`ReFLDMPipeline` is.

    Args:
        autoencoder: VQGAN.
        unet: denoiser of :func:`facefix.networks.patches.patch_unet_config`.
        scheduler: noise schedule and sampler; its ``prediction_type`` is ``sample``.
        landmarks: finds the landmarks of faces and references, so that references are laid onto the face.
        survival: estimates what damage has left of a face, so that only what is lost is taken from references.
        patch_size: side of the squares of latents that become one place.
        latent_scale: standard deviation of what is diffused; it is divided by this.
        rotary: lowest and highest frequency of the position code in radians over the side; None: no code.
        reference_encoding: as there; likewise ``quantize_latents``, ``needs_references``, ``default_steps`` and
            ``default_guidance_scale``.
    """

    parts: Parts = Parts()

    def __init__(  # noqa: PLR0913, PLR0917 (diffusers keeps every argument as one entry of the model's configuration)
        self,
        autoencoder: VQModel,
        unet: UNet2DModel,
        scheduler: SchedulerMixin,
        landmarks: LandmarkNetwork,
        survival: SurvivalNetwork,
        patch_size: int = 2,
        latent_scale: float = 1.0,
        rotary: list[float] | None = None,
        reference_encoding: str = "each",
        quantize_latents: bool = False,
        needs_references: bool = False,
        default_steps: int = 1,
        default_guidance_scale: float = 1.0,
    ) -> None:
        self._patch_size = patch_size
        super().__init__(
            autoencoder,
            unet,
            scheduler,
            reference_encoding,
            quantize_latents,
            needs_references,
            default_steps=default_steps,
            default_guidance_scale=default_guidance_scale,
        )
        self.register_modules(landmarks=landmarks, survival=survival)
        self.register_to_config(patch_size=patch_size, latent_scale=latent_scale, rotary=rotary)
        install_cachekv(unet, None if rotary is None else RotaryCode(*rotary))

    def _check_channels(self, unet: UNet2DModel, channels: int) -> None:
        channels, places = channels * self._patch_size**2, self._patch_size**2
        if (unet.config.in_channels, unet.config.out_channels) != (3 * channels, 2 * channels + places):
            raise UsageError(
                f"unet: expected {3 * channels} input and {2 * channels + places} output channels for patches of "
                f"{self._patch_size}, found {unet.config.in_channels} and {unet.config.out_channels}"
            )

    @property
    def work_size(self) -> int:
        """Side of the images that the networks see, in px."""
        return super().work_size * int(self.config.patch_size)

    @property
    def patches(self) -> Patches:
        """How latents are cut up."""
        return Patches(int(self.config.patch_size), float(self.config.latent_scale))

    def _reference_pass(self, latents: torch.Tensor, sources: tuple[str, ...]) -> ReferenceCache:
        return reference_pass(self.unet, self.patches.cut(latents), encoding="each", sources=sources)

    def _with_images(self, cache: ReferenceCache, crops: torch.Tensor) -> ReferenceCache:
        """The references and their landmarks go along: guides are made of them."""
        found = self.landmarks(crops.to(self.landmarks.dtype))
        landmarks = torch.cat([found.points, found.deviation[..., None]], -1)[None]
        return replace(cache, images=crops.clamp(-1, 1).half()[None], landmarks=landmarks)

    def _task(self, crops: torch.Tensor, lq: torch.Tensor, references: ReferenceCache | None) -> Task:
        """The LQ faces and their guides, made with references or without."""
        if references is not None and (references.images is None or references.landmarks is None):
            raise UsageError(
                "references: expected a ReferenceCache made by this model, which keeps the references' images, found "
                "one without; call encode_references() of this pipeline"
            )
        # Face by face: the warped references of a whole batch would take much memory.
        lent = references if self.parts.guide else None
        guides = torch.cat([self._guide(face, lent, row) for row, face in enumerate(crops.to(lq.device).split(1))])
        return Task(crops, lq, self.unet, references, guides, self._encode(guides))

    def _guide(self, face: torch.Tensor, references: ReferenceCache | None, row: int) -> torch.Tensor:
        """(1, 3, S, S) what has survived of one face, and what it lost from the references laid onto it."""
        face = face.to(self.landmarks.dtype)
        laid = None if references is None else self._laid(face, references, row)
        guide: torch.Tensor = compose_guide(face, self.survival(face), laid).float().clamp(-1, 1)
        return guide

    def _laid(self, face: torch.Tensor, references: ReferenceCache, row: int) -> LaidReferences:
        assert references.images is not None and references.landmarks is not None
        row = 0 if len(references.images) == 1 else row
        images, landmarks = references.images[row : row + 1], references.landmarks[row : row + 1]
        if self.parts.warp:
            return lay_references(face, images.to(face.dtype), landmarks, self.landmarks)
        return LaidReferences(images.to(face.dtype), torch.ones_like(images[:, :, :1, :2, :2], dtype=face.dtype))

    def _branches(
        self, references: ReferenceCache | None, scale: float, lq_latents: torch.Tensor
    ) -> tuple[tuple[Branch, ...], int]:
        return super()._branches(references if self.parts.cachekv else None, scale, self.patches.cut(lq_latents))

    def _clean(self, task: Task, noise: torch.Tensor) -> torch.Tensor:
        """Zero: the residual of the LQ faces."""
        return torch.zeros_like(noise)

    def _predict(
        self, task: Task, noisy: torch.Tensor, timestep: torch.Tensor, branches: tuple[Branch, ...], copies: int
    ) -> torch.Tensor:
        """The clean residual."""
        assert task.guide_latents is not None
        found = self.patches.predict(task.unet, noisy, task.lq, task.guide_latents, timestep, branches, copies=copies)
        task.said["detail"] = found.detail[-len(task.lq) :]  # the conditional branch's
        residual: torch.Tensor = found.residual
        return residual

    def _latents(self, task: Task, sample: torch.Tensor) -> torch.Tensor:
        """The LQ faces' latents and the residual at its scale."""
        latents: torch.Tensor = task.lq.float() + (sample * self.config.latent_scale).float()
        return latents

    def _images(self, task: Task, latents: torch.Tensor) -> torch.Tensor:
        """Decoded, with the guides' finest detail, in the photo's own tone."""
        assert task.guides is not None and task.guide_latents is not None
        decoded, unchanged = (super(PatchPipeline, self)._images(task, x) for x in (latents, task.guide_latents))
        images = with_detail(decoded, task.guides.to(decoded.device), unchanged, task.said["detail"])
        toned: torch.Tensor = tone_of(task.crops.to(images.device))(images)
        return toned

    def to_pil(self, images: torch.Tensor) -> list[Image.Image]:
        """One PIL image per row of (B, 3, S, S) floats in [-1, 1]."""
        return tensor_to_pil(images, nearest=True)

    def to_pixels(self, images: torch.Tensor) -> np.ndarray:
        """(B, S, S, 3) uint8 of (B, 3, S, S) floats in [-1, 1]."""
        return tensor_to_pixels(images, nearest=True)
