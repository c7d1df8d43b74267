"""Reading photos and references again, with their crops, when they are to be restored."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from facefix.errors import PhotoError
from facefix.faces.align import Matrix, crop_matrix, warp
from facefix.faces.face import Pixels
from facefix.photos.photo import Photo, read_photo
from facefix.restoration.batches import ReferenceSource
from facefix.restoration.plan import PhotoTask


@dataclass(frozen=True, slots=True, eq=False)
class OpenPhoto:
    """A photo read again, with a crop of each face to restore, by face number."""

    photo: Photo
    matrices: Mapping[int, Matrix]
    crops: Mapping[int, Pixels]


def open_photo(task: PhotoTask, max_pixels: int) -> OpenPhoto:
    """Read a photo and cut out its faces. Raises PhotoError, also when it is not the photo that was looked at."""
    photo = read_photo(task.photo.path, max_pixels)
    if photo.sha256 != task.found.sha256:
        raise PhotoError(f"{task.photo.path}: changed while the run went on; the next run will take it")
    matrices = {face.number: crop_matrix(face.face.detection.landmarks) for face in task.faces}
    return OpenPhoto(photo, matrices, {number: warp(photo.pixels, matrix) for number, matrix in matrices.items()})


class ReferenceReader:
    """Reads the crops of references on CPU threads, ahead of the device; the last few are kept. For several threads."""

    def __init__(self, pool: ThreadPoolExecutor, keep: int = 64) -> None:
        self._pool = pool
        self._keep = keep
        self._futures: OrderedDict[str, Future[Pixels]] = OrderedDict()
        self._lock = threading.Lock()

    def start(self, reference: ReferenceSource) -> Future[Pixels]:
        """The crop of a reference, perhaps still being read."""
        with self._lock:
            future = self._futures.get(reference.key)
            if future is None:
                future = self._futures[reference.key] = self._pool.submit(reference.read)
            self._futures.move_to_end(reference.key)
            while len(self._futures) > self._keep:
                self._futures.popitem(last=False)
            return future

    def is_readable(self, reference: ReferenceSource) -> bool:
        """Whether the reference can be read (waits for it)."""
        return not isinstance(self.start(reference).exception(), PhotoError)
