"""The report of an output folder, from its ledger, with the names that people.toml gives now."""

from __future__ import annotations

from pathlib import Path

from facefix.errors import UsageError
from facefix.outputs.folder import LEDGER_NAME, OUTPUT_MARKER
from facefix.outputs.ledger import Ledger
from facefix.outputs.outcomes import FaceOutcome, PhotoOutcome, ReferenceNote
from facefix.outputs.schema import FORGOTTEN
from facefix.people.people_file import PEOPLE_FILE, PeopleFile
from facefix.report.model import ReferenceUse, Report, ReportFace, ReportPhoto
from facefix.report.names import with_names_now


def report_of(output: Path) -> Report:
    """What the ledger below an output folder says.

    Raises:
        UsageError: there is no ledger: it is not an output folder of facefix; or people.toml cannot be understood.
    """
    if not (output / OUTPUT_MARKER / LEDGER_NAME).is_file():
        raise UsageError(
            f"{output}: expected an output folder of `facefix restore`, found no {OUTPUT_MARKER}/{LEDGER_NAME} in it"
        )
    with Ledger.snapshot(output) as ledger:
        photos = with_names_now(list(ledger.photos()), PeopleFile.read(output / PEOPLE_FILE))
        uses = _reference_uses(photos, ledger)
    return Report(
        title=f"facefix: {output.absolute().name or output.absolute()}",
        photos=tuple(_photo(photo, output, uses) for photo in photos),
    )


def _reference_uses(photos: list[PhotoOutcome], ledger: Ledger) -> dict[ReferenceNote, ReferenceUse]:
    notes = {note for photo in photos for face in photo.faces for note in face.references}
    return {
        note: ReferenceUse(
            path=Path(note.path),
            name=_short(Path(note.path)),
            reason=note.reason,
            box=ledger.face_box(Path(note.path), note.face),
        )
        for note in notes
    }


def _photo(photo: PhotoOutcome, output: Path, uses: dict[ReferenceNote, ReferenceUse]) -> ReportPhoto:
    notes = [photo.reason, *photo.notes]
    return ReportPhoto(
        name=str(photo.relative),
        status=photo.status,
        source=photo.source,
        output=output / photo.target if photo.target is not None else None,
        reason="; ".join(note for note in notes if note),
        size=photo.size,
        content=photo.sha256 or "",
        faces=tuple(_face(face, uses) for face in photo.faces),
    )


def _face(face: FaceOutcome, uses: dict[ReferenceNote, ReferenceUse]) -> ReportFace:
    return ReportFace(
        box=None if face.reason == FORGOTTEN else face.box,
        verdict=face.verdict,
        person=face.person,
        reason=face.reason,
        similarity_before=face.before,
        similarity_after=face.after,
        references=tuple(uses[note] for note in face.references),
        model=face.model,
        seconds=face.seconds if face.model is not None else None,
    )


def _short(path: Path) -> str:
    """The last two parts of a path: enough to know a portrait by."""
    return "/".join(path.parts[-2:]) if len(path.parts) > 2 else str(path)
