"""The conductor: an album goes in, the same album with its degraded faces restored comes out."""

from __future__ import annotations

from facefix.outputs.session import output_folder
from facefix.restoration.album import open_album
from facefix.restoration.run import Options, Request, Run
from facefix.restoration.summary import Summary
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
        run = Run(album, settings, options, ledger, pool)
        work = run.compare_with_ledger()
        found = run.look_into_photos(work)
        people = run.find_people(found)
        tasks = run.plan(work, found, people)
        run.rename(found, people)
        for outcome in run.restore(tasks):
            run.record(outcome)
        run.write_report()
        return run.finish()
