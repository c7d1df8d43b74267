"""Training of the face prior: a class-free latent denoiser, then consistency distillation (arXiv 2310.04378).

Where InterLCM has a text-to-image model, a model of our own has one of faces alone, with learned tokens in the place of
a text's. What comes of it is frozen when the Spatial Encoder and the Visual Encoder are trained.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import LCMScheduler, UNet2DConditionModel, VQModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from facefix.datasets.faces import find_faces, hold_out
from facefix.errors import CheckpointError, UsageError
from facefix.methods.interlcm.spatial import lcm_scheduler, predict
from facefix.methods.interlcm.training_config import PriorTraining, Windows
from facefix.networks.autoencoder import decode
from facefix.training.latents import BankBuilder
from facefix.training.loop import Moment, autocast, place
from facefix.training.noise import NoiseSchedule
from facefix.training.runs import Sheet

TIMESTEPS = 1000
WATCHED_TIMESTEPS = (259, 499, 759)
"""the timesteps of three steps: what the restorer asks the prior at"""

_HELD_OUT_SEED = 7


class FacePrior(nn.Module):
    """A denoiser of face latents with its null tokens.

    :param unet: its cross-attention reads tokens of as many features as its ``cross_attention_dim``.
    :param tokens: how many null tokens.
    """

    def __init__(self, unet: UNet2DConditionModel, tokens: int, *, prediction: str, latent_scale: float) -> None:
        super().__init__()
        self.unet = unet
        self.null_tokens = nn.Parameter(torch.randn(tokens, int(unet.config.cross_attention_dim)))
        self.prediction, self.latent_scale = prediction, latent_scale

    def forward(self, latents: Tensor, timesteps: Tensor) -> Tensor:
        """The prediction for (B, C, h, w) noisy latents, float32."""
        return predict(self.unet, latents, timesteps, self.null_tokens.expand(len(latents), -1, -1))

    def save(self, folder: Path) -> None:
        """Write the U-Net in diffusers layout, the tokens beside it."""
        self.unet.save_pretrained(folder / "unet", safe_serialization=True)
        save_file({"null_tokens": self.null_tokens.detach().float().contiguous()}, folder / "tokens.safetensors")
        facts = {"prediction": self.prediction, "latent_scale": self.latent_scale}
        (folder / "prior.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> FacePrior:
        """What :meth:`save` wrote.

        :raises CheckpointError: the folder holds something else.
        """
        try:
            facts = json.loads((folder / "prior.json").read_text(encoding="utf-8"))
            tokens = load_file(folder / "tokens.safetensors")["null_tokens"]
            unet = UNet2DConditionModel.from_pretrained(folder / "unet", local_files_only=True, low_cpu_mem_usage=False)
            prior = cls(unet, len(tokens), prediction=facts["prediction"], latent_scale=float(facts["latent_scale"]))
            prior.null_tokens.data.copy_(tokens)
        except Exception as error:  # diffusers and safetensors raise many kinds for damaged files
            raise CheckpointError(f"{folder}: expected a face prior (unet, tokens, prior.json): {error}") from error
        return prior


class ConsistencyFunction:
    """f(z_t, t): the clean latents that a consistency model gives at once, exact at t = 0 (arXiv 2310.04378, eq. 9)."""

    def __init__(self, scheduler: LCMScheduler, device: torch.device) -> None:
        self.noise = NoiseSchedule(scheduler.alphas_cumprod.to(device))
        self.scaling, self.sigma = float(scheduler.config.timestep_scaling), 0.5

    def __call__(self, prior: FacePrior, noisy: Tensor, timesteps: Tensor) -> Tensor:
        """(B, C, h, w) clean latents of noisy ones at (B,) timesteps."""
        scaled = (self.scaling * timesteps.float()).view(-1, 1, 1, 1)
        skip = self.sigma**2 / (scaled.square() + self.sigma**2)
        clean = self.noise.clean(prior(noisy, timesteps), noisy, timesteps, prior.prediction)
        return scaled / (scaled.square() + self.sigma**2).sqrt() * clean + skip * noisy

    def ddim(self, teacher: FacePrior, noisy: Tensor, timesteps: Tensor, earlier: Tensor) -> Tensor:
        """One deterministic step of the teacher's, from noisy latents at ``timesteps`` to ``earlier`` ones."""
        clean = self.noise.clean(teacher(noisy, timesteps), noisy, timesteps, teacher.prediction)
        (signal, sigma), (to_signal, to_sigma) = self.noise.levels(timesteps), self.noise.levels(earlier)
        return to_signal * clean + to_sigma * (noisy - signal * clean) / sigma


