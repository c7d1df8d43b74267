"""Files and folders that appear whole or not at all.

A file: temporary file in the same folder, check, fsync, rename, fsync again. A folder: built beside its place, renamed.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from facefix.errors import PhotoError
from facefix.files.digests import sha256_of
from facefix.files.names import printable

TEMPORARY_PREFIX = ".facefix-"
TEMPORARY_SUFFIX = ".tmp"

_CHUNK_BYTES = 1 << 20


def is_temporary(name: str) -> bool:
    """Whether a file of this name is a leftover of an interrupted write."""
    return name.startswith(TEMPORARY_PREFIX) and name.endswith(TEMPORARY_SUFFIX)


def write_bytes(
    data: bytes,
    target: Path,
    *,
    like: os.stat_result | None = None,
    verify: Callable[[Path], None] | None = None,
    durable: bool = True,
) -> None:
    """Put ``data`` at ``target``, replacing what is there; folders on the way are made.

    ``like`` gives permissions and modification time. ``verify`` is called with the temporary file before it takes the
    name, and raises to prevent that. What can be made again need not be ``durable``: then the disk is not waited for.
    Raises PhotoError, and leaves nothing behind, when it does not work out.
    """
    with replacing(target, like=like, durable=durable) as temporary:
        with open(temporary, "wb") as file:
            file.write(data)
        if verify is not None:
            verify(temporary)


@contextlib.contextmanager
def replacing(target: Path, *, like: os.stat_result | None = None, durable: bool = True) -> Iterator[Path]:
    """Path of a new temporary file beside ``target`` that takes its name when the block ends without an exception.

    As :func:`write_bytes`, for writers that want a path.
    """
    temporary = target.parent / f"{TEMPORARY_PREFIX}{secrets.token_hex(8)}{TEMPORARY_SUFFIX}"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        yield temporary
        if durable or like is not None:
            _sync(temporary, like)
        os.replace(temporary, target)
        if durable:
            _sync(target.parent)
    except OSError as error:
        raise PhotoError(f"{printable(target)}: cannot be written: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            os.unlink(temporary)


def copy_bytes(source: Path, target: Path) -> str:
    """Copy ``source`` to ``target`` byte for byte, with permissions and modification time; return its sha256.

    The copy is read again and compared before it takes the name. Raises PhotoError, and leaves nothing behind, when it
    does not work out.
    """
    try:
        like = source.stat()
        if not stat.S_ISREG(like.st_mode):
            raise PhotoError(f"{printable(source)}: cannot be copied: expected a regular file")
    except OSError as error:
        raise PhotoError(f"{printable(source)}: cannot be read: {error.strerror or error}") from error
    with replacing(target, like=like) as temporary:
        expected = _copy_and_hash(source, temporary)
        if sha256_of(temporary) != expected:
            names = f"{printable(target)}: the copy does not hold what {printable(source)} does"
            raise PhotoError(f"{names}; check the disk")
    return expected


@contextlib.contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A new folder to fill, which takes the name ``target`` when the block ends without an exception.

    Until then it lies in ``.NAME-*`` beside ``target``; leftovers of a killed process can be told by that name. A
    folder that is in the place is replaced. Raises OSError when it cannot be made or moved: all is then as it was.
    """
    target = target.absolute()
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        new = staging / "new"
        new.mkdir()
        yield new
        _swap(new, target, aside=staging / "old")
        _sync(target.parent)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _swap(new: Path, target: Path, aside: Path) -> None:
    """Put a finished folder in the place of the one there may be."""
    if target.exists():
        target.rename(aside)
    try:
        new.rename(target)
    except OSError:
        if aside.exists():
            aside.rename(target)
        raise


def remove_leftovers(folder: Path) -> int:
    """Remove temporary files of interrupted writes below ``folder``; return how many. Only call while no run writes."""
    removed = 0
    for parent, _, names in os.walk(folder):
        for name in filter(is_temporary, names):
            with contextlib.suppress(OSError):
                os.unlink(os.path.join(parent, name))
                removed += 1
    return removed


def _sync(path: Path, like: os.stat_result | None = None) -> None:
    """Give ``path`` permissions and times of ``like``, readable by its owner in any case, and wait for the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        if like is not None:
            os.fchmod(descriptor, stat.S_IMODE(like.st_mode) & 0o777 | stat.S_IRUSR)
            os.utime(descriptor, ns=(like.st_atime_ns, like.st_mtime_ns))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _copy_and_hash(source: Path, temporary: Path) -> str:
    """Copy and return the digest of what was read, so that a source that changes meanwhile is noticed elsewhere."""
    digest = hashlib.sha256()
    with open(temporary, "wb") as writer:
        for chunk in _chunks_of(source):
            digest.update(chunk)
            writer.write(chunk)
    return digest.hexdigest()


def _chunks_of(path: Path) -> Iterator[bytes]:
    try:
        with open(path, "rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                yield chunk
    except OSError as error:
        raise PhotoError(f"{printable(path)}: cannot be read: {error.strerror or error}") from error


def free_bytes(folder: Path) -> int:
    """Bytes free on the disk of ``folder``, or of its nearest ancestor that exists."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free
