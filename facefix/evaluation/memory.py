"""Peak memory of a stretch of work."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import torch

_CLEAR = Path("/proc/self/clear_refs")
_STATUS = Path("/proc/self/status")


class PeakMemory:
    """High-water mark since ``reset``: memory allocated on a CUDA device, or the resident memory of this process.

    Where the system cannot reset the mark of a process (it is a Linux facility), it is that since the process began.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = device if device.type == "cuda" else None

    def reset(self) -> None:
        """Start over from what is in use now."""
        if self._cuda is not None:
            torch.cuda.reset_peak_memory_stats(self._cuda)
            return
        try:
            _CLEAR.write_text("5")  # proc(5): resets VmHWM
        except OSError:
            return

    def read(self) -> int:
        """Bytes."""
        if self._cuda is not None:
            return int(torch.cuda.max_memory_allocated(self._cuda))
        try:
            marks = [line.split()[1] for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM:")]
        except OSError:
            marks = []
        if marks:
            return int(marks[0]) * 1024
        return _peak_since_start()


def _peak_since_start() -> int:
    """Bytes; 0 where the system does not say (Windows)."""
    with contextlib.suppress(ImportError):
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return int(peak) * (1 if sys.platform == "darwin" else 1024)
    return 0
