"""One holder at a time: a lock file that the system frees when its holder ends, however it ends."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from facefix.errors import LockHeld


@contextlib.contextmanager
def exclusive(path: Path, holder: str, *, advice: str = "wait for it", wait_seconds: float = 0.0) -> Iterator[None]:
    """Hold the lock file ``path``; the holder's process number lies beside it, in ``path``.pid.

    Args:
        path: made where it is not there.
        holder: who may hold it, in the message: "HOLDER (process N) holds PATH; ADVICE".
        advice: what to do about it, in the message.
        wait_seconds: how long to wait for another holder to end.

    Raises:
        LockHeld: somebody else still holds it after ``wait_seconds``.
        OSError: the lock file cannot be made.
    """
    pid_file = path.with_name(f"{path.name}.pid")
    lock = FileLock(path, timeout=max(wait_seconds, 0.0))
    try:
        lock.acquire(poll_interval=0.1)
    except Timeout:
        raise LockHeld(f"{holder} (process {_read(pid_file)}) holds {path}; {advice}") from None
    try:
        with contextlib.suppress(OSError):  # only for the message above; undo and forget work on a full disk too
            pid_file.write_text(str(os.getpid()), encoding="ascii")
        yield
    finally:
        with contextlib.suppress(OSError):
            pid_file.unlink()
        lock.release()


def _read(pid_file: Path) -> str:
    try:
        return pid_file.read_text(encoding="ascii").strip() or "unknown"
    except (OSError, UnicodeDecodeError):
        return "unknown"
