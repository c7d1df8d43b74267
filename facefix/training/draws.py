"""Batches drawn for the training of a denoiser."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


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
