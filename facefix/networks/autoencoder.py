"""The VQGAN, built from diffusers' ``VQModel``, with encoding and decoding as ReF-LDM uses them.

Encoding never quantises (arXiv 2412.05043, published code); decoding looks the latents up in the codebook where the
model was trained so. Latents are 8 times smaller than images: 512 x 512 px become 8 x 64 x 64.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import VQModel

from facefix.errors import UsageError
from facefix.networks import blocks

DOWNSAMPLE_FACTOR = 8
LATENT_CHANNELS = 8


def autoencoder_config(
    widths: tuple[int, ...], *, layers_per_block: int, codes: int, sample_size: int = 512, **extra: Any
) -> dict[str, Any]:
    """Arguments of ``VQModel`` for an autoencoder with these channel widths, from full resolution downwards.

    :param layers_per_block: residual blocks a level of the encoder; the decoder has one more.
    :param codes: entries of the codebook.
    :param extra: further arguments of ``VQModel``, which override these.
    """
    return {
        "in_channels": 3,
        "out_channels": 3,
        "down_block_types": ("DownEncoderBlock2D",) * len(widths),
        "up_block_types": ("UpDecoderBlock2D",) * len(widths),
        "block_out_channels": widths,
        "layers_per_block": layers_per_block,
        "latent_channels": LATENT_CHANNELS,
        "vq_embed_dim": LATENT_CHANNELS,
        "sample_size": sample_size,
        "num_vq_embeddings": codes,
        "norm_num_groups": 32,
        "scaling_factor": 1.0,
        **extra,
    }


AUTOENCODER_CONFIGS: Mapping[str, Mapping[str, Any]] = {
    "refldm": autoencoder_config((128, 128, 256, 512), layers_per_block=2, codes=8192),
    "small": autoencoder_config(
        (32, 48, 96, 128), layers_per_block=1, codes=256, norm_num_groups=16, mid_block_add_attention=False
    ),
}
"""``refldm``: the published size, 57.2 M parameters with a codebook of 8192. ``small``: light enough for a laptop."""


def build_autoencoder(config: str | Mapping[str, Any]) -> VQModel:
    """A ``VQModel`` with random weights, from the name of a configuration or from its arguments.

    :raises UsageError: no configuration has that name.
    """
    if isinstance(config, str):
        if config not in AUTOENCODER_CONFIGS:
            raise UsageError(
                f"autoencoder configuration: expected one of {sorted(AUTOENCODER_CONFIGS)}, found {config!r}"
            )
        config = AUTOENCODER_CONFIGS[config]
    return VQModel(**config)


def encode(autoencoder: VQModel, images: torch.Tensor) -> torch.Tensor:
    """Latents of images, not quantised.

    :param images: (B, 3, H, W) in [-1, 1], H and W multiples of 8.
    :returns: (B, 8, H/8, W/8), scaled by the model's ``scaling_factor`` (1.0 for the published model).
    """
    if blocks.applies(images):
        latents = blocks.convolve(autoencoder.quant_conv, blocks.run_encoder(autoencoder.encoder, images)).contiguous()
    else:
        latents = autoencoder.encode(images).latents
    return latents * float(autoencoder.config.scaling_factor)


def code_indices(autoencoder: VQModel, latents: torch.Tensor) -> torch.Tensor:
    """Index of the nearest code for every latent vector, by squared distance in fp32; the first one on ties.

    :param latents: (B, 8, h, w), unscaled.
    :returns: (B, h, w) int64.
    """
    codes = autoencoder.quantize.embedding.weight.float()  # (codes, 8)
    vectors = latents.permute(0, 2, 3, 1).reshape(-1, codes.shape[1]).float()  # (B h w, 8)
    # |z|^2 is the same for every code, so it cannot change the argmin
    distances = torch.addmm(codes.square().sum(1), vectors, codes.T, alpha=-2)  # (B h w, codes)
    batch, _, height, width = latents.shape
    return distances.argmin(1).view(batch, height, width)


def quantize(autoencoder: VQModel, latents: torch.Tensor) -> torch.Tensor:
    """The latents with every vector replaced by its nearest code; gradients pass straight through.

    :param latents: (B, 8, h, w), unscaled.
    """
    codes = autoencoder.quantize.embedding.weight
    nearest = codes[code_indices(autoencoder, latents.detach())].permute(0, 3, 1, 2).to(latents.dtype)
    straight_through: torch.Tensor = latents + (nearest - latents).detach()
    return straight_through


def decode(autoencoder: VQModel, latents: torch.Tensor, *, quantized: bool = True) -> torch.Tensor:
    """Images of latents.

    :param latents: (B, 8, h, w) as ``encode`` gives them.
    :param quantized: look the latents up in the codebook first, as the published model does.
    :returns: (B, 3, 8h, 8w), about in [-1, 1], not clamped.
    """
    latents = latents / autoencoder.config.scaling_factor
    if quantized:
        latents = quantize(autoencoder, latents)
    if blocks.applies(latents):
        hidden = blocks.convolve(autoencoder.post_quant_conv, latents)
        return blocks.run_decoder(autoencoder.decoder, hidden).contiguous()
    images: torch.Tensor = autoencoder.decode(latents, force_not_quantize=True).sample
    return images
