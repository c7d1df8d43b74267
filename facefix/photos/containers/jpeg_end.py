"""Where the picture of a JPEG file ends that has no end marker: after its last coded block, if that is there.

Decoders pad what is missing, so a whole picture decodes alike whatever follows it, and a truncated one does not.
ITU-T T.81, annex F (sequential scans) and G (progressive ones: bands of coefficients, refined bit by bit).
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Sequence

from PIL import JpegImagePlugin

_END = b"\xff\xd9"
_TAILS = (_END, b"\xa5\x5a" * 64 + _END, b"\x00\xfe" * 64 + _END)
_COEFFICIENTS = 64
_TRAILER = 2
"""bytes; fewer that are left over behind the picture are taken for padding of its last block"""


def find_end(
    stream: Callable[[int], bytes], start: int, end: int, components: Sequence[int], scans: Sequence[bytes]
) -> int:
    """Offset of the first byte after the picture.

    Args:
        stream: the picture as decoders take it, up to an offset in the file, without end marker.
        start: where the data of the last scan begins.
        end: where the data of the last scan end at the latest.
        components: their identifiers.
        scans: payloads of the scan headers, in order.

    Raises:
        ValueError: the picture is not all there.
    """
    if not _all_coefficients(components, scans) or not _is_whole(stream(end)):
        raise ValueError("truncated: the picture ends before its last block")
    if end - _TRAILER <= start or not _is_whole(stream(end - _TRAILER)):
        return end
    short, long = start, end - _TRAILER  # whole at ``long``, not at ``short``
    while long - short > 1:
        middle = (short + long) // 2
        if _is_whole(stream(middle)):
            long = middle
        else:
            short = middle
    return long


def _is_whole(picture: bytes) -> bool:
    shown = set()
    for tail in _TAILS:
        try:
            image = JpegImagePlugin.JpegImageFile(io.BytesIO(picture + tail))
            image.load()
        except OSError:
            return False
        shown.add(image.tobytes())
    return len(shown) == 1


def _all_coefficients(components: Sequence[int], scans: Sequence[bytes]) -> bool:
    """Whether the scans bring every bit of every coefficient of every component."""
    missing = {(name, number) for name in components for number in range(_COEFFICIENTS)}
    for scan in scans:
        count = scan[0] if scan else 0
        if len(scan) < 1 + 2 * count + 3:
            return False
        first, last, approximation = struct.unpack_from("3B", scan, 1 + 2 * count)
        if approximation & 15:
            continue
        names = scan[1 : 1 + 2 * count : 2]
        missing -= {(name, number) for name in names for number in range(first, last + 1)}
    return not missing
