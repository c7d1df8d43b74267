"""Batches drawn for the training of a denoiser."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from facefix.datasets.faces import TrainingFace
from facefix.training.config import References
from facefix.training.latents import LatentBank


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch of G groups of ``share`` samples; a group is one face with one set of references."""

    faces: Tensor
    """(B,) indices of faces"""
    mirrored: Tensor
    """(B,) 0 or 1"""
    good: Tensor
    """(B, 8, h, w)"""
    degraded: Tensor
    """(B, 8, h, w)"""
    references: Tensor
    """(P, n, 8, h, w) references of the first P groups; the others have none"""
    base: Tensor
    """(B, 8, h, w) what a residual is relative to: guides, or the degraded latents where there are none"""


@dataclass(frozen=True, slots=True)
class Draws:
    """Draws batches from a bank of latents. The same generator state gives the same batch."""

    settings: References
    faces: Sequence[TrainingFace]
    bank: LatentBank
    aligned: bool
    """references of a group are mirrored as its faces are, and stay on the template: for a guided bank"""

    def batch(self, pool: list[int], count: int, generator: torch.Generator) -> Batch:
        """``count`` samples of random faces of the pool; groups without references come last."""
        settings = self.settings
        share = min(settings.share, count)
        groups = max(1, count // share)
        chosen = self._people(pool, groups, generator)
        fate = torch.rand(groups, 2, generator=generator)
        chosen = chosen[torch.argsort((fate[:, 0] < settings.absent).int(), stable=True)]
        present = int((fate[:, 0] >= settings.absent).sum())
        faces = chosen.repeat_interleave(share)
        versions = torch.randint(self.bank.degraded.shape[1], (len(faces),), generator=generator)
        sides = None
        if self.aligned:  # the references of a group are mirrored as its faces are
            sides = torch.randint(2, (groups,), generator=generator)
            versions = self._on_side(versions, faces, sides.repeat_interleave(share))
        mirrored = (faces + versions) % 2
        where, versions, side = (index.to(self.bank.good.device) for index in (faces, versions, mirrored))
        references = self.references(chosen[:present], generator, None if sides is None else sides[:present])
        references = references * (fate[:present, 1] >= settings.nulled).to(self.bank.good.device).view(-1, 1, 1, 1, 1)
        degraded = self.bank.degraded[where, versions].float()
        return Batch(
            faces,
            mirrored,
            self.bank.good[where, side].float(),
            degraded,
            references,
            self._base(degraded, where, versions, present * share),
        )

    def _base(self, degraded: Tensor, faces: Tensor, versions: Tensor, present: int) -> Tensor:
        """The guides of the first ``present`` samples, those that have references, and the degraded latents."""
        if self.bank.guides is None:
            return degraded
        return torch.cat([self.bank.guides[faces[:present], versions[:present]].float(), degraded[present:]])

    def _people(self, pool: list[int], count: int, generator: torch.Generator) -> Tensor:
        """Random faces of the pool, as many of people with several pictures as the configuration says."""
        chosen = torch.tensor(pool)[torch.randint(len(pool), (count,), generator=generator)]
        share = self.settings.paired
        paired = [face for face in pool if self.faces[face].references]
        lone = [face for face in pool if not self.faces[face].references]
        if share is None or not paired or not lone:
            return chosen
        several = torch.tensor(paired)[torch.randint(len(paired), (count,), generator=generator)]
        single = torch.tensor(lone)[torch.randint(len(lone), (count,), generator=generator)]
        return torch.where(torch.rand(count, generator=generator) < share, several, single)

    @staticmethod
    def _on_side(versions: Tensor, faces: Tensor, sides: Tensor) -> Tensor:
        """The given or the neighbouring version, whichever is mirrored as ``sides`` says."""
        wrong = (faces + versions) % 2 != sides
        return torch.where(wrong, versions ^ 1, versions)

    def references(self, faces: Tensor, generator: torch.Generator, sides: Tensor | None = None) -> Tensor:
        """(P, n, 8, h, w): random other pictures of each person, or the same picture augmented; repeated when few.

        :param sides: (P,) 0 or 1, whether each face is mirrored; for a guided bank.
        """
        if sides is not None:
            return self._aligned_references(faces, sides, generator)
        count, versions = self.settings.count, self.bank.references.shape[1]
        rows = []
        for face in faces.tolist():
            sources = self.faces[face].references or (face,)
            order = torch.randperm(len(sources) * versions, generator=generator)[:count]
            picks = [(sources[int(number) % len(sources)], int(number) // len(sources)) for number in order]
            picks = [picks[number % len(picks)] for number in range(count)]
            rows.append(torch.stack([self.bank.references[source, version].float() for source, version in picks]))
        return self._stacked(rows)

    def _aligned_references(self, faces: Tensor, sides: Tensor, generator: torch.Generator) -> Tensor:
        """Other pictures as they are or slightly augmented, the same picture augmented, mirrored as the face is."""
        count, versions = self.settings.count, self.bank.references.shape[1]
        rows = []
        for face, side in zip(faces.tolist(), sides.tolist(), strict=True):
            others = self.faces[face].references
            sources = others or (face,)
            start = int(torch.randint(len(sources), (), generator=generator))
            row = []
            for number in range(count):
                source = sources[(start + number) % len(sources)]
                version = int(torch.randint(versions, (), generator=generator))
                version = version if (source + version) % 2 == side else version ^ 1
                pristine = others and float(torch.rand((), generator=generator)) < self.settings.pristine
                row.append(
                    (self.bank.good[source, side] if pristine else self.bank.references[source, version]).float()
                )
            rows.append(torch.stack(row))
        return self._stacked(rows)

    def _stacked(self, rows: list[Tensor]) -> Tensor:
        empty = self.bank.references[:0, :1].expand(0, self.settings.count, -1, -1, -1)
        return torch.stack(rows) if rows else empty.float()
