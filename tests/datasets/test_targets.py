"""Reading evaluation sets: manifests, FFHQ-Ref mappings, folders per person."""

from __future__ import annotations

from pathlib import Path

import pytest
from faces_on_disk import PEOPLE, portrait, write_manifest_set
from PIL import Image

from facefix.datasets.targets import FFHQRefFolders, read_crop, read_faces, spread, wrong_references
from facefix.errors import PhotoError, UsageError


def write_mapping(path: Path, lines: list[str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(4):
        for picture in range(2):
            portrait(number, picture).save(folder / f"{number}{picture}.png")
    return folder


def test_manifest_above_its_pictures_is_narrowed_to_the_folder(tmp_path: Path) -> None:
    folder = write_manifest_set(tmp_path)
    faces = read_faces(folder)
    assert [face.identity for face in faces] == list(PEOPLE)
    assert faces[0].truth == tmp_path / "faces/ann_target.png"
    assert faces[0].references == (tmp_path / "faces/ann_reference.png",)
    with pytest.raises(UsageError, match=r"1 of 9 missing.*eve\.png"):
        read_faces(tmp_path / "manifest.csv")


def test_ffhq_ref_mapping_joins_people_through_their_references(tmp_path: Path, images: Path) -> None:
    mapping = write_mapping(
        tmp_path / "reference_mapping/test_references.csv",
        ["gt_image,ref_image", "00.png,\"['01.png', '10.png']\"", "11.png,\"['10.png']\"", "20.png,\"['21.png']\""],
    )
    faces = read_faces(mapping)
    assert [face.name for face in faces] == ["00.png", "11.png", "20.png"]
    assert faces[0].references == (images / "01.png", images / "10.png")
    assert faces[0].identity == faces[1].identity != faces[2].identity
    assert faces[0].lq is None


def test_ffhq_ref_mapping_with_lq_pictures(tmp_path: Path, images: Path) -> None:
    lq = tmp_path / "severe"
    lq.mkdir()
    portrait(0, 0).save(lq / "00.png")
    mapping = write_mapping(
        tmp_path / "somewhere/else/m.csv", ["gt_image,ref_image,lq_image", "00.png,['01.png'],00.png"]
    )
    with pytest.raises(UsageError, match="--images"):
        read_faces(mapping)
    (face,) = read_faces(mapping, FFHQRefFolders(images, lq))
    assert face.lq == lq / "00.png"
    assert face.truth == images / "00.png"


def test_folder_per_person(tmp_path: Path) -> None:
    for number, name in enumerate(PEOPLE[:2]):
        (tmp_path / name).mkdir()
        for picture in range(2):
            portrait(number, picture).save(tmp_path / name / f"{picture}.png")
    (tmp_path / "ann" / "notes.txt").write_text("not a picture")
    faces = read_faces(tmp_path)
    assert [(face.identity, face.truth.name) for face in faces] == [("ann", "0.png"), ("bob", "0.png")]
    assert [len(face.references) for face in faces] == [1, 1]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["a,b", "1,2"], "expected columns file, identity, role"),
        (["gt_image,ref_image", "00.png,01.png"], "expected a list of names"),
        (["gt_image,ref_image", '00.png,"[1]"'], "expected a list of names"),
        (["gt_image,ref_image"], "at least one target"),
    ],
)
def test_files_of_another_kind_are_refused(tmp_path: Path, lines: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read_faces(write_mapping(tmp_path / "m.csv", lines))


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="found nothing there"):
        read_faces(tmp_path / "missing")
    with pytest.raises(UsageError, match="found neither"):
        read_faces(tmp_path)


def test_wrong_references_are_another_persons_and_drawn_by_seed(tmp_path: Path) -> None:
    faces = read_faces(write_manifest_set(tmp_path))
    draws = [wrong_references(faces, seed) for seed in range(8)]
    for wrong in draws:
        for face in faces:
            assert len(wrong[face.name]) == len(face.references)
            assert not set(wrong[face.name]) & {face.truth, *face.references}
    assert draws[0] == wrong_references(faces, 0)
    assert len({tuple(sorted(wrong.items())) for wrong in draws}) > 1
    assert wrong_references(faces[:1], 0) == {faces[0].name: ()}


def test_the_seed_of_a_face_does_not_depend_on_the_set(tmp_path: Path) -> None:
    faces = read_faces(write_manifest_set(tmp_path))
    assert len({face.seed(0) for face in faces}) == len(faces)
    assert faces[1].seed(0) == spread(faces, 4)[1].seed(0) != faces[1].seed(1)
    assert [face.identity for face in spread(faces, 2)] == ["ann", "cid"]


def test_crops_are_brought_to_512(tmp_path: Path) -> None:
    portrait(0, 0).save(tmp_path / "square.png")
    assert read_crop(tmp_path / "square.png").shape == (512, 512, 3)
    Image.new("RGB", (30, 20)).save(tmp_path / "wide.png")
    with pytest.raises(PhotoError, match="30x20"):
        read_crop(tmp_path / "wide.png")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(PhotoError, match=r"broken\.png"):
        read_crop(tmp_path / "broken.png")
