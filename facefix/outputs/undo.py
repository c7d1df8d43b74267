"""Take a restoration back: the samples from before, kept in small records, put into an output again.

A record holds, for each restored region, the file's own samples before (bit depth, colour model and orientation as
stored) packed without loss. It is found by the name in the output's XMP, so an output may be renamed and moved, or by
the output's sha256 where the format has no XMP.
"""

from __future__ import annotations

import io
import json
import os
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from facefix.errors import PhotoError, UsageError
from facefix.files import atomic
from facefix.files.digests import sha256_of
from facefix.files.names import printable
from facefix.outputs.folder import OUTPUT_MARKER
from facefix.photos.containers import jpeg
from facefix.photos.metadata.xmp import empty_packet, serialize_packet
from facefix.photos.photo import Photo, Written, copy_photo, read_photo, stored_box, stored_raster, write_raster
from facefix.photos.provenance import read_provenance, strip_xmp
from facefix.photos.raster import Raster
from facefix.photos.region import Region, picture_part

UNDO_FOLDER: Final = "undo"

_SUFFIX: Final = ".undo"
_VERSION: Final = 2
_LEVEL: Final = 1
"""Of zlib: higher ones take ten times as long for a tenth of the space, or less."""
_JPEG_BLOCK: Final = 16
"""JPEG codes blocks of 8 x 8, or 16 x 16 where chroma is subsampled: a patch of whole blocks survives coding best."""
_FINGERPRINT_CELLS: Final = 8
_FINGERPRINT_TOLERANCE: Final = 8.0
"""Mean difference, in 8-bit steps, from which a region counts as edited since. Recompression stays below 2."""

Samples = NDArray[Any]


@dataclass(frozen=True, slots=True)
class _Tables:
    """How a JPEG is coded, as far as it matters to pack its pixels again."""

    quantization: list[list[int]]
    subsampling: int


@dataclass(frozen=True, slots=True, eq=False)
class Patch:
    """Samples of one rectangle from before."""

    left: int
    top: int
    samples: Samples
    """(h, w, channels) as the file stores them"""
    upright_box: tuple[int, int, int, int]
    """the restored region: left, top, right, bottom in pixels of the upright output"""
    fingerprint: tuple[int, ...]
    """what the region shows after the restoration: 8 x 8 means of R, G, B, 0..255"""


@dataclass(frozen=True, slots=True, eq=False)
class Record:
    """All that is kept about one output."""

    undo_id: str
    source: str
    """path of the original"""
    source_sha256: str
    output_sha256: str
    size: tuple[int, int]
    """width, height of the output as stored"""
    scale: int
    had_xmp: bool
    patches: tuple[Patch, ...]


@dataclass(frozen=True, slots=True)
class Undone:
    """How one output was taken back."""

    path: Path
    written: Path
    regions: int
    exact: bool
    """the file is the original again, byte for byte"""


def save(output: Path, undo_id: str, photo: Photo, regions: Sequence[Region], written: Written) -> Path | None:
    """Keep what lay under the regions of a photo that was just written.

    Args:
        output: the output folder.
        undo_id: the name that the output's XMP gives.
        photo: the original as read.
        regions: what was laid over it, all of one scale.
        written: what came of it.

    Returns:
        The record: the same restoration gives the same bytes. None where no region was laid over the photo.

    Raises:
        PhotoError: it cannot be written.
    """
    if not regions:
        return None
    scale = regions[0].scale
    before = stored_raster(photo, scale)
    record = Record(
        undo_id=undo_id,
        source=os.fspath(photo.path.absolute()),
        source_sha256=photo.sha256,
        output_sha256=written.sha256,
        size=before.size,
        scale=scale,
        had_xmp=photo.xmp is not None,
        patches=tuple(_patch(photo, region, before, regions) for region in regions if region.alpha.any()),
    )
    path = output / OUTPUT_MARKER / UNDO_FOLDER / f"{undo_id}-{written.sha256[:16]}{_SUFFIX}"
    atomic.write_bytes(_packed(record, _tables(photo)), path)
    return path


def undo(photo: Path, *, stores: Iterable[Path] = (), target: Path | None = None, force: bool = False) -> Undone:
    """Give an output the original pixels of its restored regions back.

    Where the output is as it was written and the original is still in its place, the original is copied. Otherwise the
    stored samples are put into the output: exactly for lossless formats; a JPEG is coded once more with its own tables.

    Args:
        photo: the output, wherever it is now.
        stores: output folders whose records to search, beside those that the photo lies in.
        target: where to write; None replaces the photo.
        force: also where the photo was edited since it was written.

    Raises:
        UsageError: there is no record for the photo.
        PhotoError: it cannot be read or written, or was edited since.
    """
    output = read_photo(photo)
    record = _find(output, [*_stores_above(photo), *stores])
    target = target or photo
    if target.absolute() == Path(record.source):
        raise UsageError(
            f"--output {printable(target)}: expected another file than the original, which is never touched"
        )
    if output.sha256 == record.output_sha256 and record.scale == 1 and _original_is_there(record, photo, target):
        copy_photo(Path(record.source), target)
        return Undone(photo, target, len(record.patches), exact=True)
    raster = stored_raster(output)
    _check_unedited(output, raster, record, force)
    samples = raster.samples.copy()
    for patch in record.patches:
        height, width = patch.samples.shape[:2]
        samples[patch.top : patch.top + height, patch.left : patch.left + width] = patch.samples
    write_raster(output, replace(raster, samples=samples), target, extra_xmp=_xmp_without(output, record))
    return Undone(photo, target, len(record.patches), exact=False)


