"""Training of the network that estimates what damage has left of a face; clean and degraded pictures give the truth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from facefix.datasets.degradation import degrade, targets
from facefix.datasets.faces import TrainingFace, find_faces, hold_out, load_native
from facefix.device import choose_device
from facefix.errors import UsageError
from facefix.files.atomic import replacing
from facefix.networks.images import resize, to_network
from facefix.networks.survival import BANDS, Survival, SurvivalNetwork, band_energy, true_survival
from facefix.training.config import SurvivalTraining
from facefix.training.loop import Leg, Moment, Outcome, autocast, place
from facefix.training.runs import Sheet

_FULL_PX = 512
_STEP_PX = 8
"""Pieces begin at multiples of this, so that JPEG's blocks lie in them as in whole pictures."""


@dataclass(frozen=True, slots=True)
class SurvivalBank:
    """Pieces of F faces in V versions each."""

    pieces: Tensor
    """(F, V, 3, s, s) uint8 RGB, degraded"""
    truth: Tensor
    """(F, V, 3, 5, s / 16, s / 16) fp16: fraction, gain, chroma gain"""


def _is_large(face: TrainingFace) -> bool:
    with Image.open(face.path) as opened:
        return min(opened.size) >= _FULL_PX


def versions_of(config: SurvivalTraining) -> list[str]:
    """The preset of each version of a face."""
    return [preset for preset, count in config.presets.items() for _ in range(count)]


def load_bank(config: SurvivalTraining, faces: Sequence[TrainingFace]) -> SurvivalBank:
    """The bank in the file that the configuration names; computed where it is not there.

    Raises UsageError when the file holds other faces or versions.
    """
    if not config.bank.exists():
        rows = [_row(config, face, index) for index, face in enumerate(faces)]
        config.bank.parent.mkdir(parents=True, exist_ok=True)
        with replacing(config.bank, durable=False) as temporary:
            save_file({name: torch.stack([row[name] for row in rows]) for name in rows[0]}, temporary)
    bank = SurvivalBank(**load_file(config.bank))
    expected = (len(faces), len(versions_of(config)), 3, config.piece, config.piece)
    if tuple(bank.pieces.shape) != expected:
        raise UsageError(f"{config.bank}: expected pieces {expected}, found {tuple(bank.pieces.shape)}; name another")
    return bank


def _row(config: SurvivalTraining, face: TrainingFace, index: int) -> dict[str, Tensor]:
    picture = resize(load_native(face.path)[None].float() / 255, _FULL_PX).clamp(0, 1)
    pieces, truths = [], []
    for number, preset in enumerate(versions_of(config)):
        seed = index * 1000 + number
        generator = torch.Generator().manual_seed(seed)
        steps = (_FULL_PX - config.piece) // _STEP_PX + 1
        top, left = (torch.randint(steps, (2,), generator=generator) * _STEP_PX).tolist()
        window = (slice(None), slice(None), slice(top, top + config.piece), slice(left, left + config.piece))
        found, clean = degrade(picture, [seed], preset), targets(picture, [seed], preset)
        survived = true_survival(found[window] * 2 - 1, clean[window] * 2 - 1)
        pieces.append(found[window][0].mul(255).round().to(torch.uint8))
        truths.append(torch.stack([survived.fraction[0], survived.gain[0], survived.chroma_gain[0]]).half())
    return {"pieces": torch.stack(pieces), "truth": torch.stack(truths)}


