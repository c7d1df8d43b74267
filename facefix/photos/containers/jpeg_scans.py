"""JPEG pictures whose chroma is subsampled in ways that the encoder at hand does not know: 4:4:0, 4:1:1 and others.

Every component is encoded as a grey picture of its own, with its own table, and becomes a scan of its own: baseline
JPEG allows scans that are not interleaved (ITU-T T.81, A.2.2 and B.2.3).
"""

from __future__ import annotations

import io
import struct
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from facefix.photos.orientation import contiguous

_MARKERS_WITH_TABLES = frozenset({0xDB, 0xC4})
_FRAME, _SCAN = 0xC0, 0xDA

_TO_YCBCR = np.array([[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]], np.float32)
"""JFIF 1.02"""


def encode(
    rgb: NDArray[np.uint8], tables: Sequence[Sequence[int]], sampling: Sequence[tuple[int, int]], names: Sequence[int]
) -> bytes:
    """A baseline stream of a (H, W, 3) picture.

    Args:
        tables: a quantisation table a component, 64 values in natural order.
        sampling: horizontal and vertical factor a component.
        names: identifiers of the components.
    """
    across, down = max(factor[0] for factor in sampling), max(factor[1] for factor in sampling)
    planes = np.clip(np.rint(rgb.astype(np.float32) @ _TO_YCBCR.T + np.array([0, 128, 128], np.float32)), 0, 255)
    parts, scans = [b"\xff\xd8"], []
    for number, (own_across, own_down) in enumerate(sampling):
        plane = _shrunk(planes[:, :, number], across // own_across, down // own_down)
        coded = _segments(_grey(plane, tables[number]))
        parts.append(_segment(0xDB, bytes([number]) + coded[0xDB][0][1:]))
        if number == 0:  # the same standard tables for all
            parts.extend(_segment(0xC4, payload) for payload in coded[0xC4])
        scans.append(_segment(_SCAN, bytes([1, names[number], 0, 0, 63, 0])) + coded[_SCAN][0])
    frame = struct.pack(">BHHB", 8, rgb.shape[0], rgb.shape[1], len(sampling))
    for number, (own_across, own_down) in enumerate(sampling):
        frame += bytes([names[number], own_across << 4 | own_down, number])
    return b"".join([*parts, _segment(_FRAME, frame), *scans, b"\xff\xd9"])


def _shrunk(plane: NDArray[np.float32], across: int, down: int) -> NDArray[np.uint8]:
    """Means over ``across`` x ``down`` pixels; the last row and column stand for those that are missing."""
    missing = (-plane.shape[0] % down, -plane.shape[1] % across)
    padded = np.pad(plane, ((0, missing[0]), (0, missing[1])), mode="edge")
    height, width = padded.shape
    means = padded.reshape(height // down, down, width // across, across).mean((1, 3))
    shrunk: NDArray[np.uint8] = np.rint(means).astype(np.uint8)
    return shrunk


def _grey(plane: NDArray[np.uint8], table: Sequence[int]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(contiguous(plane)).save(buffer, "JPEG", qtables=[list(table)])
    return buffer.getvalue()


def _segments(stream: bytes) -> dict[int, list[bytes]]:
    """Payloads of the tables by marker, and the coded data of the only scan under its marker."""
    found: dict[int, list[bytes]] = {}
    at = 2
    while True:
        marker, length = stream[at + 1], int.from_bytes(stream[at + 2 : at + 4], "big")
        if marker == _SCAN:
            found[_SCAN] = [stream[at + 2 + length :].removesuffix(b"\xff\xd9")]
            return found
        if marker in _MARKERS_WITH_TABLES:
            found.setdefault(marker, []).append(stream[at + 4 : at + 2 + length])
        at += 2 + length


def _segment(marker: int, payload: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(payload) + 2) + payload
