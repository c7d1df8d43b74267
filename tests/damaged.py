"""Damaged and hostile inputs, made by a seed: every way a file in an album has been seen to be wrong, and some more."""

from __future__ import annotations

import io
import os
import random
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from PIL import Image, ImageCms, ImageDraw, PngImagePlugin

FAILS = "fails"
"""must be named as failed or skipped, with a reason"""
WORKS = "works"
"""must be done: the damage is none, or none that matters"""
EITHER = "either"
"""may be decodable or not; must be done or named"""


@dataclass(frozen=True)
class Damaged:
    """One hostile file."""

    name: bytes
    """file name, without folder"""
    content: bytes
    kind: str
    expected: str


def picture(generator: random.Random, mode: str = "RGB", side: int | None = None) -> Image.Image:
    """A small picture with structure, so that its compressed data are not trivial."""
    side = side or generator.randrange(24, 72)
    image = Image.new("RGB", (side, side + generator.randrange(16)), tuple(generator.choices(range(256), k=3)))
    draw = ImageDraw.Draw(image)
    for _ in range(12):
        box = sorted(generator.choices(range(side), k=2)) + sorted(generator.choices(range(side), k=2))
        draw.ellipse((box[0], box[2], box[1], box[3]), fill=tuple(generator.choices(range(256), k=3)))
    return image.convert(mode)


def exif_block(entries: list[tuple[int, int, int, bytes]], *, next_ifd: int = 0, order: str = "<") -> bytes:
    """A raw TIFF block of (tag, type, count, four value bytes), as it stands in EXIF, without any check."""
    mark = b"II*\0" if order == "<" else b"MM\0*"
    rows = b"".join(struct.pack(order + "HHI", tag, kind, count) + value for tag, kind, count, value in entries)
    offset = struct.pack(order + "I", 8)
    return mark + offset + struct.pack(order + "H", len(entries)) + rows + struct.pack(order + "I", next_ifd)


def absurd_exif(generator: random.Random) -> bytes:
    """EXIF that makes no sense, in one of many ways."""
    huge = struct.pack("<I", 0xFFFFFFF0)
    choices: list[bytes] = [
        b"",
        b"Exif",
        b"II*\0",
        b"II*\0\xff\xff\xff\xff",
        generator.randbytes(200),
        exif_block([(0x0112, 3, 1, struct.pack("<HH", generator.choice([0, 9, 65535]), 0))]),
        exif_block([(0x0112, 2, 4, b"six\0")]),
        exif_block([(0x0112, 3, 0, b"\0\0\0\0")]),
        exif_block([(0x0112, 3, 0xFFFFFFFF, huge)]),
        exif_block([(0x0112, 12, 1, huge)]),
        exif_block([(0x0112, 3, 1, b"\6\0\0\0")], next_ifd=8),
        exif_block([(0x8769, 4, 1, struct.pack("<I", 8))]),
        exif_block([(0x8769, 4, 1, huge), (0x8825, 4, 1, huge), (0xA005, 4, 1, huge)]),
        exif_block([(0x9003, 2, 20, huge)]),
        exif_block([(0x0132, 2, 0xFFFFFFFF, struct.pack("<I", 8))]),
        exif_block([(0x0201, 4, 1, huge), (0x0202, 4, 1, huge)]),
        exif_block([(0x0100, 4, 1, huge), (0x0101, 4, 1, huge), (0x0111, 4, 0xFFFFFFFF, huge)]),
        exif_block([(0xFFFF, 99, 0xFFFFFFFF, huge)] * 200),
        exif_block([(0x0112, 3, 1, b"\0\6\0\0")], order=">"),
        exif_block([(0x9003, 2, 20, struct.pack("<I", 26))]) + b"9999:99:99 99:99:99\0",
        exif_block([(0x9003, 2, 20, struct.pack("<I", 26))]) + b"0000:00:00 00:00:00\0",
        exif_block([(0x9003, 2, 20, struct.pack("<I", 26))]) + b"\xff\xfe\0\x80yesterday, 12:00\0\0",
        exif_block([(0x010F, 2, 60000, struct.pack("<I", 26))]) + b"A" * 60000,
    ]
    return generator.choice(choices)


