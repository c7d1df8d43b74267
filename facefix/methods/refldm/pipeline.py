"""ReFLDMPipeline: reference-based face restoration by latent diffusion (ReF-LDM, NeurIPS 2024, arXiv 2412.05043)."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from diffusers import DiffusionPipeline, SchedulerMixin, UNet2DModel, VQModel
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from diffusers.utils.torch_utils import randn_tensor

from facefix.errors import NotFiniteError, UsageError
from facefix.networks import autoencoder as vqgan
from facefix.networks.blocks import contents
from facefix.networks.cachekv import denoise, install_attention, install_cachekv, reference_pass
from facefix.networks.composition import guides_of, limit_change
from facefix.networks.guide import choose_references, complete, is_guided
from facefix.networks.images import Images, resize, tensor_to_pil, to_tensor
from facefix.networks.landmarks import LandmarkNetwork
from facefix.networks.reference_cache import Branch, ReferenceCache
from facefix.networks.schedule import prepare
from facefix.networks.survival import SurvivalNetwork

OutputType = Literal["pil", "pt", "latent"]
StepCallback = Callable[["ReFLDMPipeline", int, torch.Tensor, dict[str, torch.Tensor]], dict[str, torch.Tensor] | None]

MAX_STEPS = 1000
MAX_GUIDANCE_SCALE = 20.0


class ReFLDMPipeline(DiffusionPipeline):  # type: ignore[misc]  # diffusers is not followed
    """Restores LQ face crops so that they look like the person on the reference images.

    ``encode_references()`` once per person, then ``__call__()`` for any number of that person's faces. Calls may be in
    flight at once in several threads; none of them changes the pipeline.

    :param autoencoder: VQGAN.
    :param unet: denoiser; its input channels are twice the latent channels, or three times for one that takes a
        guide (:mod:`facefix.networks.guide`) beside the LQ latents.
    :param scheduler: noise schedule and sampler.
    :param reference_encoding: ``"strip"`` encodes all references side by side as one wide image, as the published
        model was trained; ``"each"`` one by one, so that caches of single images can be composed.
    :param quantize_latents: decode through the codebook (the published model) or from the latents as they are.
    :param residual: the denoiser diffuses the difference between the HQ latent and the LQ latent (the guide's, where
        it takes one) instead of the HQ latent.
    :param keep_detail: what comes out is the LQ crop (the guide) plus the change that the model makes to it, the
        difference of two decoded images, so that detail which the autoencoder cannot carry is not lost. Needs a
        residual model.
    :param latent_scale: standard deviation of what is diffused; it is divided by this so that it has unit variance.
    :param crop_size: px of the square crops that go in and come out; by default what the denoiser works at. Where it
        differs, crops are resized on the way in and out.
    :param needs_references: the model was trained with references only.
    :param start_timestep: where sampling starts by default: at pure noise (None) or at the noised LQ latent.
    :param round_pixels: PIL output is rounded to the nearest level instead of truncated as published.
    :param default_steps: steps of this model where the caller names none.
    :param default_guidance_scale: likewise.
    :param unguided: a denoiser without guide that restores faces without references in place of ``unet``.
    :param unguided_latent_scale: its ``latent_scale``.
    :param landmarks: finds the landmarks of faces and references, so that references are laid onto the face.
    :param survival: estimates what damage has left of a face, so that only what is lost is taken from references and
        (with ``keep_detail``) from the denoiser. Both
        or neither; without them a guide is completed from the reference that fits best, as it lies.
    """

    model_cpu_offload_seq = "landmarks->survival->autoencoder->unet->unguided"
    _optional_components: ClassVar[list[str]] = ["unguided", "landmarks", "survival"]

    autoencoder: VQModel
    unet: UNet2DModel
    scheduler: SchedulerMixin
    unguided: UNet2DModel | None
    landmarks: LandmarkNetwork | None
    survival: SurvivalNetwork | None

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
        landmarks: LandmarkNetwork | None = None,
        survival: SurvivalNetwork | None = None,
    ) -> None:
        super().__init__()
        if reference_encoding not in ("strip", "each"):
            raise UsageError(f"reference_encoding: expected 'strip' or 'each', found {reference_encoding!r}")
        channels = autoencoder.config.vq_embed_dim or autoencoder.config.latent_channels
        if unet.config.in_channels not in (2 * channels, 3 * channels) or unet.config.out_channels != channels:
            raise UsageError(
                f"unet: expected {2 * channels} input channels ({3 * channels} with a guide) and {channels} output "
                f"channels for this autoencoder, found "
                f"{unet.config.in_channels} and {unet.config.out_channels}"
            )
        self.register_modules(
            autoencoder=install_attention(autoencoder), unet=install_cachekv(unet), scheduler=scheduler
        )
        if (landmarks is None) != (survival is None):
            raise UsageError("landmarks, survival: expected both networks or neither, found one")
        self.register_modules(
            unguided=None if unguided is None else install_cachekv(unguided), landmarks=landmarks, survival=survival
        )
        self.register_to_config(
            reference_encoding=reference_encoding,
            quantize_latents=quantize_latents,
            residual=residual,
            keep_detail=keep_detail,
            latent_scale=latent_scale,
            crop_size=crop_size,
            needs_references=needs_references,
            start_timestep=start_timestep,
            round_pixels=round_pixels,
            default_steps=default_steps,
            default_guidance_scale=default_guidance_scale,
            unguided_latent_scale=unguided_latent_scale,
        )
        self._nulls = _NullCaches()

    @property
    def crop_size(self) -> int:
        """Side of the square crops that go in and come out, in px."""
        return int(self.config.crop_size or self.work_size)

    @property
    def work_size(self) -> int:
        """Side of the images that the networks see, in px."""
        return int(self.unet.config.sample_size) * vqgan.DOWNSAMPLE_FACTOR

    @torch.no_grad()
    def encode_references(self, images: Images, sources: Sequence[str] = ()) -> ReferenceCache:
        """Keys and values of a person's reference images; compute once, use for every face of that person.

        :param images: PIL images, or (N, 3, S, S) in [-1, 1] with S = ``crop_size``; other sizes are resized.
        :param sources: where the images came from; kept in the cache.
        :raises UsageError: no image, or not square images.
        :raises NotFiniteError: the result holds NaN or infinity.
        """
        crops = to_tensor(images, self.crop_size, argument="references").to(self.unet.device)
        pixels = resize(crops, self.work_size).clamp(-1, 1)
        latents = self._encode_strip(pixels) if self.config.reference_encoding == "strip" else self._encode(pixels)
        cache = reference_pass(
            self.unet, latents, encoding=self.config.reference_encoding, sources=tuple(str(name) for name in sources)
        )
        if is_guided(self.unet):
            cache = replace(cache, images=crops.clamp(-1, 1).half()[None], landmarks=self._landmarks(crops))
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
        start_timestep: int | None = None,
    ) -> ImagePipelineOutput:
        """Restore a batch of face crops of one person.

        :param lq: PIL images, or (B, 3, S, S) in [-1, 1] with S = ``crop_size``; other sizes are resized.
        :param references: that person's cache, from ``encode_references()`` of this pipeline; None restores without.
        :param num_inference_steps: 1 to 1000; default: the model's own (50 for the published one).
        :param guidance_scale: 1.0 skips the unconditional branch, whose references are null (zeroed); default: the
            model's own (1.5 for the published one).
        :param generator: source of the start noise; a list has one per face.
        :param latents: (B, 8, h, w) standard normal start noise, instead of drawing it.
        :param output_type: ``"pil"``, ``"pt"``: (B, 3, S, S) floats in [-1, 1], clamped, or ``"latent"``: (B, 8, h, w).
        :param callback_on_step_end: called as ``callback(pipeline, step, timestep, {"latents": ...})`` after each step;
            latents in the dictionary that it returns are used from there on.
        :param start_timestep: start from the LQ latent noised to this timestep instead of from pure noise.
        :returns: ``.images``.
        :raises UsageError: an argument out of range or of the wrong shape.
        :raises NotFiniteError: the result holds NaN or infinity.
        """
        # 1. Check inputs
        steps = self.config.default_steps if num_inference_steps is None else num_inference_steps
        scale = self.config.default_guidance_scale if guidance_scale is None else guidance_scale
        start = self.config.start_timestep if start_timestep is None else start_timestep
        _check_arguments(steps, scale, start, output_type)
        crops = to_tensor(lq, self.crop_size, argument="lq")
        pixels = resize(crops, self.work_size).clamp(-1, 1)

        # 2. Encode the LQ faces, and the guides where the denoiser takes them; both are the LQ faces otherwise
        lq_latents = self._encode(pixels)
        base, base_latents = self._guides(crops, lq_latents, references)

        # 3. Timesteps, start latents
        scheduler, timesteps = prepare(self.scheduler, steps, lq_latents.device, start)
        noise = self._start_noise(lq_latents, generator, latents)
        sample = self._start_latents(scheduler, noise, base_latents, None if start is None else timesteps[:1])

        # 4. Denoising loop
        branches, copies = self._branches(references, scale, lq_latents)
        unet, latent_scale = self.unet, self.config.latent_scale
        if references is None and self.unguided is not None:
            unet, latent_scale = self.unguided, self.config.unguided_latent_scale
        conditions = [lq_latents, base_latents] if is_guided(unet) else [lq_latents]
        for step, timestep in enumerate(self.progress_bar(timesteps)):
            scaled = scheduler.scale_model_input(sample, timestep).to(self.unet.dtype)
            faces = torch.cat([scaled, *conditions], dim=1)
            # At t = 999 the step divides by sqrt(6.7e-4): in float64, where there is one, it adds no error of its own.
            prediction = denoise(unet, faces, timestep, branches, copies=copies)
            prediction = prediction.float() if prediction.device.type == "mps" else prediction.double()
            if copies == 2:
                unconditional, conditional = prediction.chunk(2)
                prediction = unconditional + scale * (conditional - unconditional)
            sample = scheduler.step(prediction, timestep, sample, return_dict=False)[0]
            if callback_on_step_end is not None:
                changed = callback_on_step_end(self, step, timestep, {"latents": sample})
                sample = (changed or {}).get("latents", sample)

        # 5. Decode
        result = (sample * latent_scale).float()
        if self.config.residual:
            result = result + base_latents.float()
        _require_finite(result, self.unet.dtype)
        if output_type == "latent":
            return ImagePipelineOutput(images=result)
        images = torch.cat([self.decode(row) for row in result.split(1)])
        if self.config.keep_detail:
            unchanged = torch.cat([self.decode(row) for row in base_latents.split(1)])
            change = images - unchanged
            if self.survival is not None:
                change = limit_change(change, self.survival(crops.to(change.device)))
            images = base.to(images.device) + change
        _require_finite(images, self.autoencoder.dtype)
        images = images.clamp(-1, 1)
        if output_type == "pil":
            return ImagePipelineOutput(images=tensor_to_pil(images, nearest=self.config.round_pixels))
        return ImagePipelineOutput(images=images)

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

    def _start_latents(
        self, scheduler: SchedulerMixin, noise: torch.Tensor, base_latents: torch.Tensor, start: torch.Tensor | None
    ) -> torch.Tensor:
        """Pure noise, or the LQ or guide latent (zero, for a residual model) noised to the (1,) first timestep."""
        if start is None:
            return noise * float(scheduler.init_noise_sigma)
        clean = torch.zeros_like(noise) if self.config.residual else base_latents.float() / self.config.latent_scale
        noised: torch.Tensor = scheduler.add_noise(clean, noise, start.expand(len(noise)))
        return noised

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

    def _landmarks(self, crops: torch.Tensor) -> torch.Tensor | None:
        """(1, N, 68, 3) landmarks of references and their deviations, in px of the 512 crop."""
        if self.landmarks is None:
            return None
        found = self.landmarks(crops)
        return torch.cat([found.points, found.deviation[..., None]], -1)[None]

    def _guides(
        self, crops: torch.Tensor, lq_latents: torch.Tensor, references: ReferenceCache | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, 3, S, S) guides and their latents; the LQ faces without references or for a denoiser without guide."""
        if not is_guided(self.unet) or references is None:
            return crops, lq_latents
        if references.images is None:
            raise UsageError(
                "references: expected a ReferenceCache made by this model, which keeps the references' images, found "
                "one without; call encode_references() of this pipeline"
            )
        crops = crops.to(references.images.device)
        if self.landmarks is None or self.survival is None or references.landmarks is None:
            guides = complete(crops, choose_references(crops, references.images)).clamp(-1, 1)
        else:
            guides = guides_of(crops, references.images, references.landmarks, (self.landmarks, self.survival))
            guides = guides.clamp(-1, 1)
        return guides, self._encode(resize(guides, self.work_size).clamp(-1, 1))

    def null_cache(self, like: torch.Tensor) -> ReferenceCache:
        """Keys and values of one null (all-zero) reference for latents of this shape, dtype and device.

        They depend on the weights only, so they are computed once and kept until the weights change.
        """
        return self._nulls.get(self.unet, like)


