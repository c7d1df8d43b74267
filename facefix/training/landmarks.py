"""Training of the landmark network: dlib's points of the clean crop are the truth for its degraded versions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import face_recognition_models
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from facefix.datasets.degradation import degrade
from facefix.datasets.faces import TrainingFace, find_faces, hold_out, load_native
from facefix.device import choose_device
from facefix.errors import UsageError
from facefix.faces.landmarks68 import CropLandmarks
from facefix.files.atomic import replacing
from facefix.networks.images import resize
from facefix.networks.landmarks import CROP_PX, MIRRORED, POINTS, LandmarkNetwork, Landmarks, negative_log_likelihood
from facefix.training.config import LandmarkTraining
from facefix.training.loop import Leg, Moment, Outcome, autocast, place
from facefix.training.runs import Sheet

_STEADY_PX = 4.0
"""Faces on which dlib's starts differ by more are left out: it does not see them."""
_LUMA = (0.299, 0.587, 0.114)
CLEAN = "clean"


@dataclass(frozen=True, slots=True)
class LandmarkBank:
    """Small pictures of F faces in V versions each."""

    pictures: Tensor
    """(F, V, s, s) uint8 luma"""
    points: Tensor
    """(F, 68, 2) px of the 512 crop"""
    spread: Tensor
    """(F,) px: how far dlib's starts differ"""


def versions_of(config: LandmarkTraining) -> list[str]:
    """The preset of each version of a face."""
    return [CLEAN, *(preset for preset, count in config.presets.items() for _ in range(count))]


def load_bank(config: LandmarkTraining, faces: Sequence[TrainingFace], size: int) -> LandmarkBank:
    """The bank in the file that the configuration names; computed where it is not there.

    Raises UsageError when the file holds other faces or versions.
    """
    if not config.bank.exists():
        predictor = CropLandmarks(config.predictor or Path(face_recognition_models.pose_predictor_model_location()))
        rows = [_row(config, predictor, face, index, size) for index, face in enumerate(faces)]
        stacked = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
        config.bank.parent.mkdir(parents=True, exist_ok=True)
        with replacing(config.bank, durable=False) as temporary:
            save_file(stacked, temporary)
    bank = LandmarkBank(**load_file(config.bank))
    expected = (len(faces), len(versions_of(config)), size, size)
    if tuple(bank.pictures.shape) != expected:
        raise UsageError(
            f"{config.bank}: expected pictures {expected}, found {tuple(bank.pictures.shape)}; name another"
        )
    return bank


def _row(
    config: LandmarkTraining, predictor: CropLandmarks, face: TrainingFace, index: int, size: int
) -> dict[str, Tensor]:
    native = load_native(face.path)
    points, spread = predictor(native.permute(1, 2, 0).contiguous().numpy())
    picture = resize(native[None].float() / 255, config.faces.size).clamp(0, 1)
    scale = config.faces.size / CROP_PX
    versions = [picture]
    for number, preset in enumerate(versions_of(config)[1:]):
        versions.append(degrade(picture, [index * 1000 + number], preset, scale=scale))
    small = F.interpolate(torch.cat(versions), (size, size), mode="bilinear", antialias=True, align_corners=False)
    luma = (small * small.new_tensor(_LUMA).view(1, 3, 1, 1)).sum(1)
    return {
        "pictures": luma.mul(255).round().clamp(0, 255).to(torch.uint8),
        "points": torch.from_numpy(points).float(),
        "spread": torch.tensor(spread, dtype=torch.float32),
    }