class SurvivalTask:
    """What a step of training computes."""

    def __init__(self, config: SurvivalTraining, device: torch.device) -> None:
        self.config, self.device = config, device
        torch.manual_seed(config.seed)
        self.network: nn.Module = SurvivalNetwork(**config.model)
        faces = find_faces(config.faces)
        large = [index for index, face in enumerate(faces) if _is_large(face)]
        if not large:
            raise UsageError(f"faces.images: expected pictures of at least {_FULL_PX} px, found smaller ones only")
        inside, outside = (set(part) for part in hold_out(faces, config.held_out, config.seed))
        self.inside, self.outside = (
            torch.tensor([row for row, index in enumerate(large) if index in part], dtype=torch.long)
            for part in (inside, outside)
        )
        self.bank = load_bank(config, [faces[index] for index in large])
        place(self.network, device, config.machine)

    def losses(self, moment: Moment) -> tuple[Tensor, dict[str, float]]:
        """One batch of random pieces, some mirrored or turned a quarter: damage has no right way up."""
        generator = moment.generator()
        count = self.config.schedule.batch
        chosen = self.inside[torch.randint(len(self.inside), (count,), generator=generator)]
        versions = torch.randint(self.bank.pieces.shape[1], (count,), generator=generator)
        mirror, turn = torch.randint(2, (2,), generator=generator).tolist()
        pieces, truth = self.bank.pieces[chosen, versions], self.bank.truth[chosen, versions]
        pieces, truth = (x.flip(-1) if mirror else x for x in (pieces, truth))
        pieces, truth = (x.transpose(-1, -2) if turn else x for x in (pieces, truth))
        images = to_network(pieces.to(self.device))
        with autocast(self.device, self.config.machine):
            found = self.network(images)
        error = (_stacked(found) - truth.to(self.device).float()).square()
        squared = (error * _weights(images)).mean((0, 2, 3, 4))
        loss = squared.sum()
        values = {"loss": loss, "fraction": squared[0], "gain": squared[1], "chroma gain": squared[2]}
        return loss, {name: float(value.detach()) for name, value in values.items()}

    def after_step(self, moment: Moment, rate_factor: float) -> dict[str, float]:
        """Nothing beside the network learns."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the bank is on disk."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to restore."""

    def held_out(self, network: nn.Module) -> Mapping[str, float]:
        """Share of the variance of the surviving fraction that is explained, for people never trained on.

        For each preset, and for each band of all of them (0 is the finest).
        """
        measures: dict[str, float] = {}
        if not len(self.outside):
            return measures
        truth = self.bank.truth[self.outside].float()  # (F, V, 3, 5, h, w)
        found = torch.stack(
            [self._predict(network, self.bank.pieces[self.outside, v]) for v in range(truth.shape[1])], 1
        )
        names = versions_of(self.config)
        for name in dict.fromkeys(names):
            columns = [column for column, preset in enumerate(names) if preset == name]
            measures[f"{name} fraction R2"] = _explained(found[:, columns, 0], truth[:, columns, 0])
        for band in range(BANDS):
            measures[f"band {band} fraction R2"] = _explained(found[:, :, 0, band], truth[:, :, 0, band])
            measures[f"band {band} gain R2"] = _explained(found[:, :, 1, band], truth[:, :, 1, band])
        return measures

    def _predict(self, network: nn.Module, pieces: Tensor) -> Tensor:
        parts = [_stacked(network(to_network(part.to(self.device)))).cpu() for part in pieces.split(32)]
        return torch.cat(parts)

    def sheet(self, network: nn.Module) -> Sheet:
        """A held-out piece a row; then, for each band, the true and the estimated fraction."""
        pool = self.outside if len(self.outside) else self.inside
        rows = []
        for number, face in enumerate(pool[: self.config.watching.sheet_faces].tolist()):
            version = number % self.bank.pieces.shape[1]
            piece = self.bank.pieces[face, version]
            found = self._predict(network, piece[None])[0, 0]
            truth = self.bank.truth[face, version, 0].float()
            maps = [_map(one[band], self.config.piece) for band in range(BANDS) for one in (truth, found)]
            rows.append([to_network(piece), *maps])
        return rows

    def save(self, network: nn.Module, folder: Path) -> None:
        """The network in fp16, in diffusers layout."""
        half = SurvivalNetwork(**dict(self.config.model))
        half.load_state_dict(network.state_dict())
        half.half().save_pretrained(folder)


def _stacked(survival: Survival) -> Tensor:
    """(B, 3, 5, h, w) in the order of the bank."""
    return torch.stack([survival.fraction, survival.gain, survival.chroma_gain], 1)


def _weights(images: Tensor) -> Tensor:
    """(B, 1, 5, h, w), about 1 on the mean: mostly the energy of each band.

    A wrong gain costs the square of its error times the energy of what it is multiplied with.
    """
    energy = torch.stack(band_energy(images), 1)
    share = (energy / energy.mean((0, 2, 3), keepdim=True).clamp_min(1e-8)).clamp(max=8)
    return (0.4 + 0.6 * share)[:, None]


def _map(values: Tensor, side: int) -> Tensor:
    scaled = values.repeat_interleave(side // values.shape[0], 0).repeat_interleave(side // values.shape[1], 1)
    return (scaled * 2 - 1).expand(3, -1, -1)


def _explained(found: Tensor, truth: Tensor) -> float:
    return float(1 - (found - truth).square().mean() / truth.var().clamp_min(1e-9))


def train_survival(config: SurvivalTraining, *, resume: bool = False) -> Outcome:
    """Train, or go on training, the network of a configuration; it lies in ``<run>/model`` afterwards.

    Raises UsageError, DeviceError, CheckpointError and NotFiniteError as the parts do.
    """
    device = choose_device(config.machine.device)
    return Leg(config, SurvivalTask(config, device), device).train(resume=resume)
