"""What a run says on stderr: a live display on a terminal, plain lines elsewhere, only problems when quiet."""

from __future__ import annotations

import sys
import time
from contextlib import AbstractContextManager
from types import TracebackType
from typing import TYPE_CHECKING, NoReturn, Protocol, TextIO

if TYPE_CHECKING:
    from tqdm.auto import tqdm

PLAIN_SECONDS = 10.0
"""least time between two plain lines"""


class Progress(Protocol):
    """Hears about a run. All methods return at once."""

    def phase(self, name: str, total: int, unit: str) -> None:
        """A new phase begins, with ``total`` units of work."""
        ...

    def advance(self, count: int = 1, *, detail: str = "") -> None:
        """``count`` units are done; ``detail`` says where things stand."""
        ...

    def say(self, message: str) -> None:
        """Something worth a line."""
        ...

    def problem(self, message: str) -> None:
        """Something went wrong with one photo; shown even when quiet."""
        ...


class Silent:
    """Says nothing; the library's default."""

    def phase(self, name: str, total: int, unit: str) -> None:
        """See `Progress`."""

    def advance(self, count: int = 1, *, detail: str = "") -> None:
        """See `Progress`."""

    def say(self, message: str) -> None:
        """See `Progress`."""

    def problem(self, message: str) -> None:
        """See `Progress`."""


class ProblemsOnly(Silent):
    """Only problems, one line each: what cron mails."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def problem(self, message: str) -> None:
        """Print the problem."""
        print(f"facefix: {message}", file=self._stream, flush=True)


class PlainLines(ProblemsOnly):
    """A line now and then, for logs."""

    def __init__(self, stream: TextIO, *, every_seconds: float = PLAIN_SECONDS) -> None:
        super().__init__(stream)
        self._every = every_seconds
        self._name, self._unit, self._total, self._done = "", "", 0, 0
        self._start = self._last = time.monotonic()

    def phase(self, name: str, total: int, unit: str) -> None:
        """Start counting; a phase without work is not mentioned."""
        self._name, self._unit, self._total, self._done = name, unit, total, 0
        self._start = self._last = time.monotonic()
        if total:
            self.say(f"{name}: {total} {unit}")

    def advance(self, count: int = 1, *, detail: str = "") -> None:
        """Print where things stand, if the last line is old enough."""
        self._done += count
        now = time.monotonic()
        if now - self._last < self._every or not self._total:
            return
        self._last = now
        left = (now - self._start) / max(self._done, 1) * (self._total - self._done)
        tail = f", {detail}" if detail else ""
        self.say(f"{self._name}: {self._done}/{self._total} {self._unit}{tail}, about {duration(left)} left")

    def say(self, message: str) -> None:
        """Print the line."""
        print(message, file=self._stream, flush=True)


class LiveDisplay:
    """A progress bar of rich, with messages above it. A context manager."""

    def __init__(self, stream: TextIO) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as Bars

        self._bars = Bars(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[unit]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[detail]}", style="dim", markup=False),
            console=Console(file=stream),
            transient=True,
        )
        self._task = self._bars.add_task("", total=None, unit="", detail="", visible=False)

    def __enter__(self) -> LiveDisplay:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def phase(self, name: str, total: int, unit: str) -> None:
        """Show a new bar in place of the last."""
        self._bars.remove_task(self._task)
        self._task = self._bars.add_task(name, total=total, unit=unit, detail="", visible=total > 0)

    def advance(self, count: int = 1, *, detail: str = "") -> None:
        """Move the bar."""
        self._bars.update(self._task, advance=count, detail=detail)

    def say(self, message: str) -> None:
        """Print above the bar."""
        self._bars.console.print(message, markup=False, highlight=False, soft_wrap=True)

    def problem(self, message: str) -> None:
        """Print above the bar."""
        self.say(f"facefix: {message}")


class Notebook(ProblemsOnly):
    """A bar of tqdm for each phase: a widget in a notebook, a line of text elsewhere. For ``Options(progress=...)``."""

    def __init__(self, stream: TextIO | None = None) -> None:
        super().__init__(stream or sys.stderr)
        self._bar: tqdm[NoReturn] | None = None

    def phase(self, name: str, total: int, unit: str) -> None:
        """Show a new bar; a phase without work has none."""
        from tqdm.auto import tqdm

        if self._bar is not None:
            self._bar.close()
        self._bar = tqdm(total=total, desc=name, unit=f" {unit}", file=self._stream) if total else None

    def advance(self, count: int = 1, *, detail: str = "") -> None:
        """Move the bar; close it at the end, so that a widget turns green."""
        if self._bar is None:
            return
        self._bar.set_postfix_str(detail, refresh=False)
        self._bar.update(count)
        if self._bar.n >= (self._bar.total or 0):
            self._bar.close()
            self._bar = None

    def say(self, message: str) -> None:
        """Print above the bar."""
        from tqdm.auto import tqdm

        tqdm.write(message, file=self._stream)

    def problem(self, message: str) -> None:
        """Print above the bar."""
        self.say(f"facefix: {message}")


class _Plain(AbstractContextManager[Progress]):
    """Gives a display that needs no closing."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def __enter__(self) -> Progress:
        return self._progress

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None


def open_progress(*, quiet: bool = False, stream: TextIO | None = None) -> AbstractContextManager[Progress]:
    """The display that fits: problems only when ``quiet``, live on a terminal, plain lines elsewhere."""
    stream = stream or sys.stderr
    if quiet:
        return _Plain(ProblemsOnly(stream))
    return LiveDisplay(stream) if stream.isatty() else _Plain(PlainLines(stream))


def duration(seconds: float) -> str:
    """Seconds in words for people: ``40 s``, ``3 min 20 s``, ``2 h 5 min``."""
    whole = round(max(seconds, 0))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
