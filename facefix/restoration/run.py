"""The steps of one run over an album. Each takes values and gives values; a run itself never changes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from facefix.device import choose_device, choose_dtype
from facefix.faces.backends import Backend
from facefix.files.names import printable
from facefix.methods.base import Restorer, SamplingSettings
from facefix.outputs.ledger import Ledger
from facefix.outputs.orphans import orphans, remove
from facefix.outputs.outcomes import IndexedPhoto, PhotoOutcome
from facefix.people.people_file import PEOPLE_FILE
from facefix.progress import Progress, Silent
from facefix.restoration.album import Album, Portrait, Problem, with_digests
from facefix.restoration.batches import ModelSpec
from facefix.restoration.choices import (
    BackendChoice,
    ModelChoice,
    choose_backend,
    choose_model,
    estimate_seconds_per_face,
)
from facefix.restoration.executors import LocalExecutor
from facefix.restoration.finish import Finisher, outcome_of
from facefix.restoration.identities import Found, People, find_people, names_now
from facefix.restoration.index import look_into, why_failed
from facefix.restoration.others import Mirrored, kinds, mirror
from facefix.restoration.phase import RestorePhase
from facefix.restoration.plan import PhotoTask, Plan, make_plan
from facefix.restoration.reading import ReferenceReader
from facefix.restoration.scan import ScannedPhoto, Skipped
from facefix.restoration.summary import Done, Summary, Tally
from facefix.restoration.work import Work, base_recipe, find_work, given_identities, is_as_written
from facefix.restoration.worker import DeviceWorker, choose_batch_size
from facefix.settings import Settings
from facefix.stop import Stop
from facefix.threads import bounded_map

COMMIT_SECONDS = 2.0
"""A killed run loses at most this much of what it had found in photos."""

_SPEED = "seconds_per_face"


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


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """What every step of a run works with. The steps, in the order `restore_album` calls them, are its methods."""

    album: Album
    unreadable_portraits: tuple[Problem, ...]
    settings: Settings
    options: Options
    ledger: Ledger
    pool: ThreadPoolExecutor
    backend: BackendChoice
    model: ModelChoice
    recipe: str
    """of everything that decides every picture alike"""
    given: str
    """digest of what the user says about who is who"""

    @classmethod
    def over(
        cls,
        album: Album,
        settings: Settings,
        options: Options,
        ledger: Ledger,
        pool: ThreadPoolExecutor,
        model: ModelChoice | None = None,
    ) -> Self:
        """A run over an album. Raises WeightsUnavailable where the model or the face backend is not installed."""
        album, unreadable = with_digests(album, ledger)
        backend = choose_backend(settings, options.backend)
        model = model or choose_model(settings, ledger, options.restorer)
        recipe = base_recipe(model.recipe, backend.key, settings)
        return cls(
            album=album,
            unreadable_portraits=unreadable,
            settings=settings,
            options=options,
            ledger=ledger,
            pool=pool,
            backend=backend,
            model=model,
            recipe=recipe,
            given=given_identities(album),
        )

    def compare_with_ledger(self) -> Work:
        """What is to be done, by what is known to be done."""
        return find_work(self.album, self.ledger, self.settings, self.recipe, self.given)

    def look_into_photos(self, work: Work, *, everything: bool = False) -> Found:
        """Faces of every photo and portrait, from the ledger or by looking now. Nothing to do: looks at nothing."""
        if not work.needs_looking and not everything:
            return Found()
        start = time.perf_counter()
        wanted: dict[ScannedPhoto | Portrait, str] = {
            photo: work.digests[photo.path] for photo in self.album.photos if photo.path in work.digests
        }
        wanted |= {portrait: portrait.sha256 for portrait in self.album.portraits}
        paths = {digest: item.path for item, digest in wanted.items()}
        unknown = [path for digest, path in paths.items() if not self.ledger.index.has(digest, self.backend.key)]
        why = self._look(unknown)
        seconds = time.perf_counter() - start if unknown else 0.0
        if self.options.stop:
            return Found(seconds=seconds)
        photos, portraits = dict[ScannedPhoto, IndexedPhoto](), dict[Portrait, IndexedPhoto]()
        no_photos, no_portraits = list[Problem](), list[Problem]()
        for item, digest in wanted.items():
            found = self.ledger.index.get(digest, self.backend.key, str(item.path))
            if isinstance(item, ScannedPhoto):
                if found is not None:
                    photos[item] = found
                else:
                    no_photos.append(Problem(item.path, item.relative, _why(item.path, paths[digest], why)))
            elif found is not None:
                portraits[item] = found
            else:
                no_portraits.append(Problem(item.path, Path(item.path.name), _why(item.path, paths[digest], why)))
        return Found(photos, portraits, tuple(no_photos), tuple(no_portraits), seconds)

    def find_people(self, found: Found) -> People:
        """Who is who, over all photos, done or not."""
        people = find_people(found, self.album, self.settings, self.backend)
        for person in people.persons:
            for label in person.unused:
                self.options.progress.problem(
                    f"{PEOPLE_FILE}: pin or ban {label} of {person.name}: names none of this person's faces"
                )
        return people

    def plan(self, work: Work, found: Found, people: People) -> Plan:
        """A task for every photo that is to be done, those of one person together."""
        return make_plan(work, found, people, self.ledger.records, self.recipe)

    def update_records(self, plan: Plan, found: Found, people: People) -> int:
        """Let photos done before belong to what was given now, and call everybody what they are called by now.

        Returns how many faces are called otherwise than before.
        """
        self.ledger.records.confirm(plan.current, self.given)
        return self.ledger.records.rename(names_now(found, people))

    def restore(self, plan: Plan, work: Work, found: Found) -> Iterator[Done]:
        """Do the tasks; yields each photo once it is on disk, those that cannot be read first."""
        for skipped in self._unreadable_folders():
            self.options.progress.problem(f"{printable(skipped.path)}: {skipped.reason}")
        for portrait in self._unreadable_portraits(found):
            self.options.progress.problem(f"portrait {portrait.reason}")
        finisher = Finisher(self.album.output, self.backend, self.settings, self.model.name, self.model.recipe)
        for problem in work.problems:
            yield Done(PhotoOutcome(problem.relative, problem.path, "failed", problem.reason))
        yield from self._take_over_unreadable(work, found, finisher)
        if not plan.tasks or self.options.stop:
            return
        self.ledger.records.start((task.photo.relative, task.photo.path) for task in plan.tasks)
        yield from self._pass_on([task for task in plan.tasks if not task.faces], finisher)
        to_restore = [task for task in plan.tasks if task.faces]
        if to_restore and not self.options.stop:
            yield from self._restore(to_restore, finisher)

    def recorded(self, photos: Iterable[Done]) -> Iterator[Done]:
        """Write down what became of each photo, tell those who listen, and pass it on."""
        for done in photos:
            outcome = done.outcome
            written = None if outcome.target is None else (self.album.output / outcome.target).stat()
            self.ledger.records.record(outcome, portraits=self.given, written=written)
            if outcome.status == "failed":
                self.options.progress.problem(outcome.reason)
            self.options.on_photo(outcome)
            yield done

    def mirror_others(self) -> Mirrored | None:
        """Copy the files that are no photos, where that is asked."""
        if not self.settings.copy_others or self.options.stop:
            return None
        mirrored = mirror(self.album.skipped, self.album.output, self.ledger)
        for _, reason in mirrored.problems:
            self.options.progress.problem(reason)
        return mirrored

    def prune(self) -> tuple[int, int]:
        """Outputs whose photos are gone: how many there are, and how many of them were removed, where that is asked."""
        if self.options.stop:
            return 0, 0
        found = orphans(self.ledger, self.album.root, (photo.relative for photo in self.album.photos))
        if self.settings.prune == "list":
            for relative, row in found.items():
                self.options.progress.say(f"{printable(relative)}: {printable(row.source)} is gone")
        if self.settings.prune != "remove":
            return len(found), 0
        removed, left = remove(found, self.album.output, self.ledger, is_as_written)
        for relative in left:
            self.options.progress.problem(f"{printable(relative)}: changed since it was written, and left alone")
        return len(found), len(removed)

    def summary(self, work: Work, found: Found, people: People, plan: Plan, tally: Tally) -> Summary:
        """What the run did."""
        unreadable = [(folder.path, folder.reason) for folder in self._unreadable_folders()]
        unreadable += [(portrait.path, portrait.reason) for portrait in self._unreadable_portraits(found)]
        return Summary(
            self.album.output,
            photos=len(self.album.photos),
            left_out=tuple((skipped.path, skipped.reason) for skipped in self.album.skipped),
            already_done=len(work.done) + len(plan.current),
            occupied=len(work.occupied),
            others=kinds(self.album.skipped),
            faces=found.faces,
            people=len(people.persons),
            tally=tally,
            problems=(*unreadable, *tally.problems),
            looking_seconds=found.seconds,
            signal=self.options.stop.signal,
        )

    def close_books(self, summary: Summary) -> None:
        """Note how the run went, and how fast its model was."""
        if summary.device.faces:
            speeds = self.ledger.noted(_SPEED, {})
            speed = summary.restore_seconds / summary.device.faces
            self.ledger.note(_SPEED, speeds | {self.model.recipe: speed})
        self.ledger.note("run", summary.as_dict())

    def seconds_per_face(self, tasks: Sequence[PhotoTask]) -> float | None:
        """As measured by earlier runs into this output with the same model, else on one grey face; None: no faces."""
        faces = [face for task in tasks for face in task.faces]
        if not faces:
            return None
        measured = self.ledger.noted(_SPEED, {}).get(self.model.recipe)
        if measured is not None:
            return float(measured)
        return estimate_seconds_per_face(self.model.load(), max(len(face.references) for face in faces))

    def _unreadable_folders(self) -> tuple[Skipped, ...]:
        return tuple(skipped for skipped in self.album.skipped if skipped.failed)

    def _unreadable_portraits(self, found: Found) -> tuple[Problem, ...]:
        return (*self.unreadable_portraits, *found.unreadable_portraits)

    def _look(self, paths: Sequence[Path]) -> dict[Path, str]:
        """Look into photos and record what is found; returns why for those that cannot be read."""
        progress, why, committed = self.options.progress, dict[Path, str](), time.monotonic()
        if not paths:
            return why
        backend = self.backend.load()
        progress.phase("looking into photos", len(paths), "photos")

        def look(path: Path) -> IndexedPhoto:
            return look_into(path, backend, self.settings.max_pixels, self.settings.min_face)

        for path, future in bounded_map(self.pool, look, paths, ahead=2 * self.settings.cpu_threads):
            if self.options.stop:
                break
            if (error := future.exception()) is not None:
                why[path] = why_failed(path, error)
            else:
                self.ledger.index.record(future.result(), self.backend.key)
            if time.monotonic() - committed > COMMIT_SECONDS:
                self.ledger.commit()
                committed = time.monotonic()
            progress.advance()
        self.ledger.commit()
        return why

    def _take_over_unreadable(self, work: Work, found: Found, finisher: Finisher) -> Iterator[Done]:
        """Files in which no photo can be read: copied, so that the output is whole; named once, not every night."""
        wanted = {photo.path for photo in (*work.pending, *work.stale)}
        known = self.ledger.records.done()
        for problem in found.unreadable_photos:
            if problem.path not in wanted:
                continue
            if self.settings.strict_input:
                yield Done(PhotoOutcome(problem.relative, problem.path, "failed", problem.reason))
                continue
            photo, sha256 = ScannedPhoto(problem.path, problem.relative), work.digests[problem.path]
            row = known.get(problem.relative)
            is_known = row is not None and row.sha256 == sha256 and row.status in ("copied", "left")
            outcome = finisher.copy_unreadable(photo, sha256, problem.reason, f"{self.recipe}.")
            if outcome.status != "failed" and not is_known:
                self.options.progress.problem(f"{problem.reason}; {outcome.status} as it is")
            yield Done(outcome)

    def _pass_on(self, tasks: Sequence[PhotoTask], finisher: Finisher) -> Iterator[Done]:
        """Photos in which no face is to be restored."""
        self.options.progress.phase("copying", len(tasks), "photos")
        for task, future in bounded_map(self.pool, finisher.pass_on, tasks, ahead=2 * self.settings.cpu_threads):
            if self.options.stop:
                return
            yield Done(outcome_of(task, future))
            self.options.progress.advance()

    def _restore(self, tasks: Sequence[PhotoTask], finisher: Finisher) -> Iterator[Done]:
        """Photos with faces to restore."""
        settings, device = self.settings, choose_device(self.settings.device)
        worker = DeviceWorker(
            self.model.load(),
            ReferenceReader(self.pool),
            choose_batch_size(settings.batch_size, device),
            settings.cache_mib << 20,
            self.model.load_on_cpu,
        )
        sampling = SamplingSettings(settings.steps, settings.guidance, settings.sampler, settings.seed)
        spec = ModelSpec(self.model.name, self.model.folder, sampling, choose_dtype(settings.dtype, device))
        faces = sum(len(task.faces) for task in tasks)
        people, seen = {face.person for task in tasks for face in task.faces}, set[str]()
        self.options.progress.phase("restoring", faces, "faces")
        with LocalExecutor(worker) as executor:
            phase = RestorePhase(executor, finisher, self.pool, spec, settings, self.options.stop)
            for number, (task, done) in enumerate(phase.run(tasks), start=1):
                yield done
                seen |= {face.person for face in task.faces}
                detail = f"{number} of {len(tasks)} photos, {len(seen)} of {len(people)} people"
                self.options.progress.advance(len(task.faces), detail=detail)


def _why(path: Path, looked_at: Path, reasons: Mapping[Path, str]) -> str:
    """Why nothing is known of a file, whose content was looked at under ``looked_at``: itself or one just like it."""
    if looked_at not in reasons:
        return f"{printable(path)}: changed while the run went on; the next run will take it"
    return reasons[looked_at].replace(printable(looked_at), printable(path), 1)
