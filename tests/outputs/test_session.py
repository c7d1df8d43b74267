"""An output folder that a run works on: locked, cleaned up after a killed run, honest about a full disk."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from facefix.errors import LockHeld, OutputError
from facefix.files.atomic import TEMPORARY_PREFIX, TEMPORARY_SUFFIX
from facefix.outputs.folder import is_output_folder
from facefix.outputs.ledger import Ledger
from facefix.outputs.session import output_folder


def test_one_run_at_a_time_and_the_folder_is_one_of_ours(tmp_path: Path) -> None:
    assert not is_output_folder(tmp_path)
    with output_folder(tmp_path, 0.0), pytest.raises(LockHeld), output_folder(tmp_path, 0.0):
        pass
    assert is_output_folder(tmp_path)


def test_only_after_a_killed_run_are_leftovers_looked_for(tmp_path: Path) -> None:
    leftover = tmp_path / f"{TEMPORARY_PREFIX}0123{TEMPORARY_SUFFIX}"
    with output_folder(tmp_path, 0.0):
        pass
    leftover.touch()
    with output_folder(tmp_path, 0.0):
        assert leftover.exists(), "the run before ended well: a large tree is not walked"
    with Ledger.open(tmp_path) as ledger:
        ledger.note("clean", False)
    with output_folder(tmp_path, 0.0):
        assert not leftover.exists()


def test_a_ledger_that_cannot_be_written_ends_the_run_with_advice(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="free some space"), output_folder(tmp_path, 0.0):
        raise sqlite3.OperationalError("database or disk is full")
    with Ledger.open(tmp_path) as ledger:
        assert ledger.noted("clean") is False, "the next run cleans up"
