"""Training of the denoiser: diffusion on latents, references through CacheKV, identity loss (arXiv 2412.05043).

The published recipe is the default of every setting. For little compute there are others: predict the clean latents
or v, diffuse the residual to the LQ latent, prefer noisy timesteps, several degraded versions of a face per reference
pass, losses on the decoded picture for a few samples of each batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, UNet2DModel, VQModel
from torch import Tensor, nn

from facefix.datasets.faces import find_faces, hold_out
from facefix.device import choose_device
from facefix.errors import UsageError
from facefix.methods.refldm import watching
from facefix.methods.refldm.objective import DenoisingObjective
from facefix.methods.refldm.pipeline import ReFLDMPipeline
from facefix.networks.autoencoder import build_autoencoder
from facefix.networks.cachekv import install_cachekv
from facefix.networks.guide import is_guided
from facefix.networks.schedule import ddim_scheduler
from facefix.networks.unet import build_unet
from facefix.training.config import DenoiserTraining
from facefix.training.decoded import DecodedTerms
from facefix.training.draws import Draws
from facefix.training.latents import BankBuilder
from facefix.training.loop import Leg, Moment, Outcome, place
from facefix.training.noise import NoiseSchedule
from facefix.training.runs import Sheet

_SHEET_STEPS = 4


class DenoiserTask:
    """What the training loop asks of a denoiser's training; the work is in its draws, objective and held-out faces."""

    def __init__(self, config: DenoiserTraining, device: torch.device) -> None:
        self.config, self.device = config, device
        torch.manual_seed(config.seed)
        self.autoencoder: VQModel = VQModel.from_pretrained(config.autoencoder).eval().requires_grad_(False)
        place(self.autoencoder, device, config.machine)
        self.network = _network(config, device)
        self.faces = find_faces(config.faces)
        self.inside, outside = hold_out(self.faces, config.held_out, config.seed)
        builder = BankBuilder(config.bank, self.faces, config.faces.size, self.autoencoder, config.machine)
        bank = builder.bank().to(device)
        self.draws = Draws(config.references, self.faces, bank, config.bank.guided)
        self.objective = DenoisingObjective(
            config.objective,
            config.machine,
            NoiseSchedule.published(device),
            bank.residual_scale() if config.objective.residual else 1.0,
            config.bank.guided,
            config.references.share,
            self._decoded(),
        )
        self.outside = watching.HeldOut(outside, self.draws, self.objective)

    def _decoded(self) -> DecodedTerms | None:
        settings = self.config.objective.decoded
        if not settings.active:
            return None
        size, quantize = self.config.faces.size, self.config.quantize
        return DecodedTerms(settings, self.autoencoder, self.faces, size, quantize=quantize)

    def losses(self, moment: Moment) -> tuple[Tensor, dict[str, float]]:
        """The loss of the batch of this moment, with gradient, and its parts."""
        generator = moment.generator()
        batch = self.draws.batch(self.inside, self.config.schedule.batch, generator)
        return self.objective.losses(self.network, batch, moment.progress, generator)

    def after_step(self, moment: Moment, rate_factor: float) -> dict[str, float]:
        """Nothing beside the network learns."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the bank is on disk."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to restore."""

    def held_out(self, network: nn.Module) -> Mapping[str, float]:
        """Squared error of the latents of held-out people; see ``HeldOut.errors``."""
        return self.outside.errors(network)

    def pipeline(self, network: nn.Module) -> ReFLDMPipeline:
        """The pipeline around a network, with the settings that it was trained for."""
        return ReFLDMPipeline(
            self.autoencoder,
            cast(UNet2DModel, network),
            self.scheduler(),
            reference_encoding="each",
            quantize_latents=self.config.quantize,
            default_steps=_SHEET_STEPS,
            default_guidance_scale=1.0,
        )

    def scheduler(self) -> DDIMScheduler:
        """The sampler for what the network predicts."""
        return ddim_scheduler(prediction_type=self.config.objective.prediction, set_alpha_to_one=True)

    def sheet(self, network: nn.Module) -> Sheet:
        """Held-out faces: severe LQ, result, result with a stranger's reference, result without, reference, truth."""
        rows, size = self.config.watching.sheet_faces, self.config.faces.size
        return watching.sheet(self.outside, self.inside, size, rows, self.pipeline(network))

    def save(self, network: nn.Module, folder: Path) -> None:
        """Write the whole pipeline, averaged denoiser and frozen autoencoder, in fp16 safetensors."""
        weights = {name: weight.half() for name, weight in network.state_dict().items()}
        unet = install_cachekv(UNet2DModel.from_config(cast(Any, network).config))
        unet.half().load_state_dict(weights)
        autoencoder = build_autoencoder(dict(self.autoencoder.config))
        autoencoder.half().load_state_dict({k: v.half() for k, v in self.autoencoder.state_dict().items()})
        pipeline = self.pipeline(unet)
        pipeline.register_modules(autoencoder=autoencoder)
        pipeline.save_pretrained(folder, safe_serialization=True)


def _network(config: DenoiserTraining, device: torch.device) -> UNet2DModel:
    """The denoiser to train, on its device. Raises UsageError where its input channels do not fit the bank."""
    network = build_unet(config.model)
    if config.start_from:
        _take_over(network, UNet2DModel.from_pretrained(config.start_from))
    if is_guided(network) != config.bank.guided:
        raise UsageError(
            f"bank.guided: expected {is_guided(network)} for a denoiser with {network.config.in_channels} input "
            f"channels, found {config.bank.guided}"
        )
    place(network, device, config.machine)
    if config.machine.compile:
        _compile_blocks(network)
    return network


def _take_over(network: UNet2DModel, start: UNet2DModel) -> None:
    """Copy the weights of ``start``.

    Where the network has further input channels, for a guide, they get zeros, and so does its output, which is now
    relative to the guide: it starts by leaving the guide as it is.

    Raises UsageError when the two differ in anything else.
    """
    weights = start.state_dict()
    first = "conv_in.weight"
    missing = network.conv_in.weight.shape[1] - weights[first].shape[1]
    if missing > 0:
        weights[first] = F.pad(weights[first], (0, 0, 0, 0, 0, missing))
        weights |= {name: torch.zeros_like(weights[name]) for name in ("conv_out.weight", "conv_out.bias")}
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise UsageError(f"start_from: expected a denoiser of the configured shape: {error}") from error


def _compile_blocks(network: UNet2DModel) -> None:
    """Compile the residual blocks; attention reads its references from the context, which the compiler cannot see."""
    for module in network.modules():
        if type(module).__name__ == "ResnetBlock2D":
            module.compile()


def train_denoiser(config: DenoiserTraining, *, resume: bool = False) -> Outcome:
    """Train, or go on training, the denoiser of a configuration; the pipeline lies in ``<run>/model`` afterwards.

    Raises UsageError, DeviceError, CheckpointError, WeightsUnavailable and NotFiniteError as the parts do.
    """
    if config.objective.residual or config.bank.guided:
        raise UsageError(
            "objective.residual and bank.guided: expected neither for the published method, found one; "
            "use `facefix train guided`"
        )
    device = choose_device(config.machine.device)
    return Leg(config, DenoiserTask(config, device), device).train(resume=resume)
