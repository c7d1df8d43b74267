"""Outputs whose photos are gone from the album: renamed, moved or deleted since."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path

from facefix.outputs.folder import OUTPUT_MARKER
from facefix.outputs.ledger import Ledger
from facefix.outputs.outcomes import DoneRow
from facefix.outputs.undo import UNDO_FOLDER


def orphans(ledger: Ledger, root: Path, present: Iterable[Path]) -> dict[Path, DoneRow]:
    """Outputs, by their place in the output tree, whose photos lay below ``root`` and are there no more.

    Args:
        ledger: of the output folder.
        root: the album; what was done from other folders is not judged by it.
        present: places in the output tree of the photos that this run found.
    """
    here, album = set(present), os.path.abspath(root)
    return {
        relative: row
        for relative, row in ledger.records.done().items()
        if row.target is not None
        and relative not in here
        and os.fspath(row.source).startswith(album.rstrip(os.sep) + os.sep)
        and not os.path.lexists(row.source)
    }


def remove(
    found: dict[Path, DoneRow], output: Path, ledger: Ledger, is_as_written: Callable[[DoneRow, Path, Ledger], bool]
) -> tuple[list[Path], list[Path]]:
    """Remove outputs that are as they were written, with their undo records and the folders that become empty.

    Returns:
        What was removed, and what was left because it was changed since, by place in the output tree.
    """
    removed, left = [], []
    for relative, row in found.items():
        if row.target is None or not is_as_written(row, output, ledger):
            left.append(relative)
            continue
        (output / row.target).unlink()
        for record in _undo_records(row, output):
            record.unlink()
        _remove_empty_folders((output / row.target).parent, output)
        removed.append(relative)
    ledger.records.drop(removed)
    return removed, left


def _undo_records(row: DoneRow, output: Path) -> list[Path]:
    if not row.target_sha256:
        return []
    return list((output / OUTPUT_MARKER / UNDO_FOLDER).glob(f"*-{row.target_sha256[:16]}.*"))


def _remove_empty_folders(folder: Path, output: Path) -> None:
    while folder != output and output in folder.parents:
        with contextlib.suppress(OSError):
            folder.rmdir()
        if folder.exists():
            return
        folder = folder.parent