def profile(space: Literal["LAB", "XYZ", "sRGB"]) -> bytes:
    """A colour profile that does not say when it was made: the same seed gives the same files."""
    made = ImageCms.ImageCmsProfile(ImageCms.createProfile(space)).tobytes()
    return made[:24] + bytes(12) + made[36:]


def broken_icc(generator: random.Random) -> bytes:
    """A colour profile that is cut, overwritten, of the wrong kind, or none."""
    sound = bytearray(profile("sRGB"))
    kind = generator.randrange(6)
    if kind == 0:
        return bytes(sound[: generator.randrange(1, len(sound))])
    if kind == 1:
        for _ in range(20):
            sound[generator.randrange(len(sound))] = generator.randrange(256)
        return bytes(sound)
    if kind == 2:
        return generator.randbytes(500)
    if kind == 3:
        sound[16:20] = generator.choice([b"CMYK", b"GRAY", b"Lab ", b"\0\0\0\0"])
        return bytes(sound)
    if kind == 4:
        sound[0:4] = b"\xff\xff\xff\xff"
        return bytes(sound)
    return profile("LAB")


def hostile_xmp(generator: random.Random) -> bytes:
    """XMP that is no XML, or XML that is no XMP, or an attack on the parser."""
    lol = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' for n in range(1, 10))
    return generator.choice(
        [
            b"",
            b"<x:xmpmeta",
            b"\0" * 100,
            "<?xpacket begin='\ufeff'?>".encode("utf-16"),
            f'<!DOCTYPE x [<!ENTITY l0 "lol">{lol}]><x>&l9;</x>'.encode(),
            b'<!DOCTYPE x [<!ENTITY f SYSTEM "file:///etc/passwd">]><x>&f;</x>',
            b"<a>" * 5000,
            generator.randbytes(300),
        ]
    )


