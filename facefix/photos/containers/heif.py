"""HEIC and AVIF: only the coded picture is replaced; every other box, item and property stays as it is.

ISO/IEC 23008-12 (HEIF), AV1 Image File Format 1.1. HEIC through pillow-heif, AVIF through Pillow and imagecodecs, with
8, 10 or 12 bits a sample and the chroma subsampling and colour matrix of the source. A picture made of tiles stays one.
"""

from __future__ import annotations

import abc
import io
from dataclasses import dataclass
from typing import Any

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from PIL import AvifImagePlugin, Image

from facefix.photos import orientation as turning
from facefix.photos import raster as rasters
from facefix.photos.containers import av1_header, bmff, heif_items, heif_replace
from facefix.photos.containers.base import Encoded, Source
from facefix.photos.containers.heif_items import Picture
from facefix.photos.containers.heif_replace import Coded
from facefix.photos.metadata import exif as exif_block
from facefix.photos.orientation import contiguous
from facefix.photos.raster import Raster

_QUALITY = 90
"""Neither format records the quality it was written with."""

_SPEED = 6
"""libavif's own default; slower ones take a minute for a photo and save little."""

_LARGEST_SIDE = 16384

_BT_601 = 6
_MATRICES = (1, 5, _BT_601, 9)
"""Matrix coefficients that turn RGB into luma and chroma (ITU-T H.273, table 4: BT.709, BT.601 twice, BT.2020)."""

_SRGB_POINTS = (1, 13, _BT_601, 1)
"""What a picture is taken for that gives no code points: BT.709 primaries, sRGB's curve, full range."""

_UNSPECIFIED = 2

_HDR_TRANSFERS = {16: "PQ", 18: "HLG"}
"""Transfer characteristics of high dynamic range (ITU-T H.273, table 3)."""


@dataclass(frozen=True, slots=True, eq=False)
class _Details:
    picture: Picture
    chroma: str
    """4:0:0, 4:2:0, 4:2:2 or 4:4:4"""
    bit_depth: int
    code_points: tuple[int, int, int, int]
    """primaries, transfer, matrix, full-range flag"""


class _Boxed(abc.ABC):
    """What HEIC and AVIF have in common."""

    def encode(self, source: Source, raster: Raster, xmp: bytes | None) -> Encoded:
        """Encode the picture, tile by tile where it is made of tiles, and put it in the place of the old one."""
        details: _Details = source.details
        picture = details.picture
        if max(raster.size) > _LARGEST_SIDE:
            raise ValueError(f"{raster.size[0]} x {raster.size[1]} pixels are more than {_LARGEST_SIDE} to a side")
        scale = raster.size[0] // source.size[0]
        colours = raster.samples[:, :, : raster.colours]
        coded = self._tiles(details, colours, scale)
        contents = {}
        if scale != 1:
            contents = _scaled_exif(source, raster, scale)
            if picture.alpha is not None:
                coded |= self._alpha(details, raster)
        return Encoded(heif_replace.replaced(picture, coded, contents, xmp, scale))

    def is_lossless(self, source: Source) -> bool:
        """Never."""
        return False

    @abc.abstractmethod
    def _coded(self, details: _Details, samples: NDArray[Any]) -> Coded:
        """Encode (H, W, 1 or 3) samples as they are stored."""

    def _tiles(self, details: _Details, samples: NDArray[Any], scale: int) -> dict[int, Coded]:
        picture, grid = details.picture, details.picture.grid
        size = (picture.size[0] * scale, picture.size[1] * scale)
        canvas = _on_canvas(samples, heif_items.crop(picture), size, scale)
        if grid is None:
            return {picture.coded[0]: _of_size(self._coded(details, canvas), size)}
        width, height = _tile_size(picture, scale)
        full = (grid.columns * width, grid.rows * height)
        canvas = _padded(canvas, 0, 0, full)
        coded = {}
        for number, item in enumerate(grid.tiles):
            top, left = number // grid.columns * height, number % grid.columns * width
            tile = contiguous(canvas[top : top + height, left : left + width])
            coded[item] = _of_size(self._coded(details, tile), (width, height))
        if len({each.configuration for each in coded.values()}) > 1:
            raise ValueError("its tiles cannot be coded alike")
        return coded

    def _alpha(self, details: _Details, raster: Raster) -> dict[int, Coded]:
        item = details.picture.alpha
        assert item is not None
        if details.picture.meta.item(item).kind not in heif_items.CONFIGURATIONS or raster.alpha == "none":
            raise ValueError("its transparency cannot be enlarged")
        plain = _Details(details.picture, "4:0:0", details.bit_depth, _SRGB_POINTS)
        alpha = contiguous(raster.samples[:, :, raster.colours :][:, :, :1])
        return {item: _of_size(self._coded(plain, alpha), raster.size)}


