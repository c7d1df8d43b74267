"""What is to be done in an album, by what is known to be done."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from facefix.errors import UsageError
from facefix.files.digests import digest
from facefix.outputs.ledger import Ledger
from facefix.outputs.outcomes import DoneRow
from facefix.people.people_file import PEOPLE_FILE
from facefix.restoration.album import Album, Problem, _why, target_path
from facefix.restoration.scan import ScannedPhoto, output_path
from facefix.settings import Settings

PIXEL_SETTINGS = (
    "strength", "upscale", "restore", "min_face", "no_ref", "refs_from", "max_references",
)  # fmt: skip
"""Settings beside the model's own that change a picture. Device, dtype and batch size aim at the same picture."""


@dataclass(frozen=True, slots=True)
class Work:
    """Which photos of an album are to be done."""

    pending: tuple[ScannedPhoto, ...]
    doubtful: tuple[ScannedPhoto, ...]
    """done, but portraits or corrections have changed since: to be done again if that concerns their people"""
    done: tuple[ScannedPhoto, ...]
    occupied: tuple[ScannedPhoto, ...]
    """left alone: something that is not ours, or changed since we wrote it, is where the output would go"""
    problems: tuple[Problem, ...]
    digests: dict[Path, str]
    """sha256 of every photo that could be read, by path"""

    @property
    def needs_looking(self) -> bool:
        """Whether any photo has to be looked at."""
        return bool(self.pending or self.doubtful)


def base_recipe(model: str, backend: str, settings: Settings) -> str:
    """Digest of what decides every picture alike: the model with its settings, the face backend, our settings."""
    return digest([model, backend, {name: getattr(settings, name) for name in PIXEL_SETTINGS}])


def given_identities(album: Album) -> str:
    """Digest of what the user says about who is who: the portraits and people.toml."""
    corrections = album.output / PEOPLE_FILE
    text = corrections.read_bytes() if corrections.is_file() else b""
    portraits = sorted([portrait.person or "", portrait.sha256] for portrait in album.portraits)
    return digest([portraits, hashlib.sha256(text).hexdigest()])


def find_work(album: Album, ledger: Ledger, settings: Settings, recipe: str, identities: str) -> Work:
    """Compare the album with what the ledger says is done. Raises UsageError with --if-exists fail."""
    rows, ours = ledger.done_rows(), ledger.started()
    pending: list[ScannedPhoto] = []
    doubtful: list[ScannedPhoto] = []
    done: list[ScannedPhoto] = []
    occupied: list[ScannedPhoto] = []
    problems: list[Problem] = []
    digests: dict[Path, str] = {}
    for photo in album.photos:
        try:
            digests[photo.path] = ledger.sha256(photo.path)
        except OSError as error:
            problems.append(Problem(photo.path, photo.relative, _why(photo.path, error)))
            continue
        row = rows.get(photo.relative)
        same = row is not None and row.sha256 == digests[photo.path] and row.recipe.startswith(recipe + ".")
        if row is not None and same and _stands(row, album.output, settings):
            (done if row.portraits == identities else doubtful).append(photo)
        elif _is_free(photo, row, ours, album.output, settings):
            pending.append(photo)
        else:
            occupied.append(photo)
    if occupied and settings.if_exists == "fail":
        raise UsageError(
            f"{output_path(occupied[0], album.output)}: exists and is not as facefix wrote it (so do"
            f" {len(occupied) - 1} more); move it away, or use --if-exists skip or overwrite"
        )
    if settings.if_exists == "overwrite":
        pending, occupied = [*pending, *occupied], []
    ledger.commit()
    return Work(tuple(pending), tuple(doubtful), tuple(done), tuple(occupied), tuple(problems), digests)


def _stands(row: DoneRow, output: Path, settings: Settings) -> bool:
    """Whether what was written is still there as it was."""
    if row.target is None:
        return settings.only_changed
    if row.status == "undone":
        return os.path.lexists(output / row.target)
    if settings.only_changed and row.status == "copied":
        return True
    return _is_as_written(row, output)


def _is_as_written(row: DoneRow, output: Path) -> bool:
    if row.target is None:
        return False
    try:
        status = os.stat(output / row.target)
    except OSError:
        return False
    return (status.st_size, status.st_mtime_ns) == (row.target_size, row.target_mtime_ns)


def _is_free(photo: ScannedPhoto, row: DoneRow | None, ours: Iterable[Path], output: Path, settings: Settings) -> bool:
    """Whether the output may be written: nothing there, or our own unchanged file, or one of a killed run."""
    targets = {output_path(photo, output), target_path(photo, output, settings)}
    if not any(os.path.lexists(target) for target in targets):
        return True
    if row is None or row.target is None:
        return photo.relative in ours
    return _is_as_written(row, output)
