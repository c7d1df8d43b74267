"""Which faces are restored, and whether a result may be used: every decision with its reason in words."""

from __future__ import annotations

from dataclasses import dataclass

from facefix.faces.face import Quality
from facefix.faces.quality import needs_restoring
from facefix.settings import Settings

RESTORED, KEPT, FLAGGED, FAILED = "restored", "kept", "flagged", "failed"
VERDICTS = (RESTORED, KEPT, FLAGGED, FAILED)

DRIFT = 0.2
"""How much further than two pictures of one person a result may be from the photo, when there is no reference."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is done with a face, and why."""

    name: str
    """restored, kept, flagged or failed"""
    reason: str = ""

    @property
    def uses_result(self) -> bool:
        """Whether the restored pixels go into the photo."""
        return self.name in (RESTORED, FLAGGED)


def why_left_alone(quality: Quality, settings: Settings, *, excluded: bool = False) -> str | None:
    """Why a face is not restored at all; None when it is."""
    if excluded:
        return "excluded in people.toml"
    if quality.face_px < settings.min_face:
        return f"{quality.face_px:.0f} px wide, below --min-face {settings.min_face:g}"
    if settings.restore == "all":
        return None
    needed, reason = needs_restoring(quality)
    return None if needed else reason


def judge(before: float | None, after: float | None, same_person: float) -> Verdict:
    """Compare the similarity to the references' centroid before and after; larger is more alike.

    ``same_person`` is the backend's similarity from which two faces count as one person. None: cannot be compared.
    """
    if after is None:
        return Verdict(FLAGGED, "likeness could not be checked")
    if before is not None and after < before:
        return Verdict(KEPT, f"the result is less like the person ({after:.3f}) than the photo is ({before:.3f})")
    if after < same_person:
        return Verdict(
            FLAGGED,
            f"likeness of the result, {after:.3f}, is below {same_person:.3f}, where two faces count as one person",
        )
    return Verdict(RESTORED)


def judge_alone(likeness: float, same_person: float) -> Verdict:
    """Without references there is only the photo to compare with: the result must still be the face that is in it.

    A blurred face is not very like its own restoration, so a result is refused only well below ``same_person``.
    """
    text = f"no references; likeness of the result to the photo, {likeness:.3f}"
    if likeness < same_person - DRIFT * (1 - same_person):
        return Verdict(KEPT, f"{text}: it is no longer this face")
    if likeness < same_person:
        return Verdict(FLAGGED, f"{text}, is below {same_person:.3f}, where two faces count as one person")
    return Verdict(RESTORED, "no references")
