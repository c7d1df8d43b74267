"""Makes small test photos of every format and pixel layout, with metadata, from a real photograph."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image, ImageCms, TiffImagePlugin
from PIL.TiffImagePlugin import IFDRational
from skimage import data

XMP = (
    b'<?xpacket begin="\xef\xbb\xbf" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF '
    b'xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about="" '
    b'xmlns:dc="http://purl.org/dc/elements/1.1/"><dc:title><rdf:Alt><rdf:li xml:lang="x-default">A portrait'
    b'</rdf:li></rdf:Alt></dc:title></rdf:Description></rdf:RDF></x:xmpmeta><?xpacket end="w"?>'
)

IPTC = b"\x1c\x02\x00\x00\x02\x00\x02" + b"\x1c\x02\x69\x00\x08Portrait"

Make = Callable[[Path], None]


def portrait(width: int = 160, height: int = 208) -> NDArray[np.uint8]:
    """(height, width, 3) the face of the astronaut Eileen Collins (NASA, public domain), as scikit-image has it."""
    return np.asarray(
        Image.fromarray(data.astronaut()[0:260, 120:320]).resize((width, height), Image.Resampling.LANCZOS)
    )


def portrait_16bit(channels: int = 3, width: int = 160, height: int = 208) -> NDArray[np.uint16]:
    """The portrait with 16 bits a sample, all of them in use, as (height, width, channels)."""
    noise = np.random.default_rng(7).integers(0, 257, (height, width, channels))
    colour = np.dstack([portrait(width, height), portrait(width, height)[:, :, 1]])
    wanted = colour[:, :, [1]] if channels == 1 else colour[:, :, [1, 3]] if channels == 2 else colour[:, :, :channels]
    return (wanted.astype(np.int64) * 256 + noise).clip(0, 65535).astype(np.uint16)


def exif(orientation: int | None = 6) -> bytes:
    """An EXIF block as Pillow takes it, with a maker's note, a place and a time."""
    block = Image.Exif()
    block[0x010F], block[0x0110] = "Kodak", "Brownie"
    if orientation is not None:
        block[0x0112] = orientation
    details = block.get_ifd(0x8769)
    details[0x9003], details[0x9011] = "1969:07:20 20:17:40", "+02:00"
    details[0xA002], details[0xA003] = 160, 208
    details[0x927C] = b"maker's private note\0\1\2\3"
    block.get_ifd(0x8825)[1], block.get_ifd(0x8825)[2] = "N", (IFDRational(28), IFDRational(34), IFDRational(12))
    return block.tobytes()


def adobe_rgb() -> bytes:
    """An ICC profile with wider primaries than sRGB."""
    return bytes(imagecodecs.cms_profile("adobergb"))


def srgb() -> bytes:
    """The ICC profile of sRGB itself."""
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def _pillow(mode: str, name: str, **options: Any) -> Make:
    def make(path: Path) -> None:
        image = Image.fromarray(portrait())
        if mode in ("RGBA", "LA"):
            image.putalpha(Image.linear_gradient("L").resize(image.size))
        image.convert(mode).save(path, name, **options)

    return make


def _palette(name: str, colours: int, **options: Any) -> Make:
    def make(path: Path) -> None:
        Image.fromarray(portrait()).quantize(colours).save(path, name, **options)

    return make


def _jpeg_with_segments(path: Path) -> None:
    """Everything that a JPEG carries: EXIF, XMP, IPTC, ICC, comment, resolution, and an unknown segment."""
    buffer = io.BytesIO()
    Image.fromarray(portrait()).save(
        buffer, "JPEG", quality=83, exif=exif(), xmp=XMP, icc_profile=srgb(), comment=b"From the attic", dpi=(300, 300)
    )
    photoshop = b"Photoshop 3.0\0" + b"8BIM\x04\x04\0\0" + struct.pack(">I", len(IPTC)) + IPTC + b"\0" * (len(IPTC) % 2)
    extra = b"".join(
        struct.pack(">BBH", 0xFF, marker, len(payload) + 2) + payload
        for marker, payload in ((0xED, photoshop), (0xEB, b"private segment"))
    )
    stream = buffer.getvalue()
    at = stream.index(b"\xff\xdb")
    path.write_bytes(stream[:at] + extra + stream[at:] + b"trailing bytes of a motion photo")


def _jpeg_without_header(path: Path) -> None:
    """A stream without JFIF and Adobe segments."""
    buffer = io.BytesIO()
    Image.fromarray(portrait()).save(buffer, "JPEG", quality=70)
    stream = buffer.getvalue()
    path.write_bytes(stream[:2] + stream[stream.index(b"\xff\xdb") :])


