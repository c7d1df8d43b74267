"""The HTML report."""

from facefix.report.model import ReferenceUse, Report, ReportFace, ReportPhoto
from facefix.report.page import REPORT_FOLDER, write_report

__all__ = ["REPORT_FOLDER", "ReferenceUse", "Report", "ReportFace", "ReportPhoto", "write_report"]
