"""ReferenceCache: keys and values of a person's references, an immutable value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import torch

from facefix.errors import UsageError

ReferenceEncoding = Literal["strip", "each"]


KeyValue = tuple[torch.Tensor, torch.Tensor]
"""Keys and values of one layer, token-major: (B, N T, C) each, for N references of T tokens in C = heads x dim."""


@dataclass(frozen=True, slots=True, eq=False)
class ReferenceCache:
    """Keys and values of a set of references at every self-attention layer. An immutable value.

    One cache serves any number of faces, in any number of threads. With ``encoding="each"`` caches of single images can
    be joined with :meth:`compose`; a ``"strip"`` cache belongs to its set of images.
    """

    layers: Mapping[str, KeyValue]
    """layer name -> keys and values, (1, N T, C) each (or (B, N T, C): a set of references per row of a batch)"""
    num_references: int
    encoding: ReferenceEncoding = "strip"
    sources: tuple[str, ...] = ()
    """where the references came from, in order: file names or whatever the caller gave"""
    images: torch.Tensor | None = None
    """(1, N, 3, S, S) (or (B, N, 3, S, S)) references in [-1, 1], for a denoiser that takes a guide made from them"""
    landmarks: torch.Tensor | None = None
    """(1, N, 68, 3) (or (B, N, 68, 3)) x, y and deviation of their landmarks in px of the 512 crop, likewise"""

    def __post_init__(self) -> None:
        if self.num_references < 1:
            raise UsageError(f"ReferenceCache: expected at least one reference, found {self.num_references}")
        object.__setattr__(self, "layers", MappingProxyType(dict(self.layers)))

    @property
    def nbytes(self) -> int:
        """Memory of all keys and values, and of the images where they are kept, in bytes."""
        tensors = [tensor for pair in self.layers.values() for tensor in pair]
        tensors += [tensor for tensor in (self.images, self.landmarks) if tensor is not None]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    @property
    def device(self) -> torch.device:
        """Where the keys and values are."""
        return next(iter(self.layers.values()))[0].device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the keys and values."""
        return next(iter(self.layers.values()))[0].dtype

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> ReferenceCache:
        """The same cache on another device or in another dtype (itself where nothing changes)."""
        device, dtype = torch.device(device or self.device), dtype or self.dtype
        if (device, dtype) == (self.device, self.dtype):
            return self
        layers = {name: (k.to(device, dtype), v.to(device, dtype)) for name, (k, v) in self.layers.items()}
        images, landmarks = (None if x is None else x.to(device) for x in (self.images, self.landmarks))
        return ReferenceCache(layers, self.num_references, self.encoding, self.sources, images, landmarks)

    @classmethod
    def compose(cls, caches: Sequence[ReferenceCache]) -> ReferenceCache:
        """One cache of all the references of several, in order. No network runs.

        :raises UsageError: there is none, or a cache comes from a strip: its images were encoded knowing each other.
        """
        if not caches:
            raise UsageError("ReferenceCache.compose: expected at least one cache, found none")
        if len(caches) == 1:
            return caches[0]
        strips = [cache.sources for cache in caches if cache.encoding != "each"]
        if strips:
            raise UsageError(
                "ReferenceCache.compose: expected caches of references encoded one by one ('each'), found 'strip' "
                f"caches {strips}; encode the whole set in one call instead"
            )
        layers = {
            name: tuple(torch.cat([cache.layers[name][part] for cache in caches], dim=1) for part in (0, 1))
            for name in caches[0].layers
        }
        sources = tuple(source for cache in caches for source in cache.sources)
        count = sum(cache.num_references for cache in caches)
        images, landmarks = (
            torch.cat(kept, dim=1) if len(kept) == len(caches) else None
            for kept in (
                [cache.images for cache in caches if cache.images is not None],
                [cache.landmarks for cache in caches if cache.landmarks is not None],
            )
        )
        return cls(layers, count, "each", sources, images, landmarks)  # type: ignore[arg-type]

    def split(self) -> tuple[ReferenceCache, ...]:
        """One cache per reference of an ``"each"`` cache: views, no copy. The inverse of :meth:`compose`.

        :raises UsageError: the cache comes from a strip.
        """
        if self.num_references == 1:
            return (self,)
        if self.encoding != "each":
            raise UsageError("ReferenceCache.split: expected references encoded one by one ('each'), found 'strip'")
        chunks = {
            name: (k.chunk(self.num_references, 1), v.chunk(self.num_references, 1))
            for name, (k, v) in self.layers.items()
        }
        sources = self.sources or ("",) * self.num_references
        images, landmarks = (
            (None,) * self.num_references if x is None else x.split(1, dim=1) for x in (self.images, self.landmarks)
        )
        return tuple(
            ReferenceCache(
                {name: (k[i], v[i]) for name, (k, v) in chunks.items()},
                1,
                "each",
                (sources[i],),
                images[i],
                landmarks[i],
            )
            for i in range(self.num_references)
        )


@dataclass(frozen=True, slots=True)
class Branch:
    """Rows of a batch that read the same cache."""

    rows: slice
    cache: ReferenceCache | None
    """None: these rows attend to themselves only"""
    copies: int = 1
    """the cache counts as this many identical copies of itself"""
