"""One run at a time per output folder."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

from facefix.errors import FacefixError, LockHeld
from facefix.outputs.folder import OUTPUT_MARKER

LOCK_NAME = "lock"


@contextlib.contextmanager
def locked(output: Path, wait_seconds: float = 0.0) -> Iterator[None]:
    """Hold the lock of an output folder; the kernel frees it when the process ends, however it ends.

    Raises LockHeld when another run still holds it after ``wait_seconds``.
    """
    path = output / OUTPUT_MARKER / LOCK_NAME
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "a+", encoding="ascii")  # noqa: SIM115  (closed below, by `with`)
    except OSError as error:
        raise FacefixError(
            f"output {output}: expected a folder that can be written to, but: {error.strerror or error}"
        ) from error
    with file:
        deadline = time.monotonic() + wait_seconds
        while not _try_lock(file.fileno()):
            if time.monotonic() >= deadline:
                file.seek(0)
                holder = file.read().strip() or "unknown"
                raise LockHeld(
                    f"output {output}: another run (process {holder}) holds {path}; wait for it, or use --wait SECONDS"
                )
            time.sleep(min(0.2, max(0.0, deadline - time.monotonic())))
        with contextlib.suppress(OSError):  # only for the message above; undo and forget work on a full disk too
            os.ftruncate(file.fileno(), 0)
            os.write(file.fileno(), str(os.getpid()).encode())
        yield


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
