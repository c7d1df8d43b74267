"""Reference mappings: people by connected components, splits by person, farthest-point order, FFHQ-Ref's files."""

from __future__ import annotations

import ast
import csv
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from facefix.cli import app
from facefix.datasets.faces import find_faces, read_mapping
from facefix.datasets.mappings import (
    SPLITS,
    MappingRules,
    farthest_first,
    pairwise,
    people,
    references_of,
    split_people,
    write_mappings,
)
from facefix.datasets.sources import Faces
from facefix.errors import UsageError

RULES = MappingRules(same=0.4, duplicate=0.1)


def on_a_line(*places: float) -> np.ndarray:
    points = np.array(places)
    return np.abs(points[:, None] - points[None])


def test_people_are_connected_components() -> None:
    labels = people(on_a_line(0.0, 0.3, 0.6, 2.0, 2.1, 9.0), RULES.same)
    assert labels[0] == labels[1] == labels[2]  # 0 and 2 only through 1
    assert labels[3] == labels[4] != labels[0]
    assert len(set(labels.tolist())) == 3


def test_farthest_first_maximises_the_smallest_distance() -> None:
    distances = on_a_line(0.0, 1.0, 10.0, 5.0, 9.5)
    assert farthest_first(distances, 0, [1, 2, 3, 4]) == [2, 3, 1, 4]
    assert farthest_first(distances, 0, []) == []


def test_test_references_are_no_near_copies() -> None:
    distances = on_a_line(0.0, 0.05, 0.3)
    assert references_of(0, [0, 1, 2], distances, RULES, test=True) == [2]
    assert sorted(references_of(0, [0, 1, 2], distances, RULES, test=False)) == [1, 2]


def test_splits_keep_people_together_and_cover_everybody() -> None:
    labels = np.repeat(np.arange(40), 3)
    splits = split_people(labels, MappingRules(same=0.4, duplicate=0.1, fractions=(0.8, 0.1, 0.1)))
    assert sorted(face for faces in splits.values() for face in faces) == list(range(120))
    names = [{int(labels[face]) for face in splits[split]} for split in SPLITS]
    assert [len(part) for part in names] == [32, 4, 4]
    assert not (names[0] & names[1] or names[0] & names[2] or names[1] & names[2])


def test_distances() -> None:
    vectors = np.array([[3.0, 0.0], [0.0, 4.0]], dtype=np.float32)
    assert pairwise(vectors, cosine=False)[0, 1] == pytest.approx(5)
    assert pairwise(vectors, cosine=True)[0, 1] == pytest.approx(1)


def test_files_are_read_back_by_the_dataset(tmp_path: Path) -> None:
    names = [f"{number}.png" for number in range(5)]
    rules = MappingRules(same=0.4, duplicate=0.1, fractions=(1, 0, 0))
    counts = write_mappings(tmp_path, names, on_a_line(0.0, 0.3, 2.0, 2.2, 9.0), rules)
    assert counts == {"train": 5, "val": 0, "test": 0}
    mapping = read_mapping(tmp_path / "reference_mapping" / "train_references.csv")
    assert mapping == {"0.png": ("1.png",), "1.png": ("0.png",), "2.png": ("3.png",), "3.png": ("2.png",)}
    assert (tmp_path / "id_based_ffhq_split" / "train_image.txt").read_text().split() == names


def test_rules_that_make_no_sense_are_refused() -> None:
    with pytest.raises(UsageError, match="duplicate"):
        MappingRules(same=0.1, duplicate=0.4)
    with pytest.raises(UsageError, match="fractions"):
        MappingRules(same=0.4, duplicate=0.1, fractions=(0.9, 0.2, 0.1))


def test_the_command_finds_the_people_of_real_faces(shared: Path, tmp_path: Path) -> None:
    with open(shared / "data" / "manifest.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "eval_public"]
    people_of = {Path(row["file"]).name: row["identity"] for row in rows}
    chosen = sorted(people_of)[:12]
    (tmp_path / "faces").mkdir()
    for name in chosen:
        (tmp_path / "faces" / name).symlink_to(shared / "data" / "eval_public" / name)
    result = CliRunner().invoke(app, ["dataset", "refs", str(tmp_path / "faces"), "--out", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    found = {}
    for split in SPLITS:
        with open(tmp_path / "out" / "reference_mapping" / f"{split}_references.csv", newline="") as file:
            found |= {row["gt_image"]: ast.literal_eval(row["ref_image"]) for row in csv.DictReader(file)}
    assert found
    for name, references in found.items():
        assert {people_of[reference] for reference in references} == {people_of[name]}
    listed = find_faces(Faces(images=(tmp_path / "faces",)))
    assert len(listed) == len(chosen)
