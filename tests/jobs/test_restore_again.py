"""What a second run does: nothing, only what is new, what has changed, what was lost, and what is not ours."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from albums import Borrow, make_album, old_photo, portrait
from PIL import Image
from places import Place, tree

from facefix.errors import LockHeld, UsageError
from facefix.jobs.restore import restore_album
from facefix.outputs.lock import locked
from facefix.outputs.outcomes import PhotoOutcome
from facefix.restoration.run import Request
from facefix.stop import Stop


def test_a_second_run_does_nothing(place: Place) -> None:
    place.restore()
    before = {path: path.stat().st_mtime_ns for path in place.output.rglob("*.jpg")}
    loads: list[int] = []

    class NeverLoaded(Borrow):
        def prepare(self, *arguments: object) -> None:  # type: ignore[override]
            loads.append(1)

        restore = prepare  # type: ignore[assignment]

    place.restorer = NeverLoaded()
    summary = place.restore()
    assert (summary.already_done, summary.statuses, summary.device.faces) == (7, {}, 0)
    assert not loads
    assert {path: path.stat().st_mtime_ns for path in place.output.rglob("*.jpg")} == before


def test_new_photos_are_added_without_doing_the_others_again(place: Place) -> None:
    place.restore()
    before = {path: path.stat().st_mtime_ns for path in place.output.rglob("*.*") if ".facefix" not in path.parts}
    old_photo("ann", 7).save(place.album / "new.jpg", quality=90)
    portrait("bea", shift=9).save(place.album / "sharp.jpg", quality=95)
    summary = place.restore()
    assert summary.already_done == 7
    assert sum(summary.statuses.values()) == 2
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert place.restore().already_done == 9


def test_a_new_portrait_redoes_only_its_person(place: Place) -> None:
    place.restore()
    portrait("bea", shift=12).save(place.folder / "refs" / "bea" / "more.png")
    summary = place.restore()
    assert (summary.already_done, summary.statuses["restored"]) == (5, 2)
    assert place.restore().already_done == 7


def test_settings_that_change_pixels_redo_and_others_do_not(place: Place) -> None:
    place.restore()
    assert place.restore(threads=1, wait=1.0, batch_size=3).already_done == 7
    assert sum(place.restore(strength=0.5).statuses.values()) == 7
    place.restorer = Borrow(recipe="borrow-2", part=0.65)
    assert place.restore(strength=0.5).already_done == 0


def test_a_changed_photo_is_done_again_and_a_touched_one_is_not(place: Place) -> None:
    place.restore()
    os.utime(place.album / "ann0.jpg")
    old_photo("dan", 3).save(place.album / "bea0.jpg", quality=91)
    summary = place.restore()
    assert (summary.already_done, sum(summary.statuses.values())) == (6, 1)


def test_a_lost_output_is_made_again(place: Place) -> None:
    place.restore()
    first = (place.output / "ann0.jpg").read_bytes()
    (place.output / "ann0.jpg").unlink()
    assert place.restore().statuses == {"restored": 1}
    assert (place.output / "ann0.jpg").read_bytes() == first


def test_files_that_are_not_ours_are_left_replaced_or_refused(place: Place) -> None:
    place.output.mkdir()
    (place.output / "ann0.jpg").write_bytes(b"mine")
    with pytest.raises(UsageError, match=r"ann0\.jpg: exists"):
        place.restore(if_exists="fail")
    summary = place.restore(if_exists="skip")
    assert summary.occupied == 1 and (place.output / "ann0.jpg").read_bytes() == b"mine"
    assert place.restore(if_exists="overwrite").statuses == {"restored": 1}
    Image.open(place.output / "ann0.jpg").verify()
    with (place.output / "bea0.jpg").open("ab") as file:
        file.write(b"edited by hand")
    old_photo("bea", 9).save(place.album / "bea0.jpg")
    assert place.restore(if_exists="skip").occupied == 1


def test_a_stopped_run_goes_on_where_it_was(place: Place, tmp_path: Path) -> None:
    make_album(place.album, photos_per_person=4)
    stop = Stop()
    seen: list[str] = []

    def listen(outcome: PhotoOutcome) -> None:
        seen.append(outcome.status)
        if "restored" in seen:
            stop.request(signal.SIGTERM)

    options = place.options(stop=stop, on_photo=listen)
    summary = restore_album(Request((place.album,)), place.settings_with(threads=1), options)
    assert summary.exit_code() == 128 + signal.SIGTERM
    assert 1 <= seen.count("restored") < 12
    rest = place.restore()
    assert rest.already_done == len(seen) and rest.exit_code() == 0
    place.restore(output=tmp_path / "undisturbed")
    assert tree(place.output) == tree(tmp_path / "undisturbed")


def test_one_run_at_a_time(place: Place) -> None:
    with locked(place.output), pytest.raises(LockHeld):
        place.restore()
    assert place.restore().exit_code() == 0
