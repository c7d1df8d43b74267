"""Unpack a downloaded zip without trusting it: no path leaves the folder, no link, no bomb."""

from __future__ import annotations

import re
import shutil
import stat
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from facefix.errors import WeightsUnavailable

MAX_MEMBERS = 1000
MAX_UNPACKED_BYTES = 8 << 30
MAX_RATIO = 200
"""a member that grows more than this is a bomb: weights hardly compress"""
_SMALL = 1 << 20


def unpack_zip(archive: Path, folder: Path, *, max_bytes: int = MAX_UNPACKED_BYTES) -> list[Path]:
    """Unpack the regular files of a zip into an existing folder; a single top folder they all share is left out.

    Returns the files written. Raises WeightsUnavailable naming the archive and the member; what was written until then
    is the caller's to remove (unpack into a temporary folder).
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            members = [member for member in opened.infolist() if not member.is_dir()]
            _refuse_bombs(archive, members, max_bytes)
            places = _places(archive, members)
            for member, place in zip(members, places, strict=True):
                _extract(archive, opened, member, folder / place)
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, EOFError, ValueError, UnicodeError) as error:
        raise WeightsUnavailable(f"{archive}: expected a sound zip archive, found: {error}; fetch it again") from None
    return [folder / place for place in places]


def _places(archive: Path, members: list[zipfile.ZipInfo]) -> list[Path]:
    """Where each member goes, relative to the folder."""
    paths = [_safe_path(archive, member) for member in members]
    tops = {path.parts[0] for path in paths}
    if len(tops) == 1 and all(len(path.parts) > 1 for path in paths):
        paths = [PurePosixPath(*path.parts[1:]) for path in paths]
    folded = [str(path).casefold() for path in paths]
    if len(set(folded)) != len(folded):
        raise WeightsUnavailable(f"{archive}: two members have the same name; not unpacked")
    return [Path(*path.parts) for path in paths]


def _safe_path(archive: Path, member: zipfile.ZipInfo) -> PurePosixPath:
    # orig_filename: before zipfile cut it at a NUL or turned separators round
    name = member.orig_filename
    path = PurePosixPath(name)
    unsafe = (
        not path.parts
        or path.is_absolute()
        or ".." in path.parts
        or "\\" in name
        or re.match(r"[A-Za-z]:", name)
        or any(ord(character) < 32 for character in name)
    )
    if unsafe:
        raise WeightsUnavailable(f"{archive}: member {name!r} would be written outside its folder; not unpacked")
    kind = stat.S_IFMT(member.external_attr >> 16)
    if kind not in (0, stat.S_IFREG):
        raise WeightsUnavailable(f"{archive}: member {name!r} is a link or device, not a file; not unpacked")
    if member.flag_bits & 0x1:
        raise WeightsUnavailable(f"{archive}: member {name!r} is encrypted; not unpacked")
    return path


def _refuse_bombs(archive: Path, members: list[zipfile.ZipInfo], max_bytes: int) -> None:
    if not members:
        raise WeightsUnavailable(f"{archive}: expected files in the archive, found none")
    if len(members) > MAX_MEMBERS:
        raise WeightsUnavailable(f"{archive}: {len(members)} members, more than {MAX_MEMBERS}; not unpacked")
    total = sum(member.file_size for member in members)
    if total > max_bytes:
        raise WeightsUnavailable(f"{archive}: unpacks to {total} bytes, more than {max_bytes}; not unpacked")
    for member in members:
        if member.file_size > _SMALL and member.file_size > MAX_RATIO * max(member.compress_size, 1):
            raise WeightsUnavailable(
                f"{archive}: member {member.filename!r} grows {MAX_RATIO} times and more; not unpacked"
            )
    free = shutil.disk_usage(archive.parent).free
    if total > free:
        raise WeightsUnavailable(f"{archive.parent}: {total} bytes to unpack but only {free} are free; make room")


def _extract(archive: Path, opened: zipfile.ZipFile, member: zipfile.ZipInfo, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    # zipfile stops at the declared size and compares the CRC, so a member cannot grow past what was checked above
    with opened.open(member) as source, target.open("xb") as sink:
        shutil.copyfileobj(source, sink, 1 << 20)
    if target.stat().st_size != member.file_size:
        raise WeightsUnavailable(f"{archive}: member {member.filename!r} is cut short; fetch it again")