def _ycck_jpeg(path: Path) -> None:
    """CMYK stored as YCCK, as Photoshop does."""
    cmyk = np.asarray(Image.fromarray(portrait()).convert("CMYK"))
    path.write_bytes(imagecodecs.jpeg8_encode(255 - cmyk, level=88, colorspace="CMYK", outcolorspace="YCCK"))


def png_chunk(kind: bytes, payload: bytes) -> bytes:
    """A PNG chunk."""
    return struct.pack(">I", len(payload)) + kind + payload + struct.pack(">I", zlib.crc32(kind + payload))


def _png(size: tuple[int, ...], depth: int, colour: int, rows: list[bytes], *, interlaced: bool = False) -> bytes:
    """A PNG of unfiltered scan lines."""
    header = struct.pack(">IIBBBBB", size[0], size[1], depth, colour, 0, 0, interlaced)
    chunks = (b"IHDR", header), (b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows))), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*chunk) for chunk in chunks)


def _insert_png_chunks(stream: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    return stream[:33] + b"".join(png_chunk(*chunk) for chunk in chunks) + stream[33:]


def _png_16bit(channels: int) -> Make:
    def make(path: Path) -> None:
        pixels = portrait_16bit(channels)
        colour = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
        stream = _png(pixels.shape[1::-1], 16, colour, [row.tobytes() for row in pixels.astype(">u2")])
        path.write_bytes(_insert_png_chunks(stream, (b"gAMA", struct.pack(">I", 45455)), (b"prVt", b"private")))

    return make


def _png_with_chunks(path: Path) -> None:
    buffer = io.BytesIO()
    Image.fromarray(portrait()).save(buffer, "PNG", exif=exif(3), icc_profile=srgb(), dpi=(300, 300))
    text = (b"tEXt", b"Comment\0From the attic"), (b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP), (b"prVt", b"private")
    path.write_bytes(_insert_png_chunks(buffer.getvalue(), *text) + b"trailer")


def _png_key(path: Path) -> None:
    """An RGB picture with a colour that stands for transparent."""
    pixels = portrait().copy()
    pixels[:40, :40] = (255, 0, 255)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", transparency=(255, 0, 255))
    path.write_bytes(buffer.getvalue())


def _png_grey(depth: int) -> Make:
    def make(path: Path) -> None:
        grey = np.asarray(portrait()[:, :, 1] >> (8 - depth), np.uint8)
        bits = np.unpackbits(grey[:, :, None], axis=2)[:, :, 8 - depth :].reshape(len(grey), -1)
        path.write_bytes(_png(grey.shape[::-1], depth, 0, [row.tobytes() for row in np.packbits(bits, axis=1)]))

    return make


def _png_interlaced(path: Path) -> None:
    """Adam7, every scan line unfiltered."""
    pixels = portrait(157, 203)
    passes = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
    rows = [row.tobytes() for x, y, dx, dy in passes for row in pixels[y::dy, x::dx]]
    path.write_bytes(_png((157, 203), 8, 2, rows, interlaced=True))


def _tiff(pixels: Callable[[], NDArray[Any]], **options: Any) -> Make:
    def make(path: Path) -> None:
        tifffile.imwrite(
            path,
            pixels(),
            metadata=None,
            extratags=[(274, 3, 1, 6, True), (700, 1, len(XMP), XMP, True), (65000, 2, 8, "private", True)],
            **options,
        )

    return make


def _tiff_with_exif(path: Path) -> None:
    """A TIFF with EXIF directory, ICC profile, IPTC and resolution, as an image editor writes it."""
    info = TiffImagePlugin.ImageFileDirectory_v2()
    info[274], info[271], info[700], info[33723] = 8, "Kodak", XMP, IPTC
    info.tagtype[700], info.tagtype[33723] = 1, 7
    Image.fromarray(portrait()).save(
        path, "TIFF", compression="tiff_lzw", tiffinfo=info, icc_profile=adobe_rgb(), dpi=(600, 600)
    )


def _cmyk() -> NDArray[np.uint8]:
    return np.asarray(Image.fromarray(portrait()).convert("CMYK"))


def _premultiplied() -> NDArray[np.uint8]:
    image = Image.fromarray(portrait())
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    opacity = np.asarray(image)[:, :, 3:]
    return np.dstack([np.rint(portrait() * (opacity / 255)).astype(np.uint8), opacity])


def _grey_16bit() -> NDArray[np.uint16]:
    return portrait_16bit(1)[:, :, 0]


def _rgba_16bit() -> NDArray[np.uint16]:
    return portrait_16bit(4)


def _heic(path: Path) -> None:
    """As telephones write it: turned by the container, and EXIF says so too."""
    pillow_heif = pytest.importorskip("pillow_heif")
    pillow_heif.from_pillow(Image.fromarray(portrait())).save(
        path, format="HEIF", quality=85, exif=exif(6), icc_profile=srgb(), xmp=XMP
    )


def _pillow_heic(path: Path) -> None:
    pillow_heif = pytest.importorskip("pillow_heif")
    image = Image.fromarray(portrait())
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    pillow_heif.from_pillow(image).save(path, format="HEIF", quality=85, chroma=444)


def _deep_heic(depth: int, channels: int, **options: Any) -> Make:
    """10 or 12 bits a sample, with Display P3 by its code points, as some cameras and telephones write it."""

    def make(path: Path) -> None:
        pillow_heif = pytest.importorskip("pillow_heif")
        mode = {1: "L;16", 3: "RGB;16", 4: "RGBA;16"}[channels]
        image = pillow_heif.from_bytes(mode=mode, size=(160, 208), data=portrait_16bit(channels).tobytes())
        image.save(path, quality=90, bit_depth=depth, exif=exif(6), xmp=XMP, **options)

    return make


def dng(path: Path, orientation: int = 6) -> None:
    """A camera raw file: the portrait through a Bayer filter, as a linear DNG 1.4."""
    linear = (portrait().astype(np.float64) / 255) ** 2.2 * 65535
    mosaic = linear[:, :, 1].copy()
    mosaic[::2, ::2], mosaic[1::2, 1::2] = linear[::2, ::2, 0], linear[1::2, 1::2, 2]
    matrix: tuple[int, ...] = (32404, 10000, -15371, 10000, -4985, 10000, -9692, 10000, 18760, 10000, 415, 10000)
    matrix += (556, 10000, -2040, 10000, 10572, 10000)
    tifffile.imwrite(
        path,
        mosaic.astype(np.uint16),
        photometric="cfa",
        metadata=None,
        extratags=[
            (50706, 1, 4, (1, 4, 0, 0), True),
            (50707, 1, 4, (1, 1, 0, 0), True),
            (50708, 2, 8, "Brownie", True),
            (271, 2, 6, "Kodak", True),
            (274, 3, 1, orientation, True),
            (33421, 3, 2, (2, 2), True),
            (33422, 1, 4, (0, 1, 1, 2), True),
            (50721, 10, 9, matrix, True),
            (50728, 5, 3, (1, 1, 1, 1, 1, 1), True),
            (50717, 4, 1, 65535, True),
            (50778, 3, 1, 21, True),
        ],
    )


JPEGS: dict[str, Make] = {
    "segments.jpg": _jpeg_with_segments,
    "bare.jpg": _jpeg_without_header,
    "444.jpg": _pillow("RGB", "JPEG", quality=92, subsampling=0),
    "422.jpg": _pillow("RGB", "JPEG", quality=75, subsampling=1),
    "progressive.jpg": _pillow("RGB", "JPEG", quality=60, progressive=True),
    "rgb.jpg": _pillow("RGB", "JPEG", quality=90, keep_rgb=True),
    "grey.jpg": _pillow("L", "JPEG", quality=80),
    "cmyk.jpg": _pillow("CMYK", "JPEG", quality=90),
    "ycck.jpg": _ycck_jpeg,
    "restart.jpg": _pillow("RGB", "JPEG", quality=80, restart_marker_blocks=4),
    "adobergb.jpg": _pillow("RGB", "JPEG", quality=90, icc_profile=adobe_rgb()),
}

PNGS: dict[str, Make] = {
    "chunks.png": _png_with_chunks,
    "rgba.png": _pillow("RGBA", "PNG"),
    "grey.png": _pillow("L", "PNG"),
    "la.png": _pillow("LA", "PNG"),
    "bilevel.png": _pillow("1", "PNG"),
    "grey2.png": _png_grey(2),
    "grey4.png": _png_grey(4),
    "grey16.png": _png_16bit(1),
    "la16.png": _png_16bit(2),
    "rgb16.png": _png_16bit(3),
    "rgba16.png": _png_16bit(4),
    "palette.png": _palette("PNG", 200),
    "palette4.png": _palette("PNG", 16, bits=4),
    "palette2.png": _palette("PNG", 4, bits=2),
    "palette-transparent.png": _palette("PNG", 100, transparency=3),
    "key.png": _png_key,
    "interlaced.png": _png_interlaced,
    "adobergb.png": _pillow("RGB", "PNG", icc_profile=adobe_rgb()),
}

TIFFS: dict[str, Make] = {
    "exif.tif": _tiff_with_exif,
    "plain.tif": _tiff(portrait, photometric="rgb"),
    "big-endian.tif": _tiff(portrait, photometric="rgb", byteorder=">", rowsperstrip=20),
    "deflate.tif": _tiff(portrait, photometric="rgb", compression="zlib", predictor=True, rowsperstrip=16),
    "tiled.tif": _tiff(portrait, photometric="rgb", compression="zlib", tile=(64, 48)),
    "planar.tif": _tiff(lambda: portrait().transpose(2, 0, 1).copy(), photometric="rgb", planarconfig="separate"),
    "big.tif": _tiff(portrait, photometric="rgb", bigtiff=True, compression="lzw"),
    "zstd.tif": _tiff(portrait, photometric="rgb", compression="zstd"),
    "rgb16.tif": _tiff(portrait_16bit, photometric="rgb"),
    "rgb16-lzw.tif": _tiff(portrait_16bit, photometric="rgb", compression="lzw", predictor=True, rowsperstrip=16),
    "rgb16-big-endian.tif": _tiff(portrait_16bit, photometric="rgb", compression="zlib", predictor=True, byteorder=">"),
    "rgba16.tif": _tiff(_rgba_16bit, photometric="rgb", extrasamples=["unassalpha"]),
    "premultiplied.tif": _tiff(
        _premultiplied,
        photometric="rgb",
        extrasamples=["assocalpha"],
    ),
    "grey16.tif": _tiff(_grey_16bit, photometric="minisblack", compression="lzw"),
    "white-is-zero.tif": _tiff(lambda: 255 - portrait()[:, :, 1], photometric="miniswhite"),
    "cmyk.tif": _tiff(_cmyk, photometric="separated", compression="zlib"),
    "packbits.tif": _pillow("RGB", "TIFF", compression="packbits"),
    "palette.tif": _palette("TIFF", 128, compression="tiff_lzw"),
    "bilevel.tif": _pillow("1", "TIFF"),
    "group4.tif": _pillow("1", "TIFF", compression="group4"),
    "group3.tif": _pillow("1", "TIFF", compression="group3"),
    "la.tif": _pillow("LA", "TIFF", compression="tiff_lzw"),
    "jpeg.tif": _pillow("RGB", "TIFF", compression="jpeg", quality=85),
    "jpeg-grey.tif": _pillow("L", "TIFF", compression="jpeg", quality=85),
}

OTHERS: dict[str, Make] = {
    "lossy.webp": _pillow("RGB", "WEBP", quality=80),
    "lossless.webp": _pillow("RGB", "WEBP", lossless=True),
    "metadata.webp": _pillow("RGB", "WEBP", quality=90, exif=exif(8), xmp=XMP, icc_profile=srgb()),
    "alpha.webp": _pillow("RGBA", "WEBP", lossless=True, exact=True),
    "alpha-lossy.webp": _pillow("RGBA", "WEBP", quality=85),
    "rgb.bmp": _pillow("RGB", "BMP", dpi=(200, 200)),
    "rgba.bmp": _pillow("RGBA", "BMP"),
    "grey.bmp": _pillow("L", "BMP"),
    "palette.bmp": _palette("BMP", 256),
    "bilevel.bmp": _pillow("1", "BMP"),
    "photo.avif": _pillow("RGB", "AVIF", quality=85, exif=exif(6), icc_profile=srgb(), xmp=XMP),
    "444.avif": _pillow("RGB", "AVIF", quality=85, subsampling="4:4:4"),
}

HEICS: dict[str, Make] = {
    "turned.heic": _heic,
    "alpha.heic": _pillow_heic,
    "deep10.heic": _deep_heic(10, 3, color_primaries=12, transfer_characteristics=13),
    "deep12.heic": _deep_heic(12, 3, chroma=444),
    "deep10-alpha.heic": _deep_heic(10, 4),
    "deep10-grey.heic": _deep_heic(10, 1),
}

ALL: dict[str, Make] = JPEGS | PNGS | TIFFS | OTHERS


def make(folder: Path, name: str) -> Path:
    """Path of the photo called ``name`` in ``folder``, made where it is not there."""
    path = folder / name
    if not path.exists():
        (ALL | HEICS)[name](path)
    return path
