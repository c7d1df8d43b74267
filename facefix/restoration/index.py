"""Look into photos, once each: faces, embeddings, quality. Runs on CPU threads and keeps no pixels."""

from __future__ import annotations

from pathlib import Path

from facefix.errors import FacefixError, PhotoError
from facefix.faces.backends import Backend
from facefix.faces.detect import LEAST_FACE_PX, Search
from facefix.faces.face import Face
from facefix.faces.index import index_photo
from facefix.files.names import printable
from facefix.outputs.outcomes import IndexedPhoto, NamedBox
from facefix.photos.metadata.regions import read_regions
from facefix.photos.photo import OpenedPhoto, open_photo


def look_into(path: Path, backend: Backend, max_pixels: int, min_face_px: float | None = None) -> IndexedPhoto:
    """What is in the photo at ``path``. Raises PhotoError when it cannot be read.

    Faces are looked for from ``min_face_px`` on, by default from what the detector finds worth while for a photo of
    that size; a note says so where that leaves something out.
    """
    photo = open_photo(path, max_pixels)
    if photo.source.copy_reason:
        photo.decode()  # a damaged one is not copied
        faces, notes = list[Face](), photo.notes
    else:
        search = backend.detector.search(*photo.size, min_face_px)
        looked_at = photo.reduced(search.scale)
        faces = index_photo(photo, backend, min_face_px, looked_at)
        notes = (*photo.notes, *_left_out(search, min_face_px))
    return IndexedPhoto(
        photo.sha256, photo.size, photo.taken, photo.source.copy_reason, tuple(faces), _named_boxes(photo), notes
    )


def _left_out(search: Search, min_face_px: float | None) -> tuple[str, ...]:
    """A note that small faces were not looked for, where the user did not ask for that."""
    wanted = LEAST_FACE_PX if min_face_px is None else min_face_px
    if search.least_face_px < wanted + 1:
        return ()
    return (f"faces narrower than {search.least_face_px:.0f} px were not looked for",)


def _named_boxes(photo: OpenedPhoto) -> tuple[NamedBox, ...]:
    """Faces that the photo's own XMP names; XMP that cannot be understood names none."""
    if photo.source.xmp is None:
        return ()
    width, height = photo.size
    turned = photo.orientation is not None and photo.orientation >= 5
    stored_size = (height, width) if turned else (width, height)
    try:
        regions = read_regions(photo.source.xmp, stored_size, photo.orientation or 1)
    except PhotoError:
        return ()
    return tuple(NamedBox(region.name, region.box) for region in regions)


def why_failed(path: Path, error: BaseException) -> str:
    """An error in words for the record of the photo at ``path``; unexpected kinds say what they are."""
    return str(error) if isinstance(error, FacefixError) else f"{printable(path)}: {type(error).__name__}: {error}"
