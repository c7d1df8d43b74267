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

from facefix.datasets.degradation import degrade
from facefix.datasets.faces import find_faces, hold_out, load_pixels
from facefix.device import choose_device
from facefix.errors import UsageError
from facefix.methods.refldm.pipeline import ReFLDMPipeline
from facefix.networks.autoencoder import build_autoencoder
from facefix.networks.cachekv import denoise, install_cachekv, reference_pass
from facefix.networks.guide import is_guided
from facefix.networks.images import resize, to_network
from facefix.networks.reference_cache import Branch, ReferenceCache
from facefix.networks.schedule import REFLDM_SCHEDULE, ddim_scheduler, published_alphas_cumprod
from facefix.networks.unet import build_unet
from facefix.training.config import DenoiserTraining
from facefix.training.decoded import DecodedTerms
from facefix.training.draws import Batch
from facefix.training.latents import BankBuilder
from facefix.training.loop import Leg, Moment, Outcome, autocast, place
from facefix.training.noise import _TIMESTEPS, NoiseSchedule
from facefix.training.runs import Sheet

_HELD_OUT_SEED = 7
_SHEET_STEPS = 4


class DenoiserTask:
    """What a step of denoiser training computes."""

    def __init__(self, config: DenoiserTraining, device: torch.device) -> None:
        self.config, self.device = config, device
        torch.manual_seed(config.seed)
        self.autoencoder: VQModel = VQModel.from_pretrained(config.autoencoder).eval().requires_grad_(False)
        place(self.autoencoder, device, config.machine)
        self.network = build_unet(config.model)
        if config.start_from:
            _take_over(self.network, UNet2DModel.from_pretrained(config.start_from))
        self.guided = is_guided(self.network)
        if self.guided != config.bank.guided:
            raise UsageError(
                f"bank.guided: expected {self.guided} for a denoiser with {self.network.config.in_channels} input "
                f"channels, found {config.bank.guided}"
            )
        place(self.network, device, config.machine)
        if config.machine.compile:
            _compile_blocks(self.network)
        self.faces = find_faces(config.faces)
        self.inside, self.outside = hold_out(self.faces, config.held_out, config.seed)
        builder = BankBuilder(config.bank, self.faces, config.faces.size, self.autoencoder, config.machine)
        self.bank = builder.bank().to(device)
        objective = config.objective
        self.latent_scale = self.bank.residual_scale() if objective.residual else 1.0
        schedule = REFLDM_SCHEDULE
        alphas = published_alphas_cumprod(schedule["beta_start"], schedule["beta_end"], _TIMESTEPS)
        self.noise = NoiseSchedule(alphas.to(device))
        self.decoded = (
            DecodedTerms(objective.decoded, self.autoencoder, self.faces, config.faces.size, quantize=config.quantize)
            if objective.decoded.active
            else None
        )

    def losses(self, moment: Moment) -> tuple[Tensor, dict[str, float]]:
        """One batch: the diffusion loss, and those on decoded pictures once their time has come."""
        generator = moment.generator()
        batch = self._draw(self.inside, self.config.schedule.batch, generator)
        objective = self.config.objective
        keep = (torch.rand(len(batch.faces), generator=generator) >= objective.lq_dropout).to(self.device)
        pooled = (torch.rand(len(batch.faces), generator=generator) < objective.lq_pooled).to(self.device)
        lq = torch.where(pooled.view(-1, 1, 1, 1), _pooled(batch.degraded), batch.degraded) * keep.view(-1, 1, 1, 1)
        base = batch.base if self.guided else lq
        clean = (batch.good - base if objective.residual else batch.good) / self.latent_scale
        noise = torch.randn(clean.shape, generator=generator).to(self.device)
        timesteps = self._timesteps(len(clean), generator)
        signal, sigma = self.noise.levels(timesteps)
        noisy = signal * clean + sigma * noise
        with autocast(self.device, self.config.machine):
            predicted = self._predict(self.network, self._seen(noisy, lq, base), timesteps, batch.references).float()
        target = self.noise.target(clean, noise, timesteps, objective.prediction)
        error = predicted - target
        loss = error.square().mean() if objective.loss == "l2" else error.abs().mean()
        values = {"diffusion": float(loss.detach())}
        if self.decoded is not None and moment.progress >= objective.decoded.after:
            count = min(objective.decoded.samples, len(clean))
            rows = slice(0, count * (len(clean) // count), len(clean) // count)  # spread over the groups
            guess = self.noise.clean(predicted[rows], noisy[rows], timesteps[rows], objective.prediction)
            guess = guess * self.latent_scale + (base[rows] if objective.residual else 0)
            with autocast(self.device, self.config.machine):
                more, terms = self.decoded(
                    guess,
                    batch.good[rows],
                    batch.faces[rows],
                    batch.mirrored[rows],
                    self.noise.alphas_cumprod[timesteps[rows]],
                )
            loss = loss + more
            values |= terms
        return loss, {"loss": float(loss.detach()), **values}

    def _draw(self, pool: list[int], count: int, generator: torch.Generator) -> Batch:
        """``count`` samples of random faces of the pool; groups without references come last."""
        settings = self.config.references
        share = min(settings.share, count)
        groups = max(1, count // share)
        chosen = self._people(pool, groups, generator)
        fate = torch.rand(groups, 2, generator=generator)
        chosen = chosen[torch.argsort((fate[:, 0] < settings.absent).int(), stable=True)]
        present = int((fate[:, 0] >= settings.absent).sum())
        faces = chosen.repeat_interleave(share)
        versions = torch.randint(self.bank.degraded.shape[1], (len(faces),), generator=generator)
        sides = None
        if self.config.bank.guided:  # the references of a group are mirrored as its faces are
            sides = torch.randint(2, (groups,), generator=generator)
            versions = self._on_side(versions, faces, sides.repeat_interleave(share))
        mirrored = (faces + versions) % 2
        where, versions, side = (index.to(self.device) for index in (faces, versions, mirrored))
        references = self._references(chosen[:present], generator, None if sides is None else sides[:present])
        references = references * (fate[:present, 1] >= settings.nulled).to(self.device).view(-1, 1, 1, 1, 1)
        degraded = self.bank.degraded[where, versions].float()
        return Batch(
            faces,
            mirrored,
            self.bank.good[where, side].float(),
            degraded,
            references,
            self._base(degraded, where, versions, present * share),
        )

    def _base(self, degraded: Tensor, faces: Tensor, versions: Tensor, present: int) -> Tensor:
        """The guides of the first ``present`` samples, those that have references, and the degraded latents."""
        if self.bank.guides is None:
            return degraded
        return torch.cat([self.bank.guides[faces[:present], versions[:present]].float(), degraded[present:]])

    def _people(self, pool: list[int], count: int, generator: torch.Generator) -> Tensor:
        """Random faces of the pool, as many of people with several pictures as the configuration says."""
        chosen = torch.tensor(pool)[torch.randint(len(pool), (count,), generator=generator)]
        share = self.config.references.paired
        paired = [face for face in pool if self.faces[face].references]
        lone = [face for face in pool if not self.faces[face].references]
        if share is None or not paired or not lone:
            return chosen
        several = torch.tensor(paired)[torch.randint(len(paired), (count,), generator=generator)]
        single = torch.tensor(lone)[torch.randint(len(lone), (count,), generator=generator)]
        return torch.where(torch.rand(count, generator=generator) < share, several, single)

    @staticmethod
    def _on_side(versions: Tensor, faces: Tensor, sides: Tensor) -> Tensor:
        """The given or the neighbouring version, whichever is mirrored as ``sides`` says."""
        wrong = (faces + versions) % 2 != sides
        return torch.where(wrong, versions ^ 1, versions)

    def _references(self, faces: Tensor, generator: torch.Generator, sides: Tensor | None = None) -> Tensor:
        """(P, n, 8, h, w): random other pictures of each person, or the same picture augmented; repeated when few.

        :param sides: (P,) 0 or 1, whether each face is mirrored; for a guided bank.
        """
        if sides is not None:
            return self._aligned_references(faces, sides, generator)
        count, versions = self.config.references.count, self.bank.references.shape[1]
        rows = []
        for face in faces.tolist():
            sources = self.faces[face].references or (face,)
            order = torch.randperm(len(sources) * versions, generator=generator)[:count]
            picks = [(sources[int(number) % len(sources)], int(number) // len(sources)) for number in order]
            picks = [picks[number % len(picks)] for number in range(count)]
            rows.append(torch.stack([self.bank.references[source, version].float() for source, version in picks]))
        return self._stacked(rows)

    def _aligned_references(self, faces: Tensor, sides: Tensor, generator: torch.Generator) -> Tensor:
        """Other pictures as they are or slightly augmented, the same picture augmented, mirrored as the face is."""
        count, versions = self.config.references.count, self.bank.references.shape[1]
        rows = []
        for face, side in zip(faces.tolist(), sides.tolist(), strict=True):
            others = self.faces[face].references
            sources = others or (face,)
            start = int(torch.randint(len(sources), (), generator=generator))
            row = []
            for number in range(count):
                source = sources[(start + number) % len(sources)]
                version = int(torch.randint(versions, (), generator=generator))
                version = version if (source + version) % 2 == side else version ^ 1
                pristine = others and float(torch.rand((), generator=generator)) < self.config.references.pristine
                row.append(
                    (self.bank.good[source, side] if pristine else self.bank.references[source, version]).float()
                )
            rows.append(torch.stack(row))
        return self._stacked(rows)

    def _stacked(self, rows: list[Tensor]) -> Tensor:
        empty = self.bank.references[:0, :1].expand(0, self.config.references.count, -1, -1, -1)
        return torch.stack(rows) if rows else empty.float()

    def _timesteps(self, count: int, generator: torch.Generator) -> Tensor:
        uniform = torch.rand(count, generator=generator)
        timesteps = (_TIMESTEPS * uniform ** (1 / self.config.objective.high_timesteps)).long()
        return timesteps.clamp_max(_TIMESTEPS - 1).to(self.device)

    def _predict(self, network: nn.Module, seen: Tensor, timesteps: Tensor, references: Tensor) -> Tensor:
        """The network's output for its (B, C, h, w) input, the first groups reading their references, with gradient."""
        unet = cast(UNet2DModel, network)
        if not len(references):
            return denoise(unet, seen, timesteps)
        share = min(self.config.references.share, len(seen))
        cache = _repeated(reference_pass(unet, references), share)
        return denoise(unet, seen, timesteps, (Branch(slice(0, len(references) * share), cache),))

    def _seen(self, noisy: Tensor, lq: Tensor, base: Tensor) -> Tensor:
        """The denoiser's input: noisy and LQ latents, and the guides where it takes them."""
        return torch.cat([noisy, lq, base] if self.guided else [noisy, lq], 1)

    def after_step(self, moment: Moment, rate_factor: float) -> dict[str, float]:
        """Nothing beside the network learns."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the bank is on disk."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to restore."""

    def held_out(self, network: nn.Module) -> Mapping[str, float]:
        """Squared error of the latents after one step from pure noise, for people never trained on.

        With the right references, with another person's, with none; ``lq`` is the error of the degraded latents. A
        guided denoiser has the right guide even where CacheKV holds another person's references.
        """
        if not self.outside:
            return {}
        generator = torch.Generator().manual_seed(_HELD_OUT_SEED)
        faces = torch.tensor(self.outside)
        sides = faces % 2 if self.config.bank.guided else None
        right = self._references(faces, generator, sides)
        strangers = torch.tensor([self._stranger(face) for face in self.outside])
        wrong = self._references(strangers, generator, sides)
        good = self.bank.good[self.outside, :][torch.arange(len(faces)), faces % 2].float()  # version 0
        lq = self.bank.degraded[self.outside, 0].float()
        noise = torch.randn(good.shape, generator=generator).to(self.device)
        timesteps = torch.full((len(faces),), _TIMESTEPS - 1, device=self.device)
        errors = {"lq": float((lq - good).square().mean())}
        guides = lq if self.bank.guides is None else self.bank.guides[self.outside, 0].float()
        if self.guided:
            errors["guide"] = float((guides - good).square().mean())
        for name, references in (("right", right), ("wrong", wrong), ("none", right[:0])):
            base = lq if name == "none" else guides
            guesses = []
            for rows in torch.arange(len(faces)).split(16):
                mine = references[rows] if len(references) else references
                seen = self._seen(noise[rows], lq[rows], base[rows])
                predicted = self._ungrouped(network, seen, timesteps[rows], mine)
                guess = self.noise.clean(predicted, noise[rows], timesteps[rows], self.config.objective.prediction)
                guesses.append(guess * self.latent_scale + (base[rows] if self.config.objective.residual else 0))
            errors[name] = float((torch.cat(guesses) - good).square().mean())
        return errors

    def _ungrouped(self, network: nn.Module, seen: Tensor, timesteps: Tensor, references: Tensor) -> Tensor:
        unet = cast(UNet2DModel, network)
        branches = (Branch(slice(None), reference_pass(unet, references)),) if len(references) else ()
        return denoise(unet, seen, timesteps, branches).float()

    def _stranger(self, face: int) -> int:
        """The next held-out face of another person."""
        others = [other for other in self.outside if self.faces[other].identity != self.faces[face].identity]
        return next((other for other in others if other > face), others[0])

    def pipeline(self, network: nn.Module) -> ReFLDMPipeline:
        """The pipeline around a network, with the settings that it was trained for."""
        objective = self.config.objective
        return ReFLDMPipeline(
            self.autoencoder,
            cast(UNet2DModel, network),
            self._scheduler(),
            reference_encoding="each",
            quantize_latents=self.config.quantize,
            residual=objective.residual,
            latent_scale=self.latent_scale,
            crop_size=512,
            round_pixels=True,
            default_steps=_SHEET_STEPS,
            default_guidance_scale=1.0,
        )

    def _scheduler(self) -> DDIMScheduler:
        return ddim_scheduler(prediction_type=self.config.objective.prediction, set_alpha_to_one=True)

    def sheet(self, network: nn.Module) -> Sheet:
        """Held-out faces: severe LQ, result, result with a stranger's reference, result without, reference, truth."""
        pipeline = self.pipeline(network)
        pipeline.set_progress_bar_config(disable=True)
        pipeline.register_to_config(crop_size=self.config.faces.size)
        pool = self.outside or self.inside
        chosen = pool[:: max(1, len(pool) // self.config.watching.sheet_faces)][: self.config.watching.sheet_faces]
        return [self._sheet_row(pipeline, face) for face in chosen]

    def _sheet_row(self, pipeline: ReFLDMPipeline, face: int) -> list[Tensor]:
        truth = self._picture(face)
        own = self._picture((self.faces[face].references or (face,))[0])
        stranger = self._picture(self._stranger(face) if self.outside else face)
        low = degrade((truth + 1) / 2, [face], "severe", scale=truth.shape[-1] / 512) * 2 - 1
        results = []
        for reference in (own, stranger, None):
            cache = None if reference is None else pipeline.encode_references(reference)
            generator = torch.Generator(self.device).manual_seed(_HELD_OUT_SEED)
            results.append(pipeline(low, cache, generator=generator, output_type="pt").images[0])
        return [low[0], *results, own[0], truth[0]]

    def _picture(self, face: int) -> Tensor:
        pixels = to_network(load_pixels(self.faces[face].path, self.config.faces.size))[None].to(self.device)
        return resize(pixels, self.config.faces.size).clamp(-1, 1)

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


def _pooled(latents: Tensor) -> Tensor:
    """Latents averaged over squares of 8 x 8 places (or the whole), at their size again."""
    side = max(1, latents.shape[-1] // 8)
    return F.interpolate(F.adaptive_avg_pool2d(latents, side), size=latents.shape[2:], mode="bilinear")


def _repeated(cache: ReferenceCache, times: int) -> ReferenceCache:
    """(P, n T, C) -> (P times, n T, C): neighbouring rows share references."""
    if times == 1:
        return cache
    layers = {
        name: (k.repeat_interleave(times, 0), v.repeat_interleave(times, 0)) for name, (k, v) in cache.layers.items()
    }
    return ReferenceCache(layers, cache.num_references, cache.encoding, cache.sources)


def _compile_blocks(network: UNet2DModel) -> None:
    """Compile the residual blocks; attention reads its references from the context, which the compiler cannot see."""
    for module in network.modules():
        if type(module).__name__ == "ResnetBlock2D":
            module.compile()


def train_denoiser(config: DenoiserTraining, *, resume: bool = False) -> Outcome:
    """Train, or go on training, the denoiser of a configuration; the pipeline lies in ``<run>/model`` afterwards.

    Raises UsageError, DeviceError, CheckpointError, WeightsUnavailable and NotFiniteError as the parts do.
    """
    device = choose_device(config.machine.device)
    return Leg(config, DenoiserTask(config, device), device).train(resume=resume)
