"""Where training faces come from, and what a wrong source is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from facefix.datasets.augment import PUBLISHED, SAME_PICTURE, augment
from facefix.datasets.faces import find_faces, hold_out, load_pixels, read_mapping
from facefix.datasets.sources import Faces
from facefix.errors import UsageError
from facefix.methods.patches.config import PatchTraining
from facefix.networks.images import to_network
from facefix.training.config import (
    AutoencoderTraining,
    DenoiserTraining,
    LandmarkTraining,
    SurvivalTraining,
    read_config,
    write_config,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    faces = tmp_path / "faces"
    faces.mkdir()
    for number in range(4):
        Image.new("RGB", (16, 16), (40 * number, 10, 20)).save(faces / f"{number}.png")
    (faces / "notes.txt").write_text("no picture")
    return faces


def test_a_folder_alone_makes_everybody_a_person(folder: Path) -> None:
    faces = find_faces(Faces(images=(folder,)))
    assert [face.path.name for face in faces] == ["0.png", "1.png", "2.png", "3.png"]
    assert len({face.identity for face in faces}) == 4
    assert all(face.references == () for face in faces)


def test_a_manifest_says_who_is_who(folder: Path) -> None:
    manifest = folder.parent / "manifest.csv"
    manifest.write_text("file,identity\nfaces/0.png,ann\nfaces/2.png,ann\nfaces/3.png,bob\n")
    faces = find_faces(Faces(images=(folder,), manifest=manifest))
    assert [face.references for face in faces] == [(2,), (), (0,), ()]
    assert hold_out(faces, 0, seed=1) == ([0, 1, 2, 3], [])
    with pytest.raises(UsageError, match="held_out"):
        hold_out(faces, 1, seed=1)


def test_an_ffhq_ref_mapping_gives_references_and_people(folder: Path) -> None:
    mapping = folder.parent / "train_references.csv"
    mapping.write_text("gt_image,ref_image\n0.png,\"['1.png', '2.png', 'absent.png']\"\n1.png,\"['0.png']\"\n")
    faces = find_faces(Faces(images=(folder,), mapping=mapping))
    assert [face.path.name for face in faces] == ["0.png", "1.png", "2.png"]
    assert [face.references for face in faces] == [(1, 2), (0,), ()]
    assert len({face.identity for face in faces}) == 1


@pytest.mark.parametrize("literal", ["__import__('os')", "[1, 2]", "['a'", "3"])
def test_a_mapping_with_something_else_than_names_is_refused(tmp_path: Path, literal: str) -> None:
    path = tmp_path / "m.csv"
    path.write_text(f'gt_image,ref_image\n0.png,"{literal}"\n')
    with pytest.raises(UsageError, match="line 2"):
        read_mapping(path)


def test_missing_folders_columns_and_pictures_are_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nowhere"):
        find_faces(Faces(images=(tmp_path / "nowhere",)))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="empty"):
        find_faces(Faces(images=(tmp_path / "empty",)))
    (tmp_path / "m.csv").write_text("name\n0.png\n")
    with pytest.raises(UsageError, match="identity"):
        find_faces(Faces(images=(folder,), manifest=tmp_path / "m.csv"))
    (tmp_path / "broken.png").write_bytes(b"\x89PNG")
    with pytest.raises(UsageError, match=r"broken\.png"):
        load_pixels(tmp_path / "broken.png", 64)


def test_pixels_and_the_network_range(folder: Path) -> None:
    pixels = load_pixels(folder / "1.png", 8)
    assert pixels.shape == (3, 8, 8)
    assert pixels[:, 0, 0].tolist() == [40, 10, 20]
    assert to_network(torch.tensor([0, 255], dtype=torch.uint8)).tolist() == [-1.0, 1.0]


@pytest.mark.parametrize("strength", [PUBLISHED, SAME_PICTURE])
def test_augmentation_depends_on_the_seed_alone(strength: object) -> None:
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    together = augment(images, [1, 2, 3], strength)  # type: ignore[arg-type]
    alone = augment(images[1:2], [2], strength)  # type: ignore[arg-type]
    assert torch.allclose(together[1:2], alone)
    assert together.shape == images.shape
    assert 0 <= float(together.min()) <= float(together.max()) <= 1
    assert not torch.allclose(augment(images[:1], [1], strength), augment(images[:1], [9], strength))  # type: ignore[arg-type]


def test_augmentation_mirrors_half_of_the_pictures() -> None:
    ramp = torch.linspace(0, 1, 32).expand(1, 3, 32, 32)
    slopes = [
        float((image[..., -8:] - image[..., :8]).mean()) for image in augment(ramp.expand(60, -1, -1, -1), range(60))
    ]
    assert 15 < int(np.sum(np.array(slopes) < 0)) < 45


def test_a_configuration_is_checked_and_its_paths_start_at_the_file(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    text = "run: out\nfaces: {images: [faces]}\nschedule: {steps: 5, batch: 2, learning_rate: 0.001}\n"
    path.write_text(text)
    config = read_config(path, AutoencoderTraining)
    assert config.run == tmp_path / "out"
    assert config.faces.images == (tmp_path / "faces",)
    write_config(config, tmp_path / "copy.yaml")
    assert read_config(tmp_path / "copy.yaml", AutoencoderTraining) == config
    for wrong, said in (
        (text + "crops: 3\n", "crops"),
        ("run: [", "YAML"),
        ("run: out\n", "faces"),
        ("- 1\n", "c.yaml"),
    ):
        path.write_text(wrong)
        with pytest.raises(UsageError, match=said):
            read_config(path, AutoencoderTraining)
    with pytest.raises(UsageError, match="absent"):
        read_config(tmp_path / "absent.yaml", DenoiserTraining)


@pytest.mark.parametrize(
    "path", sorted((Path(__file__).parent.parent.parent / "facefix/training/configs").glob("*.yaml"))
)
def test_shipped_configurations_are_valid(path: Path) -> None:
    kinds: dict[str, Any] = {
        "autoencoder": AutoencoderTraining,
        "landmarks": LandmarkTraining,
        "survival": SurvivalTraining,
        "patches": PatchTraining,
    }
    kind: Any = next((kind for name, kind in kinds.items() if name in path.name), DenoiserTraining)
    assert read_config(path, kind).schedule.steps > 0
