"""What cannot be read or written is refused before it does harm, with the reason."""

from __future__ import annotations

import dataclasses
import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import photo_factory as factory
import pytest
from PIL import Image
from regions import inverted_region

from facefix.errors import PhotoError, UsageError
from facefix.photos.photo import read_photo, write_photo
from facefix.photos.region import Region


def bomb(kind: str) -> bytes:
    """A small file that claims a picture of 60,000 x 60,000 pixels."""
    buffer = io.BytesIO()
    Image.fromarray(factory.portrait()).save(buffer, {"tif": "TIFF", "jpg": "JPEG"}.get(kind, kind), lossless=True)
    data = bytearray(buffer.getvalue())
    if kind == "png":
        data[16:24] = struct.pack(">II", 60000, 60000)
        data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    elif kind == "jpg":
        at = data.index(b"\xff\xc0")
        data[at + 5 : at + 9] = struct.pack(">HH", 60000, 60000)
    elif kind == "bmp":
        data[18:26] = struct.pack("<ii", 60000, 60000)
    elif kind == "webp":
        data[21:25] = struct.pack("<I", 16382 | 16382 << 14)
    else:
        at = struct.unpack_from("<I", data, 4)[0] + 2
        struct.pack_into("<HHII", data, at, 256, 4, 1, 60000)
        struct.pack_into("<HHII", data, at + 12, 257, 4, 1, 60000)
    return bytes(data)


@pytest.mark.parametrize("kind", ["png", "jpg", "bmp", "webp", "tif"])
def test_bombs_are_refused_before_decoding(tmp_path: Path, kind: str) -> None:
    (tmp_path / f"bomb.{kind}").write_bytes(bomb(kind))
    with pytest.raises(PhotoError, match=r"bomb\.\w+: .*(pixels are more than the limit of|strip|segments|truncated)"):
        read_photo(tmp_path / f"bomb.{kind}")
    with pytest.raises(PhotoError, match="1000000; raise --max-pixels" if kind != "tif" else "bomb"):
        read_photo(tmp_path / f"bomb.{kind}", max_pixels=1_000_000)


def test_the_limit_is_exact(folder: Path) -> None:
    path = factory.make(folder, "444.jpg")
    assert read_photo(path, max_pixels=160 * 208).size == (160, 208)
    with pytest.raises(PhotoError, match="160 x 208 = 33280 pixels are more than the limit of 33279"):
        read_photo(path, max_pixels=160 * 208 - 1)