class Heic(_Boxed):
    """HEIC. libheif crops and turns the picture as the file says; it is turned back for writing."""

    def open(self, data: bytes) -> Source:
        """Look at the boxes."""
        picture = heif_items.read_picture(data)
        image = _heif_image(data)
        chroma = {400: "4:0:0", 422: "4:2:2", 444: "4:4:4"}.get(image.info.get("chroma", 420), "4:2:0")
        points = heif_items.code_points(picture) or _SRGB_POINTS
        details = _Details(picture, chroma, image.info.get("bit_depth", 8), points)
        cropped = heif_items.crop(picture)
        frames = int(getattr(image, "n_frames", 1))
        return _source("HEIF", details, image.mode, cropped[2:] if cropped else picture.size, frames)

    def decode(self, source: Source) -> Raster:
        """Decode with libheif."""
        details: _Details = source.details
        if details.bit_depth > 8:
            return _deep_raster(source.data, source.orientation)
        image = _heif_image(source.data)
        image.load()
        return _raster(np.asarray(image), image.mode, source.orientation)

    def _coded(self, details: _Details, samples: NDArray[Any]) -> Coded:
        """Encode with x265."""
        import pillow_heif

        chroma = int(details.chroma.replace(":", ""))
        primaries, transfer, matrix, full = details.code_points
        buffer = io.BytesIO()
        image = pillow_heif.from_bytes(
            mode=("L" if samples.shape[2] == 1 else "RGB") + (";16" if samples.dtype == np.uint16 else ""),
            size=samples.shape[1::-1],
            data=contiguous(samples).tobytes(),
        )
        image.save(
            buffer,
            quality=_QUALITY,
            chroma=chroma if chroma != 400 else 420,
            bit_depth=details.bit_depth,
            color_primaries=primaries,
            transfer_characteristics=transfer,
            matrix_coefficients=matrix if matrix in _MATRICES else _BT_601,
            full_range_flag=full,
            tile_size=0,
        )
        return heif_replace.coded_picture(buffer.getvalue())


class Avif(_Boxed):
    """AVIF. libavif leaves cropping and turning to its caller."""

    def open(self, data: bytes) -> Source:
        """Look at the boxes."""
        picture = heif_items.read_picture(data)
        frames = 1
        if any(each.kind == b"moov" for each in bmff.boxes(data)):
            frames = AvifImagePlugin.AvifImageFile(io.BytesIO(data)).n_frames
        details = _avif_details(picture)
        mode = "L" if details.chroma == "4:0:0" else "RGB"
        return _source("AVIF", details, mode + ("A" if picture.alpha is not None else ""), picture.size, frames)

    def decode(self, source: Source) -> Raster:
        """Decode with libavif: through Pillow, and stills of more than 8 bits through imagecodecs."""
        details: _Details = source.details
        if details.bit_depth == 8 or source.frames > 1:
            image = AvifImagePlugin.AvifImageFile(io.BytesIO(source.data))
            image.load()
            return _raster(np.asarray(image), image.mode, None)
        samples = imagecodecs.avif_decode(source.data)
        samples = samples if samples.ndim == 3 else samples[:, :, None]
        if samples.ndim != 3 or not 1 <= samples.shape[2] <= 4:
            raise ValueError(f"expected one picture, decoded an array of {samples.shape}")
        mode = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}[samples.shape[2]]
        return _raster(samples, mode, None, details.bit_depth)

    def _coded(self, details: _Details, samples: NDArray[Any]) -> Coded:
        """Encode with libavif; narrow-range luma, which only Pillow offers, with Pillow."""
        primaries, transfer, matrix, is_full = details.code_points
        if not is_full:
            return heif_replace.coded_picture(_narrow_avif(details, samples))
        data = imagecodecs.avif_encode(
            contiguous(samples[:, :, 0] if samples.shape[2] == 1 else samples),
            level=_QUALITY,
            speed=_SPEED,
            bitspersample=details.bit_depth,
            pixelformat=details.chroma.replace(":", ""),
            primaries=primaries,
            transfer=transfer,
            matrix=matrix,
            numthreads=1,
        )
        return heif_replace.coded_picture(bytes(data))


def _source(name: str, details: _Details, mode: str, size: tuple[int, int], frames: int) -> Source:
    picture = details.picture
    notes = []
    transfer = _HDR_TRANSFERS.get(details.code_points[1])
    if transfer is not None:
        notes.append(f"high dynamic range ({transfer}): faces are looked at and restored as if it were sRGB")
    reason = heif_items.copy_reason(picture) or _matrix_reason(name, details)
    if frames > 1:
        reason = f"{name} with {frames} pictures" if name == "HEIF" else f"animated AVIF with {frames} frames"
    return Source(
        format=name,
        mode=mode + (";16" if details.bit_depth > 8 else ""),
        size=size,
        data=picture.data,
        exif=heif_items.exif_block(picture),
        icc=heif_items.icc_profile(picture),
        xmp=(picture.content(picture.xmp_item) or None) if picture.xmp_item is not None else None,
        frames=frames,
        copy_reason=reason if frames > 1 or reason is None else f"{name}: {reason}",
        notes=tuple(notes),
        details=details,
        orientation=heif_items.orientation(picture),
    )


