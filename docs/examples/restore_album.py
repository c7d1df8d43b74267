"""Restore an album from Python, and say what became of each photo.

    python restore_album.py ALBUM PORTRAITS OUT

The restored photos go to the folder OUT. Ends with the exit code that the command would have.
"""

from __future__ import annotations

import sys
from pathlib import Path

from facefix.errors import FacefixError
from facefix.jobs.restore import restore_album
from facefix.outputs.outcomes import PhotoOutcome
from facefix.restoration.run import Options, Request
from facefix.settings import Settings


def say(photo: PhotoOutcome) -> None:
    """Print one photo as soon as it is on disk."""
    people = sorted({face.person for face in photo.faces if face.person})
    print(f"{photo.relative}: {photo.status}", f"({', '.join(people)})" if people else "")


def main(album: Path, portraits: Path, out: Path) -> int:
    """Restore the album; facefix.toml and FACEFIX_ variables count as they do for the command."""
    settings = Settings.load({"refs": portraits, "output": out})
    try:
        summary = restore_album(Request((album,)), settings, Options(on_photo=say))
    except FacefixError as error:
        print(f"cannot restore {album}: {error}", file=sys.stderr)
        return error.exit_code
    print(f"{summary.verdicts['restored']} faces restored, {summary.verdicts['kept']} kept; see {out}/facefix-report")
    return summary.exit_code()


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    sys.exit(main(*(Path(argument) for argument in sys.argv[1:])))
