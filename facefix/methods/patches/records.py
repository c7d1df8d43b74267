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
from scipy.interpolate import RBFInterpolator
from torch import Tensor
from torch.nn import functional as F

from facefix.datasets.degradation import ARCHIVE, degrade, targets
from facefix.datasets.faces import TrainingFace, load_native
from facefix.datasets.sources import Count, Positive, Probability, Section
from facefix.errors import UsageError
from facefix.networks.autoencoder import DOWNSAMPLE_FACTOR, LATENT_CHANNELS, encode
from facefix.networks.guide import complete
from facefix.networks.images import resize
from facefix.networks.tone import tone_of

FULL_PX = 512
META = np.dtype(
    [("face", "i4"), ("side", "i1"), ("preset", "i1"), ("guide_face", "i4"), ("seed", "i8"), ("done", "i1")]
)
NO_GUIDE = -1
PARTS = ("lq", "guide", "truth")


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
    noise_px: Positive = 4.0
    """standard deviation of what predicted landmarks of a severely degraded face are off by"""
    capacity: Count = 20000
    """records of a folder"""
    seed: int = 0
    """of the folder ``records<seed>``"""


@dataclass(frozen=True, slots=True)
class Records:
    """Records of all folders, read in place."""

    folders: tuple[tuple[NDArray[np.void], dict[str, NDArray[np.float16]]], ...]
    presets: tuple[str, ...]
    index: NDArray[np.int64]
    """(n, 2) folder and row of every record that is done"""

    def meta(self) -> NDArray[np.void]:
        """(n,) structured array of META."""
        return np.array([self.folders[folder][0][row] for folder, row in self.index], META)

    def latents(self, part: str, number: int) -> Tensor:
        """(8, h, w) float32 of ``lq``, ``guide`` or ``truth`` (archive records only: others have the good face)."""
        folder, row = self.index[number]
        return torch.from_numpy(self.folders[folder][1][part][row].astype(np.float32))


def open_records(bank: Path, limit: int | None = None) -> Records:
    """Every record in the ``records*`` folders of a bank. Raises UsageError when there is none."""
    folders, index = [], []
    presets: tuple[str, ...] = ()
    for number, folder in enumerate(sorted(bank.glob("records*"))):
        meta = np.load(folder / "meta.npy", mmap_mode="r")
        folders.append((meta, {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in PARTS}))
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
        """:param groups: the source of every face, for balance; ``inside``: faces that may be used."""
        self.bank, self.faces, self.mix = bank, faces, mix
        self.landmarks = np.load(bank / "landmarks.npy")
        sizes = np.array([load_native(face.path).shape[-1] for face in faces])
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
        (target / "mix.json").write_text(json.dumps(self.mix.model_dump(mode="json")) + "\n", encoding="utf-8")
        for row in np.flatnonzero(meta["done"] == 0).tolist():
            entry, pictures = self._record(np.random.default_rng((self.mix.seed, row)))
            for name, image in pictures.items():
                tables[name][row] = latents_of(autoencoder, image)
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
        pictures = {"lq": low}
        if names[preset] == ARCHIVE:
            pictures["truth"] = targets(good, [seed], ARCHIVE)
        other = NO_GUIDE
        if several and random.random() < self.mix.guided:
            other = int(random.choice(self.faces[face].references))
            if random.random() < self.mix.wrong:
                other = int(random.choice(self.inside))
                other = NO_GUIDE if self.faces[other].identity == self.faces[face].identity else other
        if other != NO_GUIDE:
            scale = {"severe": 1.0, "spec": 1.0, ARCHIVE: 0.7}.get(names[preset], 0.4)
            places = self.landmarks[face] + _landmark_error(random, scale * self.mix.noise_px)
            reference = warped(self._picture(other), self.landmarks[other], places)
            laid = tone_of(low * 2 - 1)(_mirrored(reference, side) * 2 - 1)
            pictures["guide"] = ((complete(low * 2 - 1, laid) + 1) / 2).clamp(0, 1)
        return np.array((face, side, preset, other, seed, 0), META), pictures

    def _picture(self, face: int) -> Tensor:
        return picture(self.faces[face].path)


def picture(path: Path) -> Tensor:
    """(1, 3, 512, 512) in [0, 1]."""
    return resize(load_native(path)[None].float() / 255, FULL_PX).clamp(0, 1)


def warped(image: Tensor, source: NDArray[np.float32], target: NDArray[np.float32], cells: int = 32) -> Tensor:
    """(1, 3, S, S) image whose landmarks ``source`` (n, 2) px are moved to ``target`` by a thin-plate spline.

    The border is anchored, and landmarks are smoothed over, so that single errors do not tear the face.
    """
    side = image.shape[-1]
    edge = np.linspace(0, side - 1, 8)
    border = np.array([(x, y) for x in edge for y in edge if x in (0, side - 1) or y in (0, side - 1)])
    spline = RBFInterpolator(
        np.concatenate([target, border]) / side,
        np.concatenate([source - target, np.zeros_like(border)]) / side,
        kernel="thin_plate_spline",
        smoothing=1e-3,
    )
    centres = (np.arange(cells) + 0.5) / cells
    x, y = np.meshgrid(centres, centres)
    offsets = spline(np.stack([x.ravel(), y.ravel()], 1)).reshape(cells, cells, 2)
    fine = F.interpolate(
        torch.from_numpy(offsets).float().permute(2, 0, 1)[None], size=(side, side), mode="bicubic", align_corners=False
    )[0].permute(1, 2, 0)
    places = (torch.arange(side) + 0.5) / side
    grid = torch.stack(torch.meshgrid(places, places, indexing="xy"), -1) + fine
    return F.grid_sample(
        image, grid[None] * 2 - 1, mode="bicubic", padding_mode="reflection", align_corners=False
    ).clamp(0, 1)


def _landmark_error(random: np.random.Generator, deviation: float) -> NDArray[np.float64]:
    """(68, 2) px: what is common to all landmarks, and each one's own."""
    return random.normal(0, deviation / 2, (1, 2)) + random.normal(0, deviation / 2, (68, 2))


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
