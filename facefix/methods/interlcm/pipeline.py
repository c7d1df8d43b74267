"""InterLCMPipeline: blind face restoration in one to three steps of a consistency model (arXiv 2502.02215)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    DiffusionPipeline,
    LCMScheduler,
    ModelMixin,
    UNet2DConditionModel,
    VQModel,
)
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from facefix.errors import NotFiniteError, UsageError
from facefix.methods.interlcm.spatial import predict, spatial_residuals
from facefix.methods.interlcm.visual import VisualEncoder
from facefix.networks import autoencoder as vqgan
from facefix.networks.colour_fix import fix_colours, keep_grey
from facefix.networks.images import Images, tensor_to_pil, tensor_to_pixels, to_tensor

OutputType = Literal["pil", "pt", "latent"]
StepCallback = Callable[["InterLCMPipeline", int, Tensor, dict[str, Tensor]], dict[str, Tensor] | None]

MAX_STEPS = 49
"""the schedule has 50 timesteps to choose from, of which the LQ face stands for the first"""


@dataclass(frozen=True, slots=True)
class Ablation:
    """What is taken from the method, to measure what it is worth."""

    from_noise: bool = False
    """start from pure noise, with as many steps, instead of from the LQ latent"""
    spatial_scale: float = 1.0
    """what the Spatial Encoder's residuals are multiplied by; 0 switches it off"""
    tokens: Tensor | None = None
    """(B, N, D) visual tokens instead of the LQ faces' own"""


NOTHING_LEFT_OUT = Ablation()


