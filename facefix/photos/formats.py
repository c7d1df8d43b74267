"""Which file formats there are, by name and by content."""

from __future__ import annotations

import importlib.util

HEIF_SUFFIXES = frozenset({".heic", ".heif", ".hif"})

AVIF_SUFFIXES = frozenset({".avif"})

RAW_SUFFIXES = frozenset(
    {".3fr", ".arw", ".cr2", ".cr3", ".dcr", ".dng", ".erf", ".iiq", ".kdc", ".mef", ".mos", ".mrw"}
    | {".nef", ".nrw", ".orf", ".pef", ".raf", ".raw", ".rw2", ".sr2", ".srf", ".srw", ".x3f"}
)

OPTIONAL_SUFFIXES = HEIF_SUFFIXES | AVIF_SUFFIXES | RAW_SUFFIXES

SUFFIXES = (
    frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".tif", ".tiff", ".webp", ".bmp", ".dib"})
    | OPTIONAL_SUFFIXES
)
"""Lower-case file name endings that are taken for photos."""


def missing_extra(suffix: str) -> str | None:
    """Name of the optional extra that files of ``suffix`` need and that is not installed; None when they can be read."""
    if suffix in HEIF_SUFFIXES | AVIF_SUFFIXES:
        return None if importlib.util.find_spec("pillow_heif") else "heif"
    if suffix in RAW_SUFFIXES:
        return None if importlib.util.find_spec("rawpy") and importlib.util.find_spec("tifffile") else "raw"
    return None


def sniff(head: bytes) -> str | None:
    """Format of a file by its first 32 bytes: JPEG, PNG, TIFF, WEBP, BMP, HEIF, AVIF, or None.

    Most camera raw files are TIFF by their first bytes; their suffix tells them apart.
    """
    if head.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return "TIFF"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    if head[:2] == b"BM" and len(head) > 14:
        return "BMP"
    if head[4:8] == b"ftyp":
        return _sniff_iso(head)
    return None


def _sniff_iso(head: bytes) -> str | None:
    """HEIF or AVIF by the brands of an ISO base media file (ISO/IEC 23008-12, annex B)."""
    brands = {head[8:12]} | {head[start : start + 4] for start in range(16, len(head) - 3, 4)}
    if brands & {b"avif", b"avis"}:
        return "AVIF"
    return "HEIF" if brands & {b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1"} else None
