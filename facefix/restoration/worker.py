"""The device worker: batches of faces through one restorer, each person's references encoded once.

It decides how many faces go at once, and copes with what devices do: out of memory halves the batch and then falls back
to the CPU, NaN is tried again in fp32, and a face that cannot be restored is reported, never fatal.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch

from facefix.errors import FacefixError, NotFiniteError
from facefix.faces.face import Pixels
from facefix.methods.base import PreparedReferences, Restorer
from facefix.restoration.batches import BatchResult, DeviceStatistics, FaceBatch, ReferenceSource, Restored
from facefix.restoration.reading import ReferenceReader

CPU_BATCH_SIZE = 1
"""One face keeps every core busy; more only need more memory."""

CUDA_BATCH_SIZE = 8


def choose_batch_size(asked: int | None, device: torch.device) -> int:
    """Faces at once on a device."""
    if asked is not None:
        return asked
    return CUDA_BATCH_SIZE if device.type == "cuda" else CPU_BATCH_SIZE


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
    reader: ReferenceReader
    batch_size: int = CPU_BATCH_SIZE
    cache_bytes: int = 1 << 30
    fallback: Callable[[], Restorer] | None = None
    """loads the same restorer on the CPU, for a face that the device has no memory for"""
    _cache: PreparedCache = field(init=False)
    _fallback: Restorer | None = field(default=None, init=False)
    _counts: DeviceStatistics = field(default_factory=DeviceStatistics, init=False)
    """of the batch at hand"""

    def __post_init__(self) -> None:
        self._cache = PreparedCache(self.cache_bytes)

    def holds(self, reference: ReferenceSource, among: Sequence[ReferenceSource]) -> bool:
        """Whether ``reference`` of the set ``among`` is encoded already, so that its pixels need not be read."""
        return (reference.key,) in self._cache or _set_key(among) in self._cache

    def restore(self, batch: FaceBatch) -> BatchResult:
        """Restore the faces of a batch; a face that cannot be restored is in the result, with the reason."""
        references = self._readable(batch.references)
        self._counts = DeviceStatistics()
        start = time.perf_counter()
        results = self._restore(batch, references)
        seconds = time.perf_counter() - start
        self._counts.busy_seconds = seconds
        notes = _missing(batch.references, references)
        faces = (replace(result, seconds=seconds / len(results), notes=(*result.notes, *notes)) for result in results)
        return BatchResult(tuple(faces), self._counts)

    def _restore(self, batch: FaceBatch, references: Sequence[ReferenceSource]) -> list[Restored]:
        try:
            takes = self.restorer.references != "none"
            prepared = self._prepare(references) if references and takes else None
        except (FacefixError, RuntimeError, MemoryError) as error:
            return [Restored(None, 0.0, f"references could not be encoded: {error}") for _ in batch.crops]
        results: list[Restored] = []
        while len(results) < len(batch.crops):
            part = slice(len(results), len(results) + self.batch_size)
            results += self._restore_part(batch.crops[part], prepared, batch.seeds[part])
        self._counts.faces += len(results)
        return results

    def _readable(self, references: Sequence[ReferenceSource]) -> list[ReferenceSource]:
        """The references without those that cannot be read any more."""
        return [one for one in references if self.holds(one, references) or self.reader.is_readable(one)]

    def _restore_part(
        self, crops: Sequence[Pixels], prepared: PreparedReferences | None, seeds: Sequence[int]
    ) -> list[Restored]:
        """One pass over the device. May return fewer results than crops, after making the batch smaller."""
        self._counts.batches += 1
        try:
            return [Restored(pixels, 0.0) for pixels in self.restorer.restore(crops, prepared, seeds)]
        except NotFiniteError:
            return self._restore_in_fp32(crops, prepared, seeds)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                return self._one_by_one(self.restorer, crops, prepared, seeds)
        self._counts.out_of_memory += 1
        free_device_memory()
        if len(crops) > 1:
            self.batch_size = max(1, len(crops) // 2)
            return self._restore_part(crops[: self.batch_size], prepared, seeds[: self.batch_size])
        return self._last_resort(crops, prepared, seeds)

    def _restore_in_fp32(
        self, crops: Sequence[Pixels], prepared: PreparedReferences | None, seeds: Sequence[int]
    ) -> list[Restored]:
        self._counts.fp32_retries += 1
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

    def _prepare(self, references: Sequence[ReferenceSource]) -> PreparedReferences:
        """The encoded references of a person: kept ones, or made now."""
        key = _set_key(references)
        prepared = self._cache.get(key)
        if prepared is not None:
            self._counts.cache_hits += 1
            return prepared
        if not self.restorer.composes or len(references) == 1:
            return self._encode(key, references)
        return self.restorer.compose([self._encode_one(reference) for reference in references])

    def _encode_one(self, reference: ReferenceSource) -> PreparedReferences:
        kept = self._cache.get((reference.key,))
        if kept is not None:
            self._counts.cache_hits += 1
        return kept or self._encode((reference.key,), [reference])

    def _encode(self, key: tuple[str, ...], references: Sequence[ReferenceSource]) -> PreparedReferences:
        pixels = [self.reader.start(reference).result() for reference in references]
        sources = [reference.path.name for reference in references]
        start = time.perf_counter()
        try:
            prepared = self.restorer.prepare(pixels, sources)
        except NotFiniteError:
            prepared = self.restorer.in_fp32().prepare(pixels, sources)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            self._counts.out_of_memory += 1
            self._cache.clear()
            free_device_memory()
            prepared = self._prepare_anyhow(pixels, sources)
        self._counts.references_encoded += 1
        self._counts.encode_seconds += time.perf_counter() - start
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


def _set_key(references: Sequence[ReferenceSource]) -> tuple[str, ...]:
    return tuple(reference.key for reference in references)


def _missing(wanted: Sequence[ReferenceSource], used: Sequence[ReferenceSource]) -> list[str]:
    """A note about references that were left out."""
    names = [reference.path.name for reference in wanted if reference not in used]
    return [f"without {', '.join(names)}, which cannot be read any more"] if names else []


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