def save(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def sound(generator: random.Random) -> tuple[str, bytes]:
    """(suffix, content) of a small photo with metadata, of a random format."""
    kind = generator.choice(["JPEG", "JPEG", "JPEG", "PNG", "PNG 16", "PNG palette", "TIFF", "WEBP", "BMP"])
    exif = exif_block([(0x0112, 3, 1, struct.pack("<HH", generator.randrange(1, 9), 0))])
    icc = profile("sRGB")
    image, options = picture(generator), dict[str, object]()
    if kind == "JPEG":
        options = {"quality": generator.randrange(30, 96), "progressive": generator.random() < 0.3}
        options |= {"exif": b"Exif\0\0" + exif, "icc_profile": icc, "xmp": b"<x:xmpmeta/>"}
    elif kind == "PNG":
        image, options = image.convert(generator.choice(["RGB", "RGBA", "L", "LA", "1"])), {"exif": exif}
    elif kind == "PNG 16":
        image = image.convert("L").convert("I;16")
    elif kind == "PNG palette":
        image, options = image.quantize(16), {"icc_profile": icc}
    elif kind == "TIFF":
        options = {"compression": generator.choice(["raw", "tiff_lzw", "tiff_adobe_deflate", "jpeg"])}
    elif kind == "WEBP":
        options = {"lossless": generator.random() < 0.5, "exif": exif, "icc_profile": icc}
    format_ = kind.split()[0]
    return {"JPEG": "jpg", "TIFF": "tif"}.get(format_, format_.lower()), save(image, format_, **options)


def truncated(generator: random.Random) -> Damaged:
    """Cut in the signature, in a header, at a marker, in the metadata, in the picture, before the last bytes."""
    suffix, content = sound(generator)
    places: list[int] = [
        generator.randrange(1, 4),
        generator.randrange(4, 64),
        generator.randrange(1, max(2, len(content) // 3)),
        generator.randrange(len(content) // 3, len(content)),
        len(content) - generator.randrange(1, 12),
    ]
    markers = [at for at in range(2, len(content) - 1) if content[at] == 0xFF and content[at + 1] not in (0, 0xFF)]
    if suffix == "jpg":
        places += [generator.choice(markers), generator.choice(markers) + 2]
    place = generator.choice(places)
    # the last bytes of most formats carry nothing that a decoder needs
    expected = FAILS if place < len(content) // 2 else EITHER
    return Damaged(b"cut." + suffix.encode(), content[:place], "truncated", expected)


def bit_flipped(generator: random.Random) -> Damaged:
    suffix, content = sound(generator)
    damaged = bytearray(content)
    first = generator.choice([0, 0, len(damaged) // 2])
    for _ in range(generator.choice([1, 1, 2, 8, 64])):
        damaged[generator.randrange(first, len(damaged))] ^= 1 << generator.randrange(8)
    return Damaged(b"flipped." + suffix.encode(), bytes(damaged), "bit flips", EITHER)


def wrong_extension(generator: random.Random) -> Damaged:
    if generator.random() < 0.5:
        suffix, content = sound(generator)
        other = generator.choice([s for s in ("jpg", "png", "tif", "webp", "bmp") if s != suffix])
        return Damaged(b"other." + other.encode(), content, "wrong extension, a photo inside", WORKS)
    content = generator.choice(
        [
            b"just some text\n" * 20,
            b"<!doctype html><html><body>404</body></html>",
            b"%PDF-1.4\n%\xe2\xe3\xcf\xd3\n",
            b"PK\x03\x04" + generator.randbytes(100),
            b"\x7fELF" + generator.randbytes(100),
            b"#!/bin/sh\necho pwned > /tmp/pwned\n",
            b"RIFF\x24\0\0\0WAVEfmt ",
            b"<svg xmlns='http://www.w3.org/2000/svg'/>",
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9999 9999\n",
            generator.randbytes(generator.randrange(1, 5000)),
            b"\0" * 4096,
        ]
    )
    ending = generator.choice([b"jpg", b"jpeg", b"png", b"tif", b"webp", b"bmp"])
    return Damaged(b"none." + ending, content, "wrong extension, no photo inside", FAILS)


def empty(generator: random.Random) -> Damaged:
    signatures = [b"", b"\xff", b"\xff\xd8", b"\xff\xd8\xff\xe1", b"\x89PNG\r\n\x1a\n", b"II*\0", b"BM", b"RIFF"]
    suffix = generator.choice([b"jpg", b"png", b"tif", b"webp", b"bmp"])
    return Damaged(b"empty." + suffix, generator.choice(signatures), "empty, or a signature alone", FAILS)


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_of(width: int, height: int, depth: int, colour: int, data: bytes, extra: bytes = b"") -> bytes:
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + extra + png_chunk(b"IDAT", data) + png_chunk(b"IEND", b"")


def bomb(generator: random.Random) -> Damaged:
    """Few bytes that say they are, or become, very many."""
    side = generator.choice([40_000, 100_000, 2**31 - 1])
    pixel = zlib.compress(b"\0\0\0\0")
    megabytes = 50_000_000
    makers: list[Callable[[], tuple[bytes, bytes, str]]] = [
        lambda: (b"png", png_of(side, side, 8, 2, zlib.compress(bytes(1000))), FAILS),
        lambda: (b"png", png_of(20_000, 20_000, 1, 0, zlib.compress(bytes(2501 * 20_000), 9)), FAILS),
        lambda: (b"png", png_of(1, 1, 8, 2, pixel, png_chunk(b"zTXt", b"C\0\0" + packed(megabytes))), EITHER),
        lambda: (b"png", png_of(1, 1, 8, 2, pixel, png_chunk(b"iCCP", b"p\0\0" + packed(megabytes))), EITHER),
        lambda: (b"jpg", patched(save(picture(generator), "JPEG"), b"\xff\xc0", 5, b"\xff\xff\xff\xff"), FAILS),
        lambda: (
            b"bmp",
            patched(save(picture(generator), "BMP"), b"BM", 18, struct.pack("<ii", 60_000, 60_000)),
            FAILS,
        ),
        lambda: (b"tif", huge_tiff(60_000), FAILS),
        lambda: (b"webp", patched(save(picture(generator), "WEBP"), b"VP8 ", 14, b"\xff\x3f\xff\x3f"), FAILS),
    ]
    suffix, content, expected = generator.choice(makers)()
    return Damaged(b"bomb." + suffix, content, "bomb", expected)


def packed(count: int) -> bytes:
    return zlib.compress(b"A" * count, 9)


def patched(content: bytes, after: bytes, offset: int, new: bytes) -> bytes:
    """Overwrite bytes at an offset from the first place of `after`."""
    at = content.index(after) + offset
    return content[:at] + new + content[at + len(new) :]


def huge_tiff(side: int) -> bytes:
    tags = [(256, 4, side), (257, 4, side), (258, 3, 8), (259, 3, 1), (262, 3, 1), (273, 4, 8)]
    return exif_block([(tag, kind, 1, struct.pack("<I", value)) for tag, kind, value in tags])


def bad_metadata(generator: random.Random) -> Damaged:
    """A sound picture with EXIF, ICC or XMP that is not: the picture must be done."""
    image = picture(generator)
    exif, icc, xmp = absurd_exif(generator), broken_icc(generator), hostile_xmp(generator)
    which = generator.randrange(4)
    used = [exif if which in (0, 3) else b"", icc if which in (1, 3) else b"", xmp if which in (2, 3) else b""]
    suffix = generator.choice(["jpg", "jpg", "png", "webp"])
    if suffix == "jpg":
        content = with_segments(save(image, "JPEG"), *used)
    elif suffix == "png":
        content = with_chunks(save(image, "PNG"), *used)
    else:
        options = {key: value for key, value in zip(("exif", "icc_profile", "xmp"), used, strict=True) if value}
        content = save(image, "WEBP", **options)
    return Damaged(b"metadata." + suffix.encode(), content, "absurd EXIF, ICC or XMP", WORKS)


def with_segments(jpeg: bytes, exif: bytes, icc: bytes, xmp: bytes) -> bytes:
    parts = []
    if exif:
        parts.append(b"\xff\xe1" + struct.pack(">H", len(exif) + 8) + b"Exif\0\0" + exif)
    if icc:
        parts.append(b"\xff\xe2" + struct.pack(">H", len(icc) + 16) + b"ICC_PROFILE\0\1\1" + icc)
    if xmp:
        marker = b"http://ns.adobe.com/xap/1.0/\0"
        parts.append(b"\xff\xe1" + struct.pack(">H", len(xmp) + len(marker) + 2) + marker + xmp)
    return jpeg[:2] + b"".join(parts) + jpeg[2:]


def with_chunks(png: bytes, exif: bytes, icc: bytes, xmp: bytes) -> bytes:
    chunks = b""
    if exif:
        chunks += png_chunk(b"eXIf", exif)
    if icc:
        chunks += png_chunk(b"iCCP", b"p\0\0" + zlib.compress(icc))
    if xmp:
        chunks += png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp)
    return png[:33] + chunks + png[33:]


def torn_structure(generator: random.Random) -> Damaged:
    """Lengths, checksums and offsets inside a file that do not fit it."""
    kind = generator.randrange(6)
    if kind == 0:
        content = bytearray(save(picture(generator), "JPEG"))
        content[4:6] = struct.pack(">H", generator.choice([0, 1, 0xFFFF]))
        return Damaged(b"torn.jpg", bytes(content), "lengths that do not fit", EITHER)
    if kind == 1:
        content = bytearray(save(picture(generator), "PNG"))
        content[8:12] = struct.pack(">I", generator.choice([0, 0x7FFFFFFF, 0xFFFFFFFF]))
        return Damaged(b"torn.png", bytes(content), "lengths that do not fit", FAILS)
    if kind == 2:
        content = bytearray(save(picture(generator), "TIFF"))
        content[4:8] = struct.pack("<I", generator.choice([0, 1, len(content), 0xFFFFFFFF]))
        return Damaged(b"torn.tif", bytes(content), "offsets that do not fit", FAILS)
    if kind == 3:
        content = bytearray(save(picture(generator), "WEBP"))
        content[4:8] = struct.pack("<I", generator.choice([0, 0xFFFFFFFE]))
        return Damaged(b"torn.webp", bytes(content), "lengths that do not fit", EITHER)
    if kind == 4:
        content = bytearray(save(picture(generator), "BMP"))
        content[10:14] = struct.pack("<I", generator.choice([0, len(content), 0xFFFFFFFF]))
        return Damaged(b"torn.bmp", bytes(content), "offsets that do not fit", EITHER)
    generator_info = PngImagePlugin.PngInfo()
    generator_info.add_text("Comment", "x" * generator.randrange(1000))
    content = bytearray(save(picture(generator), "PNG", pnginfo=generator_info))
    content[-13:-1] = generator.randbytes(12)
    return Damaged(b"torn.png", bytes(content), "lengths that do not fit", EITHER)


HOSTILE_NAMES: tuple[bytes, ...] = (
    b"new\nline",
    b"carriage\rreturn",
    b"quote\"and'quote",
    b"back\\slash",
    b"tab\there",
    b"  spaces  ",
    b"-rf",
    b"--output",
    b"$(touch pwned)",
    b"`id`; rm -rf x",
    b"%s%n%d",
    b"<img src=x onerror=alert(1)>",
    b"{{ 7*7 }}",
    b"&amp;",
    "smile \U0001f600".encode(),
    "\u202egpj.exe".encode(),
    "e\u0301 combining".encode(),
    "\u00e9 composed".encode(),
    b"not utf-8 \xff\xfe",
    b"\xc3\x28 broken",
    b"\x1b[31mred",
    b"con",
    b"a" * 245,
    b"*?[x]",
)


def hostile_name(generator: random.Random) -> Damaged:
    """A name that a shell, a log, a page or a file system may stumble over; a sound photo or a broken one inside."""
    stem = generator.choice(HOSTILE_NAMES)
    if generator.random() < 0.5:
        suffix, content = sound(generator)
        return Damaged(stem + b"." + suffix.encode(), content, "hostile name, sound photo", WORKS)
    return Damaged(stem + b".jpg", b"\xff\xd8 nothing", "hostile name, no photo", FAILS)


MAKERS: tuple[tuple[int, Callable[[random.Random], Damaged]], ...] = (
    (25, truncated),
    (20, bit_flipped),
    (10, wrong_extension),
    (6, empty),
    (6, bomb),
    (15, bad_metadata),
    (8, torn_structure),
    (10, hostile_name),
)


def damaged_inputs(seed: int, count: int) -> Iterator[tuple[bytes, Damaged]]:
    """(path relative to the album, input) of so many inputs; no two of one path, some of them very deep."""
    generator = random.Random(seed)
    weights, makers = zip(*MAKERS, strict=True)
    for number in range(count):
        (maker,) = generator.choices(makers, weights)
        yield folder(generator, number), maker(generator)


def folder(generator: random.Random, number: int) -> bytes:
    """A folder of its own for every input; one in 40 lies very deep, some have hostile names."""
    parts = [b"%02d" % (number % 20), b"%04d" % number]
    if number % 40 == 0:
        parts += [b"deep" * generator.randrange(1, 20)] * generator.randrange(10, 20)
    elif number % 10 == 0:
        parts.append(generator.choice(HOSTILE_NAMES[:-2]))
    return os.path.join(*parts)
