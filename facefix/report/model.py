"""What the report shows, as plain values: nothing here knows where they come from or how they look."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

Box = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class ReferenceUse:
    """A reference as it was used."""

    path: Path
    """photo it is in"""
    name: str
    """how the photo is called on the page"""
    reason: str
    """why it was chosen"""
    box: Box | None = None
    """the face: left, top, right, bottom in pixels of the upright photo; None shows the whole photo"""


@dataclass(frozen=True, slots=True)
class ReportFace:
    """One face and what became of it."""

    box: Box | None
    """left, top, right, bottom in pixels of the upright photo as it was; None: the face is not to be shown by itself"""
    verdict: str
    """restored, kept, flagged or failed"""
    person: str | None = None
    reason: str = ""
    similarity_before: float | None = None
    similarity_after: float | None = None
    references: tuple[ReferenceUse, ...] = ()
    model: str | None = None
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class ReportPhoto:
    """One photo and what became of it."""

    name: str
    """how it is called on the page; any text"""
    status: str
    """restored, copied, left, skipped, failed or undone"""
    source: Path | None = None
    output: Path | None = None
    reason: str = ""
    size: tuple[int, int] | None = None
    """width, height of the upright photo as it was"""
    content: str = ""
    """changes whenever the original changes: its sha256"""
    faces: tuple[ReportFace, ...] = ()


@dataclass(frozen=True, slots=True)
class Report:
    """All that is on the page."""

    title: str
    photos: tuple[ReportPhoto, ...]
