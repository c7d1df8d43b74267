"""Take restorations back: of single outputs wherever they are, or of everything in an output folder."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from facefix.errors import PhotoError, UsageError
from facefix.files.lock import locked
from facefix.outputs.folder import LEDGER_NAME, OUTPUT_MARKER, is_output_folder
from facefix.outputs.ledger import Ledger
from facefix.outputs.outcomes import PhotoOutcome
from facefix.outputs.undo import Undone, undo
from facefix.report import REPORT_FOLDER, write_output_report

UNDONE = "undone"


@dataclass(frozen=True, slots=True)
class TakenBack:
    """What became of one output."""

    path: Path
    undone: Undone | None
    problem: str = ""
    """why it could not be taken back"""


def take_back(
    paths: Sequence[Path],
    *,
    stores: Sequence[Path] = (),
    target: Path | None = None,
    force: bool = False,
    wait_seconds: float = 0.0,
) -> Iterator[TakenBack]:
    """Give outputs the original pixels of their restored faces back, one after the other.

    Args:
        paths: outputs, and output folders, of which every restored photo is taken back.
        stores: output folders to search for records of outputs that have left theirs.
        target: where to write, for a single output; None replaces the outputs.
        force: also where an output was edited since.
        wait_seconds: how long to wait for a run that works on an output folder.

    Raises:
        UsageError: a folder is no output folder, or ``target`` was given for more than one photo.
        LockHeld: a run works on an output folder.
    """
    _check(paths, stores, target)
    folders = {folder for path in paths for folder in _output_folders(path)} if target is None else set()
    with ExitStack() as stack:
        books = []
        for folder in sorted(folders):
            stack.enter_context(locked(folder, wait_seconds))
            books.append(_Books(folder, stack.enter_context(Ledger.open(folder))))
        for path in paths:
            for photo in _restored(path) if path.is_dir() else [path]:
                result = _one(photo, (path, *stores) if path.is_dir() else stores, target, force)
                for book in books:
                    book.note(result)
                yield result
        for book in books:
            book.close()


class _Books:
    """The ledger and the report of an output folder, kept up with what is taken back."""

    def __init__(self, output: Path, ledger: Ledger) -> None:
        self._output = output
        self._ledger = ledger
        self._outcomes = {photo.target: photo for photo in ledger.photos() if photo.target is not None}
        self._rows = ledger.done_rows()
        self._changed = False

    def note(self, result: TakenBack) -> None:
        """Write down that an output was taken back, so that the next run does not restore it again."""
        here = result.path.absolute()
        if result.undone is None or not here.is_relative_to(self._output):
            return
        outcome = self._outcomes.get(here.relative_to(self._output))
        row = None if outcome is None else self._rows.get(outcome.relative)
        if outcome is not None and row is not None:
            self._ledger.record_photo(_undone(outcome), portraits=row.portraits, written=os.stat(here))
            self._changed = True

    def close(self) -> None:
        """Make the report again where there is one."""
        if self._changed and (self._output / REPORT_FOLDER / "index.html").is_file():
            self._ledger.commit()
            write_output_report(self._output)


def _check(paths: Sequence[Path], stores: Iterable[Path], target: Path | None) -> None:
    if target is not None and (len(paths) != 1 or paths[0].is_dir()):
        raise UsageError("--output: expected a single photo to take back, found several, or a folder")
    for folder in (*(path for path in paths if path.is_dir()), *stores):
        if not is_output_folder(folder):
            raise UsageError(
                f"{folder}: expected an output folder of facefix, found no {OUTPUT_MARKER}/{LEDGER_NAME} in it"
            )


def _output_folders(path: Path) -> list[Path]:
    here = path.absolute()
    return [folder for folder in (here, *here.parents) if is_output_folder(folder)]


def _restored(output: Path) -> list[Path]:
    with Ledger.snapshot(output) as ledger:
        outcomes = [outcome for outcome in ledger.photos() if outcome.status == "restored"]
    return [output / outcome.target for outcome in outcomes if outcome.target is not None]


def _one(path: Path, stores: Sequence[Path], target: Path | None, force: bool) -> TakenBack:
    try:
        return TakenBack(path, undo(path, stores=stores, target=target, force=force))
    except (UsageError, PhotoError) as error:
        return TakenBack(path, None, str(error))


def _undone(outcome: PhotoOutcome) -> PhotoOutcome:
    faces = tuple(
        replace(face, verdict="kept", reason="taken back") if face.verdict in ("restored", "flagged") else face
        for face in outcome.faces
    )
    return replace(outcome, status=UNDONE, reason="taken back", faces=faces)
