"""The end of a photo's journey: judged, blended, written, told."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from marked import Checkered, make_photos, marked_backend
from PIL import Image

from facefix.errors import OutputError, PhotoError
from facefix.faces.face import Pixels, Reference
from facefix.outputs.outcomes import PhotoOutcome
from facefix.people.references import centroid
from facefix.restoration.batches import Restored
from facefix.restoration.choices import BackendChoice
from facefix.restoration.finish import Finisher, mix, outcome_of, raise_if_disk_failed, to_crop_size
from facefix.restoration.index import look_into
from facefix.restoration.plan import FaceTask, PhotoTask
from facefix.restoration.reading import open_photo
from facefix.restoration.scan import ScannedPhoto
from facefix.settings import Settings

BACKEND = BackendChoice("marked", marked_backend)


def finisher(folder: Path, **settings: Any) -> Finisher:
    return Finisher(folder / "out", BACKEND, Settings(**settings), "checkered", "recipe")


def task_of(folder: Path, *people: str) -> PhotoTask:
    """A photo all of whose faces are to be restored; the first has its own face as the reference's centroid."""
    (path,) = make_photos(folder, a=people)
    found = look_into(path, marked_backend(), 10**6)
    faces = []
    for face in found.faces:
        assert face.embedding is not None
        middle = centroid([face.embedding]) if face.index == 0 else None
        references = (Reference(face, path, "sharp", 1.0),) if face.index == 0 else ()
        faces.append(FaceTask(Path("a.png"), face, people[face.index], references, middle))
    return PhotoTask(ScannedPhoto(path, Path("a.png")), found, "r.x", tuple(faces))


def finish(finisher: Finisher, task: PhotoTask, changes: Mapping[int, Restored] | None = None) -> PhotoOutcome:
    """What becomes of a photo whose faces were restored, but for those that ``changes`` names."""
    opened = open_photo(task, 10**6)
    results = {n: Restored(Checkered().restore([crop], None)[0], 1.0) for n, crop in opened.crops.items()}
    return finisher.finish(task, opened, {**results, **(changes or {})})


def flat(colour: tuple[int, int, int]) -> Pixels:
    return np.full((512, 512, 3), colour, np.uint8)


def test_restored_faces_go_into_the_photo_and_the_rest_stays(tmp_path: Path) -> None:
    task = task_of(tmp_path, "ann", "bob")
    outcome = finish(finisher(tmp_path), task)
    assert (outcome.status, outcome.target, outcome.recipe) == ("restored", Path("a.png"), "r.x")
    first, second = outcome.faces
    assert (first.verdict, second.verdict) == ("restored", "restored")
    assert first.before is not None and first.before == pytest.approx(1, abs=1e-3) and second.before is None
    assert second.reason == "no references" and first.references[0].reason == "sharp"
    before, after = (np.asarray(Image.open(path), int) for path in (task.photo.path, tmp_path / "out" / "a.png"))
    change = np.abs(before - after).max(axis=2)
    assert change[70:120, 50:100].max() > 10 and change[70:120, 180:220].max() > 10 and change[:, 330:].max() == 0


def test_a_face_less_like_the_person_is_not_used_and_one_that_failed_says_why(tmp_path: Path) -> None:
    task = task_of(tmp_path, "ann", "bob")
    outcome = finish(
        finisher(tmp_path), task, {0: Restored(flat((50, 50, 210)), 1.0), 1: Restored(None, 1.0, "not finite")}
    )
    assert [face.verdict for face in outcome.faces] == ["kept", "failed"]
    assert "less like the person" in outcome.faces[0].reason and outcome.faces[1].reason == "not finite"
    assert outcome.status == "copied"
    assert (tmp_path / "out" / "a.png").read_bytes() == task.photo.path.read_bytes()


def test_without_references_a_result_that_is_another_face_is_not_used(tmp_path: Path) -> None:
    outcome = finish(finisher(tmp_path), task_of(tmp_path, "ann", "bob"), {1: Restored(flat((210, 50, 50)), 1.0)})
    assert [face.verdict for face in outcome.faces] == ["restored", "kept"]
    assert "no longer this face" in outcome.faces[1].reason