def read_record(path: Path) -> Record:
    """Read a record. Raises PhotoError when it is damaged."""
    try:
        with zipfile.ZipFile(path) as archive:
            about = json.loads(archive.read("record.json"))
            if about.pop("version") != _VERSION:
                raise PhotoError(f"{printable(path)}: was written by another facefix, and only that can read it")
            patches = [
                _unpacked_patch(fields, {kind: archive.read(f"{number}.{kind}") for kind in fields["files"]})
                for number, fields in enumerate(about.pop("patches"))
            ]
            return Record(**{**about, "size": tuple(about["size"])}, patches=tuple(patches))
    except (OSError, zipfile.BadZipFile, KeyError, ValueError, TypeError, zlib.error) as error:
        raise PhotoError(f"{printable(path)}: expected a record for undo, found it damaged: {error}") from error


def has_record(output: Path, undo_id: str) -> bool:
    """Whether an output folder keeps a record of that name."""
    return any((output / OUTPUT_MARKER / UNDO_FOLDER).glob(f"{undo_id}-*{_SUFFIX}"))


def _patch(photo: Photo, region: Region, before: Raster, regions: Sequence[Region]) -> Patch:
    left, top, right, bottom = stored_box(photo, region)
    if photo.format == "JPEG":
        width, height = before.size
        left, top = left // _JPEG_BLOCK * _JPEG_BLOCK, top // _JPEG_BLOCK * _JPEG_BLOCK
        right = min(width, -(-right // _JPEG_BLOCK) * _JPEG_BLOCK)
        bottom = min(height, -(-bottom // _JPEG_BLOCK) * _JPEG_BLOCK)
    samples = before.samples[top:bottom, left:right].copy()
    return Patch(left, top, samples, region.box, _fingerprint(_shown(photo, region.box, regions)))


def _shown(photo: Photo, box: tuple[int, int, int, int], regions: Sequence[Region]) -> NDArray[np.float32]:
    """(h, w, 3) 0..255 sRGB of what the output shows in ``box``, near enough for a fingerprint."""
    left, top, right, bottom = box
    shown = picture_part(photo.pixels, box, regions[0].scale) * 255
    for region in regions:
        x0, y0, x1, y1 = region.box
        common = (max(left, x0), max(top, y0), min(right, x1), min(bottom, y1))
        if common[0] >= common[2] or common[1] >= common[3]:
            continue
        there = np.s_[common[1] - top : common[3] - top, common[0] - left : common[2] - left]
        here = np.s_[common[1] - y0 : common[3] - y0, common[0] - x0 : common[2] - x0]
        alpha = region.alpha[here][:, :, None]
        shown[there] = shown[there] * (1 - alpha) + region.rgb[here] * 255 * alpha
    return shown


def _fingerprint(rgb: NDArray[np.float32]) -> tuple[int, ...]:
    cells = (_FINGERPRINT_CELLS, _FINGERPRINT_CELLS)
    small = Image.fromarray(np.clip(np.rint(rgb), 0, 255).astype(np.uint8)).resize(cells, Image.Resampling.BOX)
    return tuple(int(value) for value in np.asarray(small).ravel())


def _packed(record: Record, tables: _Tables | None) -> bytes:
    """The record as a zip that does not depend on the clock."""
    about = asdict(replace(record, patches=()))
    about["version"] = _VERSION
    about["patches"] = []
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for number, patch in enumerate(record.patches):
            coded = _coded(patch.samples, tables)
            about["patches"].append(
                {
                    "left": patch.left,
                    "top": patch.top,
                    "shape": patch.samples.shape,
                    "dtype": patch.samples.dtype.newbyteorder("<").str,
                    "upright_box": patch.upright_box,
                    "fingerprint": patch.fingerprint,
                    "files": sorted(coded),
                }
            )
            for kind, data in sorted(coded.items()):
                archive.writestr(zipfile.ZipInfo(f"{number}.{kind}"), data)
        archive.writestr(zipfile.ZipInfo("record.json"), json.dumps(about))
    return buffer.getvalue()


def _coded(samples: Samples, tables: _Tables | None) -> dict[str, bytes]:
    """Samples packed without loss, by kind of coding.

    What came out of a JPEG goes into one again, at its own tables, with hardly any loss and in a fraction of the space;
    the rest, mostly zeros, is kept beside it.
    """
    if tables is None:
        return {"delta": zlib.compress(_differences(samples), _LEVEL)}
    buffer = io.BytesIO()
    picture = Image.fromarray(samples if samples.shape[2] == 3 else samples[:, :, 0])
    picture.save(buffer, "JPEG", qtables=tables.quantization, subsampling=tables.subsampling)
    rest = samples - _decoded_jpeg(buffer.getvalue(), samples.shape)  # modulo 256
    return {"jpg": buffer.getvalue(), "rest": zlib.compress(rest.tobytes(), _LEVEL)}


def _decoded(fields: dict[str, Any], files: dict[str, bytes]) -> Samples:
    dtype, shape = np.dtype(fields["dtype"]), tuple(fields["shape"])
    if "jpg" not in files:
        return _summed(zlib.decompress(files["delta"]), dtype, shape)
    rest = np.frombuffer(zlib.decompress(files["rest"]), np.uint8).reshape(shape)
    return _decoded_jpeg(files["jpg"], shape) + rest


def _decoded_jpeg(data: bytes, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(data), formats=["JPEG"]) as image:
        return np.asarray(image).reshape(shape)


def _differences(samples: Samples) -> bytes:
    """Each sample (h, w, channels) less its left neighbour, after each row less the one above: modulo its type."""
    down = samples.copy()
    down[1:] -= samples[:-1]
    across = down.copy()
    across[:, 1:] -= down[:, :-1]
    return across.astype(samples.dtype.newbyteorder("<")).tobytes()


def _summed(data: bytes, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Samples:
    """Undoes `_differences`."""
    native = dtype.newbyteorder("=")
    across = np.frombuffer(data, dtype).reshape(shape).astype(native)
    return across.cumsum(axis=1, dtype=native).cumsum(axis=0, dtype=native)


def _tables(photo: Photo) -> _Tables | None:
    if photo.format != "JPEG" or photo.mode not in ("L", "RGB"):
        return None
    quantization, sampling = jpeg.tables_and_sampling(photo.carrier.source.data)
    return _Tables(quantization[:2], {(2, 1): 1, (2, 2): 2}.get(sampling or (1, 1), 0))


def _unpacked_patch(fields: dict[str, Any], files: dict[str, bytes]) -> Patch:
    left, top, right, bottom = fields["upright_box"]
    samples = _decoded(fields, files)
    return Patch(fields["left"], fields["top"], samples, (left, top, right, bottom), tuple(fields["fingerprint"]))


def _stores_above(photo: Path) -> list[Path]:
    """Output folders that the photo lies in."""
    return [folder for folder in photo.absolute().parents if (folder / OUTPUT_MARKER / UNDO_FOLDER).is_dir()]


def _find(output: Photo, stores: Sequence[Path]) -> Record:
    found = read_provenance(output.xmp)
    ending = f"-{output.sha256[:16]}{_SUFFIX}"
    patterns = [f"*{ending}"]
    if found is not None and found.undo_id is not None and found.undo_id.isalnum():
        patterns = [f"{found.undo_id}{ending}", f"{found.undo_id}-*{_SUFFIX}"]
    for pattern in patterns:
        for store in stores:
            for path in sorted((store / OUTPUT_MARKER / UNDO_FOLDER).glob(pattern)):
                return read_record(path)
    name = printable(output.path)
    if found is None:
        raise UsageError(f"{name}: expected an output of facefix, found no word of it in its XMP and no record of it")
    raise UsageError(
        f"{name}: expected the record {found.undo_id} of its restoration; name the output folder by --from"
    )


def _original_is_there(record: Record, photo: Path, target: Path) -> bool:
    source = Path(record.source)
    if source.suffix.lower() != target.suffix.lower() or source == photo.absolute():
        return False
    try:
        return sha256_of(source) == record.source_sha256
    except OSError:
        return False


def _check_unedited(output: Photo, raster: Raster, record: Record, force: bool) -> None:
    name = printable(output.path)
    if raster.size != record.size or any(
        patch.samples.shape[2] != raster.samples.shape[2] or patch.samples.dtype != raster.samples.dtype
        for patch in record.patches
    ):
        raise PhotoError(
            f"{name}: expected the picture as it was written, {record.size[0]} x {record.size[1]}, found it cropped, "
            f"resized or converted ({raster.size[0]} x {raster.size[1]}); it cannot be taken back"
        )
    if force or output.sha256 == record.output_sha256:
        return
    for patch in record.patches:
        left, top, right, bottom = patch.upright_box
        now = _fingerprint(output.pixels[top:bottom, left:right].astype(np.float32))
        difference = np.abs(np.subtract(now, patch.fingerprint)).mean()
        if difference > _FINGERPRINT_TOLERANCE:
            raise PhotoError(
                f"{name}: expected the restored face at {patch.upright_box} as it was written, found it edited since; "
                "--force takes it back all the same"
            )


def _xmp_without(output: Photo, record: Record) -> bytes | None:
    """The packet without our word in it; empty where the original had none and nothing else was added since."""
    if output.xmp is None:
        return None
    try:
        return strip_xmp(output.xmp) or (serialize_packet(empty_packet()) if record.had_xmp else b"")
    except PhotoError:
        return None
