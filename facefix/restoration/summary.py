"""What a run did, in numbers and in the exit code."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from facefix.outputs.outcomes import PhotoOutcome
from facefix.progress import duration
from facefix.restoration.verdicts import FAILED, FLAGGED, KEPT, RESTORED, VERDICTS
from facefix.restoration.worker import WorkerStatistics

ALL_DONE, SOME_FAILED, SOME_FLAGGED = 0, 3, 4


@dataclass(slots=True)
class Summary:
    """Counts of one run. Filled in while it goes on."""

    output: Path
    photos: int = 0
    """found by the scan"""
    skipped: int = 0
    """files and folders that the scan left out"""
    left_out: list[tuple[Path, str]] = field(default_factory=list)
    """those files and folders, each with the reason"""
    already_done: int = 0
    occupied: int = 0
    """left alone because something that is not as facefix wrote it is in the way"""
    faces: int = 0
    people: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    """photos worked on, by what became of them"""
    verdicts: Counter[str] = field(default_factory=Counter)
    """faces worked on, by verdict"""
    problems: list[tuple[Path, str]] = field(default_factory=list)
    seconds: float = 0.0
    looking_seconds: float = 0.0
    restore_seconds: float = 0.0
    device: WorkerStatistics = field(default_factory=WorkerStatistics)
    signal: int | None = None
    """that ended the run before it was through"""

    def add(self, outcome: PhotoOutcome) -> None:
        """Count one photo."""
        self.statuses[outcome.status] += 1
        self.verdicts.update(face.verdict for face in outcome.faces)
        if outcome.status == "failed":
            self.problems.append((outcome.source, outcome.reason))

    def exit_code(self, *, strict: bool = False) -> int:
        """0, 3 when photos or faces failed, 4 when ``strict`` and faces were flagged, 128 + signal when ended early."""
        if self.signal is not None:
            return 128 + self.signal
        if self.problems or self.verdicts[FAILED]:
            return SOME_FAILED
        return SOME_FLAGGED if strict and self.verdicts[FLAGGED] else ALL_DONE

    @property
    def device_busy(self) -> float | None:
        """Part of the restore phase in which the device worked; None without one."""
        return self.device.busy_seconds / self.restore_seconds if self.restore_seconds else None

    def as_dict(self) -> dict[str, Any]:
        """For --json and the ledger."""
        return {
            "output": str(self.output),
            "photos": {
                "found": self.photos,
                "already_done": self.already_done,
                "in_the_way": self.occupied,
                **{status: self.statuses[status] for status in ("restored", "enlarged", "copied", "left", "failed")},
            },
            "skipped": self.skipped,
            "left_out": [{"path": str(path), "reason": reason} for path, reason in self.left_out],
            "people": self.people,
            "faces": {"found": self.faces, **{verdict: self.verdicts[verdict] for verdict in VERDICTS}},
            "problems": [{"path": str(path), "reason": reason} for path, reason in self.problems],
            "seconds": {
                "all": round(self.seconds, 3),
                "looking": round(self.looking_seconds, 3),
                "restoring": round(self.restore_seconds, 3),
            },
            "device": {**asdict(self.device), "busy": self.device_busy},
            "signal": self.signal,
        }

    def lines(self) -> list[str]:
        """For people."""
        worked = ", ".join(f"{count} {status}" for status, count in sorted(self.statuses.items()) if count)
        lines = [f"{self.photos} photos: {worked or 'nothing to do'}, {self.already_done} done before"]
        if self.occupied:
            lines.append(f"{self.occupied} left alone: a file that facefix did not write is in the way (--if-exists)")
        if sum(self.verdicts.values()):
            counts = ", ".join(f"{self.verdicts[verdict]} {verdict}" for verdict in (RESTORED, KEPT, FLAGGED, FAILED))
            lines.append(f"faces: {counts}; {self.people} people")
        lines.append(f"{duration(self.seconds)}; results in {self.output}")
        return lines
