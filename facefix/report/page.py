"""The report: one static page and its small pictures in one folder, to be opened from disk without a network."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import numpy as np
from jinja2 import Environment, PackageLoader
from markupsafe import Markup
from PIL import Image

from facefix import __version__
from facefix.files import atomic
from facefix.report.model import ReferenceUse, Report, ReportFace, ReportPhoto
from facefix.report.thumbnails import Cut, Sheet, in_units, make_thumbnails, remove_others

REPORT_FOLDER: Final = "facefix-report"
THUMBS: Final = "thumbs"
VERDICTS: Final = ("restored", "kept", "flagged", "failed")

_LICENCE: Final = "img-comparison-slider.LICENSE.txt"
_CHANGED: Final = ("restored",)
"""statuses of photos whose output differs from the original"""


def write_report(
    report: Report, folder: Path, *, again: bool = False, progress: Callable[[int], None] | None = None
) -> Path:
    """Write the report, with pictures of what is new.

    Args:
        report: what to show.
        folder: where; everything in it is ours.
        again: write it even where the page that is there shows the same.
        progress: called as small pictures are made, with steps that add up to the number of photos.

    Returns:
        The page.

    Raises:
        PhotoError: it cannot be written.
    """
    page = folder / "index.html"
    digest = _digest(report)
    if not again and _digest_of(page) == digest:
        return page
    sheets = [sheet for photo in report.photos for sheet in _sheets(photo)]
    told = None if progress is None else in_units(progress, len(report.photos))
    thumbs = make_thumbnails(_joined([*sheets, *_reference_sheets(report)]), folder / THUMBS, progress=told)
    data = _Data(report, folder, thumbs)
    atomic.write_bytes(asset(_LICENCE).encode(), folder / _LICENCE)
    atomic.write_bytes(_render(report, data, digest).encode(), page)
    remove_others(folder / THUMBS, data.used)
    return page


def text_of(name: str | os.PathLike[str]) -> str:
    """A file name as text that any page and any JSON can hold: bytes that are not UTF-8 become U+FFFD."""
    return re.sub("[\ud800-\udfff]", "\ufffd", os.fspath(name))


def link_to(target: Path, folder: Path) -> str | None:
    """Address of a file, relative to the page's folder; None where there is no way from here to there."""
    try:
        relative = os.path.relpath(target.absolute(), folder.absolute())
    except ValueError:  # another drive on Windows
        return None
    return quote(os.fsencode(Path(relative).as_posix()), safe="/")


def environment() -> Environment:
    """Jinja with every value escaped unless it is marked as markup of our own."""
    return Environment(
        loader=PackageLoader("facefix.report"), autoescape=True, trim_blocks=True, keep_trailing_newline=True
    )


def policy(*, scripts: Sequence[str] = (), styles: Sequence[str] = ()) -> str:
    """A content security policy that lets the page run these very scripts and styles and reach no network at all."""
    parts = ["default-src 'none'", "img-src 'self'", "base-uri 'none'", "form-action 'none'"]
    if scripts:
        parts.append("script-src " + " ".join(map(_source_hash, scripts)))
    if styles:
        parts.append("style-src " + " ".join(map(_source_hash, styles)))
    return "; ".join(parts)


class _Data:
    """What the page's script reads. Names, references and models are kept once and referred to by number."""

    def __init__(self, report: Report, folder: Path, thumbs: set[str]) -> None:
        self._folder = folder
        self._thumbs = thumbs
        self.used: set[str] = set()
        faces = [face for photo in report.photos for face in photo.faces]
        self.verdicts = Counter(face.verdict for face in faces)
        self.people = Counter(face.person for face in faces if face.person is not None)
        self._person_numbers = {name: number for number, name in enumerate(sorted(self.people))}
        self._references: dict[ReferenceUse, int] = {}
        self._reference_rows: list[dict[str, Any]] = []
        self._models: dict[str, int] = {}
        self._changes: dict[tuple[str, str], float] = {}
        self.photos = [self._photo(photo) for photo in report.photos]

    def json(self) -> Markup:
        """The data as JSON that may stand inside a script element."""
        data = {
            "photos": self.photos,
            "people": [text_of(name) for name in self._person_numbers],
            "references": self._reference_rows,
            "models": [text_of(name) for name in self._models],
        }
        return json_for_script(data)

    def _photo(self, photo: ReportPhoto) -> dict[str, Any]:
        width, height = photo.size or (4, 3)
        output = photo.output if photo.output is not None and photo.output.exists() else None
        return {
            "name": text_of(photo.name),
            "status": photo.status,
            "why": text_of(photo.reason),
            "source": link_to(photo.source, self._folder) if photo.source is not None else None,
            "output": link_to(output, self._folder) if output is not None else None,
            "width": width,
            "height": height,
            "before": self._thumb(_before(photo)),
            "after": self._thumb(_after(photo)),
            "faces": [self._face(photo, face) for face in photo.faces],
        }

    def _face(self, photo: ReportPhoto, face: ReportFace) -> dict[str, Any]:
        before = after = None
        if face.box is not None:
            before = self._thumb(_before(photo, face))
            after = self._thumb(_after(photo, face)) or before
        return {
            "person": None if face.person is None else self._person_numbers[face.person],
            "verdict": face.verdict,
            "why": text_of(face.reason),
            "before": face.similarity_before,
            "after": face.similarity_after,
            "references": [self._reference(use) for use in face.references],
            "model": None if face.model is None else self._models.setdefault(face.model, len(self._models)),
            "seconds": face.seconds,
            "thumbBefore": before,
            "thumbAfter": after,
            "change": self._change(before, after),
        }

    def _reference(self, use: ReferenceUse) -> int:
        if use not in self._references:
            self._references[use] = len(self._references)
            thumb = self._thumb(_reference_cut(use))
            self._reference_rows.append({"thumb": thumb, "name": text_of(use.name), "why": text_of(use.reason)})
        return self._references[use]

    def _thumb(self, cut: Cut) -> str | None:
        if cut.file not in self._thumbs:
            return None
        self.used.add(cut.file)
        return cut.file

    def _change(self, before: str | None, after: str | None) -> float | None:
        """Mean absolute difference of two small pictures, 0..255."""
        if before is None or after is None:
            return None
        if before == after:
            return 0.0
        if (before, after) not in self._changes:
            self._changes[before, after] = self._difference(before, after)
        return self._changes[before, after]

    def _difference(self, before: str, after: str) -> float:
        pictures = []
        for name in (before, after):
            with Image.open(self._folder / THUMBS / name) as image:
                pictures.append(np.asarray(image.resize((64, 64)), np.float32))
        return round(float(np.abs(pictures[0] - pictures[1]).mean()), 2)


