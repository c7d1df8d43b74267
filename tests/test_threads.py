"""The pool keeps torch single-threaded in its threads; the map is never far ahead."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from facefix.threads import bounded_map, cpu_pool, usable_cores


def test_threads_of_the_pool_have_one_thread_of_torch() -> None:
    own = torch.get_num_threads()
    with cpu_pool(2) as pool:
        assert [pool.submit(torch.get_num_threads).result() for _ in range(4)] == [1] * 4
        assert torch.get_num_threads() == own


def test_the_map_keeps_the_order_and_its_distance() -> None:
    with ThreadPoolExecutor(2) as pool:
        pairs = bounded_map(pool, lambda x: x * x, range(10), ahead=3)
        assert [(item, future.result()) for item, future in pairs] == [(n, n * n) for n in range(10)]
    started: list[int] = []

    def endless() -> Iterator[int]:
        for number in itertools.count():
            started.append(number)
            yield number

    with ThreadPoolExecutor(2) as pool:
        pairs = bounded_map(pool, abs, endless(), ahead=3)
        next(pairs)
        assert started == [0, 1, 2]


def test_cores_are_counted_with_and_without_affinity(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 1 <= usable_cores() <= (os.cpu_count() or 1)
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert usable_cores() == os.cpu_count()
