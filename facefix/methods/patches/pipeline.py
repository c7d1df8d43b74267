"""PatchPipeline: restoration at 512 px in few steps, from the LQ face, a guide, and references through CacheKV."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from diffusers import SchedulerMixin, UNet2DModel, VQModel
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput

from facefix.errors import NotFiniteError, UsageError
from facefix.methods.refldm.pipeline import (
    OutputType,
    ReFLDMPipeline,
    StepCallback,
    _check_arguments,
    _NullCaches,
    _require_finite,
)
from facefix.networks.autoencoder import LATENT_CHANNELS
from facefix.networks.cachekv import install_attention, install_cachekv, reference_pass
from facefix.networks.guide import choose_references, complete
from facefix.networks.images import Images, tensor_to_pil, to_tensor
from facefix.networks.patches import Patches
from facefix.networks.reference_cache import ReferenceCache
from facefix.networks.rope import RotaryCode
from facefix.networks.schedule import prepare
from facefix.networks.tone import tone_of

CROP_PX = 512
PARTS = ("guide", "cachekv", "warp")
"""what an ablation can switch off"""


class PatchPipeline(ReFLDMPipeline):
    """Restores 512 px LQ face crops with a denoiser that sees patches of latents (:mod:`facefix.networks.patches`).

    The denoiser diffuses the difference between the HQ and the LQ latents and predicts it directly. It is given the LQ
    latents, the latents of a guide (:mod:`facefix.networks.guide`), and all references through CacheKV, whose queries
    and keys carry a position code. Without references the guide is the LQ face. A photo of a single tone (grey, sepia)
    keeps it: references are brought to that tone, and so is the result.

    :param autoencoder: VQGAN; it decodes from the latents as they are.
    :param unet: denoiser of :func:`facefix.networks.patches.patch_unet_config`.
    :param scheduler: noise schedule and sampler; its ``prediction_type`` is ``sample``.
    :param patch_size: side of the squares of latents that become one place.
    :param latent_scale: standard deviation of what is diffused.
    :param rotary: lowest and highest frequency of the position code in radians over the side; None: no code.
    :param default_steps: steps where the caller names none.
    :param default_guidance_scale: likewise.
    """

    model_cpu_offload_seq = "autoencoder->unet"
    _optional_components: list[str] = []  # noqa: RUF012 (diffusers reads it from the class)

    def __init__(
        self,
        autoencoder: VQModel,
        unet: UNet2DModel,
        scheduler: SchedulerMixin,
        patch_size: int = 2,
        latent_scale: float = 1.0,
        rotary: tuple[float, float] | None = (1.0, 40.0),
        default_steps: int = 1,
        default_guidance_scale: float = 1.0,
    ) -> None:
        super(ReFLDMPipeline, self).__init__()
        channels = LATENT_CHANNELS * patch_size**2
        if (unet.config.in_channels, unet.config.out_channels) != (3 * channels, 2 * channels):
            raise UsageError(
                f"unet: expected {3 * channels} input and {2 * channels} output channels for patches of {patch_size}, "
                f"found {unet.config.in_channels} and {unet.config.out_channels}"
            )
        self.register_modules(
            autoencoder=install_attention(autoencoder),
            unet=install_cachekv(unet, None if rotary is None else RotaryCode(*rotary)),
            scheduler=scheduler,
        )
        self.register_to_config(
            patch_size=patch_size,
            latent_scale=latent_scale,
            rotary=rotary,
            default_steps=default_steps,
            default_guidance_scale=default_guidance_scale,
        )
        self._nulls = _NullCaches()

    reference_encoding = "each"
    unguided = None

    @property
    def crop_size(self) -> int:
        """Side of the square crops that go in and come out, in px."""
        return CROP_PX

    @property
    def work_size(self) -> int:
        """Side of the images that the networks see, in px."""
        return CROP_PX

    @property
    def patches(self) -> Patches:
        """How latents are cut up."""
        return Patches(int(self.config.patch_size), float(self.config.latent_scale))

    @torch.no_grad()
    def encode_references(self, images: Images, sources: Sequence[str] = ()) -> ReferenceCache:
        """Keys and values of a person's reference images, and the images; see :class:`ReFLDMPipeline`."""
        crops = to_tensor(images, CROP_PX, argument="references").to(self.unet.device)
        latents = self.patches.cut(self._encode(crops))
        cache = reference_pass(self.unet, latents, encoding="each", sources=tuple(str(name) for name in sources))
        if not all(bool(torch.isfinite(v).all() & torch.isfinite(k).all()) for k, v in cache.layers.values()):
            raise NotFiniteError(
                f"references: expected finite keys and values, found NaN or infinity in {self.unet.dtype}; try fp32"
            )
        return replace(cache, images=crops.clamp(-1, 1).half()[None])

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
        without: frozenset[str] = frozenset(),
    ) -> ImagePipelineOutput:
        """Restore a batch of face crops of one person; arguments as in :class:`ReFLDMPipeline`.

        :param without: parts to switch off, for ablations: ``guide``, ``cachekv``, ``warp``.
        """
        # 1. Check inputs
        steps = self.config.default_steps if num_inference_steps is None else num_inference_steps
        scale = self.config.default_guidance_scale if guidance_scale is None else guidance_scale
        _check_arguments(steps, scale, start_timestep, output_type)
        crops = to_tensor(lq, CROP_PX, argument="lq").to(self.unet.device)
        tone = tone_of(crops)

        # 2. Encode the LQ faces and their guides
        lq_latents = self._encode(crops)
        guide_latents = lq_latents
        if references is not None and "guide" not in without:
            guide_latents = self._encode(self.guides(crops, references).clamp(-1, 1))

        # 3. Timesteps, start latents
        scheduler, timesteps = prepare(self.scheduler, steps, lq_latents.device, start_timestep)
        noise = self._start_noise(lq_latents, generator, latents)
        sample = noise * float(scheduler.init_noise_sigma)
        if start_timestep is not None:
            sample = scheduler.add_noise(torch.zeros_like(noise), noise, timesteps[:1].expand(len(noise)))

        # 4. Denoising loop
        read = None if "cachekv" in without else references
        branches, copies = self._branches(read, scale, self.patches.cut(lq_latents))
        for step, timestep in enumerate(self.progress_bar(timesteps)):
            noisy = scheduler.scale_model_input(sample, timestep)
            prediction = self.patches.predict(
                self.unet, noisy, lq_latents, guide_latents, timestep, branches, copies=copies
            )
            prediction = prediction if prediction.device.type == "mps" else prediction.double()
            if copies == 2:
                unconditional, conditional = prediction.chunk(2)
                prediction = unconditional + scale * (conditional - unconditional)
            sample = scheduler.step(prediction, timestep, sample, return_dict=False)[0]
            if callback_on_step_end is not None:
                changed = callback_on_step_end(self, step, timestep, {"latents": sample})
                sample = (changed or {}).get("latents", sample)

        # 5. Decode
        result = lq_latents.float() + (sample * self.config.latent_scale).float()
        _require_finite(result, self.unet.dtype)
        if output_type == "latent":
            return ImagePipelineOutput(images=result)
        images = tone(torch.cat([self.decode(row) for row in result.split(1)])).clamp(-1, 1)
        _require_finite(images, self.autoencoder.dtype)
        return ImagePipelineOutput(images=tensor_to_pil(images, nearest=True) if output_type == "pil" else images)

    def guides(self, crops: torch.Tensor, references: ReferenceCache) -> torch.Tensor:
        """(B, 3, S, S) the LQ faces completed with the references' detail, in the LQ faces' own tone.

        :raises UsageError: the cache keeps no images.
        """
        if references.images is None:
            raise UsageError(
                "references: expected a ReferenceCache made by this model, which keeps the references' images, found "
                "one without; call encode_references() of this pipeline"
            )
        chosen = choose_references(crops, references.images.to(crops.device))
        return complete(crops, tone_of(crops)(chosen))

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """(B, 3, 512, 512) images of (B, 8, 64, 64) latents, about in [-1, 1], not clamped."""
        from facefix.networks import autoencoder as vqgan

        latents = latents.to(self.autoencoder.device, self.autoencoder.dtype)
        return vqgan.decode(self.autoencoder, latents, quantized=False).float()
