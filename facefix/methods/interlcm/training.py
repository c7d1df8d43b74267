"""Training of the Spatial Encoder and the Visual Encoder through all steps and the decoder (arXiv 2502.02215, 3.3).

The face prior, the autoencoder and the network that visual tokens are made from are frozen. Losses are on the decoded
picture, before any colour fix: L1, perceptual, identity, and a patch GAN late in the run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from diffusers import ControlNetModel, VQModel
from torch import Tensor, nn

from facefix.datasets.degradation import degrade
from facefix.datasets.faces import TrainingFace, find_faces, hold_out, load_native
from facefix.device import choose_device
from facefix.errors import UsageError
from facefix.methods.interlcm.networks import LiteTokens
from facefix.methods.interlcm.pipeline import NOTHING_LEFT_OUT, Ablation, InterLCMPipeline
from facefix.methods.interlcm.prior import FacePrior, PriorTask, draw_window, random_square
from facefix.methods.interlcm.spatial import lcm_scheduler, predict, spatial_encoder_for, spatial_residuals
from facefix.methods.interlcm.training_config import ImageLosses, PriorTraining, RestorerTraining
from facefix.methods.interlcm.visual import VisualEncoder
from facefix.metrics.identity import identity_network
from facefix.metrics.perceptual import PerceptualDistance
from facefix.networks.autoencoder import DOWNSAMPLE_FACTOR, build_autoencoder, decode
from facefix.networks.images import resize, to_network
from facefix.training.config import Bank
from facefix.training.latents import BankBuilder
from facefix.training.loop import Leg, Moment, Outcome, autocast, place
from facefix.training.losses import PatchDiscriminator, hinge_loss
from facefix.training.runs import Sheet, psnr

_FULL_PX = 512
_HELD_OUT_SEED = 7
_HELD_OUT_FACES = 4
"""faces that the logged measures are of: whole pictures, so that more would cost as much as training does"""


class Encoders(nn.Module):
    """What is trained."""

    def __init__(self, spatial: ControlNetModel, visual: VisualEncoder) -> None:
        super().__init__()
        self.spatial, self.visual = spatial, visual


class Pictures:
    """Good and degraded pictures of the faces of a bank, the degraded ones made again by the bank's own seeds."""

    def __init__(self, faces: tuple[TrainingFace, ...], settings: Bank, size: int) -> None:
        self.faces, self.size = faces, size
        self.presets = [preset for preset, count in settings.presets.items() for _ in range(count)]

    def pair(self, index: int, version: int) -> tuple[Tensor, Tensor]:
        """(1, 3, S, S) in [-1, 1]: a face, and version ``version`` of it degraded; mirrored where the sum is odd."""
        native = load_native(self.faces[index].path)[None].float() / 255
        native = resize(native, min(_FULL_PX, max(native.shape[-1], self.size))).clamp(0, 1)
        native = native.flip(3) if (index + version) % 2 else native
        seed, scale = index * 1000 + version, native.shape[-1] / _FULL_PX
        low = degrade(native, [seed], self.presets[version], scale=scale)
        good, low = (resize(part, self.size).clamp(0, 1) * 2 - 1 for part in (native, low))
        return good, to_network(((low + 1) * 127.5).round())


@dataclass(frozen=True, slots=True)
class Batch:
    """Squares of B faces, latents of unit variance."""

    good: Tensor
    """(B, 3, 8h, 8w) the truth"""
    lq: Tensor
    """(B, 3, 8h, 8w)"""
    lq_latents: Tensor
    """(B, C, h, w)"""
    tokens: Tensor
    """(B, N, D) of the image encoder, which sees the whole LQ face"""


