"""``facefix report OUT`` and the report from a ledger."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from PIL import Image
from skimage import data
from typer.testing import CliRunner

from facefix.cli.app import app
from facefix.cli.report import report as report_command
from facefix.errors import UsageError
from facefix.outputs.ledger import Ledger
from facefix.outputs.outcomes import FaceOutcome, PhotoOutcome, ReferenceNote
from facefix.report import report_of, write_output_report

FACE = (170.0, 60.0, 290.0, 200.0)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """An output folder with one restored and one failed photo."""
    album, out = tmp_path / "album", tmp_path / "out"
    album.mkdir()
    out.mkdir()
    picture = Image.fromarray(data.astronaut())
    picture.save(album / "a.jpg", quality=30)
    picture.save(out / "a.jpg", quality=95)
    picture.save(tmp_path / "portrait.png")
    note = ReferenceNote(str(tmp_path / "portrait.png"), 0, "sharpest", 0.9)
    face = FaceOutcome(0, FACE, "restored", "", "Eileen", 0.4, 0.8, (note,), "small", 1.5)
    with Ledger.open(out) as ledger:
        ledger.record_photo(
            PhotoOutcome(
                Path("a.jpg"), album / "a.jpg", "restored", "", "00ff", Path("a.jpg"), "r", (face,), size=(512, 512)
            )
        )
        ledger.record_photo(PhotoOutcome(Path("b.jpg"), album / "b.jpg", "failed", "cannot be decoded"))
    return out


def page_data(page: Path) -> dict[str, object]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page.read_text(), re.DOTALL)
    assert found
    return dict(json.loads(found[1]))


def test_report_command_makes_the_page_again(out: Path) -> None:
    result = CliRunner().invoke(app, ["report", str(out)])
    page = out / "facefix-report" / "index.html"
    assert result.exit_code == 0, result.output
    assert Path(result.stdout.strip()) == page
    shown = page_data(page)
    photos = shown["photos"]
    assert isinstance(photos, list)
    assert [photo["name"] for photo in photos] == ["a.jpg", "b.jpg"]
    (face,) = photos[0]["faces"]
    assert (face["before"], face["after"], face["seconds"]) == (0.4, 0.8, 1.5)
    assert photos[0]["before"] != photos[0]["after"]
    assert photos[0]["output"] == "../a.jpg"
    assert photos[1]["why"] == "cannot be decoded"
    assert photos[1]["before"] is None
    assert shown["people"] == ["Eileen"]
    (reference,) = shown["references"]  # type: ignore[misc]
    assert reference["why"] == "sharpest"
    assert (page.parent / "thumbs" / reference["thumb"]).is_file()
    page.unlink()
    assert CliRunner().invoke(app, ["report", str(out)]).exit_code == 0
    assert page.is_file()


def test_report_is_left_alone_while_nothing_changes(out: Path) -> None:
    page = write_output_report(out)
    stamp = page.stat().st_mtime_ns
    write_output_report(out)
    assert page.stat().st_mtime_ns == stamp
    with Ledger.open(out) as ledger:
        ledger.record_photo(PhotoOutcome(Path("c.jpg"), out / "c.jpg", "skipped", "no photo"))
    write_output_report(out)
    assert "c.jpg" in page.read_text()


def test_report_of_no_output_folder(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="expected an output folder"):
        report_command(tmp_path)
    with pytest.raises(UsageError):
        report_of(tmp_path / "nothing")


def test_report_made_from_another_folder_finds_the_same_files(
    out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Runs may name photos and portraits by paths relative to the folder they start in."""
    monkeypatch.chdir(tmp_path)
    note = ReferenceNote("portrait.png", 0, "sharpest", 0.9)
    face = FaceOutcome(0, FACE, "restored", "", "Eileen", references=(note,))
    with Ledger.open(out) as ledger:
        ledger.record_photo(
            PhotoOutcome(
                Path("a.jpg"), Path("album/a.jpg"), "restored", "", "00ff", Path("a.jpg"), "r", (face,), size=(512, 512)
            )
        )
    monkeypatch.chdir("/")
    page = write_output_report(out, again=True)
    shown = page_data(page)
    assert shown["photos"][0]["source"] == "../../album/a.jpg"  # type: ignore[index]
    assert shown["photos"][0]["before"] is not None  # type: ignore[index]
    assert shown["references"][0]["thumb"] is not None  # type: ignore[index]
