"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder with photographs and faces for local measurement; tests that need it are skipped where it is missing."""
    folder = Path(os.environ.get("FACEFIX_SHARED", REPOSITORY.parent / "shared"))
    if not (folder / "data" / "manifest.csv").is_file():
        pytest.skip(f"no data folder at {folder} (set FACEFIX_SHARED)")
    return folder
