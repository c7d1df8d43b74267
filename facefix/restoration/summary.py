"""What a run did, in numbers and in the exit code."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from facefix.outputs.outcomes import PhotoOutcome
from facefix.progress import duration
from facefix.restoration.batches import DeviceStatistics
from facefix.restoration.others import Mirrored
from facefix.restoration.verdicts import FAILED, FLAGGED, KEPT, RESTORED, VERDICTS

ALL_DONE, SOME_FAILED, SOME_FLAGGED = 0, 3, 4


@dataclass(frozen=True, slots=True)
class Done:
    """One photo that is through, and what was measured since the one before it."""

    outcome: PhotoOutcome
    device: DeviceStatistics = field(default_factory=DeviceStatistics)
    restore_seconds: float = 0.0
    """wall time of the restore phase"""


@dataclass(frozen=True, slots=True)
class Tally:
    """What became of photos and faces, counted."""

    statuses: Counter[str] = field(default_factory=Counter)
    """photos, by what became of them"""
    verdicts: Counter[str] = field(default_factory=Counter)
    """faces, by verdict"""
    problems: tuple[tuple[Path, str], ...] = ()
    """photos that failed, each with the reason"""
    device: DeviceStatistics = field(default_factory=DeviceStatistics)
    restore_seconds: float = 0.0

    @classmethod
    def of(cls, photos: Iterable[Done]) -> Self:
        """Count photos as they are done; none is kept."""
        statuses, verdicts, problems = Counter[str](), Counter[str](), list[tuple[Path, str]]()
        device, seconds = DeviceStatistics(), 0.0
        for done in photos:
            statuses[done.outcome.status] += 1
            verdicts.update(face.verdict for face in done.outcome.faces)
            if done.outcome.status == "failed":
                problems.append((done.outcome.source, done.outcome.reason))
            device += done.device
            seconds += done.restore_seconds
        return cls(statuses, verdicts, tuple(problems), device, seconds)


@dataclass(frozen=True, slots=True)
class Summary:
    """Counts of one run."""

    output: Path
    photos: int = 0
    """found by the scan"""
    left_out: tuple[tuple[Path, str], ...] = ()
    """files and folders that the scan left out, each with the reason"""
    already_done: int = 0
    occupied: int = 0
    """left alone because something that is not as facefix wrote it is in the way"""
    others: Counter[str] = field(default_factory=Counter)
    """files that are no photos, by suffix"""
    mirrored: Mirrored | None = None
    """what became of them; None where they were left out"""
    orphans: int = 0
    """outputs whose photos are gone"""
    pruned: int = 0
    """outputs of those that were removed"""
    faces: int = 0
    people: int = 0
    tally: Tally = field(default_factory=Tally)
    """photos that were worked on"""
    problems: tuple[tuple[Path, str], ...] = ()
    """with photos that failed, and whatever else could not be read"""
    seconds: float = 0.0
    looking_seconds: float = 0.0
    signal: int | None = None
    """that ended the run before it was through"""

    @property
    def statuses(self) -> Counter[str]:
        """Photos worked on, by what became of them."""
        return self.tally.statuses

    @property
    def verdicts(self) -> Counter[str]:
        """Faces worked on, by verdict."""
        return self.tally.verdicts

    @property
    def device(self) -> DeviceStatistics:
        """What the device did."""
        return self.tally.device

    @property
    def restore_seconds(self) -> float:
        """Wall time of the restore phase."""
        return self.tally.restore_seconds

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
            "skipped": len(self.left_out),
            "others": dict(sorted(self.others.items())),
            "others_copied": None if self.mirrored is None else self.mirrored.copied + self.mirrored.current,
            "orphans": {"found": self.orphans, "removed": self.pruned},
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
        if self.others:
            kinds = ", ".join(f"{count} {suffix}" for suffix, count in self.others.most_common())
            what = "left out (--copy-others)" if self.mirrored is None else f"{self.mirrored.copied} copied"
            lines.append(f"{sum(self.others.values())} files that are no photos: {kinds}; {what}")
        if self.orphans:
            what = f"{self.pruned} removed" if self.pruned else "--prune list names them"
            lines.append(f"{self.orphans} outputs whose photos are gone from the album; {what}")
        if sum(self.verdicts.values()):
            counts = ", ".join(f"{self.verdicts[verdict]} {verdict}" for verdict in (RESTORED, KEPT, FLAGGED, FAILED))
            lines.append(f"faces: {counts}; {self.people} people")
        lines.append(f"{duration(self.seconds)}; results in {self.output}")
        return lines
