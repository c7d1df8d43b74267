"""The device worker: batches of faces through one restorer, each person's references encoded once.

It decides how many faces go at once, and copes with what devices do: out of memory halves the batch and then falls back
to the CPU, NaN is tried again in fp32, and a face that cannot be restored is reported, never fatal.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from facefix.errors import FacefixError, NotFiniteError
from facefix.methods.base import Pixels, PreparedReferences, Restorer

CPU_BATCH_SIZE = 1
"""One face keeps every core busy; more only need more memory."""

CUDA_BATCH_SIZE = 8


def choose_batch_size(asked: int | None, device: torch.device) -> int:
    """Faces at once on a device."""
    if asked is not None:
        return asked
    return CUDA_BATCH_SIZE if device.type == "cuda" else CPU_BATCH_SIZE


@dataclass(frozen=True, slots=True, eq=False)
class ReferenceCrop:
    """One reference of a batch: its identity, and how to get its pixels if it is not encoded yet."""

    key: str
    load: Callable[[], Pixels]
    source: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class FaceBatch:
    """Faces of one person with the same references."""

    crops: Sequence[Pixels]
    seeds: Sequence[int]
    references: Sequence[ReferenceCrop] = ()
    """none: restored without"""


@dataclass(frozen=True, slots=True, eq=False)
class Restored:
    """What the device made of one face: pixels, or the reason why not."""

    pixels: Pixels | None
    seconds: float
    problem: str = ""
    notes: tuple[str, ...] = ()


@dataclass(slots=True)
class WorkerStatistics:
    """Counts of one worker, for reports and tests."""

    faces: int = 0
    batches: int = 0
    references_encoded: int = 0
    """reference sets (or single references, where a model takes them one by one) that went through the network"""
    cache_hits: int = 0
    out_of_memory: int = 0
    fp32_retries: int = 0
    busy_seconds: float = 0.0
    encode_seconds: float = 0.0


class PreparedCache:
    """The most recently used prepared references, up to a number of bytes."""

    def __init__(self, budget_bytes: int) -> None:
        self.budget_bytes = budget_bytes
        self._entries: OrderedDict[tuple[str, ...], PreparedReferences] = OrderedDict()

    @property
    def nbytes(self) -> int:
        """Memory held."""
        return sum(prepared.nbytes for prepared in self._entries.values())

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: tuple[str, ...]) -> bool:
        return key in self._entries

    def get(self, key: tuple[str, ...]) -> PreparedReferences | None:
        """The entry, which becomes the most recent."""
        if key in self._entries:
            self._entries.move_to_end(key)
        return self._entries.get(key)

    def put(self, key: tuple[str, ...], prepared: PreparedReferences) -> None:
        """Keep an entry; the least recent make room. One that is larger than the whole budget is not kept."""
        if prepared.nbytes > self.budget_bytes:
            return
        self._entries[key] = prepared
        self._entries.move_to_end(key)
        while self.nbytes > self.budget_bytes:
            self._entries.popitem(last=False)

    def clear(self) -> None:
        """Free everything."""
        self._entries.clear()


@dataclass(slots=True)
class DeviceWorker:
    """Runs batches on one restorer. Not for several threads at once: a device does one thing at a time."""

    restorer: Restorer
    batch_size: int = CPU_BATCH_SIZE
    cache_bytes: int = 1 << 30
    fallback: Callable[[], Restorer] | None = None
    """loads the same restorer on the CPU, for a face that the device has no memory for"""
    statistics: WorkerStatistics = field(default_factory=WorkerStatistics)
    _cache: PreparedCache = field(init=False)
    _fallback: Restorer | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self._cache = PreparedCache(self.cache_bytes)

    def holds(self, reference: ReferenceCrop, among: Sequence[ReferenceCrop]) -> bool:
        """Whether ``reference`` of the set ``among`` is encoded already, so that its pixels need not be read."""
        return (reference.key,) in self._cache or _set_key(among) in self._cache

    def restore(self, batch: FaceBatch) -> list[Restored]:
        """Restore the faces of a batch, in order; never raises for a face that cannot be restored."""
        start = time.perf_counter()
        try:
            prepared = self._prepare(batch.references) if batch.references else None
        except (FacefixError, RuntimeError, MemoryError) as error:
            seconds = (time.perf_counter() - start) / len(batch.crops)
            self.statistics.busy_seconds += time.perf_counter() - start
            return [Restored(None, seconds, f"references could not be encoded: {error}") for _ in batch.crops]
        results: list[Restored] = []
        while len(results) < len(batch.crops):
            part = slice(len(results), len(results) + self.batch_size)
            results += self._restore_part(batch.crops[part], prepared, batch.seeds[part])
        seconds = time.perf_counter() - start
        self.statistics.busy_seconds += seconds
        self.statistics.faces += len(results)
        return [Restored(result.pixels, seconds / len(results), result.problem, result.notes) for result in results]

    def _restore_part(
        self, crops: Sequence[Pixels], prepared: PreparedReferences | None, seeds: Sequence[int]
    ) -> list[Restored]:
        """One pass over the device. May return fewer results than crops, after making the batch smaller."""
        self.statistics.batches += 1
        try:
            return [Restored(pixels, 0.0) for pixels in self.restorer.restore(crops, prepared, seeds)]
        except NotFiniteError:
            return self._restore_in_fp32(crops, prepared, seeds)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                return self._one_by_one(self.restorer, crops, prepared, seeds)
        self.statistics.out_of_memory += 1
        free_device_memory()
        if len(crops) > 1:
            self.batch_size = max(1, len(crops) // 2)
            return self._restore_part(crops[: self.batch_size], prepared, seeds[: self.batch_size])
        return self._last_resort(crops, prepared, seeds)

    def _restore_in_fp32(
        self, crops: Sequence[Pixels], prepared: PreparedReferences | None, seeds: Sequence[int]
    ) -> list[Restored]:
        self.statistics.fp32_retries += 1
        results = self._one_by_one(self.restorer.in_fp32(), crops, prepared, seeds)
        return [
            Restored(result.pixels, 0.0, result.problem, (*result.notes, "not finite at first; restored in fp32"))
            for result in results
        ]

    def _last_resort(
        self, crops: Sequence[Pixels], prepared: PreparedReferences | None, seeds: Sequence[int]
    ) -> list[Restored]:
        """One face that does not fit: without the kept references, then on the CPU."""
        self._cache.clear()
        free_device_memory()
        problem = ""
        for on_cpu in (False, True) if self.fallback is not None else (False,):
            try:
                restorer = self._on_cpu() if on_cpu else self.restorer
                notes = ("out of memory on the device; restored on the CPU",) if on_cpu else ()
                return [Restored(pixels, 0.0, notes=notes) for pixels in restorer.restore(crops, prepared, seeds)]
            except (FacefixError, RuntimeError, MemoryError) as error:
                problem = _first_line(error)
        return [Restored(None, 0.0, problem) for _ in crops]

    def _on_cpu(self) -> Restorer:
        if self._fallback is None:
            assert self.fallback is not None
            self._fallback = self.fallback()
        return self._fallback

    def _one_by_one(
        self, restorer: Restorer, crops: Sequence[Pixels], prepared: PreparedReferences | None, seeds: Sequence[int]
    ) -> list[Restored]:
        """Each face alone, so that one that fails takes no other with it."""
        results = []
        for crop, seed in zip(crops, seeds, strict=True):
            try:
                results.append(Restored(restorer.restore([crop], prepared, [seed])[0], 0.0))
            except (FacefixError, RuntimeError, MemoryError) as error:
                results.append(Restored(None, 0.0, _first_line(error)))
        return results

    def _prepare(self, references: Sequence[ReferenceCrop]) -> PreparedReferences:
        """The encoded references of a person: kept ones, or made now."""
        key = _set_key(references)
        prepared = self._cache.get(key)
        if prepared is not None:
            self.statistics.cache_hits += 1
            return prepared
        compose = getattr(self.restorer, "compose", None)
        if compose is None or getattr(self.restorer, "reference_encoding", None) != "each" or len(references) == 1:
            return self._encode(key, references)
        composed: PreparedReferences = compose([self._encode_one(reference) for reference in references])
        return composed

    def _encode_one(self, reference: ReferenceCrop) -> PreparedReferences:
        kept = self._cache.get((reference.key,))
        if kept is not None:
            self.statistics.cache_hits += 1
        return kept or self._encode((reference.key,), [reference])

    def _encode(self, key: tuple[str, ...], references: Sequence[ReferenceCrop]) -> PreparedReferences:
        pixels = [reference.load() for reference in references]
        sources = [reference.source for reference in references]
        start = time.perf_counter()
        try:
            prepared = self.restorer.prepare(pixels, sources)
        except NotFiniteError:
            prepared = self.restorer.in_fp32().prepare(pixels, sources)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            self.statistics.out_of_memory += 1
            self._cache.clear()
            free_device_memory()
            prepared = self._prepare_anyhow(pixels, sources)
        self.statistics.references_encoded += 1
        self.statistics.encode_seconds += time.perf_counter() - start
        self._cache.put(key, prepared)
        return prepared

    def _prepare_anyhow(self, pixels: Sequence[Pixels], sources: Sequence[str]) -> PreparedReferences:
        try:
            return self.restorer.prepare(pixels, sources)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or self.fallback is None:
                raise
        return self._on_cpu().prepare(pixels, sources)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device or the machine ran out of memory; torch's CPU allocator says so only in words."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(
        words in str(error).lower() for words in ("out of memory", "can't allocate memory", "not enough memory")
    )


def free_device_memory() -> None:
    """Give cached blocks back to the device."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _set_key(references: Sequence[ReferenceCrop]) -> tuple[str, ...]:
    return tuple(reference.key for reference in references)


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
