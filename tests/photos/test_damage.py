"""A thousand damaged files, by seed: each is read, or refused with its name and a reason."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import photo_factory as factory
import pytest

from facefix.errors import PhotoError
from facefix.photos.containers import libtiff
from facefix.photos.photo import read_photo, write_photo
from facefix.photos.region import Region

FILES = 1000
NAMES = [name for name in factory.ALL if not name.endswith(".avif")]


def damage(data: bytes, chance: random.Random) -> bytes:
    """Cut off, with bits flipped, bytes overwritten, parts exchanged or inserted, or numbers made absurd."""
    changed, length = bytearray(data), len(data)
    kind = chance.choice(("cut", "flip", "overwrite", "head", "exchange", "insert", "absurd"))
    if kind == "cut":
        return data[: chance.randrange(length)]
    if kind == "flip":
        changed[chance.randrange(length)] ^= 1 << chance.randrange(8)
    elif kind in ("overwrite", "head"):
        for _ in range(chance.choice((1, 5, 50))):
            changed[chance.randrange(length if kind == "overwrite" else min(400, length))] = chance.randrange(256)
    elif kind == "exchange":
        first, second = sorted((chance.randrange(length), chance.randrange(length)))
        return data[:first] + data[second:] + data[first:second]
    elif kind == "insert":
        at = chance.randrange(length)
        return data[:at] + chance.randbytes(chance.randrange(1, 300)) + data[at:]
    else:
        at = chance.randrange(min(300, length))
        changed[at : at + 4] = chance.choice((b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f"))
    return bytes(changed)


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("originals")
    return {name: factory.make(folder, name).read_bytes() for name in NAMES}


def test_a_thousand_damaged_files(originals: dict[str, bytes], tmp_path: Path) -> None:
    chance = random.Random(20260101)
    patch, alpha = np.zeros((20, 20, 3), np.float32), np.ones((20, 20), np.float32)
    refused = written = 0
    for number in range(FILES):
        name = chance.choice(NAMES)
        path = tmp_path / f"{number}-{name}"
        path.write_bytes(damage(originals[name], chance))
        try:
            photo = read_photo(path)
        except PhotoError as error:
            assert str(path) in str(error) and len(str(error)) > len(str(path)) + 5 and "\n" not in str(error)
            refused += 1
            continue
        assert photo.pixels.ndim == 3 and photo.pixels.dtype == np.uint8
        if photo.copy_reason is None and number % 4 == 0 and min(photo.size) > 20:
            target = tmp_path / "out" / name
            try:
                write_photo(photo, [Region(0, 0, patch, alpha)], target)
                written += 1
            except PhotoError as error:
                assert "cannot be" in str(error)
                assert not target.exists()
            target.unlink(missing_ok=True)
        path.unlink()
    assert refused > FILES // 4 and written > FILES // 20
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("name", ["segments.jpg", "chunks.png", "exif.tif", "metadata.webp"])
def test_damaged_metadata_does_not_cost_the_photo(originals: dict[str, bytes], tmp_path: Path, name: str) -> None:
    """Nonsense in EXIF, ICC and XMP: the picture is read as before."""
    whole = originals[name]
    (tmp_path / name).write_bytes(whole)
    picture = read_photo(tmp_path / name)
    spans = {"exif": b"private note", "icc": b"acspAPPL" if b"acspAPPL" in whole else b"acsp", "xmp": b"adobe:ns:meta"}
    checked = 0
    for word in spans.values():
        at = whole.find(word)
        if at < 0 or name == "chunks.png":
            continue
        damaged = whole[:at] + b"\xff" * len(word) + whole[at + len(word) :]
        (tmp_path / name).write_bytes(damaged)
        result = read_photo(tmp_path / name)
        assert result.size == picture.size
        checked += 1
    assert checked or name == "chunks.png"


def test_decoders_print_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """libtiff would write straight to file descriptor 2."""
    assert libtiff.silence() >= 1
    factory.TIFFS["jpeg.tif"](tmp_path / "a.tif")
    data = bytearray((tmp_path / "a.tif").read_bytes())
    at = data.index(b"\xff\xdb")
    data[at : at + 2] = b"\xff\xdf"  # quantisation tables become a marker that nobody knows
    (tmp_path / "a.tif").write_bytes(data)
    with pytest.raises(PhotoError, match="cannot be decoded"):
        read_photo(tmp_path / "a.tif")
    assert capfd.readouterr() == ("", "")
