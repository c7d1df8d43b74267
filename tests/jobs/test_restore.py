"""The main job on small albums of real faces, with dlib's networks and a simple real restorer."""

from __future__ import annotations

import hashlib
import io
import os
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from albums import PEOPLE, Borrow, group_photo, landscape, make_album, make_portraits, old_photo, portrait
from PIL import Image
from skimage.data import astronaut

from facefix.errors import LockHeld, NotFiniteError, UsageError
from facefix.faces.backends import Backend, load_backend
from facefix.files.lock import locked
from facefix.jobs.restore import restore_album
from facefix.jobs.survey import survey_album
from facefix.outputs.ledger import Ledger
from facefix.outputs.outcomes import PhotoOutcome
from facefix.progress import PlainLines
from facefix.restoration.run import Options, Request
from facefix.restoration.summary import Summary
from facefix.settings import Settings
from facefix.stop import Stop


@pytest.fixture(scope="session")
def backend() -> Backend:
    """dlib's networks, remembering what they said about a picture: the albums here show the same ones again."""
    real = load_backend("dlib")
    return replace(real, detector=Remembering(real.detector), embedder=Remembering(real.embedder))


class Remembering:
    """A detector or embedder that computes each answer once."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self._known: dict[bytes, Any] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def detect(self, rgb: np.ndarray) -> Any:
        return self._once(rgb.tobytes(), self._inner.detect, rgb)

    def embed(self, crops: Sequence[np.ndarray]) -> Any:
        known = [self._once(crop.tobytes(), self._inner.embed, [crop])[0] for crop in crops]
        return np.stack(known) if known else self._inner.embed([])

    def _once(self, content: bytes, function: Any, argument: Any) -> Any:
        key = hashlib.sha256(content).digest()
        if key not in self._known:
            self._known[key] = function(argument)
        return self._known[key]


@dataclass
class Place:
    """An album, its portraits, and a way to restore it."""

    folder: Path
    backend: Backend
    settings: dict[str, object] = field(default_factory=dict)
    restorer: Borrow = field(default_factory=Borrow)

    @property
    def album(self) -> Path:
        return self.folder / "album"

    @property
    def output(self) -> Path:
        return self.folder / "album-restored"

    def options(self, **changes: object) -> Options:
        return Options(**{"backend": self.backend, "restorer": self.restorer, **changes})

    def settings_with(self, **changes: object) -> Settings:
        chosen = {
            "refs": self.folder / "refs",
            "threads": 2,
            "report": False,
            "restore": "all",
            "min_face": 20,
            "refs_from": "portraits",
        }
        return Settings(**{**chosen, **self.settings, **changes})

    def restore(self, **changes: object) -> Summary:
        return restore_album(Request((self.album,)), self.settings_with(**changes), self.options())

    def outcomes(self) -> dict[str, PhotoOutcome]:
        with Ledger.open(self.output) as ledger:
            return {str(photo.relative): photo for photo in ledger.photos()}


@pytest.fixture
def place(tmp_path: Path, backend: Backend) -> Place:
    make_album(tmp_path / "album")
    make_portraits(tmp_path / "refs")
    return Place(tmp_path, backend)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, backend: Backend) -> Iterator[tuple[Place, Summary]]:
    """One album restored once, for tests that only look."""
    folder = tmp_path_factory.mktemp("finished")
    make_album(folder / "album")
    make_portraits(folder / "refs")
    before = tree(folder / "album")
    place = Place(folder, backend)
    summary = place.restore()
    assert tree(folder / "album") == before, "an original changed"
    yield place, summary


def tree(folder: Path) -> dict[str, str]:
    """Digest of every file below a folder but what facefix keeps for itself."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and ".facefix" not in path.parts
    }


def test_the_tree_is_mirrored_and_faces_change(finished: tuple[Place, Summary]) -> None:
    place, summary = finished
    assert tree(place.output).keys() == tree(place.album).keys()
    assert summary.exit_code() == 0
    assert summary.statuses == {"restored": 6, "copied": 1}
    assert sum(summary.verdicts.values()) == 6
    source, result = (np.asarray(Image.open(folder / "ann0.jpg"), int) for folder in (place.album, place.output))
    change = np.abs(source - result).max(axis=2)
    assert change[80:160, 80:160].mean() > 2, "the face"
    assert change[:8, :8].max() <= 8, "the corner is the photo's own, but for coding it again"


def test_a_photo_without_faces_is_copied_byte_for_byte(finished: tuple[Place, Summary]) -> None:
    place, _ = finished
    assert (place.output / "sea.png").read_bytes() == (place.album / "sea.png").read_bytes()
    assert place.outcomes()["sea.png"].status == "copied"


