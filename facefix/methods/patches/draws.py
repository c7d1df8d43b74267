"""What the samples of a batch are: records, the references they may read, right, wrong, null or none."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from facefix.datasets.degradation import ARCHIVE
from facefix.datasets.faces import TrainingFace
from facefix.methods.patches.config import Drawing
from facefix.methods.patches.records import NO_GUIDE, Records


@dataclass(frozen=True, slots=True)
class Samples:
    """A batch. Latents are (B, 8, h, w) float32."""

    faces: Tensor
    """(B,) indices of faces"""
    mirrored: Tensor
    """(B,) 0 or 1"""
    tones: tuple[int | None, ...]
    """seeds of the archive degradation, whose tone the truth has"""
    good: Tensor
    lq: Tensor
    guide: Tensor
    """made with references, or without"""
    guides: tuple[tuple[str, int], ...]
    """where each guide's picture is: part and number of its record"""
    references: Tensor
    """(R, 8, h, w) of all groups, one after the other"""
    counts: tuple[int, ...]
    """references of every group; samples of a group are neighbours, ``share`` each"""


class Draws:
    """Draws batches from a bank."""

    def __init__(
        self,
        good: NDArray[np.float16],
        records: Records,
        faces: Sequence[TrainingFace],
        inside: Sequence[int],
        settings: Drawing,
    ) -> None:
        self.good, self.records, self.faces, self.settings = good, records, faces, settings
        self.meta = records.meta()
        self.inside = np.array(inside)
        self.toned = np.array(records.presets)[self.meta["preset"]] == ARCHIVE
        there = np.array([[bool(side[0, 0].any()) for side in face] for face in good])
        self.there = there
        self.rows = np.flatnonzero(
            np.isin(self.meta["face"], self.inside) & there[self.meta["face"], self.meta["side"]]
        )
        self.inside = self.inside[there[self.inside].any(1)]
        self.several = np.array([face for face in self.inside.tolist() if faces[face].references])
        self.versions: dict[tuple[int, int], list[int]] = defaultdict(list)
        for row in self.rows.tolist():
            self.versions[int(self.meta[row]["face"]), int(self.meta[row]["side"])].append(row)

    def batch(self, count: int, random: np.random.Generator) -> Samples:
        """``count`` samples in groups of ``share``."""
        chosen: list[tuple[int, bool]] = []
        references: list[Tensor] = []
        counts = []
        share = self.settings.share
        for _ in range(count // share):
            members, theirs = self._group(random)
            chosen += members
            references += theirs
            counts.append(len(theirs))
        faces = torch.tensor([int(self.meta[row]["face"]) for row, _ in chosen])
        sides = torch.tensor([int(self.meta[row]["side"]) for row, _ in chosen])
        read = self.records.latents
        lq = torch.stack([read("lq", row) for row, _ in chosen])
        guides = tuple(("guide" if used else "clean", row) for row, used in chosen)
        guide = torch.stack([read(part, row) for part, row in guides])
        good = torch.stack([self._target(row) for row, _ in chosen])
        empty = lq.new_zeros(0, *lq.shape[1:])
        tones = tuple(int(self.meta[row]["seed"]) if self.toned[row] else None for row, _ in chosen)
        stacked = torch.stack(references) if references else empty
        return Samples(faces, sides, tones, good, lq, guide, guides, stacked, tuple(counts))

    def _group(self, random: np.random.Generator) -> tuple[list[tuple[int, bool]], list[Tensor]]:
        """Records and whether their guides are used, and the references of a group."""
        settings = self.settings
        first = int(random.choice(self.rows))
        face, side, guide_face = (int(self.meta[first][name]) for name in ("face", "side", "guide_face"))
        guided = guide_face != NO_GUIDE and random.random() < settings.guide
        person = self._person(face, guide_face if guided else NO_GUIDE, random)
        members = [(first, guided)]
        versions = self.versions[face, side]
        for _ in range(settings.share - 1):
            row = versions[int(random.integers(len(versions)))]
            theirs = int(self.meta[row]["guide_face"])
            fits = theirs != NO_GUIDE and person >= 0 and self._same(theirs, person)
            members.append((row, bool(fits and random.random() < settings.guide)))
        return members, self._references(face, side, person, guide_face if guided else NO_GUIDE, random)

    def _person(self, face: int, guide_face: int, random: np.random.Generator) -> int:
        """A face of the person whose pictures the group reads; -1 for none."""
        if random.random() < self.settings.absent:
            return -1
        if guide_face != NO_GUIDE:
            return guide_face
        if not self.faces[face].references or random.random() < self.settings.wrong:
            stranger = int(random.choice(self.several if random.random() < 0.7 else self.inside))
            return -1 if self._same(stranger, face) else stranger
        return int(random.choice(self.faces[face].references))

    def _same(self, one: int, other: int) -> bool:
        return self.faces[one].identity == self.faces[other].identity

    def _references(self, face: int, side: int, person: int, first: int, random: np.random.Generator) -> list[Tensor]:
        if person < 0:
            return []
        pool = [n for n in (person, *self.faces[person].references) if n not in (face, first) and self.there[n, side]]
        order = random.permutation(len(pool))
        names = ([first] if first != NO_GUIDE and self.there[first, side] else []) + [pool[n] for n in order]
        wanted = 1 + int(random.integers(self.settings.most))
        picked = [self._good(name, side) for name in names[:wanted]]
        if random.random() < self.settings.nulled:
            return [torch.zeros_like(part) for part in picked]
        return picked

    def _target(self, row: int) -> Tensor:
        entry = self.meta[row]
        if self.toned[row]:
            return self.records.latents("truth", row)
        return self._good(int(entry["face"]), int(entry["side"]))

    def _good(self, face: int, side: int) -> Tensor:
        return torch.from_numpy(self.good[face, side].astype(np.float32))
