"""Which files are photos, which are not and why, and where the output of each goes."""

from __future__ import annotations

import errno
import fnmatch
import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from facefix.errors import UsageError
from facefix.files.names import printable
from facefix.outputs.folder import OUTPUT_MARKER, REPORT_FOLDER
from facefix.photos.formats import OPTIONAL_SUFFIXES, RAW_SUFFIXES, SUFFIXES, missing_extra


@dataclass(frozen=True, slots=True)
class ScannedPhoto:
    """A file that is a photo by its name, and its place in the output tree."""

    path: Path
    relative: Path


@dataclass(frozen=True, slots=True)
class Skipped:
    """A file or folder that is not looked into, and why."""

    path: Path
    reason: str
    failed: bool = False
    """it was to be looked into, and could not be: there may be photos in it"""


@dataclass(frozen=True, slots=True)
class ScanResult:
    """What a scan found, each in the order of the bytes of its paths."""

    photos: tuple[ScannedPhoto, ...]
    skipped: tuple[Skipped, ...]


def scan(
    inputs: Iterable[str | os.PathLike[str]],
    *,
    output: Path | None = None,
    recursive: bool = True,
    listed: Iterable[str | os.PathLike[str]] = (),
    exclude: Iterable[str] = (),
) -> ScanResult:
    """Find the photos in ``inputs``: folders, whose tree is mirrored, and single files, which go to the output's root.

    ``listed`` holds more paths, as from ``--files-from``; a relative one without ``..`` keeps its folders in the output
    tree. ``exclude`` holds shell patterns, matched against the name of a file or folder and against its path below the
    input. A listed path that is not there is kept, to fail when it is read. Raises UsageError for an input that is not
    there, an output folder inside an input that is not excluded, an output that would fall on an input, and two photos
    with the same output.
    """
    walk = _Walk(output, recursive, tuple(exclude))
    for entry in inputs:
        walk.add(Path(entry), Path())
    for entry in listed:
        walk.add(Path(entry), _folders_of(Path(entry)), listed=True)
    return walk.result()


def output_path(photo: ScannedPhoto, output: Path, *, raw_suffix: str | None = None) -> Path:
    """Where the output of ``photo`` goes below ``output``.

    ``raw_suffix`` (".tif" or ".jpg") is given for a developed camera raw file, whose own format cannot be written: it
    is appended, so that IMG_1.NEF and IMG_1.JPG beside it do not meet.
    """
    target = output / photo.relative
    if raw_suffix is not None and target.suffix.lower() in RAW_SUFFIXES:
        return target.with_name(target.name + raw_suffix)
    return target


def read_list(data: bytes, *, nul: bool = False) -> Iterator[Path]:
    """The paths in ``data``, one a line, or ended by NUL bytes when ``nul``; empty ones are left out.

    Bytes that are not UTF-8 are kept as Python's file functions expect them (surrogateescape).
    """
    for name in data.split(b"\0") if nul else data.splitlines():
        if name:
            yield Path(os.fsdecode(name))


