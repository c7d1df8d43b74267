"""Which faces an evaluation restores: each with its truth, references of the same person, and an identity.

Three layouts are read:

- a manifest: CSV with columns ``file``, ``identity`` and ``role`` (``target`` or ``reference``), beside the pictures or
  one folder above them;
- an FFHQ-Ref mapping: CSV with columns ``gt_image``, ``ref_image`` (a list literal of names) and perhaps ``lq_image``;
- a folder with one folder per person: the first picture by name is the target, the others are references.

Pictures are square crops in FFHQ's framing. Anything that is not 512 x 512 is resized to it (bicubic, as in ReF-LDM's
evaluation).
"""

from __future__ import annotations

import ast
import csv
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from facefix.errors import PhotoError, UsageError
from facefix.methods.base import Pixels

CROP_SIZE = 512

_PICTURES = {".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp"}


@dataclass(frozen=True, slots=True)
class EvaluationFace:
    """One face to restore, and what is known about it."""

    name: str
    """unique within the set; the degradation's seed comes from it"""
    identity: str
    truth: Path
    references: tuple[Path, ...]
    """other pictures of the same person; may be empty"""
    lq: Path | None = None
    """a degraded picture that comes with the set"""

    def seed(self, seed: int) -> int:
        """The seed of this face under ``seed``: the same whatever other faces are evaluated with it."""
        return zlib.crc32(f"{seed}:{self.name}".encode())


@dataclass(frozen=True, slots=True)
class FFHQRefFolders:
    """Where the pictures of an FFHQ-Ref mapping lie; by default beside the mapping or one folder above it."""

    images: Path | None = None
    lq: Path | None = None


def read_faces(source: Path, folders: FFHQRefFolders | None = None) -> list[EvaluationFace]:
    """The faces of ``source``: a CSV file, or a folder, in one of the layouts above; ordered by name.

    Raises UsageError when it is none of them, or has no face with a truth, or names pictures that do not exist.
    """
    if source.is_dir():
        faces = _read_folder(source)
    elif source.is_file():
        faces = _read_csv(source, None, folders or FFHQRefFolders())
    else:
        raise UsageError(f"{source}: expected a folder of faces or a CSV file, found nothing there")
    if not faces:
        raise UsageError(f"{source}: expected at least one target face, found none")
    _require_files(source, faces)
    return sorted(faces, key=lambda face: face.name)


def read_crop(path: Path) -> Pixels:
    """(512, 512, 3) RGB pixels of a face crop. Raises PhotoError when ``path`` is not a square picture."""
    try:
        with Image.open(path) as opened:
            picture = opened.convert("RGB")
    except (OSError, UnidentifiedImageError) as error:
        raise PhotoError(f"{path}: expected a picture, found {error}") from error
    if picture.width != picture.height:
        raise PhotoError(
            f"{path}: expected a square face crop, found {picture.width}x{picture.height} px; align it first"
        )
    if picture.width != CROP_SIZE:
        picture = picture.resize((CROP_SIZE, CROP_SIZE), Image.Resampling.BICUBIC)
    return np.array(picture)


