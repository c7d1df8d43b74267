"""Training faces: which pictures there are, whose they are, and which references belong to them.

Three sources: a folder of aligned faces, a folder with a manifest (columns ``file``, ``identity``), and the CSV files
of FFHQ-Ref (columns ``gt_image`` and ``ref_image``, the latter a Python list literal of file names).
"""

from __future__ import annotations

import ast
import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from facefix.datasets.sources import Faces
from facefix.errors import UsageError

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp"})


@dataclass(frozen=True, slots=True)
class TrainingFace:
    """One aligned face and its place among the others."""

    path: Path
    identity: str
    references: tuple[int, ...]
    """indices of other pictures of the same person; empty where this is the only one"""


def find_faces(source: Faces) -> tuple[TrainingFace, ...]:
    """The faces that a configuration names, sorted by path.

    Raises UsageError when a folder or file is missing, a CSV lacks a column, or there is no face at all.
    """
    paths = sorted(path for folder in source.images for path in _pictures(folder))[: source.limit]
    if not paths:
        raise UsageError(
            f"faces.images: expected pictures ({', '.join(sorted(SUFFIXES))}) in {list(map(str, source.images))}"
        )
    if source.mapping is not None:
        return _by_mapping(paths, read_mapping(source.mapping))
    identities = read_manifest(source.manifest) if source.manifest else {}
    names = [identities.get(path.resolve(), str(path)) for path in paths]
    members: dict[str, list[int]] = {}
    for index, name in enumerate(names):
        members.setdefault(name, []).append(index)
    return tuple(
        TrainingFace(path, name, tuple(other for other in members[name] if other != index))
        for index, (path, name) in enumerate(zip(paths, names, strict=True))
    )


def _pictures(folder: Path) -> Iterable[Path]:
    if not folder.is_dir():
        raise UsageError(f"faces.images: expected a folder, found {folder}")
    return (path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and not path.name.startswith("."))


def _rows(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    try:
        with open(path, newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            missing = set(columns) - set(reader.fieldnames or ())
            if missing:
                raise UsageError(f"{path}: expected columns {list(columns)}, found {reader.fieldnames}")
            return list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{path}: expected a CSV file with columns {list(columns)}: {error}") from error


def read_manifest(path: Path) -> dict[Path, str]:
    """Absolute path -> identity, from a CSV with columns ``file`` (relative to the CSV's folder) and ``identity``."""
    base = path.resolve().parent
    return {(base / row["file"]).resolve(): row["identity"] for row in _rows(path, ("file", "identity"))}


def read_mapping(path: Path) -> dict[str, tuple[str, ...]]:
    """File name -> file names of its references, from an FFHQ-Ref CSV.

    Raises UsageError when a ``ref_image`` is not a Python list literal of names.
    """
    mapping: dict[str, tuple[str, ...]] = {}
    for number, row in enumerate(_rows(path, ("gt_image", "ref_image")), start=2):
        try:
            names = ast.literal_eval(row["ref_image"])
            if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
                raise ValueError("not a list of file names")
        except (ValueError, SyntaxError) as error:
            raise UsageError(
                f"{path}, line {number}: expected a list of file names in ref_image, found {row['ref_image'][:60]!r}"
            ) from error
        mapping[row["gt_image"]] = tuple(names)
    return mapping


def _by_mapping(paths: Sequence[Path], mapping: dict[str, tuple[str, ...]]) -> tuple[TrainingFace, ...]:
    """Faces that the mapping lists, or that are references there; connected ones are one person."""
    known = {name for name, references in mapping.items() for name in (name, *references)}
    kept = [path for path in paths if path.name in known]
    if not kept:
        raise UsageError("faces.mapping: expected names of the pictures in faces.images, found none of them")
    index = {path.name: number for number, path in enumerate(kept)}
    parent = list(range(len(kept)))

    def root(node: int) -> int:
        while parent[node] != node:
            node = parent[node]
        return node

    for name, references in mapping.items():
        for reference in references:
            if name in index and reference in index:
                parent[root(index[name])] = root(index[reference])
    return tuple(
        TrainingFace(
            path,
            kept[root(number)].name,
            tuple(index[name] for name in mapping.get(path.name, ()) if name in index and index[name] != number),
        )
        for number, path in enumerate(kept)
    )


def hold_out(faces: Sequence[TrainingFace], people: int, seed: int) -> tuple[list[int], list[int]]:
    """Indices of the training faces and of the faces of ``people`` persons with two or more pictures, set apart."""
    several = sorted({face.identity for face in faces if face.references})
    if people and len(several) < 2:
        raise UsageError(f"held_out: expected at least 2 persons with several pictures, found {len(several)}")
    chosen = set(np.random.default_rng(seed).permutation(several)[:people].tolist())
    inside = [index for index, face in enumerate(faces) if face.identity not in chosen]
    if not inside:
        raise UsageError(f"held_out: expected fewer than all persons, found {people}")
    return inside, [index for index, face in enumerate(faces) if face.identity in chosen]


def load_pixels(path: Path, size: int) -> torch.Tensor:
    """(3, size, size) uint8 RGB; resized by area (Pillow's box filter) when larger, bicubically when smaller.

    Raises UsageError when the file is not a picture.
    """
    try:
        with Image.open(path) as opened:
            image = opened.convert("RGB")
    except OSError as error:
        raise UsageError(f"{path}: expected a picture: {error}") from error
    if image.size != (size, size):
        larger = min(image.size) > size
        image = image.resize((size, size), Image.Resampling.BOX if larger else Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def load_native(path: Path) -> torch.Tensor:
    """(3, H, W) uint8 RGB at the size of the file."""
    with Image.open(path) as opened:
        return torch.from_numpy(np.array(opened.convert("RGB"))).permute(2, 0, 1).contiguous()
