"""Fixtures of the tests in this folder."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny import tiny_pipeline


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with random weights."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny_pipeline(default_steps=2).save_pretrained(folder)
    return folder
