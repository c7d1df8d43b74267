"""Look into photos, once each: faces, embeddings, quality. Runs on CPU threads and keeps no pixels."""

from __future__ import annotations

from pathlib import Path

from facefix.errors import FacefixError, PhotoError
from facefix.faces.backends import Backend
from facefix.faces.index import index_photo
from facefix.files.names import printable
from facefix.outputs.outcomes import IndexedPhoto, NamedBox
from facefix.photos.metadata.regions import read_regions
from facefix.photos.photo import Photo, read_photo


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


def why_failed(path: Path, error: BaseException) -> str:
    """An error in words for the record of the photo at ``path``; unexpected kinds say what they are."""
    return str(error) if isinstance(error, FacefixError) else f"{printable(path)}: {type(error).__name__}: {error}"