class PriorTask:
    """What a step of either stage computes."""

    network: FacePrior

    def __init__(self, config: PriorTraining, device: torch.device) -> None:
        self.config, self.device = config, device
        torch.manual_seed(config.seed)
        self.autoencoder: VQModel = VQModel.from_pretrained(config.autoencoder, low_cpu_mem_usage=False)
        self.autoencoder.eval().requires_grad_(False)
        place(self.autoencoder, device, config.machine)
        faces = find_faces(config.faces)
        self.inside, self.outside = hold_out(faces, config.held_out, config.seed)
        bank = BankBuilder(config.bank, faces, config.faces.size, self.autoencoder, config.machine).bank()
        self.good = bank.good.to(device)  # (N, 2, C, h, w)
        unet = UNet2DConditionModel(**config.model)
        scale = 1.0 / float(self.good[self.inside].float().std())
        self.network = FacePrior(unet, config.null_tokens, prediction=config.prediction, latent_scale=scale)
        self.teacher = self.target = None
        start = config.start_from
        if config.consistency is not None:
            self.teacher = take_over(self.network, config.consistency.teacher).requires_grad_(False).eval()
            place(self.teacher, device, config.machine)
        if start is not None:
            take_over(self.network, start)
        place(self.network, device, config.machine)
        if config.consistency is not None:
            self.target = copy.deepcopy(self.network).eval().requires_grad_(False)
        self.scheduler = lcm_scheduler(prediction_type=config.prediction)
        self.consistent = ConsistencyFunction(self.scheduler, device)

    def losses(self, moment: Moment) -> tuple[Tensor, dict[str, float]]:
        """One batch of either stage."""
        generator = moment.generator()
        clean = self._draw(self.config.schedule.batch, moment, generator)
        noise = torch.randn(clean.shape, generator=generator).to(self.device)
        with autocast(self.device, self.config.machine):
            if self.config.consistency is None:
                return self._denoise(clean, noise, generator)
            return self._distil(clean, noise, generator)

    def _denoise(self, clean: Tensor, noise: Tensor, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        timesteps = torch.randint(TIMESTEPS, (len(clean),), generator=generator).to(self.device)
        signal, sigma = self.consistent.noise.levels(timesteps)
        predicted = self.network(signal * clean + sigma * noise, timesteps)
        target = self.consistent.noise.target(clean, noise, timesteps, self.config.prediction)
        loss = (predicted - target).square().mean()
        return loss, {"loss": float(loss.detach())}

    def _distil(self, clean: Tensor, noise: Tensor, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        settings = self.config.consistency
        assert settings is not None and self.teacher is not None and self.target is not None
        count = TIMESTEPS // settings.skipped
        number = torch.randint(1, count + 1, (len(clean),), generator=generator)
        timesteps = (number * settings.skipped - 1).to(self.device)  # 19, 39, .. 999
        earlier = (timesteps - settings.skipped).clamp_min(0)
        signal, sigma = self.consistent.noise.levels(timesteps)
        noisy = signal * clean + sigma * noise
        with torch.no_grad():
            before = self.consistent.ddim(self.teacher, noisy, timesteps, earlier)
            wanted = self.consistent(self.target, before, earlier)
        found = self.consistent(self.network, noisy, timesteps)
        huber = settings.huber
        loss = ((found - wanted).square() + huber**2).sqrt().mean() - huber
        return loss, {"loss": float(loss.detach())}

    def _draw(self, count: int, moment: Moment, generator: torch.Generator) -> Tensor:
        """(B, C, h, w) good latents of unit variance, half of them mirrored; squares of them early in the run."""
        chosen = torch.tensor(self.inside)[torch.randint(len(self.inside), (count,), generator=generator)]
        side = torch.randint(2, (count,), generator=generator)
        latents = self.good[chosen.to(self.device), side.to(self.device)].float() * self.network.latent_scale
        rows, columns = draw_window(latents.shape[2:], self.config.windows, moment, generator)
        return latents[:, :, rows, columns]

    def after_step(self, moment: Moment, rate_factor: float) -> dict[str, float]:
        """Move the target after the student."""
        if self.target is not None and self.config.consistency is not None:
            with torch.no_grad():
                for mine, theirs in zip(self.target.parameters(), self.network.parameters(), strict=True):
                    mine.lerp_(theirs, 1 - self.config.consistency.target_decay)
        return {}

    def state_dict(self) -> dict[str, Any]:
        """The target of the distillation."""
        return {} if self.target is None else {"target": self.target.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """What :meth:`state_dict` gave."""
        if self.target is not None:
            self.target.load_state_dict(state["target"])

    def held_out(self, network: nn.Module) -> Mapping[str, float]:
        """Squared error of the clean latents given at once from each noise level, on people never trained on."""
        if not self.outside:
            return {}
        errors = {}
        for timestep in WATCHED_TIMESTEPS:
            rows = [self._given(network, face, timestep) for face in self.outside]
            errors[f"t{timestep}"] = float(torch.stack([(a - b).square().mean() for a, b in rows]).mean())
        return errors

    def _given(self, network: nn.Module, face: int, timestep: int) -> tuple[Tensor, Tensor]:
        """What the prior makes of a face's latents at a noise level, and the latents, both of unit variance."""
        assert isinstance(network, FacePrior)
        clean = self.good[face, :1].float() * network.latent_scale
        generator = torch.Generator().manual_seed(_HELD_OUT_SEED + face)
        noise = torch.randn(clean.shape, generator=generator).to(self.device)
        timesteps = torch.tensor([timestep], device=self.device)
        signal, sigma = self.consistent.noise.levels(timesteps)
        return self.consistent(network, signal * clean + sigma * noise, timesteps), clean

    def sheet(self, network: nn.Module) -> Sheet:
        """Held-out faces: what the autoencoder makes of them, what the prior makes of them noised, and a new face."""
        pool = self.outside or self.inside
        chosen = pool[:: max(1, len(pool) // self.config.watching.sheet_faces)][: self.config.watching.sheet_faces]
        rows = []
        for face in chosen:
            given = [self._given(network, face, timestep) for timestep in WATCHED_TIMESTEPS]
            latents = [given[0][1], *(found for found, _ in given), self._new_face(network, face)]
            rows.append([self._decode(part)[0] for part in latents])
        return rows

    def _new_face(self, network: nn.Module, seed: int) -> Tensor:
        """(1, C, h, w): four steps of the consistency model from pure noise."""
        assert isinstance(network, FacePrior)
        generator = torch.Generator().manual_seed(seed)
        scheduler = copy.deepcopy(self.scheduler)
        scheduler.set_timesteps(4)
        sample = torch.randn(self.good.shape[2:], generator=generator)[None].to(self.device)
        for timestep in scheduler.timesteps:
            predicted = network(sample, timestep.to(self.device))
            sample = scheduler.step(predicted, timestep, sample, generator=generator, return_dict=False)[0]
        return sample

    def _decode(self, latents: Tensor) -> Tensor:
        return decode(self.autoencoder, latents / self.network.latent_scale, quantized=False).float()

    def save(self, network: nn.Module, folder: Path) -> None:
        """Write the averaged prior."""
        assert isinstance(network, FacePrior)
        network.save(folder)


def take_over(network: FacePrior, folder: Path) -> FacePrior:
    """Copy the weights of the prior in a folder, which is returned.

    :raises UsageError: it has another shape, or predicts something else.
    """
    start = FacePrior.load(folder)
    if start.prediction != network.prediction:
        raise UsageError(f"{folder}: expected a prior that predicts {network.prediction}, found {start.prediction}")
    try:
        network.load_state_dict(start.state_dict())
    except RuntimeError as error:
        raise UsageError(f"{folder}: expected a prior of the configured shape: {error}") from error
    network.latent_scale = start.latent_scale
    return start


def draw_window(
    extents: torch.Size, settings: Windows, moment: Moment, generator: torch.Generator
) -> tuple[slice, slice]:
    """Rows and columns of a random square of latents early in a run, all of them later."""
    side = extents[0] if settings.side is None or moment.progress >= settings.until else settings.side
    return random_square(extents, side, generator)


def random_square(extents: torch.Size, side: int, generator: torch.Generator) -> tuple[slice, slice]:
    """Rows and columns of a square at a random place; of all where that is smaller."""
    side = min(side, *extents)
    starts = (int(torch.randint(extent - side + 1, (), generator=generator)) for extent in extents)
    rows, columns = (slice(start, start + side) for start in starts)
    return rows, columns
