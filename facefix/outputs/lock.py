"""One run at a time per output folder."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from facefix.errors import FacefixError
from facefix.files.lock import exclusive
from facefix.outputs.folder import OUTPUT_MARKER

LOCK_NAME = "lock"

_ADVICE = "wait for it, or use --wait SECONDS"


@contextlib.contextmanager
def locked(output: Path, wait_seconds: float = 0.0) -> Iterator[None]:
    """Hold the lock of an output folder, which is made where it is not there.

    Raises:
        LockHeld: another run still holds it after ``wait_seconds``.
        FacefixError: the folder cannot be written to.
    """
    path = output / OUTPUT_MARKER / LOCK_NAME
    with contextlib.ExitStack() as stack:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            held = exclusive(path, f"output {output}: another run", advice=_ADVICE, wait_seconds=wait_seconds)
            stack.enter_context(held)
        except OSError as error:
            raise FacefixError(
                f"output {output}: expected a folder that can be written to, but: {error.strerror or error}"
            ) from error
        yield
