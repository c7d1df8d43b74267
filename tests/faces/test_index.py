"""Faces of one photo: whichever way it lies, however small its pixels were decoded, and what is not believed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from skimage import data

from facefix.faces.backends import Backend, load_backend
from facefix.faces.index import index_photo


@dataclass(frozen=True)
class Upright:
    """A photo as index_photo sees it."""

    pixels: NDArray[np.uint8]
    orientation: int | None = None
    taken: float | None = None
    path: Path = Path("album/one.jpg")


@pytest.fixture(scope="module", params=["mtcnn", "dlib"])
def backend(request: pytest.FixtureRequest) -> Backend:
    return load_backend(request.param)


@pytest.fixture(scope="module")
def mtcnn() -> Backend:
    return load_backend("mtcnn")


def portrait() -> NDArray[np.uint8]:
    return np.ascontiguousarray(data.astronaut()[:260, 90:350])


def large_photo() -> Image.Image:
    """A face of about 60 px in a photo of 1.9 megapixels: too small for the copy that is looked at first."""
    picture = Image.fromarray(portrait()).resize((150, 150), Image.Resampling.LANCZOS)
    photo = Image.new("RGB", (1500, 1260), (90, 100, 110))
    photo.paste(picture, (300, 250))
    return photo


def test_index_gives_embedding_quality_and_date(backend: Backend) -> None:
    picture = np.ascontiguousarray(data.astronaut()[:300, 80:380])
    (found,) = index_photo(Upright(picture, taken=5.0), backend)
    assert (found.photo, found.index, found.taken) == ("album/one.jpg", 0, 5.0)
    assert found.embedding is not None and found.embedding.shape == (128,)
    assert 90 < found.quality.face_px < 120
    assert abs(found.quality.yaw) < 0.2
    assert found.quality.settled


@pytest.mark.parametrize("orientation", [None, 1])
@pytest.mark.parametrize("quarter_turns", [1, 2, 3])
def test_turned_photos_whatever_exif_says(mtcnn: Backend, quarter_turns: int, orientation: int | None) -> None:
    (expected,) = index_photo(Upright(portrait()), mtcnn)
    turned = np.ascontiguousarray(np.rot90(portrait(), quarter_turns))
    (found,) = index_photo(Upright(turned, orientation), mtcnn)
    side = 259
    x, y = expected.detection.landmarks.T
    there = {1: (y, side - x), 2: (side - x, side - y), 3: (side - y, x)}[quarter_turns]
    assert np.abs(found.detection.landmarks - np.stack(there, axis=1)).max() < 1.5
    assert found.embedding is not None and expected.embedding is not None
    assert mtcnn.similarity(found.embedding, expected.embedding) > 0.95


def test_small_faces_of_a_large_turned_photo(mtcnn: Backend) -> None:
    """They are too small to be found in the small copy, where turned photos are looked at first."""
    for quarter_turns in (0, 1):
        turned = np.ascontiguousarray(np.rot90(np.asarray(large_photo()), quarter_turns))
        (found,) = index_photo(Upright(turned), mtcnn)
        assert found.detection.confidence > 0.7


def test_faces_are_numbered_left_to_right(backend: Backend) -> None:
    both = np.ascontiguousarray(np.concatenate([portrait(), portrait()[:, ::-1]], axis=1))
    found = index_photo(Upright(both), backend)
    assert [one.index for one in found] == [0, 1]
    assert found[0].detection.box[0] < 260 < found[1].detection.box[0]


def test_faces_found_in_a_smaller_copy_have_the_photos_coordinates(mtcnn: Backend) -> None:
    photo = Image.fromarray(portrait()).resize((1040, 1040), Image.Resampling.BICUBIC)
    (expected,) = index_photo(Upright(np.asarray(photo)), mtcnn)
    (found,) = index_photo(Upright(np.asarray(photo)), mtcnn, looked_at=(np.asarray(photo.reduce(4)), 4))
    assert np.abs(found.detection.landmarks - expected.detection.landmarks).max() < 8
    assert found.quality.face_px == pytest.approx(expected.quality.face_px, rel=0.04)
    assert found.embedding is not None and expected.embedding is not None
    assert mtcnn.similarity(found.embedding, expected.embedding) > 0.93


@pytest.mark.parametrize("degrees", [-60, -40, 30, 50])
def test_tilted_heads_are_aligned(mtcnn: Backend, degrees: int) -> None:
    (expected,) = index_photo(Upright(portrait()), mtcnn)
    ground = Image.new("RGB", (500, 500), (90, 100, 110))
    ground.paste(Image.fromarray(portrait()), (120, 120))
    (found,) = index_photo(Upright(np.asarray(ground.rotate(degrees, Image.Resampling.BICUBIC))), mtcnn)
    assert found.quality.roll == pytest.approx(expected.quality.roll - degrees, abs=4)
    assert found.embedding is not None and expected.embedding is not None
    assert mtcnn.similarity(found.embedding, expected.embedding) > 0.9


def test_scans_that_lie_on_their_side_and_say_they_do_not(mtcnn: Backend, shared: Path) -> None:
    folder = shared / "cases" / "faces" / "orientation_tag_1"
    for path in sorted((folder / "album").iterdir()):
        (found,) = index_photo(Upright(np.array(Image.open(path)), orientation=1), mtcnn)
        portrait = folder / "refs" / f"P{path.name[0]}" / "r.jpg"
        (person,) = index_photo(Upright(np.array(Image.open(portrait))), mtcnn)
        assert abs(abs(found.quality.roll) - int(path.name[2:5])) < 10, path.name
        assert found.embedding is not None and person.embedding is not None
        assert mtcnn.similarity(found.embedding, person.embedding) > mtcnn.same_person, path.name


def test_tilted_faces_and_a_half_profile(mtcnn: Backend, shared: Path) -> None:
    for path in sorted((shared / "cases" / "faces" / "tilted" / "album").iterdir()):
        (found,) = index_photo(Upright(np.array(Image.open(path).convert("RGB"))), mtcnn)
        is_profile = path.name.startswith("us-")
        assert found.quality.settled != is_profile, path.name
        assert (found.embedding is None) == is_profile, path.name
