"""What a run is pointed at: photos, portraits, the output folder."""

from __future__ import annotations

from pathlib import Path

import pytest
from marked import make_photos

from facefix.errors import UsageError
from facefix.outputs.ledger import Ledger
from facefix.restoration.album import (
    Album,
    Portrait,
    check_letter_case,
    default_output,
    open_album,
    target_path,
    with_digests,
)
from facefix.restoration.scan import ScannedPhoto
from facefix.settings import Settings


def test_photos_portraits_and_where_the_output_goes(tmp_path: Path) -> None:
    make_photos(tmp_path / "album" / "more", a=["ann"])
    make_photos(tmp_path / "refs" / "Ann", one=["ann"])
    make_photos(tmp_path / "refs", flat=["bob"])
    album = open_album([tmp_path / "album"], [], Settings(refs=tmp_path / "refs"))
    assert [photo.relative for photo in album.photos] == [Path("more/a.png")]
    assert {(portrait.path.name, portrait.person) for portrait in album.portraits} == {
        ("one.png", "Ann"),
        ("flat.png", None),
    }
    assert album.output == tmp_path / "album-restored" and album.root == tmp_path / "album"
    assert open_album([tmp_path / "album"], [], Settings(output=tmp_path / "out")).output == tmp_path / "out"


@pytest.mark.parametrize(("folder", "message"), [("nowhere", "expected a folder of portraits"), ("empty", "no photo")])
def test_portraits_that_are_not_there_are_named(tmp_path: Path, folder: str, message: str) -> None:
    make_photos(tmp_path / "album", a=["ann"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=message):
        open_album([tmp_path / "album"], [], Settings(refs=tmp_path / folder))


def test_only_one_folder_has_a_place_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (path,) = make_photos(tmp_path / "album", a=["ann"])
    monkeypatch.chdir(tmp_path / "album")
    assert default_output([Path()], []) == tmp_path / "album-restored"
    for inputs, listed in ([path], []), ([tmp_path, tmp_path], []), ([tmp_path], [path]), ([Path("/")], []):
        with pytest.raises(UsageError, match="-o"):
            default_output(inputs, listed)
    with pytest.raises(UsageError, match="found nothing there"):
        default_output([tmp_path / "gone"], [])


def test_developed_raw_photos_get_another_suffix(tmp_path: Path) -> None:
    raw, jpeg = ScannedPhoto(Path("a.NEF"), Path("a.NEF")), ScannedPhoto(Path("a.jpg"), Path("a.jpg"))
    assert target_path(raw, tmp_path, Settings()) == tmp_path / "a.NEF.tif"
    assert target_path(raw, tmp_path, Settings(raw_format="jpeg")) == tmp_path / "a.NEF.jpg"
    assert target_path(jpeg, tmp_path, Settings()) == tmp_path / "a.jpg"


def test_outputs_that_would_meet_are_refused_before_work(tmp_path: Path) -> None:
    """Other programs call a developed IMG_7.dng IMG_7.dng.tif, as we do."""
    album = tmp_path / "album"
    album.mkdir()
    for name in ("IMG_7.dng", "IMG_7.dng.tif", "IMG_8.DNG"):
        (album / name).touch()
    with pytest.raises(UsageError, match=r"IMG_7\.dng .*IMG_7\.dng\.tif: both would be written"):
        open_album([album], [], Settings())
    assert len(open_album([album], [], Settings(raw_format="jpeg")).photos) == 3
    (album / "img_8.dng").touch()
    found = open_album([album], [], Settings(raw_format="jpeg"))
    found.output.mkdir()
    check_letter_case(found, Settings(raw_format="jpeg"))
    (found.output / ".FACEFIX").mkdir()  # what a folder that does not tell letter case apart shows beside .facefix
    with pytest.raises(UsageError, match=r"IMG_8\.DNG .*img_8\.dng: both"):
        check_letter_case(found, Settings(raw_format="jpeg"))


def test_portraits_get_digests_and_those_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    (path,) = make_photos(tmp_path / "refs", a=["ann"])
    gone = tmp_path / "refs" / "gone.png"
    album = Album((), (), tmp_path / "out", tmp_path, (Portrait(path, "Ann"), Portrait(gone, "Ann")))
    with Ledger.open(tmp_path / "out") as ledger:
        known, problems = with_digests(album, ledger)
        assert known.portraits == (Portrait(path, "Ann", ledger.sha256(path)),)
    assert [problem.path for problem in problems] == [gone] and "cannot be read" in problems[0].reason
