"""Photos of the factory, each made once."""

from __future__ import annotations

from pathlib import Path

import photo_factory as factory
import pytest


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("photos")


@pytest.fixture
def original(folder: Path, request: pytest.FixtureRequest) -> Path:
    return factory.make(folder, request.param)
