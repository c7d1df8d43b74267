"""Looking into photos: what is not looked for is said, large JPEGs are decoded small, guesses are left alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage import data

from facefix.errors import PhotoError
from facefix.faces.backends import Backend, load_backend
from facefix.faces.face import Quality
from facefix.outputs.ledger import Ledger
from facefix.photos.photo import MAX_PIXELS, open_photo, read_photo
from facefix.restoration.index import look_into
from facefix.restoration.verdicts import why_left_alone
from facefix.settings import Settings


@pytest.fixture(scope="module")
def backend() -> Backend:
    return load_backend("mtcnn")


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One face of about 420 px in 24 megapixels, stored turned."""
    path = tmp_path_factory.mktemp("photos") / "large.jpg"
    photo = Image.new("RGB", (6000, 4000), (90, 100, 110))
    photo.paste(
        Image.fromarray(data.astronaut()[:260, 90:350]).resize((1040, 1040), Image.Resampling.BICUBIC), (3000, 1500)
    )
    exif = Image.Exif()
    exif[0x0112] = 6
    photo.rotate(90, expand=True).save(path, quality=85, exif=exif)
    return path


def test_a_large_photo_is_looked_at_small_and_says_what_was_left_out(backend: Backend, large: Path) -> None:
    found = look_into(large, backend, MAX_PIXELS)
    (face,) = found.faces
    assert found.size == (6000, 4000)
    assert face.detection.landmarks[:, 0].min() > 3000 and face.detection.landmarks[:, 0].max() < 4040
    assert 380 < face.quality.face_px < 470
    assert found.notes == ("faces narrower than 49 px were not looked for",)
    assert look_into(large, backend, MAX_PIXELS, 60).notes == ()


def test_pixels_decoded_smaller_are_the_same_picture(large: Path) -> None:
    opened = open_photo(large)
    small, reduction = opened.reduced(0.26)
    assert reduction == 2 and small.shape == (2000, 3000, 3) and opened.size == (6000, 4000)
    expected = np.asarray(Image.fromarray(read_photo(large).pixels).reduce(2)).astype(int)
    assert np.abs(small.astype(int) - expected).mean() < 1
    assert opened.reduced(0.6)[1] == 1
    assert opened.sha256 == read_photo(large).sha256


def test_a_damaged_picture_is_named_at_every_size(large: Path, tmp_path: Path) -> None:
    half = tmp_path / "half.jpg"
    half.write_bytes(large.read_bytes()[: large.stat().st_size // 3])
    with pytest.raises(PhotoError, match=r"half\.jpg"):
        open_photo(half).reduced(0.25)


def test_a_face_without_sure_landmarks_is_left_alone_and_stays_so(
    backend: Backend, large: Path, tmp_path: Path
) -> None:
    guessed = Quality(200.0, 0.1, 0.9, 0.0, 0.1, settled=False)
    assert why_left_alone(guessed, Settings(restore="all")) is not None
    assert why_left_alone(replace(guessed, settled=True), Settings(restore="all")) is None
    found = look_into(large, backend, MAX_PIXELS)
    (face,) = found.faces
    unsure = replace(face, embedding=None, quality=replace(face.quality, settled=False))
    with Ledger.open(tmp_path) as ledger:
        ledger.index.record(replace(found, faces=(unsure,)), "mtcnn")
        again = ledger.index.get(found.sha256, "mtcnn", "x.jpg")
        assert again is not None
        assert again.faces[0].quality.settled is False and again.faces[0].detection.settled is False
