"""Take identity embeddings out of an output folder, so that no byte of them is left in any of its files.

Embeddings are biometric data. What was restored stays; who it was is not known any more.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote_to_bytes

import numpy as np
from numpy.typing import NDArray

from facefix.errors import FacefixError, UsageError
from facefix.faces.embed import DlibEmbedder
from facefix.files.lock import locked
from facefix.files.names import readable
from facefix.outputs.folder import LEDGER_NAME, OUTPUT_MARKER
from facefix.outputs.forgetting import _require_gone
from facefix.outputs.ledger import Ledger
from facefix.outputs.outcomes import StoredEmbedding
from facefix.people.people_file import PeopleFile, PeopleIndex, forget_person

PEOPLE_NAME = "people.toml"

_PORTRAITS = "@refs/"

FaceKey = tuple[str, int]
"""sha256 of a photo's content, number of the face in it"""

ARCFACE_SAME_DISTANCE = 1.05
"""Distance of embeddings of length 1 up to which ArcFace sees one person: a cosine of 0.45 (see faces/embed.py)."""


@dataclass(frozen=True, slots=True)
class Forgotten:
    """What was taken out."""

    embeddings: int
    people_entries: int
    """entries of people.toml"""
    searched_files: int
    """files that were searched by bytes afterwards"""
    pages: tuple[Path, ...] = ()
    """pages that were made again or, where that cannot be done here, removed"""


def forget(output: Path, person: str | None = None) -> Forgotten:
    """Delete the embeddings of a person, or all of them, from an output folder, and search its files afterwards.

    Faces are taken for the person's when a run took them for it, when people.toml or the photo's own metadata says so,
    when they are in a portrait folder of that name, or when they are as similar to one of these as faces of one person
    are: rather one face too many than one left. The report is made again without them; the contact sheet, which only
    `facefix people` can make, is removed.

    :param person: name, or id in people.toml; None: everybody.
    :raises UsageError: there is no ledger, or nobody of that name.
    :raises LockHeld: a run works on that output folder.
    :raises FacefixError: an embedding was found in a file afterwards.
    """
    if not (output / OUTPUT_MARKER / LEDGER_NAME).is_file():
        raise UsageError(
            f"{output}: expected an output folder of facefix, found no {OUTPUT_MARKER}/{LEDGER_NAME} in it"
        )
    with locked(output):
        names = set[str]() if person is None else _names(output, person)
        try:
            with Ledger.open(output) as ledger:
                stored = list(ledger.embeddings())
                doomed = stored if person is None else _of_person(ledger, output, person, names, stored)
                keys = None if person is None else {(face.sha256, face.number) for face in doomed}
                count = ledger.forget(keys, names)
        except sqlite3.Error as error:
            raise FacefixError(
                f"{output}: the ledger cannot be changed: {error}; not all is forgotten: mend that and run it again"
            ) from error
        entries = forget_person(output / PEOPLE_NAME, person)
        pages = _renew_pages(output)
        searched = _require_gone(output, [face.vector for face in doomed])
    return Forgotten(count, entries, searched, pages)


def _renew_pages(output: Path) -> tuple[Path, ...]:
    """Make the report again where there is one; remove the contact sheet. Returns what was made or removed."""
    from facefix.report import REPORT_FOLDER, write_output_report
    from facefix.report.contact_sheet import SHEET_FOLDER

    pages = []
    if (output / REPORT_FOLDER / "index.html").is_file():
        pages.append(write_output_report(output, again=True))
    if (output / SHEET_FOLDER).is_dir():
        try:
            shutil.rmtree(output / SHEET_FOLDER)
        except OSError as error:
            raise FacefixError(
                f"{output / SHEET_FOLDER}: cannot be removed: {error.strerror or error}; it still shows whom it showed"
            ) from error
        pages.append(output / SHEET_FOLDER)
    return tuple(pages)


def _of_person(
    ledger: Ledger, output: Path, person: str, names: set[str], stored: Sequence[StoredEmbedding]
) -> list[StoredEmbedding]:
    keys: set[FaceKey] = set()
    for name in names:
        keys.update(ledger.faces_of(name))
    keys |= _listed(ledger, output, names)
    keys |= _in_folders_named(ledger, names, stored)
    keys |= _named_by_metadata(ledger, names, stored)
    known = {name for name, _ in ledger.people()}
    if not keys and not names & known and not _in_people_file(output, names):
        people = ", ".join(sorted(known)) or "nobody"
        raise UsageError(f"{person!r}: expected a person of {output}, which are: {people}")
    return _with_same_box(
        _with_similar([face for face in stored if (face.sha256, face.number) in keys], stored), stored
    )


