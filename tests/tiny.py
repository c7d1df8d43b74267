"""Tiny models with random weights: the real classes, small enough for tests."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import UNet2DModel, VQModel

from facefix import ReFLDMPipeline
from facefix.methods.guided.pipeline import GuidedPipeline
from facefix.networks.autoencoder import autoencoder_config, build_autoencoder
from facefix.networks.schedule import ddim_scheduler
from facefix.networks.unet import build_unet, unet_config


def tiny_pipeline(*, seed: int = 0, sample_size: int = 8, **config: Any) -> ReFLDMPipeline:
    """A ReFLDMPipeline that works at 8 x ``sample_size`` px (64 by default); about 0.5 M parameters."""
    return _made(ReFLDMPipeline, *_networks(seed, sample_size, guided=False), config)


def tiny_guided(*, seed: int = 0, sample_size: int = 8, guided: bool = False, **config: Any) -> GuidedPipeline:
    """A GuidedPipeline of the same size; ``guided``: its denoiser takes a guide."""
    return _made(GuidedPipeline, *_networks(seed, sample_size, guided=guided), config)


def _networks(seed: int, sample_size: int, *, guided: bool) -> tuple[VQModel, UNet2DModel]:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        autoencoder = build_autoencoder(
            autoencoder_config(
                (16, 16, 16, 16),
                layers_per_block=1,
                codes=32,
                sample_size=8 * sample_size,
                norm_num_groups=8,
                mid_block_add_attention=False,
            )
        )
        unet = build_unet(
            unet_config(
                (16, 32),
                layers_per_block=1,
                sample_size=sample_size,
                in_channels=24 if guided else 16,
                norm_num_groups=8,
                attention_head_dim=8,
            )
        )
    return autoencoder.eval(), unet.eval()


def _made(kind: Any, autoencoder: VQModel, unet: UNet2DModel, config: dict[str, Any]) -> Any:
    config = {"reference_encoding": "each", "quantize_latents": False, **config}
    pipeline = kind(autoencoder, unet, ddim_scheduler(), **config)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
