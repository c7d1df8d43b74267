"""Getting and installing weights: obtained, proven, converted, put in place at once."""

from __future__ import annotations

import contextlib
import fcntl
import fnmatch
import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from facefix.errors import FacefixError, LockHeld, UsageError, WeightsUnavailable
from facefix.files.atomic import new_folder, write_bytes
from facefix.methods.registry import method_named
from facefix.weights.catalogue import PublishedFile, Weights, _is_complete, find_model, weights_dir
from facefix.weights.checksums import seal, verify
from facefix.weights.download import Patience, RemoteFile, check, fetch
from facefix.weights.unpack import unpack_zip

SOURCE = "SOURCE.txt"


@dataclass(frozen=True, slots=True)
class PullOptions:
    """What the user decides about a pull."""

    accept_licence: bool = False
    given: tuple[Path, ...] = ()
    """files, or folders holding them, to install from instead of the network"""
    mirror: str | None = None
    """address of a folder that holds the files by their names; checksums stay those of the catalogue"""
    repin: bool = False
    """forget the checksums pinned at an earlier fetch"""
    keep_downloads: bool = False
    patience: Patience = field(default_factory=Patience)


@dataclass(frozen=True, slots=True)
class Observer:
    """Where a pull tells what it does."""

    say: Callable[[str], None] = lambda _message: None
    progress: Callable[[str, int, int | None], None] = lambda _file, _got, _total: None


def pull(
    weights: Weights, options: PullOptions | None = None, *, home: Path | None = None, observer: Observer | None = None
) -> Path:
    """Fetch, check and install weights; return their folder.

    Nothing is done when they are installed and sound. The installed folder appears whole or not at all. Raises
    UsageError when the licence was not accepted, LockHeld when another pull of the same weights runs,
    WeightsUnavailable when a file cannot be had or is not what it should be, CheckpointError when a checkpoint cannot
    be imported.
    """
    options, observer, home = options or PullOptions(), observer or Observer(), home or weights_dir()
    if weights.install == "shipped":
        return find_model(weights.name)
    if weights.non_commercial and not options.accept_licence:
        raise UsageError(
            f"{weights.name}: the licence is {weights.licence}, see {weights.licence_url}; "
            "read it and give --accept-licence if you agree"
        )
    _make_home(home)
    with _lock(home, weights.name):
        folder = home / weights.name
        if _is_complete(weights, folder) and not verify(folder):
            observer.say(f"{weights.name} is installed already: {folder}")
            return folder
        _remove_leftovers(home, weights.name)
        pins = _Pins(home / "pins.json")
        if options.repin:
            pins.forget(weights)
        files = {file.name: _obtain(file, weights, options, home, pins, observer) for file in weights.files}
        try:
            _install(weights, files, folder, observer)
        except FacefixError:
            _discard_unproven(weights, pins, home)
            raise
        pins.keep(weights, files, observer)
        if not options.keep_downloads:
            shutil.rmtree(home / "downloads" / weights.name, ignore_errors=True)
            with contextlib.suppress(OSError):
                (home / "downloads").rmdir()
    observer.say(f"{weights.name} is installed: {folder}")
    return folder


@dataclass(frozen=True, slots=True)
class _Obtained:
    """A file that passed its checks, and its measured digest."""

    path: Path
    size: int
    sha256: str


def _obtain(
    file: PublishedFile, weights: Weights, options: PullOptions, home: Path, pins: _Pins, observer: Observer
) -> _Obtained:
    """Take one file from where the user says, or download it."""
    expected = pins.expected(file)
    if options.given:
        path = _find_given(file, weights, options.given)
        return _Obtained(path, path.stat().st_size, check(path, expected))
    url = f"{options.mirror.rstrip('/')}/{file.name}" if options.mirror else file.url
    remote = RemoteFile(url, expected.size, expected.sha256)
    observer.say(f"fetching {url}")
    target = home / "downloads" / weights.name / file.name
    digest = fetch(
        remote,
        target,
        patience=options.patience,
        progress=lambda got, total: observer.progress(file.name, got, total),
    )
    return _Obtained(target, target.stat().st_size, digest)


def _discard_unproven(weights: Weights, pins: _Pins, home: Path) -> None:
    """Remove downloads that no checksum vouches for, so that the next pull fetches them again."""
    for file in weights.files:
        if pins.expected(file).sha256 is None:
            (home / "downloads" / weights.name / file.name).unlink(missing_ok=True)


def _find_given(file: PublishedFile, weights: Weights, given: tuple[Path, ...]) -> Path:
    for path in given:
        if path.is_dir() and (path / file.name).is_file():
            return path / file.name
        if path.is_file() and (path.name == file.name or len(weights.files) == len(given) == 1):
            return path
    names = ", ".join(str(path) for path in given)
    raise WeightsUnavailable(
        f"{weights.name}: expected {file.name} among the files given with --from, found only {names}"
    )


