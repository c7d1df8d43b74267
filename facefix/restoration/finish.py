"""The end of a photo's journey: judge each restored face, blend it back, write the photo, say what was done."""

from __future__ import annotations

import errno
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from facefix.errors import OutputError, PhotoError
from facefix.faces.align import CROP_SIZE
from facefix.outputs import undo
from facefix.outputs.outcomes import FaceOutcome, PhotoOutcome
from facefix.photos import provenance
from facefix.photos.photo import Photo, copy_photo, read_photo, write_photo
from facefix.photos.region import Region
from facefix.restoration.album import target_path
from facefix.restoration.blend import blend_face
from facefix.restoration.choices import BackendChoice
from facefix.restoration.index import why_failed
from facefix.restoration.plan import FaceTask, PhotoTask
from facefix.restoration.reading import Crop, OpenPhoto
from facefix.restoration.scan import output_path
from facefix.restoration.verdicts import FAILED, FLAGGED, RESTORED, Verdict, judge, judge_alone
from facefix.restoration.worker import Restored
from facefix.settings import Settings

_DISK_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS})


@dataclass(frozen=True, slots=True, eq=False)
class Finisher:
    """Judges, blends and writes photos; safe to use from several threads."""

    output: Path
    backend: BackendChoice
    settings: Settings
    model: str
    model_recipe: str

    def finish(self, task: PhotoTask, opened: OpenPhoto, results: Mapping[int, Restored]) -> PhotoOutcome:
        """Write a photo with its restored faces. Raises OutputError; what else goes wrong is in the outcome."""
        start = time.perf_counter()
        judged = [self._judge(face, opened.crops[face.number], results[face.number]) for face in task.faces]
        regions = [
            self._blend(opened, outcome.face, results[outcome.face])
            for outcome in judged
            if outcome.verdict in (RESTORED, FLAGGED)
        ]
        seconds = sum(result.seconds for result in results.values()) + time.perf_counter() - start
        if regions or self.settings.upscale > 1:
            return self._write(task, opened.photo, regions, judged, seconds)
        return self._copy(task, judged, seconds)

    def pass_on(self, task: PhotoTask) -> PhotoOutcome:
        """Take over a photo in which nothing is to be restored: copied, enlarged or left. Raises OutputError."""
        if self.settings.upscale == 1 or task.found.copy_reason is not None or self.settings.only_changed:
            return self._copy(task, (), 0.0)
        try:
            photo = read_photo(task.photo.path, self.settings.max_pixels)
        except PhotoError as error:
            return task.failed(str(error))
        return self._write(task, photo, (), (), 0.0)

    def _copy(self, task: PhotoTask, judged: Sequence[FaceOutcome], seconds: float) -> PhotoOutcome:
        """The photo byte for byte."""
        if self.settings.only_changed:
            return task.outcome("left", judged, seconds=seconds)
        start, target = time.perf_counter(), output_path(task.photo, self.output)
        try:
            digest = copy_photo(task.photo.path, target)
        except PhotoError as error:
            raise_if_disk_failed(error)
            return task.failed(str(error))
        if digest != task.found.sha256:
            target.unlink(missing_ok=True)
            return task.failed(f"{task.photo.path}: changed while the run went on; the next run will take it")
        seconds += time.perf_counter() - start
        return task.outcome("copied", judged, target=target.relative_to(self.output), seconds=seconds)

    def _write(
        self,
        task: PhotoTask,
        photo: Photo,
        regions: Sequence[Region],
        judged: Sequence[FaceOutcome],
        seconds: float,
    ) -> PhotoOutcome:
        """The photo with its restored regions."""
        start = time.perf_counter()
        try:
            target = target_path(task.photo, self.output, self.settings)
            said = provenance.describe(photo, regions, model=self.model, recipe=self.model_recipe)
            written = write_photo(photo, regions, target, scale=self.settings.upscale, extra_xmp=said.packet)
            undo.save(self.output, said.undo_id, photo, regions, written)
        except PhotoError as error:
            raise_if_disk_failed(error)
            return task.failed(str(error))
        return task.outcome(
            "restored" if regions else "enlarged",
            judged,
            target=written.path.relative_to(self.output),
            seconds=seconds + time.perf_counter() - start,
            notes=(*photo.notes, *written.notes, *([said.note] if said.note else [])),
        )

    def _judge(self, face: FaceTask, crop: Crop, result: Restored) -> FaceOutcome:
        """Compare the face as it will be used with its references, or with the photo where there are none."""
        if result.pixels is None:
            return face.outcome(FAILED, result.problem, seconds=result.seconds, model=self.model)
        faces = self.backend.load()
        embedding = faces.embedder.embed([mix(crop, to_crop_size(result.pixels), self.settings.strength)])[0]
        was, same = face.face.embedding, faces.same_person
        before = after = None
        if face.centroid is not None:
            before = None if was is None else faces.similarity(was, face.centroid)
            after = faces.similarity(embedding, face.centroid)
            verdict = judge(before, after, same)
        elif was is not None:
            verdict = judge_alone(faces.similarity(embedding, was), same)
        else:
            verdict = Verdict(FLAGGED, "likeness cannot be checked: no embedding of this face is kept")
        reason = "; ".join(part for part in (verdict.reason, *result.notes) if part)
        outcome = face.outcome(verdict.name, reason, seconds=result.seconds, model=self.model)
        return replace(outcome, before=before, after=after)

    def _blend(self, opened: OpenPhoto, number: int, result: Restored) -> Region:
        assert result.pixels is not None
        return blend_face(
            opened.photo.pixels,
            to_crop_size(result.pixels),
            opened.matrices[number],
            strength=self.settings.strength,
            grey=opened.photo.is_grey,
            scale=self.settings.upscale,
            photo_crop=opened.crops[number],
        )


def to_crop_size(pixels: Crop) -> Crop:
    """A restored crop at the size that faces are cut out with."""
    if pixels.shape[0] == CROP_SIZE:
        return pixels
    return np.asarray(Image.fromarray(pixels).resize((CROP_SIZE, CROP_SIZE), Image.Resampling.LANCZOS))


def mix(crop: Crop, restored: Crop, strength: float) -> Crop:
    """The face as it will look with that ``strength``."""
    if strength == 1:
        return restored
    mixed = crop.astype(np.float32) * (1 - strength) + restored.astype(np.float32) * strength
    return np.rint(mixed).astype(np.uint8)


def raise_if_disk_failed(error: PhotoError) -> None:
    """Turn a failed write into OutputError when no other photo would fare better: disk full, read-only or failing."""
    cause = error.__cause__
    if isinstance(cause, OSError) and cause.errno in _DISK_ERRORS:
        raise OutputError(
            f"{error}; free some space or choose another output folder, then run the same again"
        ) from error


def settled(task: PhotoTask, future: Future[PhotoOutcome]) -> PhotoOutcome:
    """What a CPU thread made of a photo. OutputError ends the run; anything else is this photo's failure."""
    error = future.exception()
    if isinstance(error, OutputError):
        raise error
    return future.result() if error is None else task.failed(why_failed(task.photo.path, error))
