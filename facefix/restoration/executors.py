"""Where batches are restored: an executor takes them one after the other and gives back futures of results."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Protocol, Self

import torch

from facefix.device import choose_device
from facefix.restoration.batches import BatchResult, FaceBatch, ModelSpec, ReferenceSource
from facefix.restoration.reading import ReferenceReader
from facefix.restoration.worker import DeviceWorker, choose_batch_size

DEFAULT_CACHE_BYTES = 1 << 30
READING_THREADS = 2
"""of a process that restores batches for another one"""


class Executor(Protocol):
    """Restores batches. Results do not depend on which executor it is, nor on the order of batches."""

    @property
    def batch_size(self) -> int:
        """Faces that a batch should have."""
        ...

    @property
    def parallel(self) -> int:
        """Batches that are worked on at once; a few more should wait."""
        ...

    def announce(self, references: Sequence[ReferenceSource]) -> None:
        """A batch with these references will come soon: what takes long may begin. Returns at once."""
        ...

    def submit(self, batch: FaceBatch) -> Future[BatchResult]:
        """Restore a batch. A batch that waits can be cancelled; faces that cannot be restored are in the result."""
        ...


class LocalExecutor:
    """This machine's device, in a thread of its own; a context manager. References are read ahead on CPU threads."""

    parallel = 1

    def __init__(self, worker: DeviceWorker) -> None:
        self._worker = worker
        self.batch_size = worker.batch_size
        self._device = ThreadPoolExecutor(
            1, "facefix-device", initializer=torch.set_num_threads, initargs=(torch.get_num_threads(),)
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._device.shutdown(cancel_futures=True)

    def announce(self, references: Sequence[ReferenceSource]) -> None:
        """Start reading the references that are not encoded yet."""
        for reference in references:
            if not self._worker.holds(reference, references):
                self._worker.reader.start(reference)

    def submit(self, batch: FaceBatch) -> Future[BatchResult]:
        """Restore a batch once those before it are done."""
        return self._device.submit(self._worker.restore, batch)


def restore_batch(batch: FaceBatch, device: str = "auto", cache_bytes: int = DEFAULT_CACHE_BYTES) -> BatchResult:
    """Restore a batch in a process that knows nothing but the batch: it loads the model, and keeps it for the next one.

    Args:
        batch: as another process made it; its references are read here.
        device: where to restore, as the setting ``device``.
        cache_bytes: memory for encoded references.

    Raises:
        WeightsUnavailable, CheckpointError: the model cannot be loaded here.
        DeviceError: the device is not there.
    """
    return _worker_of(batch.model, device, cache_bytes).restore(batch)


@functools.lru_cache(maxsize=1)
def _worker_of(model: ModelSpec, device: str, cache_bytes: int) -> DeviceWorker:
    """The worker of this process, for the model that it was asked for last."""
    chosen = choose_device(device)
    reader = ReferenceReader(ThreadPoolExecutor(READING_THREADS, "facefix-reading"))
    return DeviceWorker(model.load(chosen), reader, choose_batch_size(None, chosen), cache_bytes)