def json_for_script(data: Any) -> Markup:
    """JSON that a script element can hold whatever the texts in it are: no character can end the element."""
    text = json.dumps(data, ensure_ascii=True, separators=(",", ":"))
    for char in "<>&'":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return Markup(text)


def _before(photo: ReportPhoto, face: ReportFace | None = None) -> Cut:
    return Cut(photo.content or f"path {photo.source}", face.box if face else None)


def _after(photo: ReportPhoto, face: ReportFace | None = None) -> Cut:
    if photo.status not in _CHANGED or photo.output is None:
        return _before(photo, face)
    return Cut(file_state(photo.output), face.box if face else None)


def _sheets(photo: ReportPhoto) -> list[Sheet]:
    width = photo.size[0] if photo.size else None
    sheets = []
    faces = (None, *(face for face in photo.faces if face.box is not None))
    if photo.source is not None and photo.status not in ("failed", "skipped"):
        sheets.append(Sheet(photo.source, tuple(_before(photo, face) for face in faces), width))
    if photo.status in _CHANGED and photo.output is not None:
        sheets.append(Sheet(photo.output, tuple(_after(photo, face) for face in faces), width))
    return sheets


def _reference_cut(use: ReferenceUse) -> Cut:
    return Cut(file_state(use.path), use.box)


def file_state(path: Path) -> str:
    """Changes whenever the file does, as far as can be told without reading it."""
    try:
        status = path.stat()
    except OSError:
        return f"file {path}"
    return f"file {path} {status.st_size} {status.st_mtime_ns}"


def _reference_sheets(report: Report) -> list[Sheet]:
    uses = {use for photo in report.photos for face in photo.faces for use in face.references}
    return [Sheet(use.path, (_reference_cut(use),)) for use in sorted(uses, key=lambda use: (str(use.path), use.name))]


def _joined(sheets: Sequence[Sheet]) -> list[Sheet]:
    """Sheets of the same photo as one, so that it is opened once."""
    cuts: dict[tuple[Path, int | None], dict[Cut, None]] = {}
    for sheet in sheets:
        cuts.setdefault((sheet.path, sheet.width), {}).update(dict.fromkeys(sheet.cuts))
    return [Sheet(path, tuple(wanted), width) for (path, width), wanted in cuts.items()]


def _render(report: Report, data: _Data, digest: str) -> str:
    style, slider, script = asset("report.css"), asset("img-comparison-slider.js"), asset("report.js")
    page = environment().get_template("index.html.jinja")
    return page.render(
        title=text_of(report.title),
        version=__version__,
        digest=digest,
        policy=policy(scripts=(slider, script), styles=(style,)),
        totals=_totals(report, data.verdicts),
        people=[{"name": text_of(name), "count": data.people[name]} for name in sorted(data.people)],
        verdicts=[verdict for verdict in VERDICTS if data.verdicts[verdict]],
        data=data.json(),
        style=Markup(style),
        slider=Markup(slider),
        script=Markup(script),
    )


def _totals(report: Report, verdicts: Mapping[str, int]) -> list[dict[str, Any]]:
    statuses = Counter(photo.status for photo in report.photos)
    totals = [{"count": len(report.photos), "what": "photos"}]
    totals += [{"count": count, "what": f"photos {status}"} for status, count in sorted(statuses.items())]
    totals.append({"count": sum(verdicts.values()), "what": "faces"})
    totals += [{"count": verdicts[verdict], "what": f"faces {verdict}"} for verdict in VERDICTS if verdicts[verdict]]
    return totals


def asset(name: str) -> str:
    """A file that ships with the pages."""
    return resources.files("facefix.report").joinpath("assets", name).read_text(encoding="utf-8")


def _source_hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _digest(report: Report) -> str:
    """Changes whenever the page would."""
    assets = [asset(name) for name in ("report.css", "report.js", "img-comparison-slider.js")]
    outputs = [file_state(photo.output) for photo in report.photos if photo.output is not None]
    text = repr((__version__, assets, report, outputs))
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:32]


def _digest_of(page: Path) -> str | None:
    try:
        with open(page, encoding="utf-8", errors="replace") as file:
            head = file.read(4096)
    except OSError:
        return None
    found = re.search(r'name="facefix-digest" content="([0-9a-f]+)"', head)
    return found[1] if found else None
