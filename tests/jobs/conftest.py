"""Fixtures of the tests in this folder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from albums import make_album, make_portraits
from places import Place, Remembering

from facefix.faces.backends import Backend, load_backend


@pytest.fixture(scope="session")
def backend() -> Backend:
    """dlib's networks, remembering what they said about a picture: the albums here show the same ones again."""
    real = load_backend("dlib")
    return replace(real, detector=Remembering(real.detector), embedder=Remembering(real.embedder))


@pytest.fixture
def place(tmp_path: Path, backend: Backend) -> Place:
    make_album(tmp_path / "album")
    make_portraits(tmp_path / "refs")
    return Place(tmp_path, backend)
