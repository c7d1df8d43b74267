"""Small pictures for the pages: made once, named by what they show, never by a file's name."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from PIL import Image, ImageOps

from facefix.errors import PhotoError
from facefix.files import atomic
from facefix.photos.photo import MAX_PIXELS, read_photo
from facefix.report.model import Box

PHOTO_PX: Final = 560
FACE_PX: Final = 192

_QUALITY: Final = 80
_FACE_MARGIN: Final = 0.3
"""of the face box's longer side, added on each side"""
_ORIENTATION: Final = 0x0112


@dataclass(frozen=True, slots=True)
class Cut:
    """One small picture of a photo: the whole of it, or one face."""

    content: str
    """changes whenever the photo does"""
    box: Box | None = None
    """left, top, right, bottom in pixels of the upright photo before any enlarging; None is the whole photo"""

    @property
    def file(self) -> str:
        """File name of the small picture."""
        where = "photo" if self.box is None else ",".join(f"{edge:.1f}" for edge in self.box)
        text = f"1\n{self.content}\n{where}"  # a path in it may have bytes that are not UTF-8
        return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:24] + ".webp"


@dataclass(frozen=True, slots=True)
class Sheet:
    """The small pictures to make from one photo."""

    path: Path
    cuts: tuple[Cut, ...]
    width: int | None = None
    """width of the upright photo that the boxes count in, where the file may be an enlarged copy; None: its own"""


def make_thumbnails(
    sheets: Sequence[Sheet],
    folder: Path,
    *,
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    max_pixels: int = MAX_PIXELS,
) -> set[str]:
    """Make the small pictures that are not there yet.

    Args:
        sheets: what to make.
        folder: where they go; made where it is not there.
        threads: how many photos at once; one per core by default.
        progress: called after each photo that had to be opened, with how many were and how many will be.
        max_pixels: photos with more are not opened.

    Returns:
        Names of all the files that are there now; a photo that cannot be read is left out.

    Raises:
        PhotoError: a small picture cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        there = set(os.listdir(folder))
    except OSError as error:
        raise PhotoError(f"{folder}: cannot be made: {error.strerror or error}") from error
    missing = [sheet for sheet in (_without(sheet, there) for sheet in sheets) if sheet.cuts]

    def make(sheet: Sheet) -> list[str]:
        return _make_sheet(sheet, folder, max_pixels)

    with ThreadPoolExecutor(threads or os.cpu_count() or 1) as pool:
        for number, made in enumerate(pool.map(make, missing), start=1):
            there.update(made)
            if progress is not None:
                progress(number, len(missing))
    return there


def in_units(advance: Callable[[int], None], units: int) -> Callable[[int, int], None]:
    """A callback for :func:`make_thumbnails` that calls ``advance`` with steps that add up to ``units``."""
    reported = 0

    def progress(done: int, total: int) -> None:
        nonlocal reported
        due = done * units // total
        if due > reported:
            advance(due - reported)
            reported = due

    return progress


def remove_others(folder: Path, wanted: Iterable[str]) -> int:
    """Remove small pictures that no page shows any more; return how many."""
    others = set(os.listdir(folder)) - set(wanted)
    for name in others:
        with contextlib.suppress(OSError):
            (folder / name).unlink()
    return len(others)


def _without(sheet: Sheet, there: set[str]) -> Sheet:
    return Sheet(sheet.path, tuple(cut for cut in sheet.cuts if cut.file not in there), sheet.width)


def _make_sheet(sheet: Sheet, folder: Path, max_pixels: int) -> list[str]:
    try:
        picture, enlarged = _open_small(sheet, max_pixels)
    except PhotoError:
        return []
    made = []
    for cut in sheet.cuts:
        small = _cut_out(picture, cut.box, enlarged)
        buffer = io.BytesIO()
        small.save(buffer, "WEBP", quality=_QUALITY, method=2)
        atomic.write_bytes(buffer.getvalue(), folder / cut.file, durable=False)
        made.append(cut.file)
    return made


def _open_small(sheet: Sheet, max_pixels: int) -> tuple[Image.Image, float]:
    """The upright sRGB picture, possibly decoded smaller than it is, and its size relative to the boxes' photo."""
    try:
        picture, true_width = _decode_jpeg_small(sheet, max_pixels)
    except Exception:  # damaged files make Pillow raise all there is; read_photo says what is wrong with them
        picture, true_width = None, 0
    if picture is None:
        picture = Image.fromarray(read_photo(sheet.path, max_pixels).pixels)
        true_width = picture.width
    return picture, picture.width / (sheet.width or true_width)


def _decode_jpeg_small(sheet: Sheet, max_pixels: int) -> tuple[Image.Image | None, int]:
    """Let the JPEG decoder shrink where that loses nothing we show; None for what it cannot be left to."""
    with Image.open(sheet.path) as image:
        plain = image.format == "JPEG" and image.mode in ("RGB", "L") and not image.info.get("icc_profile")
        if not plain or image.width * image.height > max_pixels:
            return None, 0
        turned = image.getexif().get(_ORIENTATION) in (5, 6, 7, 8)
        true_width = image.height if turned else image.width
        boxes_per_pixel = (sheet.width or true_width) / true_width
        factors = [PHOTO_PX / max(image.size)]
        for cut in sheet.cuts:
            if cut.box is not None:
                side = max(cut.box[2] - cut.box[0], cut.box[3] - cut.box[1], 1.0) * (1 + 2 * _FACE_MARGIN)
                factors.append(FACE_PX / side * boxes_per_pixel)
        factor = min(1.0, max(factors))
        image.draft("RGB", (round(image.width * factor), round(image.height * factor)))
        return ImageOps.exif_transpose(image).convert("RGB"), true_width


def _cut_out(picture: Image.Image, box: Box | None, enlarged: float) -> Image.Image:
    if box is None:
        small = picture.copy()
        small.thumbnail((PHOTO_PX, PHOTO_PX), Image.Resampling.LANCZOS, reducing_gap=2.0)
        return small
    left, top, right, bottom = (edge * enlarged for edge in box)
    half = max(right - left, bottom - top, 1.0) * (0.5 + _FACE_MARGIN)
    x, y = (left + right) / 2, (top + bottom) / 2
    square = (round(x - half), round(y - half), round(x + half), round(y + half))
    side = max(1, min(FACE_PX, square[2] - square[0]))
    return picture.crop(square).resize((side, side), Image.Resampling.LANCZOS, reducing_gap=2.0)
