"""``facefix train``: a command for every method that trains, with its legs."""

from __future__ import annotations

from pathlib import Path

import pytest
from command_line import facefix

from facefix.methods.registry import methods


def test_every_method_that_trains_has_a_command() -> None:
    shown = facefix("train", "--help")
    assert shown.code == 0
    for method in methods().values():
        assert (f" {method.name} " in shown.stdout) is bool(method.training)


@pytest.mark.parametrize("method", ["refldm", "guided"])
def test_what_a_configuration_lacks_is_said(method: str, tmp_path: Path) -> None:
    config = tmp_path / "training.yaml"
    config.write_text("run: here\n", encoding="utf-8")
    wrong = facefix("train", method, config)
    assert (wrong.code, "faces" in wrong.stderr) == (2, True), wrong.stderr


def test_legs_that_a_method_does_not_have(tmp_path: Path) -> None:
    wrong = facefix("train", "guided", tmp_path / "training.yaml", "--leg", "autoencoder")
    assert wrong.code == 2
    assert "--leg: expected one of denoiser, found 'autoencoder'" in wrong.stderr
