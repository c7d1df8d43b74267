"""Reading again: photos with their crops, references ahead of the device."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from marked import make_photos, marked_backend, picture

from facefix.errors import PhotoError
from facefix.faces.align import crop_matrix, warp
from facefix.faces.face import Pixels
from facefix.photos.photo import read_photo
from facefix.restoration.batches import ReferenceSource
from facefix.restoration.index import look_into
from facefix.restoration.plan import FaceTask, PhotoTask
from facefix.restoration.reading import ReferenceReader, open_photo
from facefix.restoration.scan import ScannedPhoto


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as pool:
        yield pool


@dataclass(frozen=True, eq=False)
class Counted(ReferenceSource):
    """A reference that counts how often it is read."""

    reads: list[int] = field(default_factory=list)

    def read(self) -> Pixels:
        self.reads.append(threading.get_ident())
        return ReferenceSource.read(self)


def test_a_photo_is_opened_with_a_crop_of_each_face_to_restore(tmp_path: Path) -> None:
    (path,) = make_photos(tmp_path, a=["ann", "bob"])
    found = look_into(path, marked_backend(), 10**6)
    second = FaceTask(Path("a.png"), found.faces[1], "bob", (), None)
    task = PhotoTask(ScannedPhoto(path, Path("a.png")), found, "r", (second,))
    opened = open_photo(task, 10**6)
    assert list(opened.crops) == list(opened.matrices) == [1]
    assert opened.crops[1].shape == (512, 512, 3) and opened.crops[1][256, 256, 1] > 150, "bob is green"
    picture("ann", seed=9).save(path)
    with pytest.raises(PhotoError, match="changed while the run went on"):
        open_photo(task, 10**6)


def test_a_reference_is_read_once_for_everybody_and_the_oldest_are_let_go(
    tmp_path: Path, pool: ThreadPoolExecutor
) -> None:
    paths = make_photos(tmp_path, a=["ann"], b=["ann"], c=["ann"])
    landmarks = look_into(paths[0], marked_backend(), 10**6).faces[0].detection.landmarks
    sources = [Counted(path, 0, landmarks, 10**6) for path in paths]
    reader = ReferenceReader(pool, keep=2)
    crops = [reader.start(source).result() for source in (sources[0], sources[0], sources[1])]
    assert np.array_equal(crops[0], warp(read_photo(paths[0], 10**6).pixels, crop_matrix(landmarks)))
    assert len(sources[0].reads) == 1 and reader.is_readable(sources[1])
    reader.start(sources[2])
    reader.start(sources[0]).result()
    assert len(sources[0].reads) == 2, "it had been let go"


def test_a_file_that_cannot_be_read_or_is_too_large_is_not_readable(tmp_path: Path, pool: ThreadPoolExecutor) -> None:
    (path,) = make_photos(tmp_path, a=["ann"])
    points = look_into(path, marked_backend(), 10**6).faces[0].detection.landmarks
    reader = ReferenceReader(pool)
    assert reader.is_readable(ReferenceSource(path, 0, points, 10**6))
    assert not reader.is_readable(ReferenceSource(path, 1, points, 100))
    assert not reader.is_readable(ReferenceSource(tmp_path / "gone.png", 0, points, 10**6))