def _matrix_reason(name: str, details: _Details) -> str | None:
    """Why colours cannot be coded the way the source has them."""
    _, _, matrix, is_full = details.code_points
    if name == "AVIF" and not is_full and (details.bit_depth > 8 or matrix not in (_UNSPECIFIED, 5, _BT_601)):
        return f"narrow-range samples with matrix {matrix} and {details.bit_depth} bits cannot be written"
    if name == "HEIF" and matrix not in (*_MATRICES, _UNSPECIFIED) and details.chroma != "4:0:0":
        return f"colours coded with matrix {matrix} cannot be written"
    return None


def _heif_image(data: bytes) -> Image.Image:
    from pillow_heif import HeifImageFile

    image: Image.Image = HeifImageFile(io.BytesIO(data))
    return image


def _raster(samples: NDArray[Any], mode: str, turn: int | None, bits: int | None = None) -> Raster:
    """Samples of one of Pillow's modes, upright, as the file's own orientation ``turn`` has them."""
    if mode not in ("L", "LA", "RGB", "RGBA"):
        raise ValueError(f"samples of mode {mode} are not supported")
    samples = turning.stored(samples, turn)
    samples = samples if samples.ndim == 3 else samples[:, :, None]
    alpha: rasters.Alpha = "straight" if mode in ("LA", "RGBA") else "none"
    return Raster(contiguous(samples), "grey" if mode in ("L", "LA") else "rgb", alpha, bits=bits)


def _deep_raster(data: bytes, turn: int | None) -> Raster:
    """A picture of 10 or 12 bits, its samples shifted up to 16."""
    import pillow_heif

    image = pillow_heif.open_heif(io.BytesIO(data), convert_hdr_to_8bit=False)
    mode = image.mode.partition(";")[0]
    return _raster(np.asarray(image), "L" if mode == "I" else mode, turn)


def _narrow_avif(details: _Details, samples: NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(contiguous(samples[:, :, 0] if samples.shape[2] == 1 else samples)).save(
        buffer, "AVIF", quality=_QUALITY, subsampling=details.chroma, range="limited", max_threads=1
    )
    return buffer.getvalue()


def _on_canvas(
    samples: NDArray[Any], cropped: tuple[int, int, int, int] | None, size: tuple[int, int], scale: int
) -> NDArray[Any]:
    """The coded picture of ``size``: what is shown where the clean aperture is, its edge repeated around it."""
    if cropped is None:
        return samples
    return _padded(samples, cropped[0] * scale, cropped[1] * scale, size)


def _padded(samples: NDArray[Any], left: int, top: int, size: tuple[int, int]) -> NDArray[Any]:
    right, bottom = size[0] - left - samples.shape[1], size[1] - top - samples.shape[0]
    if min(right, bottom) < 0:
        raise ValueError(f"expected a picture of at most {size}, found {samples.shape[1::-1]}")
    return np.pad(samples, ((top, bottom), (left, right), (0, 0)), mode="edge")


def _tile_size(picture: Picture, scale: int) -> tuple[int, int]:
    sizes = {heif_items.property_of(picture.meta, item, b"ispe") for item in picture.coded}
    if len(sizes) != 1 or None in sizes:
        raise ValueError("its tiles differ in size")
    found = sizes.pop() or b""
    return int.from_bytes(found[12:16], "big") * scale, int.from_bytes(found[16:20], "big") * scale


def _of_size(coded: Coded, size: tuple[int, int]) -> Coded:
    if coded.size != size:
        raise ValueError(f"expected a coded picture of {size}, the encoder made {coded.size}")
    return coded


def _scaled_exif(source: Source, raster: Raster, scale: int) -> dict[int, bytes]:
    """The Exif item with the picture's new size."""
    picture: Picture = source.details.picture
    if picture.exif_item is None or source.exif is None:
        return {}
    whole = picture.content(picture.exif_item)
    start = heif_items.exif_start(whole)
    return {picture.exif_item: whole[:start] + exif_block.with_size(source.exif, *raster.size, scale)}


def _avif_details(picture: Picture) -> _Details:
    """Chroma subsampling and bit depth from the AV1 configuration box (AV1-ISOBMFF, section 2.3.3)."""
    item = picture.coded[0]
    found = heif_items.property_of(picture.meta, item, b"av1C") or b""
    flags = found[10] if len(found) > 10 else 0x0C
    depth = 12 if flags & 0x20 else 10 if flags & 0x40 else 8
    subsampling = {(1, 1): "4:2:0", (1, 0): "4:2:2", (0, 0): "4:4:4"}.get((flags >> 3 & 1, flags >> 2 & 1), "4:2:0")
    chroma = "4:0:0" if flags & 0x10 else subsampling
    points = heif_items.code_points(picture) or av1_header.code_points(picture.content(item))
    return _Details(picture, chroma, depth, points or _SRGB_POINTS)
