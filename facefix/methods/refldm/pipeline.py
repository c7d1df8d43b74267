"""ReFLDMPipeline: reference-based face restoration by latent diffusion (ReF-LDM, NeurIPS 2024, arXiv 2412.05043)."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from diffusers import DiffusionPipeline, SchedulerMixin, UNet2DModel, VQModel
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image

from facefix.errors import NotFiniteError, UsageError
from facefix.methods.refldm.nulls import NullCaches
from facefix.methods.registry import MODEL_INDEX, method_of
from facefix.networks import autoencoder as vqgan
from facefix.networks.cachekv import denoise, install_attention, install_cachekv, reference_pass
from facefix.networks.images import Images, resize, tensor_to_pil, tensor_to_pixels, to_tensor
from facefix.networks.reference_cache import Branch, ReferenceCache
from facefix.networks.schedule import prepare

OutputType = Literal["pil", "pt", "latent"]
StepCallback = Callable[["ReFLDMPipeline", int, torch.Tensor, dict[str, torch.Tensor]], dict[str, torch.Tensor] | None]

MAX_STEPS = 1000
MAX_GUIDANCE_SCALE = 20.0


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """What one call restores, and what it works with."""

    crops: torch.Tensor
    """(B, 3, S, S) LQ faces in [-1, 1], S = the pipeline's ``crop_size``"""
    lq: torch.Tensor
    """(B, 8, h, w) their latents"""
    unet: UNet2DModel
    """the denoiser that does it"""
    references: ReferenceCache | None = None
    guides: torch.Tensor | None = None
    """(B, 3, S, S) pictures that a method starts from in place of the LQ faces, where it has any"""
    guide_latents: torch.Tensor | None = None
    """(B, 8, h, w)"""
    said: dict[str, torch.Tensor] = field(default_factory=dict)
    """what a denoiser's last prediction says beside the latents"""


