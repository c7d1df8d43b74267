"""Making sure that what was forgotten is in no file of an output folder any more."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from facefix.errors import FacefixError
from facefix.outputs.folder import OUTPUT_MARKER

_SEARCHED_AT_ONCE = 1 << 24
"""bytes"""


_SEARCHED_SUFFIXES = frozenset({".sqlite", ".toml", ".html", ".json", ".js", ".npz", ".npy", ".tmp"})


def _require_gone(output: Path, vectors: Sequence[NDArray[np.float32]]) -> int:
    """Search facefix's own files for the embeddings' bytes; return how many files were searched."""
    # any 16 bytes of an embedding identify it
    needles = {vector.tobytes()[start : start + 16] for vector in vectors for start in (0, 64)}
    words = np.sort(np.array([int.from_bytes(needle[:8], "little") for needle in needles], np.uint64))
    searched = 0
    for path in _own_files(output):
        searched += 1
        if _contains(path, needles, words):
            raise FacefixError(f"{path}: an embedding is still in this file; remove it, or run facefix forget again")
    return searched


def _own_files(output: Path) -> Iterator[Path]:
    for folder, _, names in os.walk(output):
        for name in names:
            path = Path(folder, name)
            if OUTPUT_MARKER in path.parts or path.suffix in _SEARCHED_SUFFIXES or "-wal" in name:
                yield path


def _contains(path: Path, needles: AbstractSet[bytes], words: NDArray[np.uint64]) -> bool:
    """Whether a file holds one of the needles at any place; ``words`` are their first 8 bytes, sorted."""
    size = path.stat().st_size
    if not needles or size < 16:
        return False
    content = np.memmap(path, np.uint8, "r")
    for start in range(0, size, _SEARCHED_AT_ONCE):
        part = content[start : start + _SEARCHED_AT_ONCE + 16]
        for shift in range(8):
            there = part[shift : shift + (len(part) - shift) // 8 * 8].view("<u8")
            near = words[np.minimum(np.searchsorted(words, there), len(words) - 1)]
            for place in shift + 8 * np.flatnonzero(near == there):
                if part[place : place + 16].tobytes() in needles:
                    return True
    return False