def _install(weights: Weights, files: Mapping[str, _Obtained], folder: Path, observer: Observer) -> None:
    """Build the folder aside, seal it, and put it in place in one step."""
    try:
        with new_folder(folder) as new:
            if weights.install == "import":
                observer.say("importing the published checkpoints")
                _import_published(weights, files, new)
            else:
                for obtained in files.values():
                    observer.say(f"unpacking {obtained.path.name}")
                    unpack_zip(obtained.path, new)
            if not _is_complete(weights, new):
                found = ", ".join(sorted(path.name for path in new.iterdir()))
                raise WeightsUnavailable(
                    f"{weights.name}: expected {', '.join(weights.contents)} inside, found {found}"
                )
            seal_installed(new, weights, {name: obtained.sha256 for name, obtained in files.items()})
    except OSError as error:
        raise WeightsUnavailable(
            f"{folder}: cannot be written: {error.strerror or error}; make room, or set "
            "FACEFIX_WEIGHTS_DIR, and run it again"
        ) from error


def _import_published(weights: Weights, files: Mapping[str, _Obtained], to: Path) -> None:
    """Convert published files as the registry says how: each goes to the option whose pattern its name fits."""
    assert weights.method is not None
    importer = method_named(weights.method).importer
    assert importer is not None
    values = {
        option.name: obtained.path
        for option in importer.options
        for name, obtained in files.items()
        if option.published and fnmatch.fnmatch(name, option.published)
    }
    importer.run(to, values)


def seal_installed(folder: Path, weights: Weights, sources: Mapping[str, str]) -> None:
    """Record in a folder of weights what they are, what they were made from (name: sha256), and their checksums."""
    addresses = {file.name: file.url for file in weights.files}
    lines = [f"{weights.name}: {weights.summary}", f"licence: {weights.licence}, see {weights.licence_url}"]
    if weights.note:
        lines.append(f"note: {weights.note}")
    lines += [f"from {addresses.get(name, name)} (sha256 {sha256})" for name, sha256 in sources.items()]
    (folder / SOURCE).write_text("\n".join(lines) + "\n", encoding="utf-8")
    seal(folder)


class _Pins:
    """Checksums of files that the catalogue does not know, recorded when each was first fetched and proved usable."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._pins: dict[str, dict[str, Any]] = json.loads(path.read_text("utf-8"))
        except FileNotFoundError:
            self._pins = {}
        except (OSError, ValueError) as error:
            raise WeightsUnavailable(
                f"{path}: expected the pinned checksums, found: {error}; repair or remove it"
            ) from None

    def expected(self, file: PublishedFile) -> RemoteFile:
        pin = self._pins.get(file.url, {})
        return RemoteFile(file.url, file.size or pin.get("size"), file.sha256 or pin.get("sha256"))

    def forget(self, weights: Weights) -> None:
        for file in weights.files:
            self._pins.pop(file.url, None)
        self._write()

    def keep(self, weights: Weights, files: Mapping[str, _Obtained], observer: Observer) -> None:
        for file in weights.files:
            if file.sha256 is not None or file.url in self._pins:
                continue
            obtained = files[file.name]
            when = time.strftime("%Y-%m-%d", time.gmtime())
            self._pins[file.url] = {"sha256": obtained.sha256, "size": obtained.size, "pinned": when}
            self._write()
            observer.say(f"{file.name}: no checksum was known; sha256 {obtained.sha256} is now pinned in {self._path}")

    def _write(self) -> None:
        write_bytes(f"{json.dumps(self._pins, indent=1, sort_keys=True)}\n".encode(), self._path)

    def get(self, file: PublishedFile) -> str | None:
        pin = self._pins.get(file.url)
        return None if pin is None else str(pin["sha256"])


def known_sha256(file: PublishedFile, home: Path | None = None) -> tuple[str | None, str]:
    """A file's sha256 and where it is known from: ``catalogue``, ``pinned`` or ``unknown``."""
    if file.sha256 is not None:
        return file.sha256, "catalogue"
    pinned = _Pins((home or weights_dir()) / "pins.json").get(file)
    return (pinned, "pinned") if pinned else (None, "unknown")


def _make_home(home: Path) -> None:
    try:
        home.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WeightsUnavailable(f"{home}: cannot be made ({error.strerror}); set FACEFIX_WEIGHTS_DIR") from None


@contextlib.contextmanager
def _lock(home: Path, name: str) -> Iterator[None]:
    """Held while weights of that name are being pulled; the kernel lets go of it if the process dies."""
    path = home / f".{name}.lock"
    try:
        stream = path.open("a")
    except OSError as error:
        raise WeightsUnavailable(f"{path}: cannot be written ({error.strerror}); set FACEFIX_WEIGHTS_DIR") from None
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise LockHeld(f"{path}: another pull of {name} is running; wait for it") from None
        yield


def _remove_leftovers(home: Path, name: str) -> None:
    """Remove what a killed pull left (the lock is held, so nobody else builds there)."""
    for folder in home.glob(f".{name}-*"):
        shutil.rmtree(folder, ignore_errors=True)
