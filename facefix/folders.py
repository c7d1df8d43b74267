"""Where facefix keeps what it installs for its user."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs


def weights_dir() -> Path:
    """Folder of the installed weights: ``FACEFIX_WEIGHTS_DIR``, or ``facefix/weights`` in the user's data folder."""
    chosen = os.environ.get("FACEFIX_WEIGHTS_DIR")
    if chosen:
        return Path(chosen).expanduser()
    return platformdirs.user_data_path("facefix", appauthor=False) / "weights"
