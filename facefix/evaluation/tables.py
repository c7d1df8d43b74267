"""An evaluation as tables for people and as JSON for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from facefix import __version__
from facefix.errors import UsageError
from facefix.evaluation.results import RESTORED, Condition, Evaluation, Run, RunKey

MIB = 1024 * 1024


def parse_conditions(names: Sequence[str] | None, *, sweep: bool) -> tuple[Condition, ...]:
    """The conditions named on the command line; by default all three, in a sweep only with references."""
    if not names:
        return (Condition.REFERENCES,) if sweep else RESTORED
    known = {condition.value.replace(" ", "-"): condition for condition in RESTORED}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise UsageError(f"--condition: expected {', '.join(known)}, found {unknown[0]!r}")
    return tuple(dict.fromkeys(known[name] for name in names))


def write_results(evaluation: Evaluation, folder: Path | None, *, as_json_text: bool) -> None:
    """Print the tables (or JSON) on stdout; write ``evaluation.json`` and the sheets where ``folder`` is given."""
    from facefix.evaluation.sheets import write_sheets

    text = json.dumps(as_json(evaluation), indent=1)
    if as_json_text:
        print(text)
    else:
        console = Console(width=None if sys.stdout.isatty() else 200)
        console.print(means_table(evaluation))
        if evaluation.comparisons:
            console.print(comparisons_table(evaluation))
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "evaluation.json").write_text(text + "\n", encoding="utf-8")
        written = write_sheets(evaluation, folder)
        print(f"facefix: wrote {folder / 'evaluation.json'} and {len(written)} sheets", file=sys.stderr)


def means_table(evaluation: Evaluation) -> Table:
    """One row per degradation, method and condition: the mean of every metric over the faces."""
    table = Table(title=f"Means over {len(evaluation.faces)} faces")
    for heading in ("degradation", "method", "condition"):
        table.add_column(heading, overflow="fold")
    table.add_column("faces", justify="right")
    for metric in evaluation.metrics:
        arrow = "↑" if metric.better == "higher" else "↓"
        table.add_column(f"{metric.name} {arrow}", justify="right", overflow="fold")
    for heading in ("s / face", "peak MiB"):
        table.add_column(heading, justify="right", overflow="fold")
    last = None
    for key, run in _ordered(evaluation):
        if last is not None and key.degradation != last:
            table.add_section()
        last = key.degradation
        cells = [_mean(run.scores[metric.name], metric.digits) for metric in evaluation.metrics]
        peak = _peak_mib(run)
        table.add_row(
            key.degradation,
            key.method if key.method in evaluation.recipes else "",
            key.condition.value,
            str(_count(run)),
            *cells,
            _mean(run.seconds, 2),
            "" if peak is None else f"{peak:.0f}",
        )
    return table


def comparisons_table(evaluation: Evaluation) -> Table:
    """One row per comparison and metric: the mean difference with its interval, and what it says."""
    table = Table(title="Paired differences with 95 % bootstrap intervals")
    for heading in ("degradation", "method", "difference", "metric"):
        table.add_column(heading, overflow="fold")
    for heading in ("mean", "95 % interval"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("")
    styles = {"better": "green", "worse": "red", "unclear": "dim"}
    last = None
    for comparison in evaluation.comparisons:
        group = (comparison.method, comparison.degradation, comparison.first, comparison.second)
        if last is not None and group != last:
            table.add_section()
        last = group
        digits = comparison.metric.digits
        interval = comparison.difference
        table.add_row(
            comparison.degradation,
            comparison.method,
            f"{comparison.first.value} - {comparison.second.value}",
            comparison.metric.name,
            f"{interval.mean:+.{digits}f}",
            f"{interval.low:+.{digits}f} .. {interval.high:+.{digits}f}",
            f"[{styles[comparison.verdict]}]{comparison.verdict}[/]",
        )
    return table


def as_json(evaluation: Evaluation) -> dict[str, Any]:
    """Everything but the pictures, in plain values; numbers that do not exist are null."""
    plan = evaluation.plan
    return {
        "facefix": __version__,
        "plan": {**asdict(plan), "conditions": [condition.value for condition in plan.conditions]},
        "metrics": [{"name": metric.name, "better": metric.better} for metric in evaluation.metrics],
        "methods": [
            {"name": name, "recipe": recipe, "prepare_seconds": evaluation.prepare_seconds.get(name)}
            for name, recipe in evaluation.recipes.items()
        ],
        "faces": [
            {"name": face.name, "identity": face.identity, "references": [path.name for path in face.references]}
            for face in evaluation.faces
        ],
        "runs": [_run_as_json(evaluation, key, run) for key, run in _ordered(evaluation)],
        "comparisons": [
            {
                "method": comparison.method,
                "degradation": comparison.degradation,
                "first": comparison.first.value,
                "second": comparison.second.value,
                "metric": comparison.metric.name,
                "faces": comparison.faces,
                **asdict(comparison.difference),
                "verdict": comparison.verdict,
            }
            for comparison in evaluation.comparisons
        ],
    }


def _run_as_json(evaluation: Evaluation, key: RunKey, run: Run) -> dict[str, Any]:
    return {
        "method": key.method,
        "degradation": key.degradation,
        "condition": key.condition.value,
        "faces": _count(run),
        "not_finite": sorted(run.not_finite),
        "seconds_per_face": _mean_or_none(run.seconds),
        "peak_memory_mib": _peak_mib(run),
        "mean": {metric.name: _mean_or_none(run.scores[metric.name]) for metric in evaluation.metrics},
        "per_face": {name: [_finite(value) for value in values] for name, values in run.scores.items()},
    }


def _ordered(evaluation: Evaluation) -> list[tuple[RunKey, Run]]:
    """Runs by degradation in the order of the plan, what was not degraded last."""
    order = {name: position for position, name in enumerate(evaluation.plan.degradations)}
    return sorted(evaluation.runs.items(), key=lambda item: order.get(item[0].degradation, len(order)))


def _count(run: Run) -> int:
    return int(np.isfinite(next(iter(run.scores.values()))).sum())


def _mean_or_none(values: NDArray[np.float64]) -> float | None:
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if len(finite) else None


def _mean(values: NDArray[np.float64], digits: int) -> str:
    mean = _mean_or_none(values)
    return "" if mean is None else f"{mean:.{digits}f}"


def _peak_mib(run: Run) -> float | None:
    finite = run.peak_bytes[np.isfinite(run.peak_bytes)]
    return float(finite.max()) / MIB if len(finite) else None


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