def spread(faces: Sequence[EvaluationFace], limit: int | None) -> list[EvaluationFace]:
    """At most ``limit`` of ``faces``, evenly spread over their order."""
    if limit is None or limit >= len(faces):
        return list(faces)
    return [faces[index * len(faces) // limit] for index in range(limit)]


def wrong_references(faces: Sequence[EvaluationFace], seed: int) -> dict[str, tuple[Path, ...]]:
    """For each face by name as many references as it has, of one other person, drawn with ``seed``.

    A face gets fewer where nobody else has as many, and none where nobody else has any.
    """
    by_identity = {face.identity: face.references for face in faces if face.references}
    chosen: dict[str, tuple[Path, ...]] = {}
    for face in faces:
        others = sorted(identity for identity in by_identity if identity != face.identity)
        enough = [identity for identity in others if len(by_identity[identity]) >= len(face.references)]
        candidates = enough or others
        if candidates and face.references:
            pick = np.random.default_rng(face.seed(seed)).integers(len(candidates))
            chosen[face.name] = by_identity[candidates[pick]][: len(face.references)]
        else:
            chosen[face.name] = ()
    return chosen


def _read_folder(folder: Path) -> list[EvaluationFace]:
    for manifest in (folder / "manifest.csv", folder.parent / "manifest.csv"):
        if manifest.is_file():
            return _read_csv(manifest, folder, FFHQRefFolders())
    people = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    faces = []
    for person in people:
        pictures = sorted(path for path in person.iterdir() if path.suffix.lower() in _PICTURES)
        if pictures:
            truth, *references = pictures
            faces.append(EvaluationFace(f"{person.name}/{truth.name}", person.name, truth, tuple(references)))
    if not faces:
        raise UsageError(f"{folder}: expected a manifest.csv, or one folder of pictures per person, found neither")
    return faces


def _read_csv(path: Path, under: Path | None, folders: FFHQRefFolders) -> list[EvaluationFace]:
    with path.open(newline="", encoding="utf-8") as stream:
        reader = csv.DictReader(stream)
        rows, columns = list(reader), set(reader.fieldnames or ())
    if {"file", "identity", "role"} <= columns:
        return _from_manifest(path, rows, under)
    if {"gt_image", "ref_image"} <= columns:
        return _from_mapping(path, rows, folders)
    raise UsageError(
        f"{path}: expected columns file, identity, role (a manifest) or gt_image, ref_image (an FFHQ-Ref mapping), "
        f"found {', '.join(sorted(columns)) or 'no header'}"
    )


def _from_manifest(path: Path, rows: Iterable[Mapping[str, str]], under: Path | None) -> list[EvaluationFace]:
    """Faces of a manifest; only pictures in the folder ``under`` where that is given."""
    references: dict[str, list[Path]] = {}
    targets: list[tuple[str, str, Path]] = []
    for row in rows:
        file = path.parent / row["file"]
        if under is not None and not file.is_relative_to(under):
            continue
        if row["role"] == "target":
            targets.append((row["file"], row["identity"], file))
        elif row["role"] == "reference":
            references.setdefault(row["identity"], []).append(file)
    return [
        EvaluationFace(name, identity, file, tuple(references.get(identity, ()))) for name, identity, file in targets
    ]


def _from_mapping(path: Path, rows: Sequence[Mapping[str, str]], folders: FFHQRefFolders) -> list[EvaluationFace]:
    lists = [_parse_references(path, row) for row in rows]
    identity = _identities([[row["gt_image"], *names] for row, names in zip(rows, lists, strict=True)])
    names = [name for row, listed in zip(rows, lists, strict=True) for name in (row["gt_image"], *listed)]
    images = folders.images or _folder_holding(path, names[0] if names else "")
    lq = folders.lq or images
    return [
        EvaluationFace(
            name=row["gt_image"],
            identity=identity[row["gt_image"]],
            truth=images / row["gt_image"],
            references=tuple(images / name for name in listed),
            lq=lq / row["lq_image"] if row.get("lq_image") else None,
        )
        for row, listed in zip(rows, lists, strict=True)
    ]


def _parse_references(path: Path, row: Mapping[str, str]) -> list[str]:
    try:
        names = ast.literal_eval(row["ref_image"])
    except (ValueError, SyntaxError) as error:
        raise UsageError(
            f"{path}: expected a list of names in ref_image of {row['gt_image']}, found {row['ref_image']!r}"
        ) from error
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise UsageError(f"{path}: expected a list of names in ref_image of {row['gt_image']}, found {names!r}")
    return [name for name in names if name != row["gt_image"]]


def _identities(groups: Iterable[Sequence[str]]) -> dict[str, str]:
    """A label per picture: pictures that a mapping connects, directly or through others, are of one person."""
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        parent.setdefault(name, name)
        while parent[name] != name:
            parent[name] = parent[parent[name]]
            name = parent[name]
        return name

    for first, *others in groups:
        for other in others:
            low, high = sorted((root(first), root(other)))
            parent[high] = low
        root(first)
    return {name: root(name) for name in parent}


def _folder_holding(path: Path, name: str) -> Path:
    candidates = [path.parent, path.parent.parent, path.parent / "images", path.parent.parent / "images"]
    return next((folder for folder in candidates if (folder / name).is_file()), path.parent)


def _require_files(source: Path, faces: Iterable[EvaluationFace]) -> None:
    files = [file for face in faces for file in (face.truth, face.lq, *face.references) if file is not None]
    missing = [file for file in files if not file.is_file()]
    if missing:
        raise UsageError(
            f"{source}: expected every picture that it names, found {len(missing)} of {len(files)} missing, "
            f"first {missing[0]}; for an FFHQ-Ref mapping say where the pictures are with --images and --lq"
        )