def test_every_face_has_its_person_its_references_and_likeness(finished: tuple[Place, Summary]) -> None:
    place, _ = finished
    for name, photo in place.outcomes().items():
        for face in photo.faces:
            assert face.person == Path(name).name[:3]
            assert face.before is not None and face.after is not None
            assert face.references and all(note.reason for note in face.references)
            assert str(place.folder / "refs" / face.person) in face.references[0].path
            assert all(not note.path.endswith(name) for note in face.references), "its own reference"
            assert face.model == "borrow" and face.seconds > 0
            assert face.box[2] - face.box[0] > 40


def test_a_person_is_encoded_once_however_many_faces(place: Place) -> None:
    summary = place.restore(refs_from="portraits")
    assert summary.device.faces == 6
    assert summary.device.references_encoded == len(place.restorer.prepared) == 3


def test_progress_counts_photos_faces_and_people(place: Place) -> None:
    stream = io.StringIO()
    options = place.options(progress=PlainLines(stream, every_seconds=0))
    restore_album(Request((place.album,)), place.settings_with(), options)
    lines = [line for line in stream.getvalue().splitlines() if line.startswith("restoring:")]
    assert lines[0] == "restoring: 6 faces"
    assert lines[-1].startswith("restoring: 6/6 faces, 6 of 6 photos, 3 of 3 people, about ")


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


def test_results_do_not_depend_on_batches_threads_or_the_rest_of_the_album(place: Place, tmp_path: Path) -> None:
    settings = {"refs_from": "portraits"}
    place.restore(**settings, batch_size=1, threads=1)
    place.restore(**settings, batch_size=4, threads=4, output=tmp_path / "other")
    assert tree(place.output) == tree(tmp_path / "other")
    alone = place.settings_with(**settings, output=tmp_path / "alone")
    restore_album(Request((place.album / "ann0.jpg",)), alone, place.options())
    assert (tmp_path / "alone" / "ann0.jpg").read_bytes() == (place.output / "ann0.jpg").read_bytes()


def test_faces_that_are_small_or_good_or_alone_are_left(place: Place) -> None:
    summary = place.restore(min_face=500)
    assert summary.verdicts == {"kept": 6} and summary.statuses == {"copied": 7}
    assert "below --min-face 500" in place.outcomes()["ann0.jpg"].faces[0].reason
    Image.fromarray(astronaut()).save(place.album / "good.png")
    place.restore(restore="auto", output=place.folder / "auto")
    with Ledger.open(place.folder / "auto") as ledger:
        good = next(photo for photo in ledger.photos() if photo.relative.name == "good.png")
    assert good.status == "copied" and good.faces[0].verdict == "kept" and good.faces[0].reason
    alone = {"refs": None, "refs_from": "both", "output": place.folder / "alone"}
    old_photo("fay", 1).save(place.album / "fay.jpg")
    place.restore(**alone, no_ref="skip")
    with Ledger.open(place.folder / "alone") as ledger:
        fay = next(photo for photo in ledger.photos() if photo.relative.name == "fay.jpg")
    assert fay.faces[0].verdict == "kept" and "--no-ref skip" in fay.faces[0].reason


def test_only_changed_leaves_the_rest_out(place: Place) -> None:
    summary = place.restore(only_changed=True)
    assert not (place.output / "sea.png").exists() and summary.statuses == {"restored": 6, "left": 1}
    assert place.restore(only_changed=True).already_done == 7
    assert place.restore().statuses == {"copied": 1}, "without it, what is missing comes"


def test_upscale_enlarges_every_photo(place: Place) -> None:
    place.restore(upscale=2)
    for path in (place.album / "ann0.jpg", place.album / "sea.png"):
        with Image.open(path) as source, Image.open(place.output / path.name) as result:
            assert result.size == (2 * source.width, 2 * source.height)


def test_photos_that_cannot_be_read_are_named_and_the_rest_is_done(place: Place) -> None:
    (place.album / "broken.jpg").write_bytes((place.album / "ann0.jpg").read_bytes()[:900])
    (place.album / "empty.png").touch()
    summary = place.restore()
    assert summary.exit_code() == 3
    assert summary.statuses == {"restored": 6, "copied": 1, "failed": 2}
    assert {path.name for path, _ in summary.problems} == {"broken.jpg", "empty.png"}
    assert not (place.output / "broken.jpg").exists()
    again = place.restore()
    assert again.exit_code() == 3 and again.already_done == 7


