"""Archives that are what they should be, and archives made to do harm."""

from __future__ import annotations

import io
import random
import stat
import struct
import zipfile
from pathlib import Path

import pytest

from facefix.errors import WeightsUnavailable
from facefix.weights import unpack
from facefix.weights.unpack import unpack_zip

WEIGHTS = random.Random(3).randbytes(50_000)


def make_zip(path: Path, members: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name), content, compression)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "inside" / "deep"
    made.mkdir(parents=True)
    return made


def everything(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_regular_files_come_out(tmp_path: Path, folder: Path) -> None:
    archive = make_zip(tmp_path / "a.zip", {"one.onnx": WEIGHTS, "sub/two.onnx": b"2"})
    written = unpack_zip(archive, folder)
    assert everything(folder) == {"one.onnx": WEIGHTS, "sub/two.onnx": b"2"}
    assert sorted(written) == sorted(path for path in folder.rglob("*") if path.is_file())


def test_one_shared_top_folder_is_left_out(tmp_path: Path, folder: Path) -> None:
    unpack_zip(make_zip(tmp_path / "a.zip", {"buffalo_l/": b"", "buffalo_l/a": b"1", "buffalo_l/b/c": b"2"}), folder)
    assert everything(folder) == {"a": b"1", "b/c": b"2"}


@pytest.mark.parametrize(
    "name",
    [
        "../evil",
        "a/../../evil",
        "/evil",
        "//evil",
        "..",
        "..\\evil",
        "C:\\evil",
        "C:evil",
        "a\nb",
        "a\x00b",
        "a/b\\..\\..\\c",
    ],
)
def test_a_member_that_would_leave_the_folder_is_refused(tmp_path: Path, folder: Path, name: str) -> None:
    member = zipfile.ZipInfo()
    member.filename = name
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as opened:
        opened.writestr("good", b"1")
        opened.writestr(member, b"2")
    with pytest.raises(WeightsUnavailable, match="not unpacked"):
        unpack_zip(tmp_path / "a.zip", folder)
    assert everything(folder) == {}
    assert not any(path.name.startswith("evil") for path in tmp_path.rglob("*"))


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFBLK])
def test_links_and_devices_are_refused(tmp_path: Path, folder: Path, kind: int) -> None:
    member = zipfile.ZipInfo("link")
    member.external_attr = (kind | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(member, "/etc/passwd")
        archive.writestr("link/x", "through the link")
    with pytest.raises(WeightsUnavailable, match="link or device"):
        unpack_zip(tmp_path / "a.zip", folder)
    assert everything(folder) == {}


def test_a_bomb_is_refused_before_it_unpacks(tmp_path: Path, folder: Path) -> None:
    archive = make_zip(tmp_path / "a.zip", {"bomb": bytes(5_000_000)})
    with pytest.raises(WeightsUnavailable, match="grows 200 times"):
        unpack_zip(archive, folder)
    assert everything(folder) == {}


def test_a_bomb_that_lies_about_its_size_does_not_grow_past_it(tmp_path: Path, folder: Path) -> None:
    archive = make_zip(tmp_path / "a.zip", {"bomb": bytes(5_000_000)})
    content = archive.read_bytes().replace(struct.pack("<I", 5_000_000), struct.pack("<I", 1000))
    archive.write_bytes(content)
    with pytest.raises(WeightsUnavailable, match=r"sound zip archive|cut short"):
        unpack_zip(archive, folder)
    assert sum(len(found) for found in everything(folder).values()) <= 1000


def test_too_much_or_too_many_is_refused(tmp_path: Path, folder: Path) -> None:
    archive = make_zip(tmp_path / "a.zip", {"one": WEIGHTS, "two": WEIGHTS})
    with pytest.raises(WeightsUnavailable, match="unpacks to 100000 bytes, more than 99999"):
        unpack_zip(archive, folder, max_bytes=99_999)
    many = make_zip(tmp_path / "b.zip", {str(number): b"" for number in range(unpack.MAX_MEMBERS + 1)})
    with pytest.raises(WeightsUnavailable, match="1001 members"):
        unpack_zip(many, folder)
    assert everything(folder) == {}


def test_an_encrypted_member_and_doubled_names_are_refused(tmp_path: Path, folder: Path) -> None:
    archive = make_zip(tmp_path / "a.zip", {"one": b"1"})
    content = bytearray(archive.read_bytes())
    directory = content.index(b"PK\x01\x02")
    content[6] |= 1
    content[directory + 8] |= 1
    archive.write_bytes(content)
    with pytest.raises(WeightsUnavailable, match="encrypted"):
        unpack_zip(archive, folder)
    with pytest.raises(WeightsUnavailable, match="same name"):
        unpack_zip(make_zip(tmp_path / "b.zip", {"one": b"1", "ONE": b"2"}), folder)


def test_damaged_archives_are_errors_and_nothing_else(tmp_path: Path, folder: Path) -> None:
    """Cut and flipped at 200 places: a typed error, or the content untouched because the place did not matter."""
    sound = make_zip(tmp_path / "sound.zip", {"weights": WEIGHTS}).read_bytes()
    generator = random.Random(11)
    refused = 0
    for number in range(200):
        damaged = bytearray(sound)
        if number % 2:
            del damaged[generator.randrange(len(damaged)) :]
        else:
            damaged[generator.randrange(len(damaged))] ^= 1 << generator.randrange(8)
        (tmp_path / "a.zip").write_bytes(damaged)
        target = folder / str(number)
        target.mkdir()
        try:
            unpack_zip(tmp_path / "a.zip", target)
        except WeightsUnavailable as error:
            assert str(tmp_path / "a.zip") in str(error) or "make room" in str(error)
            refused += 1
        else:
            assert list(everything(target).values()) == [WEIGHTS]
    assert refused > 150


def test_what_is_not_an_archive_is_said_so(tmp_path: Path, folder: Path) -> None:
    for name, content in {"empty": b"", "text": b"hello", "none": io.BytesIO().getvalue()}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(WeightsUnavailable, match=f"{name}: expected a sound zip"):
            unpack_zip(tmp_path / name, folder)
    with pytest.raises(WeightsUnavailable, match="found none"):
        unpack_zip(make_zip(tmp_path / "nothing.zip", {}), folder)
