"""What a training run of a model of our own is told: first the face prior, in two stages, then the restorer."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from facefix.datasets.sources import Count, Faces, Positive, Probability, Section
from facefix.training.config import Bank, Machine, Schedule, Watching


class Windows(Section):
    """Training on squares of the latents, which takes less time than whole faces."""

    side: Count | None = None
    """in latents; whole faces by default"""
    until: Probability = 0.7
    """fraction of the run with squares; whole faces from there on"""


class Consistency(Section):
    """Consistency distillation (Luo et al. 2023, arXiv 2310.04378)."""

    teacher: Path
    """folder of a prior from the stage ``denoiser``"""
    skipped: Count = 20
    """timesteps that the teacher goes back in one step of DDIM"""
    target_decay: float = Field(0.95, ge=0, lt=1)
    """of the average of the student that serves as the target"""
    huber: Positive = 0.03
    """where the pseudo-Huber loss turns from squares to absolute values, for a latent of unit variance"""


class PriorTraining(Section):
    """The face prior: a denoiser that knows no classes, then a consistency model distilled from it."""

    kind: Literal["interlcm-prior"] = "interlcm-prior"
    run: Path
    seed: int = 1
    faces: Faces
    held_out: int = Field(16, ge=0)
    """people left out of training, for the errors that are logged"""
    autoencoder: Path
    """folder of a trained VQModel"""
    bank: Bank
    """only the good latents are used"""
    model: dict[str, Any]
    """arguments of UNet2DConditionModel"""
    null_tokens: Count = 32
    """learned tokens in the place of a text's"""
    prediction: Literal["epsilon", "sample", "v_prediction"] = "v_prediction"
    start_from: Path | None = None
    """folder of a prior to go on from"""
    consistency: Consistency | None = None
    """distil; without it, train the denoiser"""
    windows: Windows = Windows()
    schedule: Schedule
    machine: Machine = Machine()
    watching: Watching = Watching()


class ImageLosses(Section):
    """Losses on the decoded picture; 0 switches one off."""

    l1: float = 1.0
    perceptual: float = 1.0
    identity: float = 0.0
    """on whole faces only, so not while training is on squares"""
    identity_network: Literal["arcface", "dlib"] = "dlib"
    adversarial: float = 0.0
    """hinge patch GAN with this constant weight"""
    adversarial_after: Probability = 0.7
    """fraction of the run without the discriminator"""
    window: Count | None = None
    """side of the square that is decoded, in latents, at a random place; all of it by default. For the identity loss
    it lies in the true picture."""


class RestorerTraining(Section):
    """The Spatial Encoder and the Visual Encoder, through all steps and the decoder of a frozen prior."""

    kind: Literal["interlcm"] = "interlcm"
    run: Path
    seed: int = 1
    faces: Faces
    held_out: int = Field(16, ge=0)
    autoencoder: Path
    bank: Bank
    """good and degraded latents"""
    prior: Path
    """folder of a prior from the stage ``consistency``"""
    conditioning: tuple[Count, ...] = (16, 32, 32, 64)
    """widths of the embedding of the LQ picture"""
    visual: dict[str, Any] = {}  # noqa: RUF012 (a pydantic field)
    """arguments of VisualEncoder beside the numbers of tokens and features, which the other networks decide"""
    steps: tuple[Count, ...] = Field((3, 1, 2), min_length=1)
    """numbers of steps to train for; the first is the model's default"""
    token_steps: int = Field(100, ge=0)
    """so many steps bring the visual tokens to the prior's null tokens, which is where it works, before all else"""
    losses: ImageLosses = ImageLosses()
    windows: Windows = Windows()
    schedule: Schedule
    machine: Machine = Machine()
    watching: Watching = Watching()