class _NullCaches:
    """What was made of the null reference, by shape, dtype and device. A copy of it starts empty."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.weights: tuple[tuple[int, int], ...] = ()
        self.caches: dict[tuple[Any, ...], ReferenceCache] = {}
        self.first_weight: torch.Tensor | None = None

    def __reduce__(self) -> tuple[type[_NullCaches], tuple[()]]:
        return _NullCaches, ()

    def get(self, unet: UNet2DModel, like: torch.Tensor) -> ReferenceCache:
        key = (*like.shape[1:], like.dtype, str(like.device))
        weights = tuple(map(contents, unet.parameters()))
        with self.lock:
            if weights != self.weights:
                self.weights, self.caches = weights, {}
                self.first_weight = next(unet.parameters()).detach()  # its address cannot be reused meanwhile
            if key not in self.caches:
                self.caches[key] = reference_pass(unet, like.new_zeros(1, *like.shape[1:]))
            return self.caches[key]


def _check_arguments(steps: int, scale: float, start_timestep: int | None, output_type: str) -> None:
    if isinstance(steps, bool) or not isinstance(steps, int) or not 1 <= steps <= MAX_STEPS:
        raise UsageError(f"num_inference_steps: expected a whole number from 1 to {MAX_STEPS}, found {steps!r}")
    if not isinstance(scale, int | float) or not math.isfinite(scale) or not 0 <= scale <= MAX_GUIDANCE_SCALE:
        raise UsageError(f"guidance_scale: expected a number from 0 to {MAX_GUIDANCE_SCALE:g}, found {scale!r}")
    if start_timestep is not None and not 0 <= start_timestep < MAX_STEPS:
        raise UsageError(f"start_timestep: expected 0 to {MAX_STEPS - 1}, found {start_timestep!r}")
    if output_type not in ("pil", "pt", "latent"):
        raise UsageError(f"output_type: expected 'pil', 'pt' or 'latent', found {output_type!r}")


def _require_finite(tensor: torch.Tensor, dtype: torch.dtype) -> None:
    if not bool(torch.isfinite(tensor).all()):
        bad = int((~torch.isfinite(tensor)).flatten(1).any(1).sum())
        raise NotFiniteError(
            f"result: expected finite values, found NaN or infinity in {bad} of {len(tensor)} faces in {dtype}; "
            "try fp32"
        )
