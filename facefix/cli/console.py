"""Lines for people and JSON for programs: what commands print."""

from __future__ import annotations

import json
from typing import Any

from facefix.outputs.outcomes import PhotoOutcome


def print_json(value: Any, *, one_line: bool = False) -> None:
    """Data for a program, on standard output."""
    print(json.dumps(value, ensure_ascii=True, indent=None if one_line else 1), flush=True)


def outcome_dict(outcome: PhotoOutcome) -> dict[str, Any]:
    """One photo for --jsonl."""
    return {
        "photo": str(outcome.source),
        "output": str(outcome.target) if outcome.target is not None else None,
        "status": outcome.status,
        "reason": outcome.reason,
        "seconds": round(outcome.seconds, 3),
        "notes": list(outcome.notes),
        "faces": [
            {
                "number": face.face,
                "box": [round(side, 1) for side in face.box],
                "person": face.person,
                "verdict": face.verdict,
                "reason": face.reason,
                "similarity_before": face.before,
                "similarity_after": face.after,
                "references": [
                    {"photo": note.path, "face": note.face, "reason": note.reason, "score": note.score}
                    for note in face.references
                ],
                "model": face.model,
                "seconds": round(face.seconds, 3),
            }
            for face in outcome.faces
        ],
    }


def _line(outcome: PhotoOutcome) -> str:
    """One photo for -v."""
    from facefix.files.names import printable

    faces = "; ".join(
        f"{face.person or 'face'}: {face.verdict}{f' ({face.reason})' if face.reason else ''}" for face in outcome.faces
    )
    return f"{printable(outcome.relative)}: {outcome.status}{f', {faces}' if faces else ''}"