class _Walk:
    """One scan under way. Folders reached by symbolic links wait until the real ones are done."""

    def __init__(self, output: Path | None, recursive: bool, exclude: tuple[str, ...]) -> None:
        self._output = output
        self._output_real = os.path.realpath(output) if output is not None else None
        self._recursive = recursive
        self._exclude = exclude
        self._photos: list[ScannedPhoto] = []
        self._skipped: list[Skipped] = []
        self._visited: set[tuple[int, int]] = set()

    def add(self, path: Path, below: Path, *, listed: bool = False) -> None:
        """Scan one input; its outputs go below the folder ``below`` of the output tree.

        A ``listed`` path that is gone is taken for a photo: one that fails when it is read, not the whole run.
        """
        try:
            status = path.stat()
        except (OSError, ValueError) as error:
            if listed and isinstance(error, OSError):
                self._photos.append(ScannedPhoto(path, below / path.name))
                return
            if listed:
                self._skip(path, "no file name: it holds a NUL byte")
                return
            reason = getattr(error, "strerror", None) or str(error)
            raise UsageError(f"input {printable(path)}: expected a photo or a folder, but: {reason}") from error
        if stat.S_ISDIR(status.st_mode):
            self._check_not_output(path)
            self._add_tree(path, below / path.name if below.parts else below)
        elif stat.S_ISREG(status.st_mode):
            self._add_file(path, below / path.name, explicit=True)
        else:
            self._skip(path, "neither a file nor a folder")

    def result(self) -> ScanResult:
        """What was found, checked for outputs that meet each other or an input."""
        photos = sorted(self._photos, key=lambda photo: (os.fsencode(photo.relative), os.fsencode(photo.path)))
        _check_distinct(photos)
        if self._output is not None:
            _check_apart(photos, self._output)
        return ScanResult(tuple(photos), tuple(sorted(self._skipped, key=lambda skipped: os.fsencode(skipped.path))))

    def _skip(self, path: Path, reason: str, *, failed: bool = False) -> None:
        self._skipped.append(Skipped(path, reason, failed))

    def _check_not_output(self, folder: Path) -> None:
        """Refuse an output that is this folder, or lies where the scan of it would come."""
        if self._output_real is None:
            return
        root = os.path.realpath(folder)
        if root == self._output_real:
            raise UsageError(f"output {printable(folder)}: is also an input; choose an output folder outside the album")
        if not self._recursive or not self._output_real.startswith(root.rstrip(os.sep) + os.sep):
            return
        path = folder
        for name in Path(self._output_real).relative_to(root).parts:
            path = path / name
            if name.startswith(".") or self._is_excluded(path, folder):
                return
        raise self._output_inside(path)

    def _add_tree(self, root: Path, below: Path) -> None:
        folders, links = [(root, below)], list[tuple[Path, Path]]()
        while folders or links:
            folder, relative = folders.pop() if folders else links.pop(0)
            folders.extend(reversed(self._add_folder(folder, relative, root, links)))
            links.sort(key=lambda pair: os.fsencode(pair[0]))

    def _add_folder(
        self, folder: Path, relative: Path, root: Path, links: list[tuple[Path, Path]]
    ) -> list[tuple[Path, Path]]:
        """Take the photos of one folder; return the folders in it, and append those behind links to ``links``."""
        try:
            status = folder.stat()
            with os.scandir(folder) as listing:
                entries = sorted(listing, key=lambda entry: os.fsencode(entry.name))
        except OSError as error:
            self._skip(folder, f"folder cannot be read: {error.strerror or error}", failed=True)
            return []
        if (status.st_dev, status.st_ino) in self._visited:
            self._skip(folder, "the same folder is scanned already (symbolic link or repeated input)")
            return []
        self._visited.add((status.st_dev, status.st_ino))
        if any(entry.name == OUTPUT_MARKER for entry in entries):
            self._refuse_output(folder)
            self._skip(folder, "output of an earlier run")
            return []
        found = list[tuple[Path, Path]]()
        for entry in entries:
            path, place = folder / entry.name, relative / entry.name
            if self._is_excluded(path, root):
                self._skip(path, "excluded")
            elif not _is_folder(entry):
                self._add_file(path, place)
            elif self._may_enter(path):
                (links if entry.is_symlink() else found).append((path, place))
        return found

    def _may_enter(self, folder: Path) -> bool:
        """Whether to look into ``folder``; the reason is noted if not."""
        if folder.name == REPORT_FOLDER:
            self._skip(folder, "report of an earlier run")
        elif folder.name.startswith("."):
            self._skip(folder, "hidden")
        elif not self._recursive:
            self._skip(folder, "folder, and the scan is not recursive")
        else:
            self._refuse_output(folder)
            return True
        return False

    def _refuse_output(self, folder: Path) -> None:
        if self._output_real is not None and os.path.realpath(folder) == self._output_real:
            raise self._output_inside(folder)

    def _output_inside(self, folder: Path) -> UsageError:
        return UsageError(
            f"output {printable(folder)}: lies inside an input, so its results would be taken for photos; "
            f"choose a folder outside, or leave it out of the scan with --exclude {folder.name!r}"
        )

    def _is_excluded(self, path: Path, root: Path) -> bool:
        names = (path.name, os.fspath(path.relative_to(root)))
        return any(fnmatch.fnmatchcase(name, pattern.rstrip("/")) for pattern in self._exclude for name in names)

    def _add_file(self, path: Path, relative: Path, *, explicit: bool = False) -> None:
        """Take a file as a photo or note why not; one that is named explicitly need not look like a photo."""
        reason = _why_no_photo(path, explicit=explicit)
        if reason is None:
            self._photos.append(ScannedPhoto(path, relative))
        else:
            self._skip(path, reason)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def _why_no_photo(path: Path, *, explicit: bool) -> str | None:
    """Why the file at ``path`` is not taken, or None when it is."""
    if path.name.startswith(".") and not explicit:
        return "hidden"
    suffix = path.suffix.lower()
    if suffix in OPTIONAL_SUFFIXES and (extra := missing_extra(suffix)) is not None:
        return f"{suffix} needs the extra facefix[{extra}], which is not installed"
    if suffix not in SUFFIXES and not explicit:
        return f"not a photo by its name ({suffix or 'no suffix'})"
    try:
        mode = path.stat().st_mode
    except OSError as error:
        if path.is_symlink() and error.errno in (errno.ENOENT, errno.ELOOP):
            return "broken symbolic link"
        return f"cannot be read: {error.strerror or error}"
    return None if stat.S_ISREG(mode) else "neither a file nor a folder"


def _folders_of(path: Path) -> Path:
    """Folders that a listed path keeps in the output tree."""
    return Path() if path.is_absolute() or ".." in path.parts else path.parent


def _check_distinct(photos: list[ScannedPhoto]) -> None:
    """Refuse two different files with the same output; ``photos`` are sorted by their place in the output tree."""
    repeated = [index for index in range(1, len(photos)) if photos[index - 1].relative == photos[index].relative]
    for index in reversed(repeated):
        first, second = photos[index - 1], photos[index]
        if os.path.realpath(first.path) != os.path.realpath(second.path):
            raise UsageError(
                f"inputs {printable(first.path)} and {printable(second.path)}: both would be written to "
                f"{printable(second.relative)}; restore them in two runs with an output folder each"
            )
        del photos[index]


def _check_apart(photos: list[ScannedPhoto], output: Path) -> None:
    """Refuse an output that would fall on one of the photos."""
    output_real = os.path.realpath(output)
    originals = {
        real
        for photo in photos
        if (real := os.path.realpath(photo.path)).startswith(output_real.rstrip(os.sep) + os.sep)
    }
    for photo in photos if originals else ():
        if os.path.realpath(output / photo.relative) in originals:
            raise UsageError(
                f"output {printable(output)}: the result of {printable(photo.path)} would replace an original; "
                "choose an output folder outside the album"
            )