def test_a_file_far_larger_than_any_photo_is_not_read(tmp_path: Path) -> None:
    with open(tmp_path / "sparse.jpg", "wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(PhotoError, match="bytes are more than"):
        read_photo(tmp_path / "sparse.jpg")


def test_large_pictures_are_allowed_when_asked_for(tmp_path: Path) -> None:
    """Pillow's own limit, which only its Image.open checks, does not stand in the way."""
    limit = Image.MAX_IMAGE_PIXELS
    assert limit is not None
    buffer = io.BytesIO()
    Image.new("1", (16384, 2 * limit // 16384 + 1)).save(buffer, "PNG")
    (tmp_path / "large.png").write_bytes(buffer.getvalue())
    with pytest.raises(Image.DecompressionBombError):
        Image.open(tmp_path / "large.png")
    with pytest.raises(PhotoError, match="more than the limit of 200"):
        read_photo(tmp_path / "large.png", max_pixels=200)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.jpg", b"", "an empty file"),
        ("text.jpg", b"hello, world", "found another format"),
        ("gif.jpg", b"GIF89a" + bytes(40), "found another format"),
        ("head.jpg", b"\xff\xd8\xff\xe0", "cannot be decoded"),
        ("head.png", b"\x89PNG\r\n\x1a\n", "truncated"),
        ("head.tif", b"II*\0", "cannot be decoded"),
        ("head.webp", b"RIFF\x00\x00\x00\x00WEBP", "cannot be decoded"),
        ("head.bmp", b"BM" + bytes(20), "cannot be decoded"),
        ("head.heic", b"\0\0\0\x18ftypheic" + bytes(30), "cannot be decoded"),
        ("head.avif", b"\0\0\0\x18ftypavif" + bytes(30), "cannot be decoded"),
        ("head.nef", b"II*\0\x08\0\0\0\0\0", "cannot be decoded"),
    ],
)
def test_no_photos_are_named_with_their_reason(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(PhotoError, match=message) as caught:
        read_photo(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(PhotoError, match=r"missing\.jpg: cannot be read: No such file"):
        read_photo(tmp_path / "missing.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(PhotoError, match="not a file"):
        read_photo(tmp_path / "pipe.jpg")


def test_content_counts_and_not_the_name(tmp_path: Path) -> None:
    Image.fromarray(factory.portrait()).save(tmp_path / "x.jpg", "PNG")
    photo = read_photo(tmp_path / "x.jpg")
    assert photo.format == "PNG"
    write_photo(photo, [inverted_region(photo)], tmp_path / "y.jpg")
    with Image.open(tmp_path / "y.jpg") as image:
        assert image.format == "PNG"


def test_names_with_odd_bytes(tmp_path: Path, folder: Path) -> None:
    data = factory.make(folder, "444.jpg").read_bytes()
    for raw in (b"new\nline.jpg", b"latin-\xe9.jpg", "\U0001f600'\".jpg".encode(), b"x" * 251 + b".jpg"):
        path = tmp_path / os.fsdecode(raw)
        path.write_bytes(data)
        photo = read_photo(path)
        write_photo(photo, [inverted_region(photo)], tmp_path / "out" / path.name)
        path.write_bytes(data[:200])
        with pytest.raises(PhotoError) as caught:
            read_photo(path)
        assert "\n" not in str(caught.value)
        str(caught.value).encode()


def test_a_source_that_vanishes_does_not_matter_for_writing(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.tif"
    path.write_bytes(factory.make(folder, "rgb16.tif").read_bytes())
    photo = read_photo(path)
    path.unlink()
    write_photo(photo, [inverted_region(photo)], tmp_path / "out.tif")
    assert read_photo(tmp_path / "out.tif").mode == "RGB;16"


def test_a_picture_too_large_for_its_format(tmp_path: Path) -> None:
    Image.new("RGB", (9000, 4)).save(tmp_path / "wide.webp")
    photo = read_photo(tmp_path / "wide.webp")
    with pytest.raises(PhotoError, match=r"out\.webp: cannot be encoded"):
        write_photo(photo, [], tmp_path / "out.webp", scale=2)
    assert os.listdir(tmp_path) == ["wide.webp"]


def test_regions_have_to_fit(folder: Path, tmp_path: Path) -> None:
    photo = read_photo(factory.make(folder, "444.jpg"))
    patch, alpha = np.zeros((10, 10, 3), np.float32), np.ones((10, 10), np.float32)
    with pytest.raises(UsageError, match="reaches past"):
        write_photo(photo, [Region(155, 0, patch, alpha)], tmp_path / "x.jpg")
    with pytest.raises(UsageError, match="scale 1"):
        write_photo(photo, [Region(0, 0, patch, alpha)], tmp_path / "x.jpg", scale=2)
    with pytest.raises(UsageError, match="expected rgb of shape"):
        Region(0, 0, patch[:5], alpha)
    assert os.listdir(tmp_path) == []


def test_what_is_written_wrong_is_not_kept(folder: Path, tmp_path: Path) -> None:
    photo = read_photo(factory.make(folder, "444.jpg"))
    lying = dataclasses.replace(photo, mode="L")
    with pytest.raises(PhotoError, match=r"what was written cannot be decoded again: expected JPEG L, found JPEG RGB"):
        write_photo(lying, [], tmp_path / "x.jpg")
    assert os.listdir(tmp_path) == []
