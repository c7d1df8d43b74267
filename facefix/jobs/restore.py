"""The conductor: an album goes in, the same album with its degraded faces restored comes out."""

from __future__ import annotations

import time
from dataclasses import replace

from facefix.outputs.folder import REPORT_FOLDER
from facefix.outputs.session import output_folder
from facefix.report import write_output_report
from facefix.restoration.album import check_letter_case, open_album
from facefix.restoration.run import Options, Request, Run
from facefix.restoration.summary import Summary, Tally
from facefix.settings import Settings
from facefix.threads import cpu_pool


def restore_album(request: Request, settings: Settings, options: Options | None = None) -> Summary:
    """Restore an album: scan, look into the photos, find people, choose references, restore, write, record.

    Photos that cannot be done are in the summary. Raises UsageError for what was asked wrongly, WeightsUnavailable,
    LockHeld, and OutputError when nothing more can be written: what was written stays, and the same call goes on.
    """
    options = options or Options()
    album = open_album(request.inputs, request.listed, settings)
    with output_folder(album.output, settings.wait) as ledger, cpu_pool(settings.cpu_threads) as pool:
        start = time.perf_counter()
        check_letter_case(album, settings)
        run = Run.over(album, settings, options, ledger, pool)
        work = run.compare_with_ledger()
        found = run.look_into_photos(work)
        people = run.find_people(found)
        plan = run.plan(work, found, people)
        renamed = run.update_records(plan, found, people)
        tally = Tally.of(run.recorded(run.restore(plan, work, found)))
        _write_report(run, changed=bool(tally.statuses) or renamed > 0)
        summary = run.summary(work, found, people, plan, tally)
        summary = _with_housekeeping(run, summary)
        summary = replace(summary, seconds=time.perf_counter() - start)
        run.close_books(summary)
        return summary


def _with_housekeeping(run: Run, summary: Summary) -> Summary:
    """Mirror what is no photo, look for outputs whose photos are gone, and say so in the summary."""
    mirrored, (gone, pruned) = run.mirror_others(), run.prune()
    problems = (*summary.problems, *(mirrored.problems if mirrored is not None else ()))
    return replace(summary, mirrored=mirrored, orphans=gone, pruned=pruned, problems=problems)


def _write_report(run: Run, *, changed: bool) -> None:
    """The report of everything in the output folder, unless nothing has changed since the last one."""
    output, progress = run.album.output, run.options.progress
    wanted = changed or not (output / REPORT_FOLDER / "index.html").is_file()
    if run.settings.report and wanted and not run.options.stop:
        progress.phase("writing the report", len(run.album.photos), "photos")
        write_output_report(output, progress=progress.advance)
