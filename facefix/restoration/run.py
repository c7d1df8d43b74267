"""The steps of one run over an album."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from facefix.device import choose_device
from facefix.faces.backends import Backend
from facefix.files.names import printable
from facefix.methods.base import Restorer
from facefix.outputs.ledger import Ledger
from facefix.outputs.outcomes import DoneRow, IndexedPhoto, PhotoOutcome
from facefix.people.people_file import PEOPLE_FILE
from facefix.progress import Progress, Silent
from facefix.restoration.album import Album, Portrait, Problem, with_digests
from facefix.restoration.choices import (
    BackendChoice,
    ModelChoice,
    choose_backend,
    choose_model,
    estimate_seconds_per_face,
)
from facefix.restoration.finish import Finisher, settled
from facefix.restoration.identities import Found, People, find_people, names_now
from facefix.restoration.index import look_into, why_failed
from facefix.restoration.phase import RestorePhase
from facefix.restoration.plan import PhotoTask, in_working_order, make_task, references_stand
from facefix.restoration.scan import ScannedPhoto
from facefix.restoration.summary import Summary
from facefix.restoration.work import Work, base_recipe, find_work, given_identities
from facefix.restoration.worker import DeviceWorker, choose_batch_size
from facefix.settings import Settings
from facefix.stop import Stop
from facefix.threads import bounded_map

COMMIT_SECONDS = 2.0
"""A killed run loses at most this much of what it had found in photos."""


@dataclass(frozen=True, slots=True)
class Request:
    """What to restore."""

    inputs: tuple[Path, ...]
    """folders and single files"""
    listed: tuple[Path, ...] = ()
    """more files, as from a list; relative ones keep their folders in the output"""


@dataclass(frozen=True, slots=True, eq=False)
class Options:
    """What a caller may give in place of what the settings name, and who hears about the run."""

    backend: Backend | None = None
    restorer: Restorer | None = None
    progress: Progress = field(default_factory=Silent)
    on_photo: Callable[[PhotoOutcome], None] = lambda outcome: None
    """called for every photo that was worked on, once it is on disk and in the ledger"""
    stop: Stop = field(default_factory=Stop)


class Run:
    """The steps of one run, in the order `restore_album` calls them; each takes what the last one gave."""

    def __init__(
        self,
        album: Album,
        settings: Settings,
        options: Options,
        ledger: Ledger,
        pool: ThreadPoolExecutor,
        model: ModelChoice | None = None,
    ) -> None:
        self.settings, self.options, self.ledger, self.pool = settings, options, ledger, pool
        self.started = time.perf_counter()
        self.album, unreadable = with_digests(album, ledger)
        self.problems: list[Problem] = []
        """photos that cannot be read"""
        self.renamed = 0
        """faces of photos done before that are called otherwise now"""
        self.bad_portraits = {problem.path: problem.reason for problem in unreadable}
        self.backend: BackendChoice = choose_backend(settings, options.backend)
        self.model: ModelChoice = model or choose_model(settings, ledger, options.restorer)
        self.recipe = base_recipe(self.model.recipe, self.backend.key, settings)
        self.identities = given_identities(self.album)
        self.summary = Summary(self.album.output, photos=len(album.photos), skipped=len(album.skipped))
        self.summary.left_out = [(skipped.path, skipped.reason) for skipped in album.skipped]

    def compare_with_ledger(self) -> Work:
        """What is to be done, by what is known to be done."""
        work = find_work(self.album, self.ledger, self.settings, self.recipe, self.identities)
        self.problems += work.problems
        self.summary.already_done = len(work.done)
        self.summary.occupied = len(work.occupied)
        return work

    def look_into_photos(self, work: Work, *, everything: bool = False) -> Found:
        """Faces of every photo and portrait, from the ledger or by looking now. Nothing to do: looks at nothing."""
        if not work.needs_looking and not everything:
            return Found({}, {})
        wanted: dict[ScannedPhoto | Portrait, str] = {
            photo: work.digests[photo.path] for photo in self.album.photos if photo.path in work.digests
        }
        wanted |= {portrait: portrait.sha256 for portrait in self.album.portraits}
        paths = {digest: item.path for item, digest in wanted.items()}
        unknown = {
            digest: path for digest, path in paths.items() if not self.ledger.is_indexed(digest, self.backend.key)
        }
        why = self._look(list(unknown.values()))
        if self.options.stop:
            return Found({}, {})
        photos, portraits = dict[ScannedPhoto, IndexedPhoto](), dict[Portrait, IndexedPhoto]()
        for item, digest in wanted.items():
            found = self.ledger.indexed(digest, self.backend.key, str(item.path))
            if isinstance(item, ScannedPhoto):
                if found is None:
                    self.problems.append(Problem(item.path, item.relative, _why(item.path, paths[digest], why)))
                else:
                    photos[item] = found
            elif found is None:
                self.bad_portraits[item.path] = _why(item.path, paths[digest], why)
            else:
                portraits[item] = found
        return Found(photos, portraits)

    def find_people(self, found: Found) -> People:
        """Who is who, over all photos, done or not."""
        people = find_people(found, self.album, self.settings, self.backend)
        for person in people.persons:
            for label in person.unused:
                self.options.progress.problem(
                    f"{PEOPLE_FILE}: pin or ban {label} of {person.name}: names none of this person's faces"
                )
        self.summary.people = len(people.persons)
        self.summary.faces = sum(len(photo.faces) for photo in found.photos.values())
        return people

    def plan(self, work: Work, found: Found, people: People) -> list[PhotoTask]:
        """A task for every photo that is to be done, those of one person together."""
        done = self.ledger.done_rows() if work.doubtful else {}
        tasks, confirmed = [], []
        for photo in (*work.pending, *work.doubtful):
            if photo not in found.photos:
                continue
            task = make_task(photo, found.photos[photo], people, self.recipe)
            row = done.get(photo.relative)
            # who is in a photo may have been forgotten since: it is not done again without references because of it
            forgotten = any(face.embedding is None for face in found.photos[photo].faces)
            if row is not None and photo in work.doubtful and (forgotten or self._stands(row, task, people)):
                confirmed.append(photo.relative)
            else:
                tasks.append(task)
        self.ledger.confirm(confirmed, self.identities)
        self.summary.already_done += len(confirmed)
        return in_working_order(tasks)

    def rename(self, found: Found, people: People) -> None:
        """Let photos done before call everybody what they are called by now."""
        self.renamed = self.ledger.rename(names_now(found, people))

    def restore(self, tasks: Sequence[PhotoTask]) -> Iterator[PhotoOutcome]:
        """Do the tasks; yields each photo once it is on disk."""
        for skipped in self.album.skipped:
            if skipped.failed:
                self.summary.problems.append((skipped.path, skipped.reason))
                self.options.progress.problem(f"{printable(skipped.path)}: {skipped.reason}")
        for path, reason in self.bad_portraits.items():
            self.summary.problems.append((path, reason))
            self.options.progress.problem(f"portrait {reason}")
        for problem in self.problems:
            yield PhotoOutcome(problem.relative, problem.path, "failed", problem.reason)
        if not tasks or self.options.stop:
            return
        self.ledger.start((task.photo.relative, task.photo.path) for task in tasks)
        finisher = Finisher(self.album.output, self.backend, self.settings, self.model.name, self.model.recipe)
        yield from self._pass_on([task for task in tasks if not task.faces], finisher)
        to_restore = [task for task in tasks if task.faces]
        if to_restore and not self.options.stop:
            yield from self._restore(to_restore, finisher)

    def record(self, outcome: PhotoOutcome) -> None:
        """Write down what became of a photo, and tell those who listen."""
        written = None
        if outcome.target is not None:
            written = (self.album.output / outcome.target).stat()
        self.ledger.record_photo(outcome, portraits=self.identities, written=written)
        self.summary.add(outcome)
        if outcome.status == "failed":
            self.options.progress.problem(outcome.reason)
        self.options.on_photo(outcome)

    def write_report(self) -> None:
        """The report of everything in the output folder, unless nothing has changed since the last one."""
        from facefix.report import REPORT_FOLDER, write_output_report

        page = self.album.output / REPORT_FOLDER / "index.html"
        changed = bool(self.summary.statuses) or self.renamed > 0 or not page.is_file()
        if self.settings.report and changed and not self.options.stop:
            self.options.progress.phase("writing the report", len(self.album.photos), "photos")
            write_output_report(self.album.output, progress=self.options.progress.advance)

    def finish(self) -> Summary:
        """Close the books."""
        summary = self.summary
        summary.seconds = time.perf_counter() - self.started
        summary.signal = self.options.stop.signal
        self.ledger.note("run", summary.as_dict())
        return summary

    def seconds_per_face(self, tasks: Sequence[PhotoTask]) -> float | None:
        """As measured by earlier runs into this output with the same model, else on one grey face; None: no faces."""
        faces = [face for task in tasks for face in task.faces]
        if not faces:
            return None
        measured = self.ledger.noted("seconds_per_face", {}).get(self.model.recipe)
        if measured is not None:
            return float(measured)
        return estimate_seconds_per_face(self.model.load(), max(len(face.references) for face in faces))

    def _stands(self, row: DoneRow, task: PhotoTask, people: People) -> bool:
        """Whether a photo would be done as it was."""
        recorded = self.ledger.faces_done(task.photo.relative)
        return row.recipe == task.recipe and references_stand(task, recorded, people)

    def _look(self, paths: Sequence[Path]) -> dict[Path, str]:
        """Look into photos and record what is found; returns why for those that cannot be read."""
        progress, why, committed = self.options.progress, dict[Path, str](), time.monotonic()
        if not paths:
            return why
        start, backend = time.perf_counter(), self.backend.load()
        progress.phase("looking into photos", len(paths), "photos")

        def look(path: Path) -> IndexedPhoto:
            return look_into(path, backend, self.settings.max_pixels)

        for path, future in bounded_map(self.pool, look, paths, ahead=2 * self.settings.cpu_threads):
            if self.options.stop:
                break
            if (error := future.exception()) is not None:
                why[path] = why_failed(path, error)
            else:
                self.ledger.record_index(future.result(), self.backend.key)
            if time.monotonic() - committed > COMMIT_SECONDS:
                self.ledger.commit()
                committed = time.monotonic()
            progress.advance()
        self.ledger.commit()
        self.summary.looking_seconds = time.perf_counter() - start
        return why

    def _pass_on(self, tasks: Sequence[PhotoTask], finisher: Finisher) -> Iterator[PhotoOutcome]:
        """Photos in which no face is to be restored."""
        self.options.progress.phase("copying", len(tasks), "photos")
        for task, future in bounded_map(self.pool, finisher.pass_on, tasks, ahead=2 * self.settings.cpu_threads):
            if self.options.stop:
                return
            yield settled(task, future)
            self.options.progress.advance()

    def _restore(self, tasks: Sequence[PhotoTask], finisher: Finisher) -> Iterator[PhotoOutcome]:
        """Photos with faces to restore."""
        restorer = self.model.load()
        batch_size = choose_batch_size(self.settings.batch_size, choose_device(self.settings.device))
        worker = DeviceWorker(restorer, batch_size, self.settings.cache_mib << 20, self.model.load_on_cpu)
        phase = RestorePhase(worker, finisher, self.pool, self.settings, self.options.stop)
        faces = sum(len(task.faces) for task in tasks)
        people, seen = {face.person for task in tasks for face in task.faces}, set[str]()
        self.options.progress.phase("restoring", faces, "faces")
        for done, (task, outcome) in enumerate(phase.run(tasks), start=1):
            yield outcome
            seen |= {face.person for face in task.faces}
            detail = f"{done} of {len(tasks)} photos, {len(seen)} of {len(people)} people"
            self.options.progress.advance(len(task.faces), detail=detail)
        self.summary.restore_seconds = phase.seconds
        self.summary.device = worker.statistics
        if worker.statistics.faces:
            known = self.ledger.noted("seconds_per_face", {})
            self.ledger.note("seconds_per_face", known | {self.model.recipe: phase.seconds / worker.statistics.faces})


def _why(path: Path, looked_at: Path, reasons: Mapping[Path, str]) -> str:
    """Why nothing is known of a file, whose content was looked at under ``looked_at``: itself or one just like it."""
    if looked_at not in reasons:
        return f"{printable(path)}: changed while the run went on; the next run will take it"
    return reasons[looked_at].replace(printable(looked_at), printable(path), 1)
