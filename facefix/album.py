"""What a run works on: the photos, the portraits, the output folder, and what in it still has to be done."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from facefix.errors import UsageError
from facefix.photos.ledger import DoneRow, Ledger
from facefix.photos.scan import ScannedPhoto, Skipped, output_path, printable, readable, scan
from facefix.settings import Settings

PEOPLE_FILE = "people.toml"

PIXEL_SETTINGS = (
    "strength", "upscale", "restore", "min_face", "no_ref", "refs_from", "max_references",
)  # fmt: skip
"""Settings beside the model's own that change a picture. Device, dtype and batch size aim at the same picture."""


@dataclass(frozen=True, slots=True)
class Portrait:
    """A photo given as a reference."""

    path: Path
    person: str | None
    """name of its subfolder; None in a flat folder"""
    sha256: str = ""


@dataclass(frozen=True, slots=True)
class Album:
    """What a run was pointed at."""

    photos: tuple[ScannedPhoto, ...]
    skipped: tuple[Skipped, ...]
    output: Path
    root: Path
    """folder that the names of photos count from"""
    portraits: tuple[Portrait, ...] = ()
    refs: Path | None = None


@dataclass(frozen=True, slots=True)
class Problem:
    """A photo or portrait that could not be read, and why."""

    path: Path
    relative: Path
    reason: str


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


def open_album(inputs: Sequence[Path], listed: Sequence[Path], settings: Settings) -> Album:
    """Find photos and portraits, and decide where the output goes. Raises UsageError."""
    output = settings.output or default_output(inputs, listed)
    result = scan(inputs, output=output, recursive=settings.recursive, listed=listed, exclude=settings.exclude)
    portraits: tuple[Portrait, ...] = ()
    if settings.refs is not None:
        if not settings.refs.is_dir():
            raise UsageError(f"--refs {settings.refs}: expected a folder of portraits, found none")
        portraits = tuple(
            Portrait(photo.path, readable(photo.relative.parts[0]) if len(photo.relative.parts) > 1 else None)
            for photo in scan([settings.refs]).photos
        )
        if not portraits:
            raise UsageError(f"--refs {settings.refs}: expected portraits in the folder, found no photo")
    root = inputs[0] if len(inputs) == 1 and inputs[0].is_dir() else Path.cwd()
    return Album(result.photos, result.skipped, output, root, portraits, settings.refs)


def target_path(photo: ScannedPhoto, output: Path, settings: Settings) -> Path:
    """Where the restored photo goes; an unchanged copy goes to `output_path`, which differs for camera raw files."""
    return output_path(photo, output, raw_suffix={"tiff": ".tif", "jpeg": ".jpg"}[settings.raw_format])


def default_output(inputs: Sequence[Path], listed: Sequence[Path]) -> Path:
    """``ALBUM-restored`` beside the one folder given. Raises UsageError where there is no such place."""
    for path in inputs:
        if not path.exists():
            raise UsageError(f"input {printable(path)}: expected a photo or a folder, found nothing there")
    if len(inputs) != 1 or listed or not inputs[0].is_dir():
        raise UsageError("-o: expected an output folder, since the input is not one folder; give -o FOLDER")
    album = Path(os.path.abspath(inputs[0]))
    if album == album.parent:
        raise UsageError(f"-o: expected an output folder, since {album} has no place beside it; give -o FOLDER")
    return album.with_name(album.name + "-restored")


def with_digests(album: Album, ledger: Ledger) -> tuple[Album, tuple[Problem, ...]]:
    """The album with every portrait's digest; portraits that cannot be read are left out, and named."""
    portraits, problems = [], []
    for portrait in album.portraits:
        try:
            portraits.append(Portrait(portrait.path, portrait.person, ledger.sha256(portrait.path)))
        except OSError as error:
            problems.append(Problem(portrait.path, Path(portrait.path.name), _why(portrait.path, error)))
    known = Album(album.photos, album.skipped, album.output, album.root, tuple(portraits), album.refs)
    return known, tuple(problems)


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


def digest(value: Any) -> str:
    """Short digest of a value that JSON can hold."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:32]


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


def _why(path: Path, error: OSError) -> str:
    return f"{printable(path)}: cannot be read: {error.strerror or error}"
