"""A denoiser that sees latents in patches, and lays a guide over the LQ face where it fits.

Squares of ``size`` x ``size`` latents become one place with ``size``^2 times the channels, so that a 512 px face costs
what one of 256 px did. The network gives three things: a residual; logits of how much of the guide's difference to the
LQ latents is taken, for every channel and place; and logits of how much of the guide's finest detail, which latents
cannot carry, is kept, for every place:

    clean   = LQ + scale residual + sigmoid(gate) (guide - LQ)
    picture = decode(clean) + sigmoid(detail) (guide picture - decode(guide))

Without references the guide is what has survived of the LQ face, cleaned.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from diffusers import UNet2DModel
from torch.nn import functional as F

from facefix.networks.autoencoder import LATENT_CHANNELS
from facefix.networks.cachekv import denoise, install_cachekv
from facefix.networks.reference_cache import Branch
from facefix.networks.rope import RotaryCode, start_at_the_same_place
from facefix.networks.unet import unet_config


@dataclass(frozen=True, slots=True)
class Patches:
    """How latents are cut up, and what the network's output means."""

    size: int = 2
    latent_scale: float = 1.0
    """standard deviation of HQ minus LQ latents: what is diffused has unit variance"""

    def cut(self, latents: torch.Tensor) -> torch.Tensor:
        """(B, 8, h, w) -> (B, 8 size^2, h / size, w / size)."""
        return F.pixel_unshuffle(latents, self.size)

    def joined(self, patches: torch.Tensor) -> torch.Tensor:
        """The inverse of :meth:`cut`."""
        return F.pixel_shuffle(patches, self.size)

    def predict(
        self,
        unet: UNet2DModel,
        noisy: torch.Tensor,
        lq: torch.Tensor,
        guide: torch.Tensor,
        timestep: torch.Tensor | int,
        branches: Sequence[Branch] = (),
        *,
        copies: int = 1,
    ) -> Prediction:
        """What the denoiser sees in ``noisy``.

        Args:
            noisy: (B, 8, h, w) noised residual; ``lq`` and ``guide`` likewise, latents as they are.
        """
        seen = torch.cat([self.cut(part) for part in (noisy, lq, guide)], dim=1).to(unet.dtype)
        prediction = self.joined(denoise(unet, seen, timestep, branches, copies=copies).float())  # (copies B, 17, h, w)
        residual, gate, detail = prediction.split([LATENT_CHANNELS, LATENT_CHANNELS, 1], dim=1)
        difference = (guide.float() - lq.float()) / self.latent_scale
        return Prediction(residual + gate.sigmoid() * difference.repeat(copies, 1, 1, 1), detail.sigmoid())


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a denoiser says, in float32."""

    residual: torch.Tensor
    """(copies B, 8, h, w) the clean residual (HQ - LQ) / latent_scale"""
    detail: torch.Tensor
    """(copies B, 1, h, w) 0 to 1: how much of the guide's finest detail is kept"""


def with_detail(
    decoded: torch.Tensor, guide: torch.Tensor, decoded_guide: torch.Tensor, detail: torch.Tensor
) -> torch.Tensor:
    """(B, 3, S, S) decoded pictures with the detail of guides that decoding loses.

    Args:
        guide: (B, 3, S, S) guides, and what they become when they are encoded and decoded.
        detail: (B, 1, h, w) of a :class:`Prediction`.
    """
    weight = F.interpolate(detail, size=decoded.shape[2:], mode="bilinear", align_corners=False)
    return decoded + weight * (guide - decoded_guide)


def patch_unet_config(
    widths: tuple[int, ...],
    attention: tuple[bool, ...],
    *,
    patch_size: int = 2,
    layers_per_block: int = 1,
    norm_num_groups: int = 16,
) -> dict[str, object]:
    """Arguments of ``UNet2DModel`` for 512 px faces: noisy, LQ and guide latents in; residual, gate and detail out."""
    channels = LATENT_CHANNELS * patch_size**2
    return unet_config(
        widths,
        layers_per_block=layers_per_block,
        attention=attention,
        sample_size=64 // patch_size,
        in_channels=3 * channels,
        out_channels=2 * channels + patch_size**2,
        norm_num_groups=norm_num_groups,
    )


def initialise(unet: UNet2DModel, rotary: RotaryCode | None, sharpness: float = 6.0, gate: float = 2.0) -> UNet2DModel:
    """A new denoiser: it begins near the guide; half its heads look at their own place.

    Args:
        sharpness: logit of two tokens at the same place in these heads.
        gate: logit of how much of the guide is taken.
    """
    torch.nn.init.zeros_(unet.conv_out.weight)
    torch.nn.init.zeros_(unet.conv_out.bias)
    torch.nn.init.constant_(unet.conv_out.bias[unet.config.in_channels // 3 :], gate)
    if rotary is not None:
        from facefix.networks.cachekv import attention_layers

        for layer in attention_layers(unet).values():
            start_at_the_same_place(layer, sharpness)
    return install_cachekv(unet, rotary)
