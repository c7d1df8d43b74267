"""Which file formats there are, by name and by content."""

from __future__ import annotations

import importlib.util

HEIF_SUFFIXES = frozenset({".heic", ".heif", ".hif"})

AVIF_SUFFIXES = frozenset({".avif"})

RAW_SUFFIXES = frozenset(
    {".3fr", ".arw", ".cr2", ".cr3", ".dcr", ".dng", ".erf", ".iiq", ".kdc", ".mef", ".mos", ".mrw"}
    | {".nef", ".nrw", ".orf", ".pef", ".raf", ".raw", ".rw2", ".sr2", ".srf", ".srw", ".x3f"}
)

OPTIONAL_SUFFIXES = HEIF_SUFFIXES | RAW_SUFFIXES

SUFFIXES = (
    frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".tif", ".tiff", ".webp", ".bmp", ".dib"})
    | AVIF_SUFFIXES
    | OPTIONAL_SUFFIXES
)
"""Lower-case file name endings that are taken for photos."""


_MAGICS = (
    ("JPEG", 0, (b"\xff\xd8\xff",)),
    ("PNG", 0, (b"\x89PNG\r\n\x1a\n",)),
    ("TIFF", 0, (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")),
    ("WEBP", 8, (b"WEBP",)),
    ("BMP", 0, (b"BM",)),
)


def missing_extra(suffix: str) -> str | None:
    """Name of the optional extra that ``suffix`` needs where it is not installed; None when it can be read."""
    if suffix in HEIF_SUFFIXES:
        return None if importlib.util.find_spec("pillow_heif") else "heif"
    if suffix in RAW_SUFFIXES:
        return None if importlib.util.find_spec("rawpy") else "raw"
    return None


def sniff(head: bytes) -> str | None:
    """Format of a file by its first 32 bytes: JPEG, PNG, TIFF, WEBP, BMP, HEIF, AVIF, or None.

    Most camera raw files are TIFF by their first bytes; their suffix tells them apart.
    """
    for kind, start, magics in _MAGICS:
        if any(head.startswith(magic, start) for magic in magics):
            return kind if kind != "WEBP" or head.startswith(b"RIFF") else None
    return _sniff_iso(head) if head[4:8] == b"ftyp" else None


def _sniff_iso(head: bytes) -> str | None:
    """HEIF or AVIF by the brands of an ISO base media file (ISO/IEC 23008-12, annex B)."""
    brands = {head[8:12]} | {head[start : start + 4] for start in range(16, len(head) - 3, 4)}
    if brands & {b"avif", b"avis"}:
        return "AVIF"
    return "HEIF" if brands & {b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1"} else None
