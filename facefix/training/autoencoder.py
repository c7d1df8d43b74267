"""Training of the VQGAN: reconstruction, perceptual distance, codebook, patch GAN (Esser et al. 2021; ReF-LDM's spec).

A configuration may train it without the codebook in the path (``quantize: false``): the codes then follow the latents
by the codebook loss alone, and the decoder learns to read the latents as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from diffusers import VQModel
from torch import Tensor, nn

from facefix.datasets.crops import CropRecipe, draw_crops
from facefix.datasets.faces import find_faces, load_native
from facefix.device import choose_device
from facefix.metrics.identity import DlibFaceNet
from facefix.metrics.perceptual import PerceptualDistance
from facefix.networks.autoencoder import build_autoencoder
from facefix.networks.images import to_network
from facefix.training.config import AutoencoderTraining
from facefix.training.loop import Leg, Moment, Outcome, autocast, place
from facefix.training.losses import (
    PatchDiscriminator,
    adversarial_weight,
    codebook_loss,
    hinge_loss,
    nearest_codes,
)
from facefix.training.runs import Sheet, psnr

_LARGE_PICTURE_PX = 384
"""From here on a picture also serves at half its size, since the denoiser may work at either scale."""


class AutoencoderTask:
    """What a step of autoencoder training computes."""

    def __init__(self, config: AutoencoderTraining, device: torch.device) -> None:
        self.config, self.device = config, device
        torch.manual_seed(config.seed)
        start = config.start_from
        self.network = VQModel.from_pretrained(start) if start else build_autoencoder(config.model)
        if config.freeze_encoder:
            self.network.encoder.requires_grad_(False)
            self.network.quant_conv.requires_grad_(False)
        place(self.network, device, config.machine)
        self.pools = load_pools(config, device)
        self.recipe = CropRecipe(config.colour, config.low_quality)
        weights = config.losses
        self.perceptual = PerceptualDistance().to(device) if weights.perceptual else None
        self.identity = DlibFaceNet().to(device) if weights.identity else None
        self.discriminator = PatchDiscriminator().to(device) if weights.adversarial else None
        self.discriminator_optimiser = (
            torch.optim.AdamW(self.discriminator.parameters(), config.schedule.learning_rate, betas=(0.5, 0.9))
            if self.discriminator
            else None
        )
        self._pair: tuple[Tensor, Tensor] | None = None
        self._forward = torch.compile(self._reconstruct) if config.machine.compile else self._reconstruct

    def _reconstruct(self, images: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Latents (B, 8, h, w), what the codebook has for them, and the decoded images."""
        network = cast(Any, self.network)
        latents = network.quant_conv(network.encoder(images))
        found = nearest_codes(network.quantize.embedding.weight, latents)
        read = latents + (found - latents).detach() if self.config.quantize else latents
        images = network.decoder(network.post_quant_conv((read + noise).to(latents.dtype)))
        return latents.float(), found.float(), images.float()

    def losses(self, moment: Moment) -> tuple[Tensor, dict[str, float]]:
        """One batch of crops."""
        generator = moment.generator()
        whole = self.identity is not None and moment.step % self.config.losses.identity_every == 0
        images = self._whole_faces(generator) if whole else self._batch(moment, generator)
        noise = self._noise(images, generator)
        with autocast(self.device, self.config.machine):
            latents, found, decoded = self._forward(images, noise)
        weights = self.config.losses
        error = decoded - images
        reconstruction = weights.l1 * error.abs().mean() + weights.l2 * error.square().mean()
        values = {"l1": float(error.detach().abs().mean()), "psnr": psnr(decoded.detach(), images)}
        if self.perceptual is not None and moment.step % weights.perceptual_every == 0:
            with autocast(self.device, self.config.machine):
                distance = self.perceptual(decoded, images).mean()
            reconstruction = reconstruction + weights.perceptual * weights.perceptual_every * distance
            values["perceptual"] = float(distance.detach())
        if self.identity is not None and whole:
            wanted, found_identity = self.identity.embed(images), self.identity.embed(decoded)
            strangeness = self.identity.dissimilarity(found_identity, wanted).mean()
            reconstruction = reconstruction + weights.identity * strangeness
            values["identity"] = float(strangeness.detach())
        loss = reconstruction + weights.codebook * codebook_loss(latents, found, self._commitment())
        loss = loss + weights.latent_scale * _scale_loss(latents)
        if self.discriminator is not None and moment.step >= weights.adversarial_from:
            adversarial = -self.discriminator(decoded).mean()
            last = cast(Any, self.network).decoder.conv_out.weight
            balance = adversarial_weight(reconstruction, adversarial, last)
            loss = loss + weights.adversarial * balance * adversarial
            values["adversarial"] = float(adversarial.detach())
            self._pair = (images, decoded.detach())
        return loss, {"loss": float(loss.detach()), **values, "latent_std": float(latents.detach().std())}

    def _commitment(self) -> float:
        # Without the codebook in the path nothing asks the latents to sit on codes.
        return self.config.losses.commitment if self.config.quantize else 0.0

    def _batch(self, moment: Moment, generator: torch.Generator) -> Tensor:
        config = self.config
        size, count = config.crop, config.schedule.batch
        if moment.progress >= config.whole_from and moment.step % 3 == 0:
            count = max(1, round(count * (config.crop / config.whole) ** 2))
            size = config.whole
        crops = draw_crops(self.pools, count, size, self.recipe, generator).to(self.device)
        return crops.contiguous(memory_format=torch.channels_last) if config.machine.channels_last else crops

    def _whole_faces(self, generator: torch.Generator) -> Tensor:
        """Whole pictures at ``whole`` px, as many pixels as a usual batch has, half of them mirrored."""
        config = self.config
        count = max(1, round(config.schedule.batch * (config.crop / config.whole) ** 2))
        pool = [picture for pool in self.pools for picture in pool]
        chosen = [pool[int(index)] for index in torch.randint(len(pool), (count,), generator=generator)]
        size = (config.whole, config.whole)
        faces = [F.interpolate(p[None].float(), size=size, mode="bilinear", antialias=True) for p in chosen]
        mirrored = torch.rand(count, generator=generator) < 0.5
        turned = [face.flip(3) if flip else face for face, flip in zip(faces, mirrored.tolist(), strict=True)]
        return to_network(torch.cat(turned).to(self.device))

    def _noise(self, images: Tensor, generator: torch.Generator) -> Tensor:
        batch, _, height, width = images.shape
        shape = (batch, int(cast(Any, self.network).config.latent_channels), height // 8, width // 8)
        return self.config.latent_noise * torch.randn(shape, generator=generator).to(self.device)

    def after_step(self, moment: Moment, rate_factor: float) -> dict[str, float]:
        """Train the discriminator on the pictures that the step made."""
        if self._pair is None or self.discriminator is None or self.discriminator_optimiser is None:
            return {}
        self.discriminator_optimiser.zero_grad(set_to_none=True)
        real, fake = self._pair
        self._pair = None
        loss = hinge_loss(self.discriminator(real), self.discriminator(fake))
        loss.backward()
        for group in self.discriminator_optimiser.param_groups:
            group["lr"] = self.config.schedule.learning_rate * rate_factor
        self.discriminator_optimiser.step()
        return {"discriminator": float(loss.detach())}

    def state_dict(self) -> dict[str, Any]:
        """The discriminator, where there is one."""
        if self.discriminator is None or self.discriminator_optimiser is None:
            return {}
        return {
            "discriminator": self.discriminator.state_dict(),
            "optimiser": self.discriminator_optimiser.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """What ``state_dict`` gave."""
        if self.discriminator is not None and self.discriminator_optimiser is not None:
            self.discriminator.load_state_dict(state["discriminator"])
            self.discriminator_optimiser.load_state_dict(state["optimiser"])

    def _samples(self) -> Tensor:
        """(n, 3, S, S): whole faces, evenly spread over the pools, S a multiple of 8 of at most 256."""
        pool = self.pools[-1]
        count = min(self.config.watching.sheet_faces, len(pool))
        chosen = [pool[index * len(pool) // count] for index in range(count)]
        size = min(256, *(min(picture.shape[1:]) // 8 * 8 for picture in chosen))
        resized = [F.interpolate(p[None].float(), size=(size, size), mode="bilinear", antialias=True) for p in chosen]
        return to_network(torch.cat(resized).to(self.device))

    def _decoded(self, network: nn.Module, images: Tensor) -> Tensor:
        model = cast(Any, network)
        latents = model.quant_conv(model.encoder(images))
        decoded: Tensor = model.decode(latents, force_not_quantize=not self.config.quantize).sample
        return decoded.float()

    def sheet(self, network: nn.Module) -> Sheet:
        """Faces of the training set and their reconstructions; then both with the colour channels exchanged."""
        images = self._samples()
        rows: list[list[Tensor]] = []
        for version in (images, images.flip(1)):
            decoded = torch.cat([self._decoded(network, image[None]) for image in version])
            rows += [list(version), list(decoded)]
        return rows

    def held_out(self, network: nn.Module) -> Mapping[str, float]:
        """Quality of the averaged network on the sheet's whole faces."""
        images = self._samples()
        decoded = torch.cat([self._decoded(network, image[None]) for image in images])
        return {"psnr_whole": psnr(decoded, images)}

    def save(self, network: nn.Module, folder: Path) -> None:
        """Write the averaged network as a VQModel folder."""
        cast(Any, network).save_pretrained(folder)


def load_pools(config: AutoencoderTraining, device: torch.device) -> list[list[Tensor]]:
    """Pictures as uint8 on the device: large ones, large ones at half size, small ones (only those that exist)."""
    pictures = [load_native(face.path) for face in find_faces(config.faces)]
    large = [picture for picture in pictures if min(picture.shape[1:]) >= _LARGE_PICTURE_PX]
    halves = [F.avg_pool2d(picture[None].float(), 2)[0].round().to(torch.uint8) for picture in large]
    small = [picture for picture in pictures if min(picture.shape[1:]) < _LARGE_PICTURE_PX]
    return [[picture.to(device) for picture in pool] for pool in (large, halves, small) if pool]


def _scale_loss(latents: Tensor) -> Tensor:
    """How far the latents' channels are from mean 0 and variance 1."""
    mean = latents.mean((0, 2, 3))
    variance = latents.square().mean((0, 2, 3))
    return (variance - 1).square().mean() + mean.square().mean()


def train_autoencoder(config: AutoencoderTraining, *, resume: bool = False) -> Outcome:
    """Train, or go on training, the autoencoder of a configuration; the model lies in ``<run>/model`` afterwards.

    Raises UsageError, DeviceError, CheckpointError and NotFiniteError as the parts do.
    """
    device = choose_device(config.machine.device)
    return Leg(config, AutoencoderTask(config, device), device).train(resume=resume)


@torch.no_grad()
def unit_latents(network: VQModel, latents: Tensor) -> None:
    """Rescale a trained autoencoder, in place, so that latents like these have mean 0 and variance 1 per channel.

    The change is folded into the 1x1 convolutions on both sides of the latents and into the codes, so images stay the
    same; the scaling factor becomes 1. ``latents`` (N, C, h, w) are what ``encode`` gives now.
    """
    latents = latents / float(network.config.scaling_factor)
    network.register_to_config(scaling_factor=1.0)
    mean = latents.mean((0, 2, 3))
    deviation = latents.std((0, 2, 3)).clamp_min(1e-6)
    before, after, codes = network.quant_conv, network.post_quant_conv, network.quantize.embedding
    after.bias.add_((after.weight[:, :, 0, 0] * mean).sum(1))
    after.weight.mul_(deviation.view(1, -1, 1, 1))
    before.weight.div_(deviation.view(-1, 1, 1, 1))
    before.bias.sub_(mean).div_(deviation)
    codes.weight.sub_(mean).div_(deviation)