def test_a_forgotten_face_is_flagged_and_notes_reach_the_reason(tmp_path: Path) -> None:
    task = task_of(tmp_path, "bob", "ann")
    forgotten = replace(task.faces[1], face=replace(task.faces[1].face, embedding=None))
    opened = open_photo(task, 10**6)
    result = Restored(opened.crops[1], 1.0, notes=("restored in fp32",))
    outcome = finish(finisher(tmp_path), replace(task, faces=(task.faces[0], forgotten)), {1: result})
    assert outcome.faces[1].verdict == "flagged"
    assert outcome.faces[1].reason.endswith("no embedding of this face is kept; restored in fp32")


def test_photos_without_faces_are_copied_enlarged_or_left(tmp_path: Path) -> None:
    task = replace(task_of(tmp_path, "ann"), faces=())
    assert finisher(tmp_path, only_changed=True).pass_on(task).status == "left"
    assert not (tmp_path / "out").exists()
    assert finisher(tmp_path).pass_on(task).status == "copied"
    enlarged = finisher(tmp_path, upscale=2).pass_on(replace(task, scale=2))
    with Image.open(tmp_path / "out" / "a.png") as picture:
        assert enlarged.status == "enlarged" and picture.size == (800, 400)
    animated = replace(task, found=replace(task.found, copy_reason="animated PNG with 2 frames"))
    outcome = finisher(tmp_path, upscale=2).pass_on(animated)
    assert (outcome.status, outcome.reason) == ("copied", "animated PNG with 2 frames")


def test_a_photo_that_changed_meanwhile_is_not_copied(tmp_path: Path) -> None:
    task = replace(task_of(tmp_path, "ann"), faces=())
    make_photos(tmp_path, a=["bob"])
    outcome = finisher(tmp_path).pass_on(task)
    assert outcome.status == "failed" and "changed while the run went on" in outcome.reason
    assert not (tmp_path / "out" / "a.png").exists()


@pytest.mark.parametrize("strict", [False, True])
def test_what_cannot_be_written_is_copied_with_the_reason(
    tmp_path: Path, strict: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A picture that other readers would not see as it was written keeps its bytes."""
    task = replace(task_of(tmp_path, "ann"), faces=(), scale=2)
    original = task.photo.path.read_bytes()
    monkeypatch.setattr("facefix.photos.agreement._shows", lambda data, mode, raster: data == original)
    outcome = finisher(tmp_path, upscale=2, strict_input=strict).pass_on(task)
    assert outcome.status == ("failed" if strict else "copied") and "another reader" in outcome.reason
    target = tmp_path / "out" / "a.png"
    assert not target.exists() if strict else target.read_bytes() == original


def test_only_a_disk_that_fails_ends_the_run(tmp_path: Path) -> None:
    for number, ends in ((errno.ENOSPC, True), (errno.EROFS, True), (errno.EACCES, False)):
        error = PhotoError("a.png: cannot be written")
        error.__cause__ = OSError(number, "why")
        if ends:
            with pytest.raises(OutputError, match="free some space"):
                raise_if_disk_failed(error)
        else:
            raise_if_disk_failed(error)
    task = task_of(tmp_path, "ann")
    future: Future[PhotoOutcome] = Future()
    future.set_exception(KeyError("odd"))
    assert outcome_of(task, future).status == "failed"
    full: Future[PhotoOutcome] = Future()
    full.set_exception(OutputError("full"))
    with pytest.raises(OutputError):
        outcome_of(task, full)


def test_strength_mixes_and_other_sizes_are_resized() -> None:
    black, white = flat((0, 0, 0)), flat((255, 255, 255))
    assert mix(black, white, 1.0) is white
    assert int(mix(black, white, 0.25)[0, 0, 0]) == 64
    assert to_crop_size(np.full((96, 96, 3), 7, np.uint8)).shape == (512, 512, 3)
    assert to_crop_size(white) is white
