"""Files beside the photos that are none: films, sidecars, formats that are not read. Mirrored where that is asked."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from facefix.errors import PhotoError
from facefix.outputs.ledger import Ledger
from facefix.photos.photo import copy_photo
from facefix.restoration.scan import Skipped

_MIRRORED = "mirrored"


@dataclass(frozen=True, slots=True)
class Mirrored:
    """What became of the files that are no photos."""

    copied: int = 0
    current: int = 0
    """were there already"""
    problems: tuple[tuple[Path, str], ...] = ()
    """could not be copied, or something that is not ours is in the way"""


def mirror(skipped: Iterable[Skipped], output: Path, ledger: Ledger) -> Mirrored:
    """Copy files that were left out only because they are no photos; what is not ours is never written over."""
    known: dict[str, str] = ledger.noted(_MIRRORED, {})
    copied, current, problems = 0, 0, list[tuple[Path, str]]()
    for each in skipped:
        if each.relative is None:
            continue
        target, key = output / each.relative, os.fspath(each.relative)
        try:
            wanted = ledger.sha256(each.path)
            there = ledger.sha256(target) if os.path.lexists(target) else None
            if there == wanted:
                current += 1
            elif there is not None and there != known.get(key):
                problems.append((each.path, f"{target}: is not as facefix wrote it, and was left alone"))
                continue
            else:
                copy_photo(each.path, target)
                copied += 1
            known[key] = wanted
        except (OSError, PhotoError) as error:
            problems.append((each.path, f"{each.path}: cannot be copied: {error}"))
    ledger.note(_MIRRORED, known)
    return Mirrored(copied, current, tuple(problems))


def kinds(skipped: Iterable[Skipped]) -> Counter[str]:
    """How many files of which kind are no photos by their name."""
    return Counter(each.path.suffix.lower() or "no suffix" for each in skipped if each.relative is not None)
