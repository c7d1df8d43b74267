"""Look into photos, once each: faces, embeddings, quality. Runs on CPU threads and keeps no pixels."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from facefix.errors import FacefixError, PhotoError
from facefix.faces.backends import Backend
from facefix.faces.people import index_photo
from facefix.photos.ledger import IndexedPhoto, NamedBox
from facefix.photos.photo import Photo, read_photo
from facefix.photos.regions_xmp import read_regions
from facefix.photos.scan import printable

Item = TypeVar("Item")
Result = TypeVar("Result")


def look_into(path: Path, backend: Backend, max_pixels: int) -> IndexedPhoto:
    """What is in the photo at ``path``. Raises PhotoError when it cannot be read."""
    photo = read_photo(path, max_pixels)
    faces = () if photo.copy_reason else tuple(index_photo(photo, backend))
    return IndexedPhoto(
        photo.sha256, photo.size, photo.taken, photo.copy_reason, faces, _named_boxes(photo), photo.notes
    )


def _named_boxes(photo: Photo) -> tuple[NamedBox, ...]:
    """Faces that the photo's own XMP names; XMP that cannot be understood names none."""
    if photo.xmp is None:
        return ()
    width, height = photo.size
    turned = photo.orientation is not None and photo.orientation >= 5
    stored_size = (height, width) if turned else (width, height)
    try:
        regions = read_regions(photo.xmp, stored_size, photo.orientation or 1)
    except PhotoError:
        return ()
    return tuple(NamedBox(region.name, region.box) for region in regions)


@contextmanager
def cpu_pool(threads: int) -> Iterator[ThreadPoolExecutor]:
    """A pool of CPU threads in which torch does not start threads of its own; the caller's keeps its number."""
    import torch

    own = torch.get_num_threads()
    with ThreadPoolExecutor(threads, "facefix", initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for future in [pool.submit(time.sleep, 0.01) for _ in range(threads)]:  # each starts a thread of the pool
            future.result()
        torch.set_num_threads(own)
        try:
            yield pool
        finally:
            pool.shutdown(cancel_futures=True)


def bounded_map(
    pool: ThreadPoolExecutor, function: Callable[[Item], Result], items: Iterable[Item], ahead: int
) -> Iterator[tuple[Item, Future[Result]]]:
    """``function`` over ``items`` on a pool, in order, never more than ``ahead`` started and not yet taken."""
    waiting: deque[tuple[Item, Future[Result]]] = deque()
    try:
        for item in items:
            waiting.append((item, pool.submit(function, item)))
            if len(waiting) >= ahead:
                yield waiting.popleft()
        while waiting:
            yield waiting.popleft()
    finally:
        for _, future in waiting:
            future.cancel()


def why_failed(path: Path, error: BaseException) -> str:
    """An error in words for the record of the photo at ``path``; unexpected kinds say what they are."""
    return str(error) if isinstance(error, FacefixError) else f"{printable(path)}: {type(error).__name__}: {error}"
