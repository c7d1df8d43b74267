"""A tiny InterLCM with random weights on the project's own kind of autoencoder: the real classes, small for tests."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import UNet2DConditionModel

from facefix.methods.interlcm.networks import ClipVisionTower
from facefix.methods.interlcm.pipeline import InterLCMPipeline
from facefix.methods.interlcm.spatial import lcm_scheduler, spatial_encoder_for
from facefix.methods.interlcm.visual import VisualEncoder
from facefix.networks.autoencoder import autoencoder_config, build_autoencoder

UNET = {
    "sample_size": 8,
    "in_channels": 8,
    "out_channels": 8,
    "block_out_channels": (16, 32),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 1,
    "cross_attention_dim": 24,
    "attention_head_dim": 2,
    "norm_num_groups": 8,
}


def tiny_pipeline(*, seed: int = 0, **config: Any) -> InterLCMPipeline:
    """Works at 64 px; no weight is zero, so that every part has an effect."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        vae = build_autoencoder(
            autoencoder_config(
                (16, 16, 16, 16),
                layers_per_block=1,
                codes=16,
                sample_size=64,
                norm_num_groups=8,
                mid_block_add_attention=False,
            )
        )
        unet = UNet2DConditionModel(**UNET)
        controlnet = spatial_encoder_for(unet, conditioning=(8, 8, 16, 16))
        for parameter in controlnet.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
        tower = ClipVisionTower(patch_size=16, grid=2, width=64, layers=1)
        visual = VisualEncoder(in_tokens=5, out_tokens=4, length=24, widths=(8, 16, 16), norm_num_groups=8)
    parts = [part.eval() for part in (vae, unet, controlnet, visual, tower)]
    pipeline = InterLCMPipeline(*parts, lcm_scheduler(), **{"steps": (3, 1, 2), **config})
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
