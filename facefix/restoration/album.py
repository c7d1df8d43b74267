"""What a run works on: the photos, the portraits, the output folder, and what in it still has to be done."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from facefix.errors import UsageError
from facefix.files.names import printable, readable
from facefix.outputs.folder import OUTPUT_MARKER
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
    _check_outputs_differ(result.photos, output, settings, str)
    root = inputs[0] if len(inputs) == 1 and inputs[0].is_dir() else Path.cwd()
    return Album(result.photos, result.skipped, output, root, portraits, settings.refs)


def check_letter_case(album: Album, settings: Settings) -> None:
    """Refuse photos whose outputs differ by letter case alone, where the output folder does not tell these apart.

    Raises UsageError. The output folder, with its marker, has to be there.
    """
    if (album.output / OUTPUT_MARKER.upper()).exists():
        _check_outputs_differ(album.photos, album.output, settings, _folded)


def _folded(path: str) -> str:
    return unicodedata.normalize("NFC", path).casefold()


def _check_outputs_differ(
    photos: Sequence[ScannedPhoto], output: Path, settings: Settings, key: Callable[[str], str]
) -> None:
    """Refuse two photos of which one's result or copy would take the other's place."""
    owners: dict[str, ScannedPhoto] = {}
    for photo in photos:
        for target in {output_path(photo, output), target_path(photo, output, settings)}:
            other = owners.setdefault(key(os.fspath(target)), photo)
            if other is not photo:
                raise UsageError(
                    f"inputs {printable(other.path)} and {printable(photo.path)}: both would be written to "
                    f"{printable(target)}; leave one out with --exclude, restore them in two runs with an output folder"
                    " each, or choose another --raw-format"
                )


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
            problems.append(Problem(portrait.path, Path(portrait.path.name), why_unreadable(portrait.path, error)))
    known = Album(album.photos, album.skipped, album.output, album.root, tuple(portraits), album.refs)
    return known, tuple(problems)


def why_unreadable(path: Path, error: OSError) -> str:
    """An error of the system in words."""
    return f"{printable(path)}: cannot be read: {error.strerror or error}"
