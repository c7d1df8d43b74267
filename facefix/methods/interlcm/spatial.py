"""The Spatial Encoder and the latent consistency model: diffusers' ControlNetModel and UNet2DConditionModel."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from diffusers import ControlNetModel, LCMScheduler, UNet2DConditionModel
from torch import Tensor

from facefix.errors import UsageError

LCM_UNET: Mapping[str, Any] = {
    "sample_size": 64,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (320, 640, 1280, 1280),
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    "layers_per_block": 2,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,  # heads, in models of this class
    "norm_num_groups": 32,
    "norm_eps": 1e-5,
    "time_cond_proj_dim": 256,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
}
"""Arguments of the published U-Net: Stable Diffusion 1.5's with an embedding of the guidance scale."""

LCM_SCHEDULE: Mapping[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "epsilon",
    "original_inference_steps": 50,
    "timestep_scaling": 10.0,
    "clip_sample": False,
    "set_alpha_to_one": True,
}
"""Schedule of the published model (latent consistency models, Luo et al. 2023, arXiv 2310.04378)."""

CONDITIONING_CHANNELS = (16, 32, 96, 256)
"""widths of the embedding that takes the LQ picture to the size of the latents, eight times smaller"""


def lcm_scheduler(**overrides: Any) -> LCMScheduler:
    """The published sampler."""
    return LCMScheduler(**{**LCM_SCHEDULE, **overrides})


def spatial_encoder_for(
    unet: UNet2DConditionModel, *, conditioning: tuple[int, ...] = CONDITIONING_CHANNELS, copy_weights: bool = False
) -> ControlNetModel:
    """A Spatial Encoder of the shape of a U-Net's first half.

    :param copy_weights: start from the U-Net's weights, as in training; otherwise they are random.
    """
    return ControlNetModel.from_unet(
        unet, conditioning_embedding_out_channels=conditioning, load_weights_from_unet=copy_weights
    )


def guidance_embedding(scale: float, dim: int) -> Tensor:
    """(1, dim) float32 embedding of a guidance weight w = scale - 1: sines, then cosines, of 1000 w.

    Frequencies exp(-i ln(10000) / (dim / 2 - 1)), as in the timestep embedding of Ho et al. 2020.

    :raises UsageError: ``dim`` is odd or less than 4.
    """
    if dim < 4 or dim % 2:
        raise UsageError(f"dim: expected an even number from 4 up, found {dim}")
    half = dim // 2
    frequencies = torch.exp(torch.arange(half, dtype=torch.float32) * -(math.log(10000.0) / (half - 1)))
    angles = torch.tensor([[(scale - 1.0) * 1000.0]]) * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def spatial_residuals(
    spatial_encoder: ControlNetModel,
    latents: Tensor,
    timestep: Tensor | int,
    tokens: Tensor,
    lq: Tensor,
    *,
    scale: float = 1.0,
) -> tuple[list[Tensor], Tensor]:
    """What the Spatial Encoder adds to the U-Net's skips, and to its middle.

    :param latents: (B, C, h, w) noisy latents.
    :param tokens: (B, N, D) visual tokens.
    :param lq: (B, 3, 8h, 8w) LQ faces in [-1, 1]: the published network was trained with that range.
    :param scale: multiplies them; 0 switches the Spatial Encoder off.
    """
    dtype = spatial_encoder.dtype
    down, middle = spatial_encoder(
        latents.to(dtype), timestep, tokens.to(dtype), lq.to(dtype), conditioning_scale=scale, return_dict=False
    )
    return down, middle


def predict(
    unet: UNet2DConditionModel,
    latents: Tensor,
    timestep: Tensor | int,
    tokens: Tensor,
    residuals: tuple[list[Tensor], Tensor] | None = None,
    guidance_scale: float | None = None,
) -> Tensor:
    """The U-Net's prediction for (B, C, h, w) noisy latents, float32.

    :param residuals: of the Spatial Encoder; none: the U-Net alone.
    :param guidance_scale: embedded where the U-Net takes it. The Spatial Encoder never gets it.
    """
    dtype, dim = unet.dtype, unet.config.time_cond_proj_dim
    guidance = None
    if dim is not None and guidance_scale is not None:
        guidance = guidance_embedding(guidance_scale, dim).to(latents.device, dtype).expand(len(latents), -1)
    down, middle = (None, None) if residuals is None else residuals
    prediction: Tensor = unet(
        latents.to(dtype),
        timestep,
        tokens.to(dtype),
        timestep_cond=guidance,
        down_block_additional_residuals=None if down is None else tuple(part.to(dtype) for part in down),
        mid_block_additional_residual=None if middle is None else middle.to(dtype),
        return_dict=False,
    )[0]
    return prediction.float()
