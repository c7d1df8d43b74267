"""Fixtures of the tests in this folder."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image, ImageFilter
from skimage import data


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The astronaut, blurred and sharp."""
    folder = tmp_path_factory.mktemp("album")
    sharp = Image.fromarray(data.astronaut())
    before, after = folder / "before.jpg", folder / "after.jpg"
    sharp.filter(ImageFilter.GaussianBlur(3)).save(before)
    sharp.save(after)
    return before, after
