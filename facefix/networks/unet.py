"""The denoiser: diffusers' ``UNet2DModel`` in the shape of ReF-LDM's U-Net (Rombach et al. 2022, arXiv 2112.10752)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diffusers import UNet2DModel

from facefix.errors import UsageError
from facefix.networks.autoencoder import LATENT_CHANNELS
from facefix.networks.cachekv import install_cachekv


def unet_config(
    widths: tuple[int, ...],
    *,
    layers_per_block: int,
    sample_size: int = 64,
    attention: tuple[bool, ...] | None = None,
    **extra: Any,
) -> dict[str, Any]:
    """Arguments of ``UNet2DModel`` for a denoiser with these channel widths, from the latents' resolution downwards.

    The input is the noisy latent followed by the LQ latent on the channel axis, the output the prediction for the
    noisy latent.

    :param attention: for each level, whether it has self-attention; by default all but the first.
    :param extra: further arguments of ``UNet2DModel``, which override these.
    """
    attention = attention or (False,) + (True,) * (len(widths) - 1)
    return {
        "sample_size": sample_size,
        "in_channels": 2 * LATENT_CHANNELS,
        "out_channels": LATENT_CHANNELS,
        "down_block_types": tuple("AttnDownBlock2D" if here else "DownBlock2D" for here in attention),
        "up_block_types": tuple("AttnUpBlock2D" if here else "UpBlock2D" for here in reversed(attention)),
        "block_out_channels": widths,
        "layers_per_block": layers_per_block,
        "attention_head_dim": 32,
        "norm_num_groups": 32,
        "norm_eps": 1e-5,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        **extra,
    }


UNET_CONFIGS: Mapping[str, Mapping[str, Any]] = {
    "refldm": unet_config((160, 320, 320, 640), layers_per_block=2),
    "small": unet_config((64, 128, 256, 384), layers_per_block=1),
}
"""``refldm``: the published size, 117.8 M parameters. ``small``: 20 to 35 M, for a laptop."""


def build_unet(config: str | Mapping[str, Any]) -> UNet2DModel:
    """A denoiser with random weights that can read references, from a configuration's name or its arguments.

    :raises UsageError: no configuration has that name.
    """
    if isinstance(config, str):
        if config not in UNET_CONFIGS:
            raise UsageError(f"denoiser configuration: expected one of {sorted(UNET_CONFIGS)}, found {config!r}")
        config = UNET_CONFIGS[config]
    return install_cachekv(UNet2DModel(**config))
