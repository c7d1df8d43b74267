"""An album on disk with its portraits and output, and a restorer that remembers what it was asked."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from albums import Borrow

from facefix.faces.backends import Backend
from facefix.jobs.restore import restore_album
from facefix.outputs.ledger import Ledger
from facefix.outputs.outcomes import PhotoOutcome
from facefix.restoration.run import Options, Request
from facefix.restoration.summary import Summary
from facefix.settings import Settings


class Remembering:
    """A detector or embedder that computes each answer once."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self._known: dict[bytes, Any] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def detect(self, rgb: np.ndarray) -> Any:
        return self._once(rgb.tobytes(), self._inner.detect, rgb)

    def embed(self, crops: Sequence[np.ndarray]) -> Any:
        known = [self._once(crop.tobytes(), self._inner.embed, [crop])[0] for crop in crops]
        return np.stack(known) if known else self._inner.embed([])

    def _once(self, content: bytes, function: Any, argument: Any) -> Any:
        key = hashlib.sha256(content).digest()
        if key not in self._known:
            self._known[key] = function(argument)
        return self._known[key]


@dataclass
class Place:
    """An album, its portraits, and a way to restore it."""

    folder: Path
    backend: Backend
    settings: dict[str, Any] = field(default_factory=dict)
    restorer: Borrow = field(default_factory=Borrow)

    @property
    def album(self) -> Path:
        return self.folder / "album"

    @property
    def output(self) -> Path:
        return self.folder / "album-restored"

    def options(self, **changes: Any) -> Options:
        return Options(**{"backend": self.backend, "restorer": self.restorer, **changes})

    def settings_with(self, **changes: Any) -> Settings:
        chosen = {
            "refs": self.folder / "refs",
            "threads": 2,
            "report": False,
            "restore": "all",
            "min_face": 20,
            "refs_from": "portraits",
        }
        return Settings(**{**chosen, **self.settings, **changes})

    def restore(self, **changes: Any) -> Summary:
        return restore_album(Request((self.album,)), self.settings_with(**changes), self.options())

    def outcomes(self) -> dict[str, PhotoOutcome]:
        with Ledger.open(self.output) as ledger:
            return {str(photo.relative): photo for photo in ledger.records.photos()}


def tree(folder: Path) -> dict[str, str]:
    """Digest of every file below a folder but what facefix keeps for itself."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and ".facefix" not in path.parts
    }
