"""The tiny published model, converted, and what the published script gave for it."""

from __future__ import annotations

import os
from pathlib import Path

import golden_interlcm as published
import numpy as np
import pytest

from facefix.methods.interlcm.pipeline import InterLCMPipeline

REPOSITORY = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="session")
def arrays() -> dict[str, np.ndarray]:
    """The rows of the golden data that come with the tests."""
    with np.load(published.FOLDER / "golden.npz") as stored:
        return {name: stored[name] for name in stored.files}


@pytest.fixture(scope="session")
def golden_folder() -> Path:
    """All golden data, which lie beside the project."""
    folder = Path(os.environ.get("FACEFIX_SHARED", REPOSITORY.parent / "shared")) / "golden" / "interlcm"
    if not (folder / "golden.npz").is_file():
        pytest.skip(f"no golden data at {folder} (set FACEFIX_SHARED)")
    return folder


@pytest.fixture(scope="session")
def all_arrays(golden_folder: Path) -> dict[str, np.ndarray]:
    """Every stage of every run."""
    with np.load(golden_folder / "golden.npz") as stored:
        return {name: stored[name] for name in stored.files}


def _imported(folder: Path, form: str) -> InterLCMPipeline:
    files = published.write(folder / form, form)
    made = published.imported(files, folder / f"{form}-model", steps=int(form[0]))
    pipeline = InterLCMPipeline.from_pretrained(made)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="session")
def three_steps(tmp_path_factory: pytest.TempPathFactory) -> InterLCMPipeline:
    """Imported and loaded again: the form of three steps."""
    return _imported(tmp_path_factory.mktemp("three"), "3step")


@pytest.fixture(scope="session")
def one_step(tmp_path_factory: pytest.TempPathFactory) -> InterLCMPipeline:
    """The form of one step."""
    return _imported(tmp_path_factory.mktemp("one"), "1step")
