"""The run folder: logs that grow columns, sheets, and what a resumed run may change."""

from __future__ import annotations

import csv
from pathlib import Path

import torch
from PIL import Image

from facefix.training.runs import RunFolder, save_sheet


def test_a_loss_that_comes_later_becomes_a_column(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.log(1, {"loss": 0.5})
    run.log(2, {"loss": 0.4, "identity": 0.25})
    run.log(3, {"identity": 0.125})
    with open(tmp_path / "losses.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows == [
        {"step": "1", "loss": "0.5", "identity": ""},
        {"step": "2", "loss": "0.4", "identity": "0.25"},
        {"step": "3", "loss": "", "identity": "0.125"},
    ]
    run._cut_log(2)
    assert (tmp_path / "losses.csv").read_text() == "step,loss,identity\n1,0.5,\n2,0.4,0.25\n"
    run.plot()
    with Image.open(tmp_path / "losses.png") as plot:
        assert plot.width > 100
    assert sorted(path.name for path in tmp_path.iterdir()) == ["losses.csv", "losses.png"]


def test_a_sheet_shows_its_pictures_in_rows(tmp_path: Path) -> None:
    black, grey = torch.full((3, 8, 8), -1.0), torch.zeros(3, 8, 8)
    save_sheet(tmp_path / "sheet.png", [[black, grey], [grey]])
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (16, 16)
        assert [sheet.getpixel(place) for place in ((0, 0), (8, 0), (0, 8), (8, 8))] == [
            (0, 0, 0),
            (128, 128, 128),
            (128, 128, 128),
            (255, 255, 255),
        ]
