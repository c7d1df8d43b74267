"""Training records on disk: degraded faces and guides as latents of the frozen autoencoder, memory-mapped.

A *good* table holds every face and its mirror image; a *records* folder holds as many degraded versions as have been
made so far, each with the guide made from another picture of the person, from a stranger's, or with none. Builders
append to folders of their own while a training run reads what was there when its leg began.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import VQModel
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from facefix.datasets.degradation import ARCHIVE, degrade, targets
from facefix.datasets.faces import TrainingFace, load_native
from facefix.datasets.sources import Count, Positive, Probability, Section
from facefix.errors import UsageError
from facefix.networks.autoencoder import DOWNSAMPLE_FACTOR, LATENT_CHANNELS, encode
from facefix.networks.composition import compose_guide, lay_references
from facefix.networks.images import resize
from facefix.networks.landmarks import LandmarkNetwork
from facefix.networks.survival import SurvivalNetwork

FULL_PX = 512
META = np.dtype(
    [("face", "i4"), ("side", "i1"), ("preset", "i1"), ("guide_face", "i4"), ("seed", "i8"), ("done", "i1")]
)
NO_GUIDE = -1
PARTS = ("lq", "clean", "guide", "truth")
PICTURES = ("clean", "guide")
"""kept as pictures too"""


class RecordMix(Section):
    """What records are made of."""

    presets: dict[str, Positive] = Field(
        {"severe": 0.35, "moderate": 0.25, "spec": 0.12, "mild": 0.1, "archive": 0.18}, min_length=1
    )
    """preset -> share; order matters, it numbers them"""
    paired: Probability = 0.65
    """share of records of people with several pictures"""
    small: Positive = 0.5
    """weight of a face whose file is smaller than 512 px, as a target"""
    guided: Probability = 0.7
    """share of the records of people with several pictures that have a guide"""
    wrong: Probability = 0.15
    """share of guides made from another person's picture"""
    most: Count = 3
    """references that a guide is made from"""
    landmarks: Path
    """folder of a LandmarkNetwork"""
    survival: Path
    """folder of a SurvivalNetwork"""
    capacity: Count = 20000
    """records of a folder"""
    seed: int = 0
    """of the folder ``records<seed>``"""


@dataclass(frozen=True, slots=True)
class Records:
    """Records of all folders, read in place."""

    folders: tuple[tuple[NDArray[np.void], dict[str, NDArray[Any]]], ...]
    presets: tuple[str, ...]
    index: NDArray[np.int64]
    """(n, 2) folder and row of every record that is done"""

    def meta(self) -> NDArray[np.void]:
        """(n,) structured array of META."""
        return np.array([self.folders[folder][0][row] for folder, row in self.index], META)

    def picture(self, part: str, number: int) -> Tensor:
        """(3, 512, 512) in [-1, 1] of ``clean`` or ``guide``."""
        folder, row = self.index[number]
        return torch.from_numpy(self.folders[folder][1][f"{part}_px"][row].astype(np.float32)) / 127.5 - 1

    def latents(self, part: str, number: int) -> Tensor:
        """(8, h, w) float32 of a table.

        ``lq``, ``clean``: the guide without references, ``guide``: the one with them, where a record has one, and
        ``truth``: of archive records; the truth of others is the good face.
        """
        folder, row = self.index[number]
        return torch.from_numpy(self.folders[folder][1][part][row].astype(np.float32))


def open_records(bank: Path, limit: int | None = None) -> Records:
    """Every record in the ``records*`` folders of a bank. Raises UsageError when there is none."""
    folders, index = [], []
    presets: tuple[str, ...] = ()
    names = (*PARTS, *(f"{name}_px" for name in PICTURES))
    for number, folder in enumerate(sorted(bank.glob("records*"))):
        meta = np.load(folder / "meta.npy", mmap_mode="r")
        folders.append((meta, {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in names}))
        index += [(number, row) for row in np.flatnonzero(meta["done"])]
        presets = tuple(json.loads((folder / "mix.json").read_text(encoding="utf-8"))["presets"])
    if not index:
        raise UsageError(f"{bank}: expected folders records* with records, found none; build them first")
    return Records(tuple(folders), presets, np.array(index[:limit]))


