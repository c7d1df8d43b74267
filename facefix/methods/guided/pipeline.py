"""GuidedPipeline: ReF-LDM that diffuses what a guide leaves to be changed. docs/guided.md says what it adds and why."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from diffusers import SchedulerMixin, UNet2DModel, VQModel
from PIL import Image

from facefix.errors import UsageError
from facefix.methods.refldm.pipeline import ReFLDMPipeline, Task
from facefix.networks.cachekv import denoise, install_cachekv
from facefix.networks.guide import choose_references, complete, is_guided
from facefix.networks.images import resize, tensor_to_pil, tensor_to_pixels
from facefix.networks.reference_cache import Branch, ReferenceCache


@dataclass(frozen=True, slots=True)
class Parts:
    """What of the method is used; an evaluation leaves one out to measure what it is worth."""

    guide: bool = True
    """else the LQ face is its own guide"""
    attention: bool = True
    """else the denoiser does not read the references' keys and values, and knows them by the guide alone"""
    detail: bool = True
    """else the result is what the autoencoder decodes, as without ``keep_detail``"""


class GuidedPipeline(ReFLDMPipeline):
    """ReF-LDM with a guide, a residual to it, detail kept outside the autoencoder, and a denoiser for no references.

    Each is a setting of its own. Called as :class:`ReFLDMPipeline` is.

    :param autoencoder: VQGAN.
    :param unet: denoiser; its input channels are twice the latent channels, or three times for one that takes a
        guide (:mod:`facefix.networks.guide`) beside the LQ latents.
    :param scheduler: noise schedule and sampler.
    :param reference_encoding: as there; likewise ``quantize_latents``, ``needs_references``, ``default_steps`` and
        ``default_guidance_scale``.
    :param residual: the denoiser diffuses the difference between the HQ latent and the LQ latent (the guide's, where
        it takes one) instead of the HQ latent.
    :param keep_detail: what comes out is the LQ crop (the guide) plus the change that the model makes to it, the
        difference of two decoded images, so that detail which the autoencoder cannot carry is not lost. Needs a
        residual model.
    :param latent_scale: standard deviation of what is diffused; it is divided by this so that it has unit variance.
    :param crop_size: px of the square crops that go in and come out; by default what the denoiser works at. Where it
        differs, crops are resized on the way in and out.
    :param start_timestep: where sampling starts by default: at pure noise (None) or at the noised LQ latent.
    :param round_pixels: pixels are rounded to the nearest level instead of truncated as published.
    :param unguided: a denoiser without guide that restores faces without references in place of ``unet``.
    :param unguided_latent_scale: its ``latent_scale``.
    """

    model_cpu_offload_seq = "autoencoder->unet->unguided"
    _optional_components: ClassVar[list[str]] = ["unguided"]

    unguided: UNet2DModel | None
    parts: Parts = Parts()

    def __init__(  # noqa: PLR0913, PLR0917 (diffusers keeps every argument as one entry of the model's configuration)
        self,
        autoencoder: VQModel,
        unet: UNet2DModel,
        scheduler: SchedulerMixin,
        reference_encoding: str = "strip",
        quantize_latents: bool = True,
        residual: bool = False,
        keep_detail: bool = False,
        latent_scale: float = 1.0,
        crop_size: int | None = None,
        needs_references: bool = False,
        start_timestep: int | None = None,
        round_pixels: bool = False,
        default_steps: int = 50,
        default_guidance_scale: float = 1.5,
        unguided: UNet2DModel | None = None,
        unguided_latent_scale: float = 1.0,
    ) -> None:
        super().__init__(
            autoencoder,
            unet,
            scheduler,
            reference_encoding,
            quantize_latents,
            needs_references,
            default_steps,
            default_guidance_scale,
        )
        self.register_modules(unguided=None if unguided is None else install_cachekv(unguided))
        self.register_to_config(
            residual=residual,
            keep_detail=keep_detail,
            latent_scale=latent_scale,
            crop_size=crop_size,
            start_timestep=start_timestep,
            round_pixels=round_pixels,
            unguided_latent_scale=unguided_latent_scale,
        )

    @staticmethod
    def _check_channels(unet: UNet2DModel, channels: int) -> None:
        if unet.config.in_channels not in (2 * channels, 3 * channels) or unet.config.out_channels != channels:
            raise UsageError(
                f"unet: expected {2 * channels} input channels ({3 * channels} with a guide) and {channels} output "
                f"channels for this autoencoder, found {unet.config.in_channels} and {unet.config.out_channels}"
            )

    @property
    def crop_size(self) -> int:
        """Side of the square crops that go in and come out, in px."""
        return int(self.config.crop_size or self.work_size)

    @property
    def default_start_timestep(self) -> int | None:
        """Where sampling starts where the caller does not say."""
        start: int | None = self.config.start_timestep
        return start

    def _with_images(self, cache: ReferenceCache, crops: torch.Tensor) -> ReferenceCache:
        """The references go along where guides are made of them."""
        return replace(cache, images=crops.clamp(-1, 1).half()[None]) if is_guided(self.unet) else cache

    def _task(self, crops: torch.Tensor, lq: torch.Tensor, references: ReferenceCache | None) -> Task:
        """The LQ faces and their guides; without references the denoiser that takes no guide, where there is one."""
        if references is None or not is_guided(self.unet):
            unet = self.unguided if references is None and self.unguided is not None else self.unet
            return Task(crops, lq, unet, references, crops, lq)
        if references.images is None:
            raise UsageError(
                "references: expected a ReferenceCache made by this model, which keeps the references' images, found "
                "one without; call encode_references() of this pipeline"
            )
        if not self.parts.guide:
            return Task(crops, lq, self.unet, references, crops, lq)
        faces = crops.to(references.images.device)
        guides = complete(faces, choose_references(faces, references.images)).clamp(-1, 1)
        latents = self._encode(resize(guides, self.work_size).clamp(-1, 1))
        return Task(crops, lq, self.unet, references, guides, latents)

    def _branches(
        self, references: ReferenceCache | None, scale: float, lq_latents: torch.Tensor
    ) -> tuple[tuple[Branch, ...], int]:
        return super()._branches(references if self.parts.attention else None, scale, lq_latents)

    def _latent_scale(self, task: Task) -> float:
        return float(self.config.latent_scale if task.unet is self.unet else self.config.unguided_latent_scale)

    def _clean(self, task: Task, noise: torch.Tensor) -> torch.Tensor:
        """Zero for a residual model, else the guide's latents."""
        if self.config.residual:
            return torch.zeros_like(noise)
        return _guide_latents(task).float() / self.config.latent_scale

    def _predict(
        self, task: Task, noisy: torch.Tensor, timestep: torch.Tensor, branches: tuple[Branch, ...], copies: int
    ) -> torch.Tensor:
        """As there, the denoiser seeing the guides too where it takes them."""
        seen = [noisy.to(self.unet.dtype), task.lq, *([_guide_latents(task)] if is_guided(task.unet) else [])]
        return denoise(task.unet, torch.cat(seen, dim=1), timestep, branches, copies=copies)

    def _latents(self, task: Task, sample: torch.Tensor) -> torch.Tensor:
        """The sample at its scale, added to the guides' latents where it is a residual."""
        latents = (sample * self._latent_scale(task)).float()
        return latents + _guide_latents(task).float() if self.config.residual else latents

    def _images(self, task: Task, latents: torch.Tensor) -> torch.Tensor:
        """Decoded; with ``keep_detail`` the guides with the change of the decoded pictures."""
        images = super()._images(task, latents)
        if not (self.config.keep_detail and self.parts.detail):
            return images
        unchanged = super()._images(task, _guide_latents(task))
        assert task.guides is not None
        return task.guides.to(images.device) + images - unchanged

    def to_pil(self, images: torch.Tensor) -> list[Image.Image]:
        """One PIL image per row of (B, 3, S, S) floats in [-1, 1]."""
        return tensor_to_pil(images, nearest=self.config.round_pixels)

    def to_pixels(self, images: torch.Tensor) -> np.ndarray:
        """(B, S, S, 3) uint8 of (B, 3, S, S) floats in [-1, 1]."""
        return tensor_to_pixels(images, nearest=self.config.round_pixels)


def _guide_latents(task: Task) -> torch.Tensor:
    assert task.guide_latents is not None
    return task.guide_latents
