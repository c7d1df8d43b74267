"""The folder of a training run: configuration, seed, losses as CSV and plots, sample sheets, checkpoint, models."""

from __future__ import annotations

import csv
import json
import math
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from facefix.errors import UsageError
from facefix.files.atomic import replacing
from facefix.training.checkpoint import load_checkpoint
from facefix.training.config import write_config

Config = Any
"""a configuration of training: a Section with ``run``, ``seed``, ``schedule`` and ``machine``"""
Sheet = Sequence[Sequence[torch.Tensor]]
"""rows of pictures, each (3, S, S) in [-1, 1]"""

LENGTH_KEYS = ("run", "watching", "machine", "schedule", "processes", "records")
"""Parts of a configuration that may change between the legs of a run."""


class RunFolder:
    """Paths and writers of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def checkpoint(self) -> Path:
        """Everything needed to go on."""
        return self.path / "checkpoint.pt"

    @property
    def model(self) -> Path:
        """The averaged model in diffusers layout."""
        return self.path / "model"

    def start(self, config: Config) -> None:
        """Make the folder. Raises UsageError when a run lies there already."""
        if self.checkpoint.exists() or (self.path / "config.yaml").exists():
            raise UsageError(f"{self.path}: expected no earlier run, found one; use --resume or another folder")
        self.path.mkdir(parents=True, exist_ok=True)
        write_config(config, self.path / "config.yaml")
        facts = {"seed": config.seed, "torch": torch.__version__, "machine": platform.processor() or platform.machine()}
        if torch.cuda.is_available():
            facts["gpu"] = torch.cuda.get_device_name()
        (self.path / "seeds.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")

    def resume(self, config: Config, device: torch.device) -> dict[str, object]:
        """The checkpoint; what was logged after it is dropped. Raises CheckpointError when there is none.

        Raises UsageError when the configuration now differs in more than the length and the machine.
        """
        state = load_checkpoint(self.checkpoint, device)
        recorded, asked = state["config"], config.model_dump(mode="json")
        changed = [key for key in asked if key not in LENGTH_KEYS and recorded.get(key) != asked[key]]
        if changed:
            raise UsageError(f"{self.checkpoint}: expected the configuration it was made with, found other {changed}")
        self._cut_log(int(state["step"]))
        write_config(config, self.path / "config.yaml")
        return state

    def _cut_log(self, step: int) -> None:
        for path in (self.path / "losses.csv", self.path / "held_out.csv"):
            if path.exists():
                lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
                kept = [line for line in lines[1:] if int(line.split(",", 1)[0]) <= step]
                path.write_text("".join(lines[:1] + kept), encoding="utf-8")

    def log(self, step: int, values: Mapping[str, float], name: str = "losses.csv") -> None:
        """Append a row. A loss that comes later in a run becomes a new column; missing values are left empty."""
        path = self.path / name
        columns = _header(path) or ["step"]
        if added := [key for key in values if key not in columns]:
            columns = [*columns, *added]
            _widen(path, columns)
        with open(path, "a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
            writer.writerow({"step": step, **{key: f"{value:.6g}" for key, value in values.items()}})

    def plot(self) -> None:
        """Draw every column of the logs against the step, into ``losses.png`` and ``held_out.png``."""
        from matplotlib.figure import Figure

        for path in (self.path / "losses.csv", self.path / "held_out.csv"):
            if not path.exists():
                continue
            with open(path, newline="", encoding="utf-8") as file:
                rows = list(csv.DictReader(file))
            columns = [name for name in rows[0] if name != "step"] if rows else []
            figure = Figure(figsize=(7, 2.2 * max(1, len(columns))), layout="constrained")
            for number, name in enumerate(columns):
                axes = figure.add_subplot(len(columns), 1, number + 1)
                points = [(int(row["step"]), float(row[name])) for row in rows if row[name]]
                axes.plot([x for x, _ in points], [y for _, y in points], linewidth=0.8)
                axes.set_title(name, fontsize=8)
            figure.savefig(path.with_suffix(".png"), dpi=90)

    def sheet(self, step: int, rows: Sheet) -> Path:
        """Write rows of pictures side by side as ``sheets/<step>.png``."""
        path = self.path / "sheets" / f"{step:07d}.png"
        path.parent.mkdir(exist_ok=True)
        save_sheet(path, rows)
        return path


def _header(path: Path) -> list[str]:
    """Columns of a CSV file; none where there is no file."""
    if not path.exists():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        return next(csv.reader(file), [])


def _widen(path: Path, columns: list[str]) -> None:
    """Write the file anew with more columns."""
    rows: list[dict[str, str]] = []
    if path.exists():
        with open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    with replacing(path, durable=False) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def save_sheet(path: Path, rows: Sheet) -> None:
    """Write rows of pictures (3, S, S) in [-1, 1] as one PNG; short rows are filled up with white."""
    size = rows[0][0].shape[-1]
    widest = max(len(row) for row in rows)
    canvas = torch.ones(3, size * len(rows), size * widest)
    for y, row in enumerate(rows):
        for x, picture in enumerate(row):
            canvas[:, y * size : (y + 1) * size, x * size : (x + 1) * size] = picture.detach().float().cpu()
    pixels = ((canvas.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0)
    Image.fromarray(pixels.numpy()).save(path)


def psnr(images: torch.Tensor, truth: torch.Tensor) -> float:
    """Mean over a batch of the peak signal-to-noise ratio in dB of images in [-1, 1]."""
    error = (images.float().clamp(-1, 1) - truth.float()).square().flatten(1).mean(1).clamp_min(1e-10)
    return float((10 * (math.log10(4.0) - error.log10())).mean())