class InterLCMPipeline(DiffusionPipeline):  # type: ignore[misc]  # diffusers is not followed
    """Restores LQ face crops. Takes no references. Calls may be in flight at once in several threads.

    The LQ latent stands for what the consistency model gives after its first step; it is noised to the second
    timestep, and the remaining steps are done. The Spatial Encoder reads the LQ picture at each of them, visual tokens
    of the LQ picture take the place of a text's.

    :param vae: ``AutoencoderKL``, whose latents are posterior means, or ``VQModel``.
    :param unet: latent consistency model.
    :param controlnet: Spatial Encoder.
    :param visual_encoder: makes the U-Net's tokens of the image encoder's.
    :param image_encoder: ``ClipVisionTower`` or ``LiteTokens``: (B, 3, H, W) in [-1, 1] to tokens.
    :param scheduler: noise schedule and grid of timesteps.
    :param steps: numbers of steps that the Visual and the Spatial Encoder were trained for; the first is the default.
        Published weights are for 3 steps or for 1, not for both.
    :param guidance_scale: guidance scale that is embedded where the U-Net takes one.
    :param latent_scale: what latents are multiplied by, so that they have unit variance; by default the VAE's
        ``scaling_factor``.
    :param colour_fix: ``"wavelet"``, ``"adain"`` or ``"none"``.
    :param grey: grey LQ faces give grey faces.
    :raises UsageError: the networks do not fit together, or an argument is out of range.
    """

    model_cpu_offload_seq = "image_encoder->visual_encoder->unet->vae"

    vae: AutoencoderKL | VQModel
    unet: UNet2DConditionModel
    controlnet: ControlNetModel
    visual_encoder: VisualEncoder
    image_encoder: ModelMixin
    scheduler: LCMScheduler

    def __init__(  # noqa: PLR0913, PLR0917 (diffusers keeps every argument as one entry of the model's configuration)
        self,
        vae: AutoencoderKL | VQModel,
        unet: UNet2DConditionModel,
        controlnet: ControlNetModel,
        visual_encoder: VisualEncoder,
        image_encoder: ModelMixin,
        scheduler: LCMScheduler,
        steps: Sequence[int] = (3,),
        guidance_scale: float = 8.0,
        latent_scale: float | None = None,
        colour_fix: str = "wavelet",
        grey: bool = True,
    ) -> None:
        super().__init__()
        _check_steps(steps)
        if colour_fix not in ("wavelet", "adain", "none"):
            raise UsageError(f"colour_fix: expected 'wavelet', 'adain' or 'none', found {colour_fix!r}")
        _check_fit(unet, controlnet, visual_encoder, image_encoder)
        self.register_modules(
            vae=vae,
            unet=unet,
            controlnet=controlnet,
            visual_encoder=visual_encoder,
            image_encoder=image_encoder,
            scheduler=scheduler,
        )
        self.register_to_config(
            steps=list(steps),
            guidance_scale=guidance_scale,
            latent_scale=latent_scale,
            colour_fix=colour_fix,
            grey=grey,
        )

    @property
    def crop_size(self) -> int:
        """Side of the square crops that go in and come out, in px."""
        factor: int = 2 ** (len(self.vae.config.block_out_channels) - 1)
        return int(self.unet.config.sample_size) * factor

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Shape of the latents of a face: channels, height, width."""
        side = int(self.unet.config.sample_size)
        return int(self.unet.config.in_channels), side, side

    @torch.no_grad()
    def __call__(
        self,
        lq: Images,
        num_inference_steps: int | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        output_type: OutputType = "pil",
        callback_on_step_end: StepCallback | None = None,
        ablation: Ablation = NOTHING_LEFT_OUT,
    ) -> ImagePipelineOutput:
        """Restore a batch of face crops.

        :param lq: PIL images, or (B, 3, S, S) in [-1, 1] with S = ``crop_size``; other sizes are resized.
        :param num_inference_steps: one of the numbers that the model was trained for (``config.steps``).
        :param generator: source of the noise; a list has one per face, so that a face is the same in any batch.
        :param latents: (B, C, h, w) standard normal noise for the start, instead of drawing it.
        :param output_type: ``"pil"``, ``"pt"``: (B, 3, S, S) floats in [-1, 1], clamped, or ``"latent"``: (B, C, h, w),
            scaled to unit variance.
        :param callback_on_step_end: called as ``callback(pipeline, step, timestep, {"latents": ..., "denoised": ...})``
            after each step; latents in the dictionary that it returns are used from there on.
        :param ablation: what is to be left out of the method.
        :returns: ``.images``.
        :raises UsageError: an argument out of range or of the wrong shape.
        :raises NotFiniteError: the result holds NaN or infinity.
        """
        # 1. Check inputs
        steps = self.check_steps(num_inference_steps)
        if output_type not in ("pil", "pt", "latent"):
            raise UsageError(f"output_type: expected 'pil', 'pt' or 'latent', found {output_type!r}")
        pixels = to_tensor(lq, self.crop_size, argument="lq").clamp(-1, 1).to(self.unet.device)

        # 2. Encode the LQ faces
        tokens = self.encode_tokens(pixels) if ablation.tokens is None else ablation.tokens.to(self.unet.device)
        lq_latents = self.encode(pixels)

        # 3. Timesteps, start latents
        scheduler, timesteps = self.timesteps(steps, from_noise=ablation.from_noise)
        noise = self._start_noise(lq_latents, generator, latents)
        sample = noise if ablation.from_noise else scheduler.add_noise(lq_latents, noise, timesteps[:1])

        # 4. The steps
        for step, timestep in enumerate(self.progress_bar(timesteps)):
            residuals = spatial_residuals(
                self.controlnet, sample, timestep, tokens, pixels, scale=ablation.spatial_scale
            )
            predicted = predict(self.unet, sample, timestep, tokens, residuals, self.config.guidance_scale)
            sample, denoised = scheduler.step(predicted, timestep, sample, generator=generator, return_dict=False)
            if callback_on_step_end is not None:
                changed = callback_on_step_end(self, step, timestep, {"latents": sample, "denoised": denoised})
                sample = (changed or {}).get("latents", sample)

        # 5. Decode, give it the LQ faces' colours
        _require_finite(sample, self.unet.dtype)
        if output_type == "latent":
            return ImagePipelineOutput(images=sample)
        decoded = self.decode(sample)
        _require_finite(decoded, self.vae.dtype)
        images = fix_colours(decoded, pixels.to(decoded.device), self.config.colour_fix).clamp(-1, 1)
        if self.config.grey:
            images = keep_grey(images, tensor_to_pixels(pixels, nearest=True))
        if output_type == "pil":
            return ImagePipelineOutput(images=tensor_to_pil(images, nearest=True))
        return ImagePipelineOutput(images=images)

    def check_steps(self, steps: int | None) -> int:
        """The number of steps to do: the one asked for, or the default.

        :raises UsageError: the model was not trained for it.
        """
        trained = [int(number) for number in self.config.steps]
        if steps is None:
            return trained[0]
        if isinstance(steps, bool) or steps not in trained:
            raise UsageError(
                f"num_inference_steps: expected {' or '.join(map(str, trained))}, which this model was trained for, "
                f"found {steps!r}"
            )
        return int(steps)

    def timesteps(self, steps: int, *, from_noise: bool = False) -> tuple[LCMScheduler, Tensor]:
        """A scheduler of its own (schedulers keep state between steps), and the timesteps to do, noisiest first.

        The grid has one timestep more, the first, which the LQ latent stands for; ``from_noise`` does them all.
        """
        scheduler = copy.deepcopy(self.scheduler)
        skipped = 0 if from_noise else 1
        scheduler.set_timesteps(steps + skipped, device=self.unet.device)
        scheduler.set_begin_index(skipped)
        return scheduler, scheduler.timesteps[skipped:]

    def encode_tokens(self, pixels: Tensor) -> Tensor:
        """(B, N, D) visual tokens of (B, 3, S, S) pictures in [-1, 1]."""
        tokens: Tensor = self.visual_encoder(self.image_encoder(pixels.to(self.image_encoder.device)).float())
        return tokens

    def encode(self, pixels: Tensor) -> Tensor:
        """(B, C, h, w) float32 latents of (B, 3, S, S) pictures in [-1, 1], scaled to unit variance."""
        # Planar on the CPU, and one image at a time, as in the other methods: exact, and little memory.
        layout = torch.channels_last if self.vae.device.type == "cuda" else torch.contiguous_format
        pixels = pixels.to(self.vae.device, self.vae.dtype).contiguous(memory_format=layout)
        rows = []
        for row in pixels.split(1):
            if isinstance(self.vae, VQModel):
                rows.append(vqgan.encode(self.vae, row) / float(self.vae.config.scaling_factor))
            else:
                rows.append(self.vae.encode(row).latent_dist.mode())
        return torch.cat(rows).float() * self._latent_scale

    def decode(self, latents: Tensor) -> Tensor:
        """(B, 3, S, S) float32 pictures of (B, C, h, w) scaled latents, about in [-1, 1], not clamped."""
        latents = (latents / self._latent_scale).to(self.vae.device, self.vae.dtype)
        rows = []
        for row in latents.split(1):
            if isinstance(self.vae, VQModel):
                scaled = row * float(self.vae.config.scaling_factor)
                rows.append(vqgan.decode(self.vae, scaled, quantized=False).float())
            else:
                rows.append(self.vae.decode(row, return_dict=False)[0].float())
        return torch.cat(rows)

    @property
    def _latent_scale(self) -> float:
        scale = self.config.latent_scale
        return float(self.vae.config.scaling_factor if scale is None else scale)

    @staticmethod
    def _start_noise(
        lq_latents: Tensor, generator: torch.Generator | list[torch.Generator] | None, latents: Tensor | None
    ) -> Tensor:
        if isinstance(generator, list) and len(generator) != len(lq_latents):
            raise UsageError(f"generator: expected one or {len(lq_latents)} (one per face), found {len(generator)}")
        if latents is None:
            drawn: Tensor = randn_tensor(lq_latents.shape, generator, lq_latents.device, torch.float32)
            return drawn
        if latents.shape != lq_latents.shape:
            raise UsageError(f"latents: expected shape {tuple(lq_latents.shape)}, found {tuple(latents.shape)}")
        return latents.to(lq_latents.device, torch.float32)


def _check_steps(steps: Sequence[int]) -> None:
    whole = steps and all(isinstance(n, int) and not isinstance(n, bool) and 1 <= n <= MAX_STEPS for n in steps)
    if not whole:
        raise UsageError(f"steps: expected whole numbers from 1 to {MAX_STEPS}, found {list(steps)!r}")


def _check_fit(
    unet: UNet2DConditionModel, controlnet: ControlNetModel, visual_encoder: VisualEncoder, image_encoder: ModelMixin
) -> None:
    for name in ("in_channels", "block_out_channels", "cross_attention_dim", "layers_per_block"):
        wanted, found = unet.config[name], controlnet.config[name]
        if (list(wanted) if isinstance(wanted, list | tuple) else wanted) != (
            list(found) if isinstance(found, list | tuple) else found
        ):
            raise UsageError(f"controlnet: expected the U-Net's {name} {wanted}, found {found}")
    length = visual_encoder.config.length
    if length != unet.config.cross_attention_dim:
        raise UsageError(
            f"visual_encoder: expected tokens of {unet.config.cross_attention_dim} features for this U-Net, found "
            f"{length}"
        )
    tokens = image_encoder.tokens_shape[0]
    if tokens != visual_encoder.config.in_tokens:
        raise UsageError(
            f"image_encoder: expected {visual_encoder.config.in_tokens} tokens for this Visual Encoder, found {tokens}"
        )


def _require_finite(tensor: Tensor, dtype: torch.dtype) -> None:
    if not bool(torch.isfinite(tensor).all()):
        bad = int((~torch.isfinite(tensor)).flatten(1).any(1).sum())
        raise NotFiniteError(
            f"result: expected finite values, found NaN or infinity in {bad} of {len(tensor)} faces in {dtype}; "
            "try fp32"
        )
