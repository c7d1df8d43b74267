"""Reading photos and references again, with their crops, when they are to be restored."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from facefix.errors import PhotoError
from facefix.faces.align import crop_matrix, warp
from facefix.faces.face import Face, Reference
from facefix.photos.photo import Photo, read_photo
from facefix.restoration.batches import reference_key
from facefix.restoration.plan import PhotoTask

Crop = NDArray[np.uint8]


def open_photo(task: PhotoTask, max_pixels: int) -> OpenPhoto:
    """Read a photo and cut out its faces. Raises PhotoError, also when it is not the photo that was looked at."""
    photo = read_photo(task.photo.path, max_pixels)
    if photo.sha256 != task.found.sha256:
        raise PhotoError(f"{task.photo.path}: changed while the run went on; the next run will take it")
    matrices = {face.number: crop_matrix(face.face.detection.landmarks) for face in task.faces}
    return OpenPhoto(photo, matrices, {number: warp(photo.pixels, matrix) for number, matrix in matrices.items()})


class ReferenceReader:
    """Reads the crops of references on CPU threads, ahead of the device; the last few are kept."""

    def __init__(self, pool: ThreadPoolExecutor, max_pixels: int, keep: int = 64) -> None:
        self._pool = pool
        self._max_pixels = max_pixels
        self._keep = keep
        self._futures: OrderedDict[str, Future[Crop]] = OrderedDict()

    def start(self, reference: Reference) -> Future[Crop]:
        """The crop of a reference, perhaps still being read."""
        key = reference_key(reference.face)
        if key not in self._futures:
            self._futures[key] = self._pool.submit(_read_crop, reference.path, reference.face, self._max_pixels)
        self._futures.move_to_end(key)
        while len(self._futures) > self._keep:
            self._futures.popitem(last=False)
        return self._futures[key]

    def is_readable(self, reference: Reference) -> bool:
        """Whether the reference can be read (waits for it)."""
        return not isinstance(self.start(reference).exception(), PhotoError)


def _read_crop(path: Path, face: Face, max_pixels: int) -> Crop:
    return warp(read_photo(path, max_pixels).pixels, crop_matrix(face.detection.landmarks))


@dataclass(frozen=True, slots=True, eq=False)
class OpenPhoto:
    """A photo read again, with a crop of each face to restore, by face number."""

    photo: Photo
    matrices: Mapping[int, NDArray[np.float64]]
    crops: Mapping[int, Crop]
