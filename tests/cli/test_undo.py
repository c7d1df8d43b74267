"""``facefix undo``: single outputs, whole folders, travelled ones; the ledger and the report keep up."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import photo_factory
import pytest
from PIL import Image
from test_undo import regions_of
from typer.testing import CliRunner

from facefix.cli import app
from facefix.cli.undo import undo as undo_command
from facefix.errors import LockHeld, UsageError
from facefix.files.lock import locked
from facefix.outputs import undo
from facefix.outputs.ledger import Ledger
from facefix.outputs.outcomes import FaceOutcome, PhotoOutcome
from facefix.photos import provenance
from facefix.photos.photo import read_photo, write_photo
from facefix.report import write_output_report

NAMES = ("chunks.png", "444.jpg")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """An output folder with two restored photos and one copied, as a run leaves it."""
    album, out = tmp_path / "album", tmp_path / "out"
    album.mkdir()
    with Ledger.open(out) as ledger:
        for name in NAMES:
            photo = read_photo(photo_factory.make(album, name))
            regions = regions_of(photo)
            said = provenance.describe(photo, regions, model="small", recipe="r1")
            written = write_photo(photo, regions, out / name, extra_xmp=said.packet)
            undo.save(out, said.undo_id, photo, regions, written)
            face = FaceOutcome(0, (40, 40, 90, 100), "restored", "", "Eva", 0.3, 0.6, model="small")
            outcome = PhotoOutcome(
                Path(name), photo.path, "restored", "", photo.sha256, Path(name), "r1.x", (face,), size=photo.size
            )
            ledger.record_photo(outcome, portraits="p", written=(out / name).stat())
        photo_factory.make(out, "grey.png")
        ledger.record_photo(
            PhotoOutcome(Path("grey.png"), album / "grey.png", "copied", "", "00", Path("grey.png"), "r1.x"),
            written=(out / "grey.png").stat(),
        )
    return out


def run(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["undo", *map(str, arguments)], standalone_mode=False)
    if result.exception is not None:
        raise result.exception
    return int(result.return_value or 0), result.output


def rows(out: Path) -> dict[str, tuple[str, str, int | None]]:
    with Ledger.snapshot(out) as ledger:
        return {str(path): (row.status, row.recipe, row.target_size) for path, row in ledger.done_rows().items()}


def test_whole_folder(out: Path) -> None:
    page = write_output_report(out)
    code, said = run(out)
    assert code == 0
    assert said.count("the original put back") == 2
    for name in NAMES:
        assert (out / name).read_bytes() == (out.parent / "album" / name).read_bytes()
        assert rows(out)[name] == ("undone", "r1.x", (out / name).stat().st_size)
    assert rows(out)["grey.png"][0] == "copied"
    assert '"status":"undone"' in page.read_text()
    assert run(out) == (0, ""), "nothing is left to take back"


def test_single_photo_without_its_original(out: Path) -> None:
    before = np.asarray(Image.open(out.parent / "album" / "chunks.png"))
    (out.parent / "album" / "chunks.png").unlink()
    code, said = run(out / "chunks.png")
    assert (code, said) == (0, f"{out / 'chunks.png'}: 2 regions put back\n")
    assert np.array_equal(np.asarray(Image.open(out / "chunks.png")), before)
    assert rows(out)["chunks.png"][0] == "undone"
    assert rows(out)["444.jpg"][0] == "restored"


def test_travelled_photo_as_json(out: Path) -> None:
    away = out.parent / "away.png"
    (out / "chunks.png").rename(away)
    assert run(away)[0] == 3
    code, said = run(away, "--from", out, "-o", out.parent / "back.png", "--json")
    assert code == 0
    (row,) = json.loads(said)["undone"]
    assert row == {"photo": str(away), "written": str(out.parent / "back.png"), "regions": 2, "original": True}
    assert rows(out)["chunks.png"][0] == "restored", "the output folder itself has not changed"


def test_what_cannot_be_taken_back_is_named_and_the_rest_goes_on(out: Path) -> None:
    (out / "444.jpg").write_bytes(b"\xff\xd8\xff no photo any more")
    code, said = run(out)
    assert code == 3
    assert "444.jpg" in said
    assert rows(out)["chunks.png"][0] == "undone"


def test_wrong_use(out: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="expected a single photo"):
        run(out, "-o", tmp_path / "x.png")
    with pytest.raises(UsageError, match="expected an output folder"):
        run(tmp_path / "album")
    with pytest.raises(UsageError, match="expected an output folder"):
        undo_command([out / "444.jpg"], stores=[tmp_path])


def test_a_run_on_the_folder_is_waited_for(out: Path) -> None:
    with locked(out), pytest.raises(LockHeld):
        run(out)
