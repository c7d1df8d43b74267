"""A denoiser that sees latents in patches, and lays a guide over the LQ face where it fits.

Squares of ``size`` x ``size`` latents become one place with ``size``^2 times the channels, so that a 512 px face costs
what one of 256 px did. The network's output is twice as wide as the latents' patches: a residual, and logits of how
much of the guide's difference to the LQ latents is taken, for every channel and place:

    clean = LQ + scale residual + sigmoid(gate) (guide - LQ)

Without references the guide is the LQ face itself and the gate has no effect.
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
    ) -> torch.Tensor:
        """The clean residual (HQ - LQ) / latent_scale that the denoiser sees in ``noisy``.

        :param noisy: (B, 8, h, w) noised residual; ``lq`` and ``guide`` likewise, latents as they are.
        :returns: (copies B, 8, h, w) in float32.
        """
        seen = torch.cat([self.cut(part) for part in (noisy, lq, guide)], dim=1).to(unet.dtype)
        prediction = denoise(unet, seen, timestep, branches, copies=copies).float()
        residual, gate = (self.joined(part) for part in prediction.chunk(2, dim=1))
        difference = (guide.float() - lq.float()) / self.latent_scale
        return residual + gate.sigmoid() * difference.repeat(copies, 1, 1, 1)


def patch_unet_config(
    widths: tuple[int, ...],
    attention: tuple[bool, ...],
    *,
    patch_size: int = 2,
    layers_per_block: int = 1,
    norm_num_groups: int = 16,
) -> dict[str, object]:
    """Arguments of ``UNet2DModel`` for 512 px faces: noisy, LQ and guide latents in, residual and gate out."""
    channels = LATENT_CHANNELS * patch_size**2
    return unet_config(
        widths,
        layers_per_block=layers_per_block,
        attention=attention,
        sample_size=64 // patch_size,
        in_channels=3 * channels,
        out_channels=2 * channels,
        norm_num_groups=norm_num_groups,
    )


def initialise(unet: UNet2DModel, rotary: RotaryCode | None, sharpness: float = 6.0) -> UNet2DModel:
    """A new denoiser: it begins with the LQ face, half way to the guide; half its heads look at their own place.

    :param sharpness: logit of two tokens at the same place in these heads.
    """
    torch.nn.init.zeros_(unet.conv_out.weight)
    torch.nn.init.zeros_(unet.conv_out.bias)
    if rotary is not None:
        from facefix.networks.cachekv import attention_layers

        for layer in attention_layers(unet).values():
            start_at_the_same_place(layer, sharpness)
    return install_cachekv(unet, rotary)
