"""What a run works on: the photos, the portraits, the output folder, and what in it still has to be done."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from facefix.errors import UsageError
from facefix.files.names import printable, readable
from facefix.outputs.ledger import Ledger
from facefix.restoration.scan import ScannedPhoto, Skipped, output_path, scan
from facefix.settings import Settings


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


def _why(path: Path, error: OSError) -> str:
    return f"{printable(path)}: cannot be read: {error.strerror or error}"