class ReFLDMPipeline(DiffusionPipeline):  # type: ignore[misc]  # diffusers is not followed
    """Restores LQ face crops so that they look like the person on the reference images.

    ``encode_references()`` once per person, then ``__call__()`` for any number of that person's faces. Calls may be in
    flight at once in several threads; none of them changes the pipeline.

    Args:
        autoencoder: VQGAN.
        unet: denoiser; its input channels are twice the latent channels: noisy and LQ latents.
        scheduler: noise schedule and sampler.
        reference_encoding: ``"strip"`` encodes all references side by side as one wide image, as the published model
            was trained; ``"each"`` one by one, so that caches of single images can be composed.
        quantize_latents: decode through the codebook (the published model) or from the latents as they are.
        needs_references: the model was trained with references only.
        default_steps: steps of this model where the caller names none.
        default_guidance_scale: likewise.
    """

    model_cpu_offload_seq = "autoencoder->unet"
    _start_timestep: int | None = None

    autoencoder: VQModel
    unet: UNet2DModel
    scheduler: SchedulerMixin

    def __init__(
        self,
        autoencoder: VQModel,
        unet: UNet2DModel,
        scheduler: SchedulerMixin,
        reference_encoding: str = "strip",
        quantize_latents: bool = True,
        needs_references: bool = False,
        default_steps: int = 50,
        default_guidance_scale: float = 1.5,
    ) -> None:
        super().__init__()
        self._set_up(autoencoder, unet, scheduler, reference_encoding)
        self.register_to_config(
            reference_encoding=reference_encoding,
            quantize_latents=quantize_latents,
            needs_references=needs_references,
            default_steps=default_steps,
            default_guidance_scale=default_guidance_scale,
        )

    def _set_up(
        self, autoencoder: VQModel, unet: UNet2DModel, scheduler: SchedulerMixin, reference_encoding: str
    ) -> None:
        """Check that the parts fit and register them."""
        if reference_encoding not in ("strip", "each"):
            raise UsageError(f"reference_encoding: expected 'strip' or 'each', found {reference_encoding!r}")
        self._check_channels(unet, autoencoder.config.vq_embed_dim or autoencoder.config.latent_channels)
        self.register_modules(
            autoencoder=install_attention(autoencoder), unet=install_cachekv(unet), scheduler=scheduler
        )
        self.own_scheduler = scheduler
        self._nulls = NullCaches()

    def _check_channels(self, unet: UNet2DModel, channels: int) -> None:
        if (unet.config.in_channels, unet.config.out_channels) != (2 * channels, channels):
            raise UsageError(
                f"unet: expected {2 * channels} input channels and {channels} output channels for this autoencoder, "
                f"found {unet.config.in_channels} and {unet.config.out_channels}"
            )

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **options: Any) -> Any:
        """The pipeline in a folder; of a subclass, where the folder is one that a method built on this one made."""
        folder = Path(pretrained_model_name_or_path)
        named = method_of(folder).pipeline if cls is ReFLDMPipeline and (folder / MODEL_INDEX).is_file() else None
        kind = cls if named is None else named.load()
        if kind is not cls and issubclass(kind, cls):
            return kind.from_pretrained(pretrained_model_name_or_path, **options)
        return super().from_pretrained(pretrained_model_name_or_path, **options)

    @property
    def crop_size(self) -> int:
        """Side of the square crops that go in and come out, in px."""
        return self.work_size

    @property
    def work_size(self) -> int:
        """Side of the images that the networks see, in px."""
        return int(self.unet.config.sample_size) * vqgan.DOWNSAMPLE_FACTOR

    @torch.no_grad()
    def encode_references(self, images: Images, sources: Sequence[str] = ()) -> ReferenceCache:
        """Keys and values of a person's reference images; compute once, use for every face of that person.

        Args:
            images: PIL images, or (N, 3, S, S) in [-1, 1] with S = ``crop_size``; other sizes are resized.
            sources: where the images came from; kept in the cache.

        Raises:
            UsageError: no image, or not square images.
            NotFiniteError: the result holds NaN or infinity.
        """
        crops = to_tensor(images, self.crop_size, argument="references").to(self.unet.device)
        pixels = resize(crops, self.work_size).clamp(-1, 1)
        latents = self._encode_strip(pixels) if self.config.reference_encoding == "strip" else self._encode(pixels)
        cache = self._reference_pass(latents, tuple(str(name) for name in sources))
        cache = self._with_images(cache, crops)
        if not all(bool(torch.isfinite(v).all() & torch.isfinite(k).all()) for k, v in cache.layers.values()):
            raise NotFiniteError(
                f"references: expected finite keys and values, found NaN or infinity in {self.unet.dtype}; try fp32"
            )
        return cache

    @torch.no_grad()
    def __call__(
        self,
        lq: Images,
        references: ReferenceCache | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        output_type: OutputType = "pil",
        callback_on_step_end: StepCallback | None = None,
    ) -> ImagePipelineOutput:
        """Restore a batch of face crops of one person.

        Args:
            lq: PIL images, or (B, 3, S, S) in [-1, 1] with S = ``crop_size``; other sizes are resized.
            references: that person's cache, from ``encode_references()`` of this pipeline; None restores without.
            num_inference_steps: 1 to 1000; default: the model's own (50 for the published one).
            guidance_scale: 1.0 skips the unconditional branch, whose references are null (zeroed); default: the model's
                own (1.5 for the published one).
            generator: source of the start noise; a list has one per face.
            latents: (B, 8, h, w) standard normal start noise, instead of drawing it.
            output_type: ``"pil"``, ``"pt"``: (B, 3, S, S) floats in [-1, 1], clamped, or ``"latent"``: (B, 8, h, w).
            callback_on_step_end: called as ``callback(pipeline, step, timestep, {"latents": ...})`` after each step;
                latents in the dictionary that it returns are used from there on.

        Returns:
            ``.images``.

        Raises:
            UsageError: an argument out of range or of the wrong shape.
            NotFiniteError: the result holds NaN or infinity.
        """
        # 1. Check inputs
        steps = self.config.default_steps if num_inference_steps is None else num_inference_steps
        scale = self.config.default_guidance_scale if guidance_scale is None else guidance_scale
        start = self.start_timestep
        _check_arguments(steps, scale, output_type)
        crops = to_tensor(lq, self.crop_size, argument="lq")

        # 2. Encode the LQ faces
        task = self._task(crops, self._encode(resize(crops, self.work_size).clamp(-1, 1)), references)

        # 3. Timesteps, start latents
        scheduler, timesteps = prepare(self.scheduler, steps, task.lq.device, start)
        noise = self._start_noise(task.lq, generator, latents)
        if start is None:
            sample = noise * float(scheduler.init_noise_sigma)
        else:
            sample = scheduler.add_noise(self._clean(task, noise), noise, timesteps[:1].expand(len(noise)))

        # 4. Denoising loop
        branches, copies = self._branches(references, scale, task.lq)
        for step, timestep in enumerate(self.progress_bar(timesteps)):
            # At t = 999 the step divides by sqrt(6.7e-4): in float64, where there is one, it adds no error of its own.
            prediction = self._predict(task, scheduler.scale_model_input(sample, timestep), timestep, branches, copies)
            prediction = prediction.float() if prediction.device.type == "mps" else prediction.double()
            if copies == 2:
                unconditional, conditional = prediction.chunk(2)
                prediction = unconditional + scale * (conditional - unconditional)
            sample = scheduler.step(prediction, timestep, sample, return_dict=False)[0]
            if callback_on_step_end is not None:
                changed = callback_on_step_end(self, step, timestep, {"latents": sample})
                sample = (changed or {}).get("latents", sample)

        # 5. Decode
        result = self._latents(task, sample)
        _require_finite(result, self.unet.dtype)
        if output_type == "latent":
            return ImagePipelineOutput(images=result)
        images = self._images(task, result)
        _require_finite(images, self.autoencoder.dtype)
        images = images.clamp(-1, 1)
        return ImagePipelineOutput(images=self.to_pil(images) if output_type == "pil" else images)

    def starting_at(self, timestep: int | None) -> Self:
        """The same pipeline, its networks shared, that starts from the LQ latent noised to ``timestep``.

        None: as this one does, which for the published model is from pure noise.

        Raises:
            UsageError: the timestep is out of range.
        """
        if timestep is None:
            return self
        if not 0 <= timestep < MAX_STEPS:
            raise UsageError(f"start_timestep: expected 0 to {MAX_STEPS - 1}, found {timestep!r}")
        other = copy.copy(self)
        other._start_timestep = timestep
        return other

    # What a method built on this one does otherwise

    @property
    def start_timestep(self) -> int | None:
        """Where sampling starts: at pure noise (None), or at the LQ latent noised to this timestep."""
        return self._start_timestep

    def _reference_pass(self, latents: torch.Tensor, sources: tuple[str, ...]) -> ReferenceCache:
        """Keys and values of (N, 8, h, w) references."""
        return reference_pass(self.unet, latents, encoding=self.config.reference_encoding, sources=sources)

    def _with_images(self, cache: ReferenceCache, crops: torch.Tensor) -> ReferenceCache:
        """The cache, with the (N, 3, S, S) references in it where the method looks at them again."""
        return cache

    def _task(self, crops: torch.Tensor, lq: torch.Tensor, references: ReferenceCache | None) -> Task:
        """What is to be done with (B, 3, S, S) LQ faces and their (B, 8, h, w) latents."""
        return Task(crops, lq, self.unet, references)

    def _clean(self, task: Task, noise: torch.Tensor) -> torch.Tensor:
        """(B, 8, h, w) what is noised to start from the LQ faces; ``noise`` has its shape and dtype."""
        return task.lq.float()

    def _predict(
        self, task: Task, noisy: torch.Tensor, timestep: torch.Tensor, branches: tuple[Branch, ...], copies: int
    ) -> torch.Tensor:
        """The scheduler's kind of prediction for (B, 8, h, w) noisy latents, (copies B, 8, h, w)."""
        return denoise(
            task.unet, torch.cat([noisy.to(self.unet.dtype), task.lq], dim=1), timestep, branches, copies=copies
        )

    def _latents(self, task: Task, sample: torch.Tensor) -> torch.Tensor:
        """(B, 8, h, w) latents of the restored faces that a denoised sample stands for."""
        return sample.float()

    def _images(self, task: Task, latents: torch.Tensor) -> torch.Tensor:
        """(B, 3, S, S) restored faces, not clamped."""
        return torch.cat([self.decode(row) for row in latents.split(1)])

    def to_pil(self, images: torch.Tensor) -> list[Image.Image]:
        """One PIL image per row of (B, 3, S, S) floats in [-1, 1], truncated to levels as published."""
        return tensor_to_pil(images)

    def to_pixels(self, images: torch.Tensor) -> np.ndarray:
        """(B, S, S, 3) uint8 of (B, 3, S, S) floats in [-1, 1], truncated as published."""
        return tensor_to_pixels(images)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """(B, 3, S, S) images of (B, 8, h, w) latents, about in [-1, 1], not clamped, S = ``crop_size``."""
        latents = latents.to(self.autoencoder.device, self.autoencoder.dtype)
        images = vqgan.decode(self.autoencoder, latents, quantized=self.config.quantize_latents)
        return resize(images.float(), self.crop_size)

    def _encode(self, pixels: torch.Tensor) -> torch.Tensor:
        # Planar on the CPU: torch's channels-last GroupNorm is ten times less exact there in fp32.
        layout = torch.channels_last if self.autoencoder.device.type == "cuda" else torch.contiguous_format
        pixels = pixels.to(self.autoencoder.device, self.autoencoder.dtype).contiguous(memory_format=layout)
        # One image at a time: the activations of the full-resolution levels are what takes memory.
        return torch.cat([vqgan.encode(self.autoencoder, row) for row in pixels.split(1)]).to(self.unet.dtype)

    def _encode_strip(self, pixels: torch.Tensor) -> torch.Tensor:
        """(N, 3, S, S) -> (N, 8, s, s), encoded side by side as one (1, 3, S, N S) image."""
        strip = torch.cat(pixels.unbind(0), dim=2)[None]
        latents = self._encode(strip)  # (1, 8, s, N s)
        return torch.cat(latents.chunk(len(pixels), dim=3))

    def _start_noise(
        self,
        lq_latents: torch.Tensor,
        generator: torch.Generator | list[torch.Generator] | None,
        latents: torch.Tensor | None,
    ) -> torch.Tensor:
        if latents is None:
            if isinstance(generator, list) and len(generator) != len(lq_latents):
                raise UsageError(f"generator: expected one or {len(lq_latents)} (one per face), found {len(generator)}")
            drawn: torch.Tensor = randn_tensor(lq_latents.shape, generator, lq_latents.device, torch.float32)
            return drawn
        if latents.shape != lq_latents.shape:
            raise UsageError(f"latents: expected shape {tuple(lq_latents.shape)}, found {tuple(latents.shape)}")
        return latents.to(lq_latents.device, torch.float32)

    def _branches(
        self, references: ReferenceCache | None, scale: float, lq_latents: torch.Tensor
    ) -> tuple[tuple[Branch, ...], int]:
        """Who reads which references in a batch of [unconditional | conditional] faces, and how many copies it has.

        The unconditional branch sees as many null references as there are references. They are identical, so one that
        counts n times is the same. Without references both branches are one.
        """
        if references is None:
            return (), 1
        batch = len(lq_latents)
        rows = next(iter(references.layers.values()))[0].shape[0]
        if rows not in (1, batch):
            raise UsageError(f"references: expected a cache of 1 or {batch} rows for this batch, found {rows}")
        if scale == 1.0:
            return (Branch(slice(None), references),), 1
        null = self.null_cache(lq_latents)
        return (
            Branch(slice(0, batch), null, copies=references.num_references),
            Branch(slice(batch, 2 * batch), references),
        ), 2

    def null_cache(self, like: torch.Tensor) -> ReferenceCache:
        """Keys and values of one null (all-zero) reference for latents of this shape, dtype and device.

        They depend on the weights only, so they are computed once and kept until the weights change.
        """
        return self._nulls.get(self.unet, like)


def _check_arguments(steps: int, scale: float, output_type: str) -> None:
    if isinstance(steps, bool) or not isinstance(steps, int) or not 1 <= steps <= MAX_STEPS:
        raise UsageError(f"num_inference_steps: expected a whole number from 1 to {MAX_STEPS}, found {steps!r}")
    if not isinstance(scale, int | float) or not math.isfinite(scale) or not 0 <= scale <= MAX_GUIDANCE_SCALE:
        raise UsageError(f"guidance_scale: expected a number from 0 to {MAX_GUIDANCE_SCALE:g}, found {scale!r}")
    if output_type not in ("pil", "pt", "latent"):
        raise UsageError(f"output_type: expected 'pil', 'pt' or 'latent', found {output_type!r}")


def _require_finite(tensor: torch.Tensor, dtype: torch.dtype) -> None:
    if not bool(torch.isfinite(tensor).all()):
        bad = int((~torch.isfinite(tensor)).flatten(1).any(1).sum())
        raise NotFiniteError(
            f"result: expected finite values, found NaN or infinity in {bad} of {len(tensor)} faces in {dtype}; "
            "try fp32"
        )
