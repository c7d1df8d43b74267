"""A folder sealed with ``SHA256SUMS`` (the format of sha256sum): any later change of a file in it is found."""

from __future__ import annotations

import os
import re
from pathlib import Path, PurePosixPath

from facefix.errors import CheckpointError, WeightsUnavailable
from facefix.files.atomic import write_bytes
from facefix.files.digests import sha256_of
from facefix.weights.download import RemoteFile, check

CHECKSUMS = "SHA256SUMS"


def seal(folder: Path) -> Path:
    """Write ``SHA256SUMS`` over every file in a folder, after bringing each to the disk; return its path."""
    lines = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / CHECKSUMS):
        with path.open("rb") as stream:
            os.fsync(stream.fileno())
        lines.append(f"{sha256_of(path)}  {path.relative_to(folder).as_posix()}\n")
    sums = folder / CHECKSUMS
    write_bytes("".join(lines).encode("utf-8"), sums)
    return sums


def verify(folder: Path) -> list[str]:
    """Compare a folder with its ``SHA256SUMS``; return what is wrong, one line each (empty: sound)."""
    try:
        recorded = _read(folder / CHECKSUMS)
    except FileNotFoundError:
        return [f"{folder / CHECKSUMS}: missing, so there is nothing to compare with"]
    except (OSError, CheckpointError) as error:
        return [str(error)]
    return [problem for name, sha256 in recorded.items() if (problem := _compare(folder / name, sha256))]


def _read(sums: Path) -> dict[str, str]:
    recorded = {}
    for line in sums.read_text(encoding="utf-8", errors="replace").splitlines():
        match = re.fullmatch(r"([0-9a-f]{64})  (.+)", line)
        if match is None or ".." in PurePosixPath(match.group(2)).parts or match.group(2).startswith("/"):
            raise CheckpointError(f"{sums}: expected lines of a sha256 and a file name, found {line!r}")
        recorded[match.group(2)] = match.group(1)
    return recorded


def _compare(path: Path, sha256: str) -> str | None:
    try:
        check(path, RemoteFile("", sha256=sha256))
    except FileNotFoundError:
        return f"{path}: missing"
    except (OSError, WeightsUnavailable) as problem:
        return str(problem)
    return None
