"""Configuration of the training of a denoiser in patches (``kind: patches``)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from facefix.datasets.sources import Count, Faces, Positive, Probability, Section
from facefix.methods.patches.records import RecordMix
from facefix.training.config import Machine, Schedule, Watching


class RotarySettings(Section):
    """Position code of queries and keys."""

    lowest: Positive = 1.0
    highest: Positive = 40.0
    sharpness: float = 6.0
    """logit at the same place that new layers begin with"""


class Network(Section):
    """The denoiser: a ``UNet2DModel`` between patches."""

    widths: tuple[Count, ...] = (96, 192, 384)
    attention: tuple[bool, ...] = (False, True, True)
    layers_per_block: Count = 1
    patch_size: Count = 2
    rotary: RotarySettings | None = RotarySettings()


class Drawing(Section):
    """What the samples of a batch are given."""

    share: Count = 2
    """degraded versions of a face that share a reference pass"""
    most: Count = 3
    """references"""
    guide: Probability = 0.5
    """share of samples whose record has a guide that get it"""
    absent: Probability = 0.2
    """share of groups without references"""
    nulled: Probability = 0.05
    """share of groups whose references are zeros"""
    wrong: Probability = 0.15
    """share of groups without guide with a stranger's references"""


class DecodedTermSettings(Section):
    """Losses on decoded pieces of some samples of a process's batch."""

    after: Probability = 0.0
    faces: Annotated[int, Field(ge=0)] = 1
    """samples decoded around the face, for all terms"""
    face_window: Count = 36
    """side in latents"""
    pieces: Annotated[int, Field(ge=0)] = 3
    """samples of which a random piece is decoded, for L1 and perceptual distance"""
    piece_window: Count = 24
    l1: float = 0.5
    perceptual: float = 1.0
    identity: float = 0.5


class PatchObjective(Section):
    """What the denoiser learns."""

    loss: Literal["l1", "l2"] = "l1"
    high_timesteps: Positive = 12.0
    small_weight: Probability = 0.5
    """weight of the latent loss where the true picture was enlarged to 512 px"""
    decoded: DecodedTermSettings = DecodedTermSettings()


class PatchWatching(Watching):
    """What is written along the way."""

    decoded_faces: Count = 24
    """held-out people whose faces are decoded to measure identity, perceptual distance and PSNR"""


class PatchTraining(Section):
    """``facefix train patches``."""

    kind: Literal["patches"] = "patches"
    run: Path
    seed: int = 1
    faces: Faces
    held_out: int = Field(24, ge=1)
    autoencoder: Path
    bank: Path
    """folder with ``good.npy``, ``landmarks.npy`` and ``records*``"""
    records: RecordMix
    latent_scale: Positive = 0.6
    model: Network = Network()
    start_from: Path | None = None
    drawing: Drawing = Drawing()
    objective: PatchObjective = PatchObjective()
    schedule: Schedule
    machine: Machine = Machine()
    processes: Count = 1
    watching: PatchWatching = PatchWatching()