def jittered(
    pictures: Tensor, points: Tensor, config: LandmarkTraining, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Pictures (B, 1, s, s) and their points (B, 68, 2), each turned, enlarged, moved and perhaps mirrored."""
    count = len(pictures)
    draws = torch.rand(count, 5, generator=generator) * 2 - 1
    angle = torch.deg2rad(draws[:, 0] * config.rotation_deg)
    zoom = torch.exp(draws[:, 1] * config.zoom)
    shift = draws[:, 2:4] * config.shift_px
    turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], 1).view(count, 2, 2) * zoom.view(-1, 1, 1)
    middle = (CROP_PX - 1) / 2
    moved = (points - middle) @ turn.transpose(1, 2) + middle + shift[:, None]
    # grid_sample wants the way back: from the new crop to the old one, in -1..1.
    back = torch.linalg.inv(turn)
    theta = torch.cat([back, -(back @ (shift[..., None] * 2 / CROP_PX))], 2)
    grid = F.affine_grid(theta, list(pictures.shape), align_corners=False)
    seen = F.grid_sample(pictures, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    mirror = draws[:, 4] > 0
    flipped = moved[:, list(MIRRORED)] * moved.new_tensor((-1, 1)) + moved.new_tensor((CROP_PX - 1, 0))
    return torch.where(mirror.view(-1, 1, 1, 1), seen.flip(3), seen), torch.where(mirror.view(-1, 1, 1), flipped, moved)


class LandmarkTask:
    """What a step of landmark training computes."""

    def __init__(self, config: LandmarkTraining, device: torch.device) -> None:
        self.config, self.device = config, device
        torch.manual_seed(config.seed)
        self.network: nn.Module = LandmarkNetwork(**config.model)
        faces = find_faces(config.faces)
        inside, outside = hold_out(faces, config.held_out, config.seed)
        self.bank = load_bank(config, faces, int(cast(Any, self.network).config.size))
        self.inside, self.outside = (
            torch.tensor([index for index in part if float(self.bank.spread[index]) <= _STEADY_PX])
            for part in (inside, outside)
        )
        mean_shape = self.bank.points[self.inside].mean(0)
        cast(Tensor, self.network.mean_shape).copy_((mean_shape + _mirrored(mean_shape)) / 2)
        place(self.network, device, config.machine)

    def losses(self, moment: Moment) -> tuple[Tensor, dict[str, float]]:
        """One batch of random versions of random faces."""
        generator = moment.generator()
        count = self.config.schedule.batch
        chosen = self.inside[torch.randint(len(self.inside), (count,), generator=generator)]
        versions = torch.randint(self.bank.pictures.shape[1], (count,), generator=generator)
        pictures = self.bank.pictures[chosen, versions].float()[:, None] / 255
        pictures, points = jittered(pictures, self.bank.points[chosen], self.config, generator)
        with autocast(self.device, self.config.machine):
            found = self.network(pictures.to(self.device))
        points = points.to(self.device)
        loss = negative_log_likelihood(found, points)
        error = (found.points - points).detach().norm(dim=-1).mean()
        return loss, {"loss": float(loss.detach()), "error px": float(error)}

    def after_step(self, moment: Moment, rate_factor: float) -> dict[str, float]:
        """Nothing beside the network learns."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the bank is on disk."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to restore."""

    def held_out(self, network: nn.Module) -> Mapping[str, float]:
        """Mean errors in px of the 512 crop, for people never trained on; ``mean shape`` is what knowing nothing gives.

        ``z`` is the root mean square of the errors over the deviations that the network states: 1 where it is right.
        """
        measures: dict[str, float] = {}
        if not len(self.outside):
            return measures
        truth = self.bank.points[self.outside]
        names = versions_of(self.config)
        for name in dict.fromkeys(names):
            columns = [column for column, preset in enumerate(names) if preset == name]
            found = [self._predict(network, self.outside, column) for column in columns]
            error = torch.stack([part.points - truth for part in found])
            measures[f"{name} px"] = float(error.norm(dim=-1).mean())
            deviation = torch.stack([part.deviation for part in found])
            measures[f"{name} z"] = float((error / deviation[..., None]).square().mean().sqrt())
        shape = cast(Tensor, network.mean_shape).cpu()
        measures["mean shape px"] = float((shape - truth).norm(dim=-1).mean())
        return measures

    def _predict(self, network: nn.Module, faces: Tensor, version: int) -> Landmarks:
        pictures = self.bank.pictures[faces, version].float()[:, None] / 255
        found = [network(part.to(self.device)) for part in pictures.split(256)]
        return Landmarks(
            *(torch.cat([getattr(part, name).cpu() for part in found]) for name in ("points", "deviation"))
        )

    def sheet(self, network: nn.Module) -> Sheet:
        """Held-out faces in a row each, a version a column, with the points drawn in (black: truth, white: found)."""
        pool = self.outside if len(self.outside) else self.inside
        chosen = pool[: self.config.watching.sheet_faces]
        columns = [list(self._drawn(network, chosen, column)) for column in range(self.bank.pictures.shape[1])]
        return [list(row) for row in zip(*columns, strict=True)]

    def _drawn(self, network: nn.Module, faces: Tensor, version: int) -> Iterator[Tensor]:
        found = self._predict(network, faces, version)
        scale = self.bank.pictures.shape[-1] / CROP_PX
        for row, face in enumerate(faces.tolist()):
            picture = self.bank.pictures[face, version].float() / 127.5 - 1
            for points, value in ((self.bank.points[face], -1.0), (found.points[row], 1.0)):
                x, y = ((points + 0.5) * scale - 0.5).round().long().clamp(0, len(picture) - 1).unbind(1)
                picture[y, x] = value
            yield picture.expand(3, -1, -1)

    def save(self, network: nn.Module, folder: Path) -> None:
        """The network in fp16, in diffusers layout."""
        half = LandmarkNetwork(**dict(self.config.model))
        half.load_state_dict(network.state_dict())
        half.half().save_pretrained(folder)


def _mirrored(points: Tensor) -> Tensor:
    """(68, 2) points of the mirror image."""
    assert len(points) == POINTS
    return points[list(MIRRORED)] * points.new_tensor((-1, 1)) + points.new_tensor((CROP_PX - 1, 0))


def train_landmarks(config: LandmarkTraining, *, resume: bool = False) -> Outcome:
    """Train, or go on training, the landmark network of a configuration; it lies in ``<run>/model`` afterwards.

    Raises UsageError, DeviceError, CheckpointError and NotFiniteError as the parts do.
    """
    device = choose_device(config.machine.device)
    return Leg(config, LandmarkTask(config, device), device).train(resume=resume)
