"""Training of the denoiser that sees patches of latents, reads references through CacheKV and takes a guide."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from diffusers import UNet2DModel, VQModel
from torch import Tensor, nn

from facefix.datasets.faces import find_faces, hold_out
from facefix.device import DTYPES, choose_device
from facefix.errors import UsageError
from facefix.methods.patches.config import PatchTraining
from facefix.methods.patches.draws import Draws, Samples
from facefix.methods.patches.pipeline import PatchPipeline
from facefix.methods.patches.records import FULL_PX, open_records
from facefix.methods.patches.watching import HeldOut, Watcher
from facefix.methods.patches.window_terms import WindowTerms
from facefix.networks.autoencoder import build_autoencoder
from facefix.networks.cachekv import install_cachekv, reference_pass
from facefix.networks.landmarks import LandmarkNetwork
from facefix.networks.patches import Patches, initialise, patch_unet_config
from facefix.networks.reference_cache import Branch, ReferenceCache
from facefix.networks.rope import RotaryCode
from facefix.networks.schedule import ddim_scheduler
from facefix.networks.survival import SurvivalNetwork
from facefix.training.loop import Moment, Outcome, autocast
from facefix.training.noise import TIMESTEPS, NoiseSchedule
from facefix.training.parallel import ParallelLeg, run_parallel
from facefix.training.runs import Sheet


class PatchTask:
    """What a step computes."""

    def __init__(self, config: PatchTraining, device: torch.device, rank: int) -> None:
        self.config, self.device, self.rank = config, device, rank
        torch.manual_seed(config.seed)
        rotary = config.model.rotary
        self.code = None if rotary is None else RotaryCode(rotary.lowest, rotary.highest)
        self.network: nn.Module = build(config)
        self.network.to(device)
        self.patches = Patches(config.model.patch_size, config.latent_scale)
        self.autoencoder: VQModel = VQModel.from_pretrained(config.autoencoder).eval().requires_grad_(False).to(device)
        self.faces = find_faces(config.faces)
        self.inside, self.outside = hold_out(self.faces, config.held_out, config.seed)
        self.good = np.load(config.bank / "good.npy", mmap_mode="r")
        self.draws = Draws(self.good, open_records(config.bank), self.faces, self.inside, config.drawing)
        self.noise = NoiseSchedule.published(device)
        self.large = np.load(config.bank / "sizes.npy") >= FULL_PX
        self.terms = WindowTerms(
            config.objective.decoded, self.autoencoder, self.faces, self.draws.records, config.machine
        )

    def losses(self, moment: Moment) -> tuple[Tensor, dict[str, float]]:
        """One batch of this process."""
        generator = moment.generator()
        random = np.random.default_rng(generator.initial_seed())
        batch = self.draws.batch(self.config.schedule.batch, random)
        scale, objective = self.config.latent_scale, self.config.objective
        clean = (batch.good - batch.lq) / scale
        timesteps = _timesteps(len(clean), objective.high_timesteps, generator)
        signal, sigma = self.noise.levels(timesteps)
        noisy = signal * clean + sigma * torch.randn(clean.shape, generator=generator)
        unet = cast(UNet2DModel, self.network)
        with autocast(self.device, self.config.machine):
            branches = grouped_branches(unet, self.patches, batch, self.config.drawing.share)
            predicted = self.patches.predict(unet, noisy, batch.lq, batch.guide, timesteps, branches)
        large = torch.from_numpy(self.large[batch.faces.numpy()])
        weights = torch.where(large, 1.0, objective.small_weight).view(-1, 1, 1, 1)
        error = predicted.residual - clean
        loss = (weights * (error.square() if objective.loss == "l2" else error.abs())).mean()
        values = {"latent": float(loss.detach()), "lq": float((weights * clean.abs()).mean())}
        if moment.progress >= objective.decoded.after:
            more, terms = self.terms(batch.lq + scale * predicted.residual, predicted.detail, batch, large, random)
            loss, values = loss + more, values | terms
        return loss, {"loss": float(loss.detach()), **values}

    def after_step(self, moment: Moment, rate_factor: float) -> dict[str, float]:
        """Nothing beside the network learns."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the bank is on disk."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to restore."""

    def _watcher(self) -> Watcher:
        held_out = HeldOut.of(self.config, self.faces, self.outside, self.good, self.autoencoder)
        return Watcher(held_out, self.patches, self.autoencoder, DTYPES[self.config.machine.dtype])

    def held_out(self, network: nn.Module) -> Mapping[str, float]:
        """Errors for people never trained on, with right, wrong and no references, guide on and off."""
        with torch.autocast(self.device.type, enabled=False):
            return self._watcher().measures(cast(UNet2DModel, network), self.config.watching.decoded_faces)

    def sheet(self, network: nn.Module) -> Sheet:
        """Held-out faces: LQ, without, CacheKV right, CacheKV wrong, guide and CacheKV, guide, reference, truth."""
        with torch.autocast(self.device.type, enabled=False):
            return self._watcher().sheet(cast(UNet2DModel, network), self.config.watching.sheet_faces)

    def save(self, network: nn.Module, folder: Path) -> None:
        """Write the whole pipeline, averaged denoiser and frozen autoencoder, in fp16 safetensors."""
        if self.rank:
            return
        unet = UNet2DModel.from_config(cast(Any, network).config)
        unet.load_state_dict(network.state_dict())
        autoencoder = build_autoencoder(dict(self.autoencoder.config))
        autoencoder.load_state_dict(self.autoencoder.state_dict())
        pipeline = PatchPipeline(
            autoencoder.half(),
            unet.half(),
            ddim_scheduler(prediction_type="sample", set_alpha_to_one=True),
            LandmarkNetwork.from_pretrained(self.config.records.landmarks).half(),
            SurvivalNetwork.from_pretrained(self.config.records.survival).half(),
            patch_size=self.patches.size,
            latent_scale=self.patches.latent_scale,
            rotary=None if self.code is None else [self.code.lowest, self.code.highest],
        )
        pipeline.save_pretrained(folder, safe_serialization=True)


def build(config: PatchTraining) -> UNet2DModel:
    """The denoiser of a configuration: new, or from the weights in ``start_from``.

    Raises UsageError when these are of another shape.
    """
    model, rotary = config.model, config.model.rotary
    code = None if rotary is None else RotaryCode(rotary.lowest, rotary.highest)
    arguments = patch_unet_config(
        model.widths, model.attention, patch_size=model.patch_size, layers_per_block=model.layers_per_block
    )
    unet = initialise(UNet2DModel(**arguments), code, 0.0 if rotary is None else rotary.sharpness)
    if config.start_from:
        start = UNet2DModel.from_pretrained(config.start_from, torch_dtype=torch.float32)
        try:
            unet.load_state_dict(start.state_dict())
        except RuntimeError as error:
            raise UsageError(f"start_from: expected a denoiser of the configured shape: {error}") from error
    return install_cachekv(unet, code)


def grouped_branches(unet: UNet2DModel, patches: Patches, batch: Samples, share: int) -> tuple[Branch, ...]:
    """One reference pass for all references of a batch; rows of a group read theirs."""
    if not len(batch.references):
        return ()
    cache = reference_pass(unet, patches.cut(batch.references)[:, None])  # a set of one for every reference
    branches, start = [], 0
    for group, count in enumerate(batch.counts):
        if count:
            layers = {
                name: (k[start : start + count].flatten(0, 1)[None], v[start : start + count].flatten(0, 1)[None])
                for name, (k, v) in cache.layers.items()
            }
            branches.append(Branch(slice(group * share, (group + 1) * share), ReferenceCache(layers, count, "each")))
        start += count
    return tuple(branches)


def _timesteps(count: int, high: float, generator: torch.Generator) -> Tensor:
    """t = 1000 u^(1/high): the larger ``high``, the noisier."""
    uniform = torch.rand(count, generator=generator)
    return (TIMESTEPS * uniform ** (1 / high)).long().clamp_max(TIMESTEPS - 1)


def train_patches(config: PatchTraining, *, resume: bool = False) -> Outcome:
    """Train, or go on training; the averaged denoiser lies in ``<run>/model`` afterwards.

    Raises UsageError, CheckpointError, WeightsUnavailable and NotFiniteError as the parts do.
    """
    return run_parallel(partial(_leg, config, resume), config.processes, config.run / "meeting")


def _leg(config: PatchTraining, resume: bool, rank: int, world: int) -> Outcome:
    device = choose_device(config.machine.device)
    return ParallelLeg(cast(Any, config), PatchTask(config, device, rank), device, rank, world).train(resume=resume)
