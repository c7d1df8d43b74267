"""Which faces are restored, and whether a result may be used: every decision with its reason in words."""

from __future__ import annotations

from dataclasses import dataclass

RESTORED, KEPT, FLAGGED, FAILED = "restored", "kept", "flagged", "failed"
VERDICTS = (RESTORED, KEPT, FLAGGED, FAILED)


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
