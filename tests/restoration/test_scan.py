"""Which files are photos, which are not and why, and where outputs go."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from facefix.errors import UsageError
from facefix.files.names import printable
from facefix.restoration.scan import ScannedPhoto, ScanResult, output_path, read_list, scan


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x")
    return path


def relatives(result: ScanResult) -> list[str]:
    return [os.fspath(photo.relative) for photo in result.photos]


def reasons(result: ScanResult, root: Path) -> dict[str, str]:
    return {os.fspath(skipped.path.relative_to(root)): skipped.reason for skipped in result.skipped}


def test_mirrors_the_tree_in_the_order_of_bytes(tmp_path: Path) -> None:
    for name in ("b.JPG", "a/2.png", "a/1.tiff", "a/deep/er/x.webp", "B.bmp", "ä.jpeg"):
        touch(tmp_path / "album" / name)
    result = scan([tmp_path / "album"], output=tmp_path / "out")
    assert relatives(result) == ["B.bmp", "a/1.tiff", "a/2.png", "a/deep/er/x.webp", "b.JPG", "ä.jpeg"]
    assert [output_path(photo, tmp_path / "out") for photo in result.photos][1] == tmp_path / "out/a/1.tiff"
    assert result.skipped == ()


def test_says_why_each_file_is_skipped(tmp_path: Path) -> None:
    album = tmp_path / "album"
    touch(album / "photo.jpg")
    for name in (
        ".hidden.jpg",
        "notes.txt",
        "no_suffix",
        ".thumbnails/t.jpg",
        "facefix-report/p.jpg",
        "old/.facefix/l",
    ):
        touch(album / name)
    touch(album / "old/restored.jpg")
    os.symlink("nowhere.jpg", album / "broken.jpg")
    os.mkfifo(album / "pipe.jpg")
    found = reasons(result := scan([album]), album)
    assert relatives(result) == ["photo.jpg"]
    assert found == {
        ".hidden.jpg": "hidden",
        ".thumbnails": "thumbnails and previews of another program",
        "broken.jpg": "broken symbolic link",
        "facefix-report": "report of an earlier run",
        "no_suffix": "not a photo by its name (no suffix)",
        "notes.txt": "not a photo by its name (.txt)",
        "old": "output of an earlier run",
        "pipe.jpg": "neither a file nor a folder",
    }


def test_follows_links_once_and_never_in_circles(tmp_path: Path) -> None:
    album = tmp_path / "album"
    touch(album / "real/a.jpg")
    touch(tmp_path / "elsewhere/c.jpg")
    os.symlink("..", album / "real/up")
    os.symlink("real", album / "0-link-that-sorts-first")
    os.symlink(tmp_path / "elsewhere", album / "away")
    os.symlink("a.jpg", album / "real/b.jpg")
    result = scan([album])
    assert relatives(result) == ["away/c.jpg", "real/a.jpg", "real/b.jpg"]
    assert set(reasons(result, album)) == {"0-link-that-sorts-first", "real/up"}
    assert all("scanned already" in skipped.reason for skipped in result.skipped)


def test_not_recursive(tmp_path: Path) -> None:
    touch(tmp_path / "a.jpg")
    touch(tmp_path / "b/c.jpg")
    result = scan([tmp_path], recursive=False)
    assert relatives(result) == ["a.jpg"]
    assert "not recursive" in result.skipped[0].reason


def test_exclude_by_name_and_by_path(tmp_path: Path) -> None:
    for name in ("keep.jpg", "a/draft.jpg", "a/keep.jpg", "b/keep.jpg", "out/x.jpg"):
        touch(tmp_path / name)
    result = scan([tmp_path], output=tmp_path / "out", exclude=["draft*", "b/*", "out/"])
    assert relatives(result) == ["a/keep.jpg", "keep.jpg"]
    assert {skipped.reason for skipped in result.skipped} == {"excluded"}


def test_single_files_and_files_without_a_photo_name(tmp_path: Path) -> None:
    one, two = touch(tmp_path / "deep/one.jpg"), touch(tmp_path / "other/.two")
    assert relatives(scan([one, two])) == [".two", "one.jpg"]


def test_listed_files_keep_their_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    touch(tmp_path / "album/1/x.jpg")
    touch(tmp_path / "album/2/x.jpg")
    absolute = touch(tmp_path / "album/y.jpg")
    result = scan([], listed=["album/1/x.jpg", "album/2/x.jpg", absolute])
    assert relatives(result) == ["album/1/x.jpg", "album/2/x.jpg", "y.jpg"]


def test_names_of_every_kind(tmp_path: Path) -> None:
    names = [b"new\nline.jpg", b"quote'\".jpg", "emoji \U0001f600.jpg".encode(), b"latin-\xe9.jpg", b" .jpg", b"-o.jpg"]
    for name in names:
        with open(os.path.join(os.fsencode(tmp_path), name), "wb") as file:
            file.write(b"x")
    result = scan([tmp_path])
    assert [os.fsencode(photo.relative) for photo in result.photos] == sorted(names)
    for photo in result.photos:
        assert photo.path.read_bytes() == b"x"
        printable(photo.path).encode()
        assert "\n" not in printable(photo.path)


def test_lists_by_line_and_by_nul() -> None:
    assert list(read_list(b"a.jpg\n\nb c.jpg\r\n")) == [Path("a.jpg"), Path("b c.jpg")]
    assert list(read_list(b"\xef\xbb\xbfa.jpg\r\n")) == [Path("a.jpg")]
    assert list(read_list(b"new\nline.jpg\0latin-\xe9.jpg\0", nul=True)) == [
        Path("new\nline.jpg"),
        Path(os.fsdecode(b"latin-\xe9.jpg")),
    ]


def test_a_folder_that_cannot_be_listed_is_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path / "good.jpg")
    touch(tmp_path / "locked/x.jpg")
    os.chmod(tmp_path / "locked", 0)
    if os.access(tmp_path / "locked", os.R_OK):
        os.chmod(tmp_path / "locked", 0o700)
        pytest.skip("this user may read everything")
    result = scan([tmp_path])
    os.chmod(tmp_path / "locked", 0o700)
    assert relatives(result) == ["good.jpg"]
    assert "folder cannot be read" in result.skipped[0].reason


def test_a_path_beyond_what_the_system_takes_is_skipped(tmp_path: Path) -> None:
    touch(tmp_path / "good.jpg")
    before, made = os.getcwd(), 0
    os.chdir(tmp_path)
    try:
        for _ in range(25):  # 25 x 201 bytes is more than PATH_MAX
            os.mkdir("d" * 200)
            os.chdir("d" * 200)
            made += 1
        Path("deep.jpg").write_bytes(b"x")
        result = scan([tmp_path])
    finally:
        for _ in range(made):
            for name in os.listdir():
                os.unlink(name) if os.path.isfile(name) else os.rmdir(name)
            os.chdir("..")
        os.chdir(before)
    assert relatives(result) == ["good.jpg"]
    assert len(result.skipped) == 1 and "cannot be read" in result.skipped[0].reason


def test_refuses_an_output_inside_the_input(tmp_path: Path) -> None:
    touch(tmp_path / "a.jpg")
    (tmp_path / "out").mkdir()
    with pytest.raises(UsageError, match=r"inside an input.*--exclude 'out'"):
        scan([tmp_path], output=tmp_path / "out")
    os.symlink(tmp_path / "out", tmp_path.parent / f"{tmp_path.name}-link")
    with pytest.raises(UsageError, match="inside an input"):
        scan([tmp_path], output=tmp_path.parent / f"{tmp_path.name}-link")
    with pytest.raises(UsageError, match="is also an input"):
        scan([tmp_path], output=tmp_path)


def test_refuses_an_output_inside_the_input_that_is_not_there_yet(tmp_path: Path) -> None:
    touch(tmp_path / "a.jpg")
    with pytest.raises(UsageError, match="inside an input"):
        scan([tmp_path], output=tmp_path / "new" / "out")
    assert relatives(scan([tmp_path], output=tmp_path / "new/out", exclude=["new"])) == ["a.jpg"]
    assert relatives(scan([tmp_path / "a.jpg"], output=tmp_path / "new")) == ["a.jpg"]


def test_refuses_outputs_that_would_replace_originals(tmp_path: Path) -> None:
    single = touch(tmp_path / "a.jpg")
    with pytest.raises(UsageError, match="would replace an original"):
        scan([single], output=tmp_path)
    touch(tmp_path / "b/x.jpg")
    touch(tmp_path / "b/b/x.jpg")
    with pytest.raises(UsageError, match="would replace an original"):
        scan([tmp_path / "b"], output=tmp_path)


def test_refuses_two_photos_with_one_output(tmp_path: Path) -> None:
    first, second = touch(tmp_path / "one/x.jpg"), touch(tmp_path / "two/x.jpg")
    with pytest.raises(UsageError) as caught:
        scan([first.parent, second.parent])
    assert os.fspath(first) in str(caught.value) and os.fspath(second) in str(caught.value)
    assert relatives(scan([first, first.parent])) == ["x.jpg"]


def test_refuses_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"missing.*No such file"):
        scan([tmp_path / "missing"])


def test_a_listed_file_that_is_gone_fails_later_and_alone(tmp_path: Path) -> None:
    there = touch(tmp_path / "there.jpg")
    result = scan([], listed=[tmp_path / "gone.jpg", there, tmp_path / "a\0b.jpg"], output=tmp_path / "out")
    assert relatives(result) == ["gone.jpg", "there.jpg"]
    assert "NUL" in result.skipped[0].reason


def test_developed_raw_files_get_a_suffix_of_their_own() -> None:
    photo = ScannedPhoto(Path("in/IMG_1.NEF"), Path("IMG_1.NEF"))
    assert output_path(photo, Path("out"), raw_suffix=".tif") == Path("out/IMG_1.NEF.tif")
    assert output_path(photo, Path("out")) == Path("out/IMG_1.NEF")
    jpeg = ScannedPhoto(Path("in/IMG_1.JPG"), Path("IMG_1.JPG"))
    assert output_path(jpeg, Path("out"), raw_suffix=".tif") == Path("out/IMG_1.JPG")


_NAMES = st.binary(min_size=1, max_size=12).filter(
    lambda name: not set(name) & {0, ord("/")} and not name.startswith(b".") and name not in (b".", b"..")
)


@given(paths=st.lists(st.lists(_NAMES, min_size=1, max_size=4), min_size=1, max_size=8))
def test_path_mapping_is_one_to_one_and_stays_inside(
    paths: list[list[bytes]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = tmp_path_factory.mktemp("album")
    made = set()
    for parts in paths:
        names = [os.fsdecode(part) for part in parts]
        path = root.joinpath(*[f"d{name}" for name in names[:-1]], f"{names[-1]}.jpg")
        made.add(touch(path))
    result = scan([root], output=root.parent / "out")
    assert {photo.path for photo in result.photos} == made
    targets = [output_path(photo, Path("/out")) for photo in result.photos]
    assert len(set(targets)) == len(made)
    for photo, target in zip(result.photos, targets, strict=True):
        assert target.relative_to("/out") == photo.path.relative_to(root)
