"""Training of a guided denoiser: as the published method's, with the guide and the residual as configured."""

from __future__ import annotations

from typing import cast

from diffusers import UNet2DModel
from torch import nn

from facefix.device import choose_device
from facefix.methods.guided.pipeline import GuidedPipeline
from facefix.methods.refldm.training import DenoiserTask
from facefix.training.config import DenoiserTraining
from facefix.training.loop import Leg, Outcome

_STEPS = 4
"""steps of a model fresh from training, where the caller names none"""


class GuidedTask(DenoiserTask):
    """What a step of the training computes; its pipeline is the guided one."""

    def pipeline(self, network: nn.Module) -> GuidedPipeline:
        """The pipeline around a network, with the settings that it was trained for."""
        return GuidedPipeline(
            self.autoencoder,
            cast(UNet2DModel, network),
            self.scheduler(),
            reference_encoding="each",
            quantize_latents=self.config.quantize,
            residual=self.config.objective.residual,
            latent_scale=self.objective.latent_scale,
            crop_size=512,
            round_pixels=True,
            default_steps=_STEPS,
            default_guidance_scale=1.0,
        )


def train_guided(config: DenoiserTraining, *, resume: bool = False) -> Outcome:
    """Train, or go on training, the denoiser of a configuration; the pipeline lies in ``<run>/model`` afterwards.

    :raises UsageError: the configuration cannot be used; likewise DeviceError, CheckpointError and WeightsUnavailable.
    :raises NotFiniteError: the loss became NaN or infinite.
    """
    device = choose_device(config.machine.device)
    return Leg(config, GuidedTask(config, device), device).train(resume=resume)
