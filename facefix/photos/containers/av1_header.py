"""What an AV1 stream says about its colours (AV1 Bitstream & Decoding Process Specification, section 5.5)."""

from __future__ import annotations

_SEQUENCE_HEADER = 1
_SRGB = (1, 13, 0)


def code_points(stream: bytes) -> tuple[int, int, int, int] | None:
    """Primaries, transfer, matrix and full-range flag of the first sequence header; None where it cannot be told."""
    try:
        payload = _sequence_header(stream)
        return None if payload is None else _colour_config(_Bits(payload))
    except IndexError:
        return None


class _Bits:
    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def read(self, count: int) -> int:
        value = 0
        for _ in range(count):
            value = value << 1 | self._data[self._at >> 3] >> (7 - (self._at & 7)) & 1
            self._at += 1
        return value


def _sequence_header(stream: bytes) -> bytes | None:
    at = 0
    while at < len(stream):
        head = stream[at]
        at += 2 if head & 4 else 1
        size, shift = len(stream) - at, 0
        if head & 2:
            size = 0
            while True:
                size |= (stream[at] & 0x7F) << shift
                shift, at = shift + 7, at + 1
                if not stream[at - 1] & 0x80:
                    break
        if head >> 3 & 15 == _SEQUENCE_HEADER:
            return stream[at : at + size]
        at += size
    return None


def _colour_config(bits: _Bits) -> tuple[int, int, int, int] | None:
    profile, _, is_reduced = bits.read(3), bits.read(1), bits.read(1)
    if is_reduced:
        bits.read(5)
    elif not _skip_operating_points(bits):
        return None
    width_bits, height_bits = bits.read(4) + 1, bits.read(4) + 1
    bits.read(width_bits + height_bits)
    if not is_reduced and bits.read(1):
        bits.read(7)
    bits.read(3)
    if not is_reduced:
        _skip_tools(bits)
    bits.read(3)
    is_deep = bits.read(1)
    if profile == 2 and is_deep:
        bits.read(1)
    is_grey = bits.read(1) if profile != 1 else 0
    points = (bits.read(8), bits.read(8), bits.read(8)) if bits.read(1) else (2, 2, 2)
    is_full = 1 if points == _SRGB and not is_grey else bits.read(1)
    return (*points, is_full)


def _skip_operating_points(bits: _Bits) -> bool:
    """Read past them; False where there is timing information, which a picture has no use for."""
    if bits.read(1):
        return False
    has_delay, count = bits.read(1), bits.read(5) + 1
    for _ in range(count):
        bits.read(12)
        if bits.read(5) > 7:
            bits.read(1)
        if has_delay and bits.read(1):
            bits.read(4)
    return True


def _skip_tools(bits: _Bits) -> None:
    bits.read(4)
    has_order_hint = bits.read(1)
    if has_order_hint:
        bits.read(2)
    forced = 2 if bits.read(1) else bits.read(1)
    if forced and not bits.read(1):
        bits.read(1)
    if has_order_hint:
        bits.read(3)