def test_a_photo_that_vanishes_while_the_run_goes_on(place: Place) -> None:
    class Thief(Borrow):
        def restore(self, *arguments: object) -> list[np.ndarray]:  # type: ignore[override]
            (place.album / "sea.png").unlink(missing_ok=True)
            for path in place.album.rglob("cid*.jpg"):
                path.unlink()
            return super().restore(*arguments)  # type: ignore[arg-type]

    place.restorer = Thief()
    summary = place.restore(threads=1, batch_size=1)
    assert summary.statuses["restored"] >= 4
    assert summary.exit_code() in (0, 3)
    assert all("cid" in path.name for path, _ in summary.problems)
    assert place.restore().exit_code() == 0, "what is gone is not asked for again"


def test_a_face_that_fails_is_kept_and_reported(place: Place) -> None:
    class Unlucky(Borrow):
        def restore(self, crops: object, references: object, seeds: object = None) -> list[np.ndarray]:  # type: ignore[override]
            raise NotFiniteError("result: expected finite numbers, found NaN")

    place.restorer = Unlucky()
    summary = place.restore()
    assert summary.verdicts == {"failed": 6} and summary.exit_code() == 3
    assert (place.output / "ann0.jpg").read_bytes() == (place.album / "ann0.jpg").read_bytes()
    assert "NaN" in place.outcomes()["ann0.jpg"].faces[0].reason


def test_a_result_less_like_the_person_is_not_used(place: Place) -> None:
    class Stranger(Borrow):
        def restore(self, crops: list[np.ndarray], *_: object) -> list[np.ndarray]:  # type: ignore[override]
            left, top, right, bottom = 875, 65, 1012, 203
            stranger = group_photo().crop((left - 60, top - 80, right + 60, bottom + 40)).resize((512, 512))
            return [np.asarray(stranger) for _ in crops]

    place.restorer = Stranger()
    summary = place.restore()
    assert summary.verdicts["kept"] >= 4, "everybody but the stranger"
    kept = place.outcomes()["ann0.jpg"]
    assert kept.status == "copied" and kept.faces[0].verdict == "kept"
    assert kept.faces[0].after < kept.faces[0].before
    assert (place.output / "ann0.jpg").read_bytes() == (place.album / "ann0.jpg").read_bytes()


def test_several_people_in_one_photo(tmp_path: Path, backend: Backend) -> None:
    (tmp_path / "album").mkdir()
    small = group_photo().resize((960, 664)).resize((1280, 886))
    small.save(tmp_path / "album" / "group.jpg", quality=92)
    make_portraits(tmp_path / "refs", PEOPLE)
    place = Place(tmp_path, backend)
    summary = place.restore()
    assert summary.statuses == {"restored": 1}
    faces = place.outcomes()["group.jpg"].faces
    assert sorted(face.person or "" for face in faces) == sorted(PEOPLE)
    assert summary.device.references_encoded == 6


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


def test_a_survey_writes_nothing_and_counts(place: Place) -> None:
    settings = place.settings_with()
    survey = survey_album(Request((place.album,)), settings, place.options())
    assert not place.output.exists()
    assert (survey.faces_to_restore, len(survey.tasks)) == (6, 7)
    rows = list(survey.persons())
    assert [row.person.name for row in rows] == ["ann", "bea", "cid"]
    assert all(row.references and row.references[0].reason for row in rows)
    place.restore()
    after = survey_album(Request((place.album,)), settings, place.options())
    assert after.faces_to_restore == 0 and after.seconds is None
    assert survey.seconds is not None and survey.seconds > 0


def test_corrections_by_hand_are_honoured(place: Place) -> None:
    place.output.mkdir()
    (place.output / "people.toml").write_text(
        '[[person]]\nname = "Ann"\nexclude = true\nfaces = ["ann0.jpg", "more/ann1.jpg"]\n'
    )
    place.restore()
    faces = place.outcomes()["ann0.jpg"].faces
    assert faces[0].verdict == "kept" and faces[0].reason == "excluded in people.toml"
    assert place.outcomes()["bea0.jpg"].status == "restored"
    (place.output / "people.toml").unlink()
    assert place.restore().statuses == {"restored": 2}


def test_where_outputs_go(place: Place, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="-o"):
        restore_album(Request((place.album / "ann0.jpg",)), Settings(), place.options())
    with pytest.raises(UsageError, match="inside an input"):
        place.restore(output=place.album / "more" / "out")
    with pytest.raises(UsageError, match="--refs"):
        place.restore(refs=tmp_path / "nobody")
    landscape(2).save(tmp_path / "only.png")
    with pytest.raises(UsageError, match="found no photo"):
        (tmp_path / "empty").mkdir()
        place.restore(refs=tmp_path / "empty")
