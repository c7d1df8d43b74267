"""A run that was asked to stop ends after the batch it is at."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager


class Stop:
    """Set from a signal handler: the run ends after the batch it is at."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def __bool__(self) -> bool:
        return self.signal is not None

    def request(self, number: int) -> None:
        """Ask the run to end."""
        self.signal = number


@contextmanager
def _stopping(stop: Stop) -> Iterator[None]:
    """SIGINT and SIGTERM end the run after the batch it is at; a second one ends it at once."""

    def request(number: int, frame: object) -> None:
        stop.request(number)
        signal.signal(number, signal.SIG_DFL)
        print("facefix: finishing what is under way; once more to stop at once", file=sys.stderr, flush=True)

    old = {number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
