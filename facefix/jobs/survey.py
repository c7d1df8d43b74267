"""What a restoration would do: everything up to the first face that goes to the device, writing nothing."""

from __future__ import annotations

from facefix.outputs.ledger import Ledger
from facefix.restoration.album import open_album
from facefix.restoration.choices import no_model
from facefix.restoration.run import Options, Request, Run
from facefix.restoration.survey import Survey
from facefix.settings import Settings
from facefix.threads import cpu_pool


def survey_album(
    request: Request, settings: Settings, options: Options | None = None, *, needs_model: bool = True
) -> Survey:
    """Everything up to the first restoration, writing nothing: faces, people, references, and what would be done.

    Without ``needs_model`` no restoration model need be installed; what earlier runs did then counts as not done.
    """
    options = options or Options()
    album = open_album(request.inputs, request.listed, settings)
    with Ledger.snapshot(album.output) as ledger, cpu_pool(settings.cpu_threads) as pool:
        run = Run(album, settings, options, ledger, pool, None if needs_model else no_model())
        work = run.compare_with_ledger()
        found = run.look_into_photos(work, everything=True)
        people = run.find_people(found)
        tasks = run.plan(work, found, people)
        seconds = run.seconds_per_face(tasks) if needs_model else None
        return Survey(run.album, work, found, people, tuple(tasks), tuple(run.problems), seconds)