class RestorerTask:
    """What a step of training computes."""

    network: Encoders

    def __init__(self, config: RestorerTraining, device: torch.device) -> None:
        self.config, self.device = config, device
        torch.manual_seed(config.seed)
        self.autoencoder: VQModel = VQModel.from_pretrained(config.autoencoder, low_cpu_mem_usage=False)
        self.prior = FacePrior.load(config.prior)
        self.image_encoder = LiteTokens.with_imagenet_weights()
        for frozen in (self.autoencoder, self.prior, self.image_encoder):
            frozen.eval().requires_grad_(False)
            place(frozen, device, config.machine)
        spatial = spatial_encoder_for(self.prior.unet, conditioning=config.conditioning, copy_weights=True)
        tokens, length = self.prior.null_tokens.shape
        side = int(self.prior.unet.config.sample_size) * DOWNSAMPLE_FACTOR
        if side != config.faces.size:
            raise UsageError(f"faces.size: expected {side}, the prior's, found {config.faces.size}")
        sizes = {"in_tokens": self.image_encoder.tokens_shape[0], "out_tokens": tokens, "length": length}
        self.network = Encoders(spatial, VisualEncoder(**{**config.visual, **sizes})).requires_grad_(True)
        place(self.network, device, config.machine)
        self.faces = find_faces(config.faces)
        self.inside, self.outside = hold_out(self.faces, config.held_out, config.seed)
        builder = BankBuilder(config.bank, self.faces, config.faces.size, self.autoencoder, config.machine)
        self.degraded = builder.bank().degraded  # (N, V, C, h, w)
        self.pictures = Pictures(self.faces, config.bank, config.faces.size)
        self.scheduler = lcm_scheduler(prediction_type=self.prior.prediction)
        self.image_losses = ImageTerms(config.losses, config.schedule.learning_rate, device)

    def losses(self, moment: Moment) -> tuple[Tensor, dict[str, float]]:
        """One batch, through a random one of the numbers of steps, or the first steps of the visual tokens alone."""
        generator = moment.generator()
        batch = self._draw(moment, generator)
        with autocast(self.device, self.config.machine):
            tokens = self.network.visual(batch.tokens)
            if moment.step < self.config.token_steps:
                error = (tokens - self.prior.null_tokens).square().mean()
                return error, {"loss": float(error.detach()), "tokens": float(error.detach())}
            forms = self.config.steps
            steps = forms[int(torch.randint(len(forms), (), generator=generator))]
            latents = self._restore(batch, tokens, steps, generator)
            side = self.config.losses.window or latents.shape[-1]
            rows, columns = random_square(latents.shape[2:], side, generator)
            wanted = _pixels(batch.good, rows, columns)
            found = self._decode(latents[:, :, rows, columns])
            face = _pasted(batch.good, found, rows, columns) if self._is_whole(batch) else None
            loss, values = self.image_losses(found, wanted, moment, face, batch.good)
        return loss, {"loss": float(loss.detach()), "steps": float(steps), **values}

    def _restore(self, batch: Batch, tokens: Tensor, steps: int, generator: torch.Generator) -> Tensor:
        """(B, C, h, w) restored latents, with gradient through every step, as the pipeline does them."""
        scheduler = lcm_scheduler(prediction_type=self.prior.prediction)
        scheduler.set_timesteps(steps + 1)
        scheduler.set_begin_index(1)
        timesteps = scheduler.timesteps[1:]
        noise = torch.randn(batch.lq_latents.shape, generator=generator).to(self.device)
        sample: Tensor = scheduler.add_noise(batch.lq_latents, noise, timesteps[:1])
        for timestep in timesteps:
            residuals = spatial_residuals(self.network.spatial, sample, timestep, tokens, batch.lq)
            predicted = predict(self.prior.unet, sample, timestep, tokens, residuals)
            sample = scheduler.step(predicted, timestep, sample, generator=generator, return_dict=False)[0]
        return sample

    def _draw(self, moment: Moment, generator: torch.Generator) -> Batch:
        """Random faces in a random degradation each; squares of them early in the run."""
        count = self.config.schedule.batch
        chosen = torch.tensor(self.inside)[torch.randint(len(self.inside), (count,), generator=generator)].tolist()
        versions = torch.randint(self.degraded.shape[1], (count,), generator=generator).tolist()
        pairs = [self.pictures.pair(face, version) for face, version in zip(chosen, versions, strict=True)]
        good, lq = (torch.cat(part).to(self.device) for part in zip(*pairs, strict=True))
        latents = self.degraded[chosen, versions].float().to(self.device) * self.prior.latent_scale
        rows, columns = draw_window(latents.shape[2:], self.config.windows, moment, generator)
        with torch.no_grad():
            tokens = self.image_encoder(lq).float()
        return Batch(_pixels(good, rows, columns), _pixels(lq, rows, columns), latents[:, :, rows, columns], tokens)

    def _is_whole(self, batch: Batch) -> bool:
        return batch.good.shape[-1] == self.config.faces.size

    def _decode(self, latents: Tensor) -> Tensor:
        return decode(self.autoencoder, latents / self.prior.latent_scale, quantized=False).float()

    def after_step(self, moment: Moment, rate_factor: float) -> dict[str, float]:
        """The discriminator's update, on the pictures of this step."""
        return self.image_losses.update_discriminator(rate_factor)

    def state_dict(self) -> dict[str, Any]:
        """The discriminator."""
        return self.image_losses.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """What :meth:`state_dict` gave."""
        self.image_losses.load_state_dict(state)

    def held_out(self, network: nn.Module) -> Mapping[str, float]:
        """PSNR and perceptual distance of a few faces never trained on: LQ, restored, and with parts left out."""
        if not self.outside:
            return {}
        pipeline = self.pipeline(network)
        truth, lq = (torch.cat(part) for part in zip(*(self._held_out_pair(n) for n in self._watched()), strict=True))
        results = {"lq": lq.to(self.device)}
        for steps in sorted(set(self.config.steps)):
            results[f"steps{steps}"] = self._sampled(pipeline, lq, steps)
        results["no_spatial"] = self._sampled(pipeline, lq, None, Ablation(spatial_scale=0.0))
        results["from_noise"] = self._sampled(pipeline, lq, None, Ablation(from_noise=True))
        values = {}
        for name, images in results.items():
            values[f"{name}_psnr"] = psnr(images, truth.to(self.device))
            if self.image_losses.perceptual is not None:
                distance = self.image_losses.perceptual(images, truth.to(self.device))
                values[f"{name}_perceptual"] = float(distance.mean())
        return values

    def sheet(self, network: nn.Module) -> Sheet:
        """Held-out faces: LQ, restored in each number of steps, without the Spatial Encoder, truth."""
        pipeline = self.pipeline(network)
        rows = []
        for face in self._watched(self.config.watching.sheet_faces):
            truth, lq = self._held_out_pair(face)
            results = [self._sampled(pipeline, lq, steps) for steps in sorted(set(self.config.steps))]
            results.append(self._sampled(pipeline, lq, None, Ablation(spatial_scale=0.0)))
            rows.append([lq[0], *(images[0] for images in results), truth[0]])
        return rows

    def _watched(self, count: int = _HELD_OUT_FACES) -> list[int]:
        pool = self.outside or self.inside
        return pool[:: max(1, len(pool) // count)][:count]

    def _held_out_pair(self, face: int) -> tuple[Tensor, Tensor]:
        return self.pictures.pair(face, 0)

    def _sampled(
        self, pipeline: InterLCMPipeline, lq: Tensor, steps: int | None, ablation: Ablation = NOTHING_LEFT_OUT
    ) -> Tensor:
        generators = [torch.Generator().manual_seed(_HELD_OUT_SEED + number) for number in range(len(lq))]
        images: Tensor = pipeline(lq, steps, generators, output_type="pt", ablation=ablation).images
        return images

    def pipeline(self, network: nn.Module) -> InterLCMPipeline:
        """The pipeline around trained encoders; it takes faces of the size that it was trained for."""
        encoders = cast(Encoders, network)
        pipeline = InterLCMPipeline(
            self.autoencoder,
            self.prior.unet,
            encoders.spatial,
            encoders.visual,
            self.image_encoder,
            self.scheduler,
            steps=self.config.steps,
            latent_scale=self.prior.latent_scale,
        )
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def save(self, network: nn.Module, folder: Path) -> None:
        """Write the whole pipeline in fp16 safetensors."""
        pipeline = self.pipeline(network)
        autoencoder = build_autoencoder(dict(self.autoencoder.config))
        autoencoder.load_state_dict(self.autoencoder.state_dict())
        halves = {"vae": autoencoder.half()}
        for name in ("unet", "controlnet", "visual_encoder", "image_encoder"):
            part = getattr(pipeline, name)
            half = type(part).from_config(part.config).half()
            half.load_state_dict(part.state_dict())
            halves[name] = half
        pipeline.register_modules(**halves)
        pipeline.save_pretrained(folder, safe_serialization=True)


class ImageTerms:
    """The losses on decoded pictures, and the discriminator that one of them needs."""

    def __init__(self, settings: ImageLosses, learning_rate: float, device: torch.device) -> None:
        self.settings, self.learning_rate = settings, learning_rate
        self.perceptual = PerceptualDistance().to(device) if settings.perceptual else None
        self.identity = cast(Any, identity_network(settings.identity_network)) if settings.identity else None
        if self.identity is not None:
            self.identity.to(device)
        self.discriminator = PatchDiscriminator().to(device) if settings.adversarial else None
        self.optimiser = (
            torch.optim.AdamW(self.discriminator.parameters(), learning_rate, betas=(0.9, 0.99), weight_decay=0.0)
            if self.discriminator is not None
            else None
        )
        self._pair: tuple[Tensor, Tensor] | None = None

    def __call__(
        self, found: Tensor, wanted: Tensor, moment: Moment, face: Tensor | None, truth: Tensor
    ) -> tuple[Tensor, dict[str, float]]:
        """The weighted sum of the losses of (B, 3, H, W) pictures in [-1, 1], and each one's value.

        :param face: (B, 3, S, S) whole faces that hold ``found``, for the identity loss; None: there are none.
        :param truth: (B, 3, S, S) the true faces.
        """
        settings = self.settings
        error = (found - wanted).abs().mean()
        total, values = settings.l1 * error, {"l1": float(error.detach()), "psnr": psnr(found.detach(), wanted)}
        if self.perceptual is not None:
            distance = self.perceptual(found, wanted).mean()
            total, values["perceptual"] = total + settings.perceptual * distance, float(distance.detach())
        if self.identity is not None and face is not None:
            with torch.no_grad():
                person = self.identity.embed(truth)
            strangeness = self.identity.dissimilarity(self.identity.embed(face), person).mean()
            total, values["identity"] = total + settings.identity * strangeness, float(strangeness.detach())
        self._pair = None
        if self.discriminator is not None and moment.progress >= settings.adversarial_after:
            self.discriminator.requires_grad_(False)
            adversarial = -self.discriminator(found).mean()
            self.discriminator.requires_grad_(True)
            total, values["adversarial"] = total + settings.adversarial * adversarial, float(adversarial.detach())
            self._pair = (wanted, found.detach())
        return total, values

    def update_discriminator(self, rate_factor: float) -> dict[str, float]:
        """One step of the discriminator, where the last pictures were shown to it."""
        if self.discriminator is None or self.optimiser is None or self._pair is None:
            return {}
        real, fake = self._pair
        loss = hinge_loss(self.discriminator(real), self.discriminator(fake))
        self.optimiser.param_groups[0]["lr"] = self.learning_rate * rate_factor
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self.optimiser.step()
        return {"discriminator": float(loss.detach())}

    def state_dict(self) -> dict[str, Any]:
        """The discriminator and its optimiser."""
        if self.discriminator is None or self.optimiser is None:
            return {}
        return {"discriminator": self.discriminator.state_dict(), "optimiser": self.optimiser.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """What :meth:`state_dict` gave."""
        if self.discriminator is not None and self.optimiser is not None:
            self.discriminator.load_state_dict(state["discriminator"])
            self.optimiser.load_state_dict(state["optimiser"])


def _pixels(images: Tensor, rows: slice, columns: slice) -> Tensor:
    """The part of (B, 3, 8h, 8w) pictures under a square of their latents."""
    factor = DOWNSAMPLE_FACTOR
    return images[:, :, rows.start * factor : rows.stop * factor, columns.start * factor : columns.stop * factor]


def _pasted(images: Tensor, part: Tensor, rows: slice, columns: slice) -> Tensor:
    """(B, 3, S, S) pictures with ``part`` under a square of their latents."""
    factor = DOWNSAMPLE_FACTOR
    pasted = images.clone()
    pasted[:, :, rows.start * factor : rows.stop * factor, columns.start * factor : columns.stop * factor] = part
    return pasted


def train_interlcm(config: PriorTraining | RestorerTraining, *, resume: bool = False) -> Outcome:
    """Train, or go on training, what a configuration says; ``<run>/model`` has the prior or the pipeline afterwards.

    Raises UsageError, DeviceError, CheckpointError, WeightsUnavailable and NotFiniteError as the parts do.
    """
    device = choose_device(config.machine.device)
    task: Any = PriorTask(config, device) if isinstance(config, PriorTraining) else RestorerTask(config, device)
    return Leg(cast(Any, config), task, device).train(resume=resume)
