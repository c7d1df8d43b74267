"""Work that was asked to stop ends after the batch or step it is at."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM") if hasattr(signal, name))


class Stop:
    """Set from a signal handler: the work ends after the batch or step it is at."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def __bool__(self) -> bool:
        return self.signal is not None

    def request(self, number: int) -> None:
        """Ask the work to end."""
        self.signal = number


@contextmanager
def stopping(stop: Stop) -> Iterator[Stop]:
    """SIGINT and SIGTERM request the stop; a second one ends the process at once.

    Handlers belong to the main thread: in another one nothing is set, and the caller has its own way to stop.
    """

    def request(number: int, frame: object) -> None:
        stop.request(number)
        signal.signal(number, signal.SIG_DFL)
        print("facefix: finishing what is under way; once more to stop at once", file=sys.stderr, flush=True)

    main = threading.current_thread() is threading.main_thread()
    old = {number: signal.signal(number, request) for number in _SIGNALS if main}
    try:
        yield stop
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
