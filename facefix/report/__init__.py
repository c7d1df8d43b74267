"""The HTML report."""

from collections.abc import Callable
from pathlib import Path

from facefix.report.from_ledger import report_of
from facefix.report.model import ReferenceUse, Report, ReportFace, ReportPhoto
from facefix.report.page import REPORT_FOLDER, write_report

__all__ = [
    "REPORT_FOLDER",
    "ReferenceUse",
    "Report",
    "ReportFace",
    "ReportPhoto",
    "report_of",
    "write_output_report",
    "write_report",
]


def write_output_report(output: Path, *, again: bool = False, progress: Callable[[int], None] | None = None) -> Path:
    """Write the report of an output folder of ``facefix restore`` into it; return the page.

    Args:
        output: the folder; its ledger says what there is to show.
        again: write it even where the page that is there shows the same.
        progress: called as small pictures are made, with steps that add up to the number of photos.

    Raises:
        UsageError: it is not such a folder.
        PhotoError: the page cannot be written.
    """
    return write_report(report_of(output), output / REPORT_FOLDER, again=again, progress=progress)