def _names(output: Path, person: str) -> set[str]:
    """The person's name, its id and those merged into it, as people.toml has them."""
    names = {person}
    path = output / PEOPLE_NAME
    if not path.exists():
        return names
    index = PeopleIndex(PeopleFile.read(path))
    meant = {index.merged(key) for key, entry in index.entries.items() if person in (key, entry.name)}
    for key, entry in index.entries.items():
        if index.merged(key) in meant:
            names |= {key, entry.name or key}
    return names


def _in_people_file(output: Path, names: set[str]) -> bool:
    path = output / PEOPLE_NAME
    return path.exists() and any(names & {entry.id, entry.name} for entry in PeopleFile.read(path).persons)


def _listed(ledger: Ledger, output: Path, names: set[str]) -> set[FaceKey]:
    """Faces that people.toml lists under these names; portraits are found by the end of their path."""
    path = output / PEOPLE_NAME
    if not path.exists():
        return set()
    photos: dict[tuple[str, ...], set[str]] = defaultdict(set)
    for outcome in ledger.photos():
        photos[outcome.relative.parts].add(outcome.sha256 or "")
    in_album = set().union(*photos.values())
    portraits = [(place.parts, sha256) for place, sha256 in ledger.paths() if sha256 not in in_album]
    found: set[FaceKey] = set()
    for label in _labels(PeopleFile.read(path), names):
        photo, _, number = label.rpartition("#")
        parts = Path(os.fsdecode(unquote_to_bytes(photo.removeprefix(_PORTRAITS)))).parts
        contents = photos.get(parts, set())
        if photo.startswith(_PORTRAITS):
            contents = {sha256 for place, sha256 in portraits if place[-len(parts) :] == parts}
        found |= {(sha256, int(number)) for sha256 in contents}
    return found


def _labels(people: PeopleFile, names: set[str]) -> Iterator[str]:
    for entry in people.persons:
        if names & {entry.id, entry.name}:
            yield from (*entry.faces, *entry.pin)


def _in_folders_named(ledger: Ledger, names: set[str], stored: Iterable[StoredEmbedding]) -> set[FaceKey]:
    contents = {sha256 for path, sha256 in ledger.paths() if readable(path.parent.name) in names}
    return {(face.sha256, face.number) for face in stored if face.sha256 in contents}


def _named_by_metadata(ledger: Ledger, names: set[str], stored: Iterable[StoredEmbedding]) -> set[FaceKey]:
    boxes = defaultdict(list)
    for sha256, region in ledger.named_boxes():
        if region.name in names:
            boxes[sha256].append(region.box)
    return {(f.sha256, f.number) for f in stored if any(_covers(box, f.box) for box in boxes.get(f.sha256, ()))}


def _covers(outer: tuple[float, ...], inner: tuple[float, ...]) -> bool:
    """Whether the centre of one box lies in the other."""
    x, y = (inner[0] + inner[2]) / 2, (inner[1] + inner[3]) / 2
    return outer[0] <= x <= outer[2] and outer[1] <= y <= outer[3]


def _with_similar(seeds: Sequence[StoredEmbedding], stored: Sequence[StoredEmbedding]) -> list[StoredEmbedding]:
    """The faces that are as close to one of the seeds as faces of one person are (seeds included)."""
    found = []
    for backend in {face.backend for face in stored}:
        faces = [face for face in stored if face.backend == backend]
        known = [face.vector for face in seeds if face.backend == backend]
        if known:
            vectors = np.stack([face.vector for face in faces])
            limit = same_person_distance(vectors.shape[1])
            near = _nearest(vectors, np.stack(known))
            found += [face for face, distance in zip(faces, near, strict=True) if distance < limit]
    return found


def same_person_distance(dim: int) -> float:
    """Distance up to which two faces are taken for one person here, by the length of the embedding."""
    return DlibEmbedder.scale.same if dim == DlibEmbedder.dim else ARCFACE_SAME_DISTANCE


def _nearest(vectors: NDArray[np.float32], known: NDArray[np.float32]) -> NDArray[np.float64]:
    """(N,) Euclidean distance of each of (N, D) to the nearest of (K, D)."""
    nearest = np.full(len(vectors), np.inf)
    for part in np.array_split(known.astype(np.float64), -(-len(known) // 512)):
        squared = (vectors**2).sum(1)[:, None] + (part**2).sum(1) - 2 * vectors @ part.T
        nearest = np.minimum(nearest, squared.min(1))
    distances: NDArray[np.float64] = np.sqrt(np.maximum(nearest, 0))
    return distances


def _with_same_box(faces: Sequence[StoredEmbedding], stored: Sequence[StoredEmbedding]) -> list[StoredEmbedding]:
    """Also the same faces as other backends saw them: their numbers may differ, their places do not."""
    boxes = defaultdict(list)
    for face in faces:
        boxes[face.sha256].append(face.box)
    return [face for face in stored if any(_covers(box, face.box) for box in boxes.get(face.sha256, ()))]