class RecordBuilder:
    """Makes records one after the other."""

    def __init__(
        self, bank: Path, faces: Sequence[TrainingFace], groups: Sequence[str], inside: Sequence[int], mix: RecordMix
    ) -> None:
        """Records of a bank.

        Args:
            groups: the source of every face, for balance; ``inside``: faces that may be used.
        """
        self.bank, self.faces, self.mix = bank, faces, mix
        self.guides = GuideMaker(
            LandmarkNetwork.from_pretrained(mix.landmarks).eval(), SurvivalNetwork.from_pretrained(mix.survival).eval()
        )
        sizes = np.load(bank / "sizes.npy")
        _, group, count = np.unique(np.array(groups), return_inverse=True, return_counts=True)
        weight = 1 / np.sqrt(count[group]) * np.where(sizes < FULL_PX, mix.small, 1.0)
        allowed = np.zeros(len(faces), bool)
        allowed[list(inside)] = True
        several = np.array([bool(face.references) for face in faces])
        self.inside = np.flatnonzero(allowed)
        self.weights = {}
        for kind in (True, False):
            kept = weight * (allowed & (several == kind))
            self.weights[kind] = kept / kept.sum()

    def build(self, folder: str, autoencoder: VQModel) -> Iterator[int]:
        """Fill a folder of the bank, from where it stopped; yields the number of each record when it is done."""
        target = self.bank / folder
        target.mkdir(parents=True, exist_ok=True)
        side = FULL_PX // DOWNSAMPLE_FACTOR
        shape = (self.mix.capacity, LATENT_CHANNELS, side, side)
        meta = open_table(target / "meta.npy", META, (self.mix.capacity,))
        tables = {name: open_table(target / f"{name}.npy", np.float16, shape) for name in PARTS}
        drawn = {
            name: open_table(target / f"{name}_px.npy", np.uint8, (self.mix.capacity, 3, FULL_PX, FULL_PX))
            for name in PICTURES
        }
        (target / "mix.json").write_text(json.dumps(self.mix.model_dump(mode="json")) + "\n", encoding="utf-8")
        for row in np.flatnonzero(meta["done"] == 0).tolist():
            entry, pictures = self._record(np.random.default_rng((self.mix.seed, row)))
            for name, image in pictures.items():
                tables[name][row] = latents_of(autoencoder, image)
                if name in PICTURES:
                    drawn[name][row] = (image[0] * 255).round().byte().numpy()
            entry["done"] = 1
            meta[row] = entry
            yield row

    def _record(self, random: np.random.Generator) -> tuple[NDArray[np.void], dict[str, Tensor]]:
        several = bool(random.random() < self.mix.paired)
        face = int(random.choice(len(self.faces), p=self.weights[several]))
        side, seed = int(random.integers(2)), int(random.integers(2**31))
        names, shares = zip(*self.mix.presets.items(), strict=True)
        preset = int(random.choice(len(names), p=np.array(shares) / sum(shares)))
        good = _mirrored(self._picture(face), side)
        low = degrade(good, [seed], names[preset])
        pictures = {"lq": low, "clean": self.guides(low)}
        if names[preset] == ARCHIVE:
            pictures["truth"] = targets(good, [seed], ARCHIVE)
        others = self._others(face, random) if several and random.random() < self.mix.guided else []
        if others:
            references = torch.cat([_mirrored(self._picture(other), side) for other in others])
            pictures["guide"] = self.guides(low, references)
        first = others[0] if others else NO_GUIDE
        return np.array((face, side, preset, first, seed, 0), META), pictures

    def _others(self, face: int, random: np.random.Generator) -> list[int]:
        """Pictures that a guide is made from: others of the person, or of a stranger."""
        pool = list(self.faces[face].references)
        if random.random() < self.mix.wrong:
            stranger = int(random.choice(self.inside))
            pool = [stranger, *self.faces[stranger].references]
            pool = [] if self.faces[stranger].identity == self.faces[face].identity else pool
        wanted = 1 + int(random.integers(self.mix.most))
        return [pool[n] for n in random.permutation(len(pool))[:wanted].tolist()]

    def _picture(self, face: int) -> Tensor:
        return picture(self.faces[face].path)


def picture(path: Path) -> Tensor:
    """(1, 3, 512, 512) in [0, 1]."""
    return resize(load_native(path)[None].float() / 255, FULL_PX).clamp(0, 1)


@dataclass(frozen=True, slots=True)
class GuideMaker:
    """Makes guides as the pipeline does."""

    landmarks: LandmarkNetwork
    survival: SurvivalNetwork

    @torch.no_grad()
    def __call__(self, low: Tensor, references: Tensor | None = None) -> Tensor:
        """(1, 3, S, S) guide in [0, 1] of a degraded face, from (N, 3, S, S) references or none, all in [0, 1]."""
        crop, laid = low * 2 - 1, None
        if references is not None:
            others = references * 2 - 1
            found = self.landmarks(others)
            known = torch.cat([found.points, found.deviation[..., None]], -1)[None]
            laid = lay_references(crop, others[None], known, self.landmarks)
        return ((compose_guide(crop, self.survival(crop), laid) + 1) / 2).clamp(0, 1)


def _mirrored(image: Tensor, side: int) -> Tensor:
    return image.flip(3) if side else image


@torch.no_grad()
def latents_of(autoencoder: VQModel, image: Tensor) -> NDArray[np.float16]:
    """(8, h, w) of a (1, 3, S, S) picture in [0, 1]."""
    weight = next(autoencoder.parameters())
    encoded = encode(autoencoder, (image * 2 - 1).to(weight.device, weight.dtype))
    latents: NDArray[np.float16] = encoded[0].half().cpu().numpy()
    return latents


def open_table(path: Path, dtype: Any, shape: tuple[int, ...]) -> NDArray[Any]:
    """A table on disk, made when it is not there. Raises UsageError when it is one of another shape."""
    if not path.exists():
        return np.lib.format.open_memmap(path, "w+", dtype=dtype, shape=shape)
    table = np.lib.format.open_memmap(path, "r+")
    if table.shape != shape:
        raise UsageError(f"{path}: expected a table of shape {shape}, found {table.shape}; name another folder")
    return table
