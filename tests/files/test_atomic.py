"""Files appear whole or not at all."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from facefix.errors import PhotoError
from facefix.files import atomic
from facefix.files.digests import sha256_of


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def test_writes_with_permissions_and_time_of_the_source(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"old")
    os.chmod(source, 0o640)
    os.utime(source, (1_000_000_000, 900_000_000.5))
    target = tmp_path / "new" / "folder" / "photo.jpg"
    atomic.write_bytes(b"data", target, like=source.stat())
    assert target.read_bytes() == b"data"
    assert stat.S_IMODE(target.stat().st_mode) == 0o640
    assert target.stat().st_mtime_ns == source.stat().st_mtime_ns
    assert names(target.parent) == ["photo.jpg"]


def test_a_failed_check_leaves_what_was_there(tmp_path: Path) -> None:
    target = tmp_path / "photo.jpg"
    target.write_bytes(b"before")
    seen: list[bytes] = []

    def refuse(temporary: Path) -> None:
        assert temporary.name.startswith(".facefix-") and temporary.parent == tmp_path
        seen.append(temporary.read_bytes())
        raise PhotoError("not good")

    with pytest.raises(PhotoError, match="not good"):
        atomic.write_bytes(b"after", target, verify=refuse)
    assert seen == [b"after"] and target.read_bytes() == b"before" and names(tmp_path) == ["photo.jpg"]


def test_an_interruption_leaves_nothing(tmp_path: Path) -> None:
    def interrupt(temporary: Path) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        atomic.write_bytes(b"data", tmp_path / "photo.jpg", verify=interrupt)
    assert names(tmp_path) == []


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(PhotoError, match="cannot be written") as caught:
        atomic.write_bytes(b"data", tmp_path / "file" / "photo.jpg")
    assert isinstance(caught.value.__cause__, OSError)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_is_told_apart(tmp_path: Path) -> None:
    with pytest.raises(PhotoError, match="No space left") as caught:
        atomic.write_bytes(b"data", tmp_path / "photo.jpg", verify=lambda _: Path("/dev/full").write_bytes(b"x"))  # type: ignore[arg-type, return-value]
    assert isinstance(caught.value.__cause__, OSError) and caught.value.__cause__.errno == errno.ENOSPC
    assert names(tmp_path) == []


def test_copies_byte_for_byte(tmp_path: Path) -> None:
    source = tmp_path / "source.jpg"
    source.write_bytes(os.urandom(3_000_000))
    os.chmod(source, 0o400)
    os.utime(source, (1, 2))
    digest = atomic.copy_bytes(source, tmp_path / "out" / "copy.jpg")
    copy = tmp_path / "out" / "copy.jpg"
    assert copy.read_bytes() == source.read_bytes() and digest == sha256_of(source)
    assert copy.stat().st_mtime == 2 and stat.S_IMODE(copy.stat().st_mode) == 0o400
    assert names(copy.parent) == ["copy.jpg"]


def test_copying_what_is_not_there_or_no_file(tmp_path: Path) -> None:
    with pytest.raises(PhotoError, match="cannot be read"):
        atomic.copy_bytes(tmp_path / "missing", tmp_path / "copy")
    with pytest.raises(PhotoError, match="regular file"):
        atomic.copy_bytes(tmp_path, tmp_path / "copy")
    assert names(tmp_path) == []


def test_leftovers_are_removed_and_nothing_else(tmp_path: Path) -> None:
    for name in (".facefix-12ab.tmp", "sub/.facefix-ff.tmp", "photo.jpg", ".facefix-keep", "x.tmp"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    assert atomic.remove_leftovers(tmp_path) == 2
    assert names(tmp_path) == [".facefix-keep", "photo.jpg", "sub", "x.tmp"] and names(tmp_path / "sub") == []


def test_free_bytes_of_a_folder_to_come(tmp_path: Path) -> None:
    assert atomic.free_bytes(tmp_path / "not" / "there") > 0


def test_a_folder_appears_whole_with_the_permissions_of_any_other(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    with atomic.new_folder(tmp_path / "deep" / "model") as folder:
        (folder / "weights").write_bytes(b"1")
        assert not (tmp_path / "deep" / "model").exists()
    assert names(tmp_path / "deep") == ["model"] and names(tmp_path / "deep" / "model") == ["weights"]
    assert (tmp_path / "deep" / "model").stat().st_mode == (tmp_path / "other").stat().st_mode


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, OSError])
def test_a_folder_that_is_not_finished_leaves_what_was_there(tmp_path: Path, error: type[BaseException]) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "old").write_bytes(b"")
    with pytest.raises(error), atomic.new_folder(tmp_path / "model") as folder:
        (folder / "new").write_bytes(b"")
        raise error
    assert names(tmp_path) == ["model"] and names(tmp_path / "model") == ["old"]


def test_a_folder_takes_the_place_of_another_or_leaves_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for content in ("first", "second"):
        with atomic.new_folder(tmp_path / "model") as folder:
            (folder / content).write_bytes(b"")
    assert names(tmp_path) == ["model"] and names(tmp_path / "model") == ["second"]

    rename = Path.rename

    def refuse_the_new_one(self: Path, target: Path) -> Path:
        if self.name == "new":
            raise OSError(errno.EIO, "no")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse_the_new_one)
    with pytest.raises(OSError, match="no"), atomic.new_folder(tmp_path / "model"):
        pass
    assert names(tmp_path) == ["model"] and names(tmp_path / "model") == ["second"]


def test_what_cannot_be_hashed_is_an_os_error(tmp_path: Path) -> None:
    """undo goes by it: an original that is gone, or no file any more, is not there."""
    (tmp_path / "file").write_bytes(b"abc")
    assert sha256_of(tmp_path / "file").startswith("ba7816bf")
    for path in (tmp_path / "nothing", tmp_path, tmp_path / "file" / "below"):
        with pytest.raises(OSError):
            sha256_of(path)
