"""A pool of CPU threads, and a map over it that is never far ahead."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

Item = TypeVar("Item")


Result = TypeVar("Result")


@contextmanager
def cpu_pool(threads: int) -> Iterator[ThreadPoolExecutor]:
    """A pool of CPU threads in which torch does not start threads of its own; the caller's keeps its number."""
    import torch

    own = torch.get_num_threads()
    with ThreadPoolExecutor(threads, "facefix", initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for future in [pool.submit(time.sleep, 0.01) for _ in range(threads)]:  # each starts a thread of the pool
            future.result()
        torch.set_num_threads(own)
        try:
            yield pool
        finally:
            pool.shutdown(cancel_futures=True)


def bounded_map(
    pool: ThreadPoolExecutor, function: Callable[[Item], Result], items: Iterable[Item], ahead: int
) -> Iterator[tuple[Item, Future[Result]]]:
    """``function`` over ``items`` on a pool, in order, never more than ``ahead`` started and not yet taken."""
    waiting: deque[tuple[Item, Future[Result]]] = deque()
    try:
        for item in items:
            waiting.append((item, pool.submit(function, item)))
            if len(waiting) >= ahead:
                yield waiting.popleft()
        while waiting:
            yield waiting.popleft()
    finally:
        for _, future in waiting:
            future.cancel()
