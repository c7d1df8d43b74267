"""Sheets of pictures: a row per face, LQ | result | ... | references | truth, to be looked at."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from facefix.datasets.targets import EvaluationFace, read_crop
from facefix.evaluation.measure import target_crop
from facefix.evaluation.results import LQ_INPUT, RESTORED, THUMBNAIL_PX, Condition, Evaluation, RunKey, thumbnail

WORST = 10
MAX_ROWS = 40
"""A sheet of more faces than this is unwieldy; the JSON has them all."""

_CAPTION_PX = 18
_GAP_PX = 4
_HEADINGS = {
    Condition.LQ: "LQ input",
    Condition.REFERENCES: "restored with references",
    Condition.NO_REFERENCES: "restored without",
    Condition.WRONG_REFERENCES: "with another's references",
}
_INK = (30, 30, 30)
_PAPER = (255, 255, 255)


def write_sheets(evaluation: Evaluation, folder: Path) -> list[Path]:
    """Write for every method and degradation a sheet and one of the ten worst faces; return their paths.

    Worst: the largest identity distance of the restored face, by the first identity network.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for method in evaluation.recipes:
        for degradation in evaluation.plan.degradations:
            name = "".join(c if c.isalnum() or c in "-." else "_" for c in f"{method}_{degradation}")
            everyone = list(range(len(evaluation.faces)))[:MAX_ROWS]
            for prefix, rows in (("sheet", everyone), ("worst", worst_faces(evaluation, method, degradation))):
                if rows:
                    path = folder / f"{prefix}_{name}.png"
                    draw_sheet(evaluation, method, degradation, rows).save(path)
                    written.append(path)
    return written


def worst_faces(evaluation: Evaluation, method: str, degradation: str) -> list[int]:
    """Indices of the ten faces that came out least like themselves, worst first; of the first condition evaluated."""
    metric = next(metric.name for metric in evaluation.metrics if metric.name.endswith("distance"))
    for condition in RESTORED:
        run = evaluation.runs.get(RunKey(method, degradation, condition))
        if run is not None:
            distances = run.scores[metric]
            ranked = np.argsort(-np.nan_to_num(distances, nan=-np.inf), kind="stable")
            return [int(index) for index in ranked[:WORST] if np.isfinite(distances[index])]
    return []


def draw_sheet(evaluation: Evaluation, method: str, degradation: str, rows: Sequence[int]) -> Image.Image:
    """The faces ``rows`` with the identity distance under each picture."""
    keys = [RunKey(LQ_INPUT, degradation, Condition.LQ)]
    keys += [RunKey(method, degradation, condition) for condition in RESTORED]
    keys = [key for key in keys if key in evaluation.runs]
    headings = [_HEADINGS[key.condition] for key in keys] + ["references", "truth"]
    metric = next(metric for metric in evaluation.metrics if metric.name.endswith("distance"))
    step_x, step_y = THUMBNAIL_PX + _GAP_PX, THUMBNAIL_PX + _CAPTION_PX + _GAP_PX
    sheet = Image.new("RGB", (step_x * len(headings) + _GAP_PX, step_y * len(rows) + 3 * _CAPTION_PX), _PAPER)
    ink = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=13)
    title = f"{method}, {degradation}; number: {metric.name} to the truth"
    ink.text((_GAP_PX, 2), title, fill=_INK, font=font)
    for column, heading in enumerate(headings):
        ink.text((_GAP_PX + column * step_x, _CAPTION_PX + 2), heading, fill=_INK, font=font)
    for row, index in enumerate(rows):
        face = evaluation.faces[index]
        top = 2 * _CAPTION_PX + _GAP_PX + row * step_y
        cells: list[tuple[Image.Image, str]] = []
        for key in keys:
            run = evaluation.runs[key]
            picture, distance = run.thumbnails.get(face.name), run.scores[metric.name][index]
            cells.append((_open(picture), f"{distance:.{metric.digits}f}" if picture else "-"))
        cells.append((_references(face, evaluation.plan.max_references), f"{len(face.references)} in all"))
        truth = target_crop(face, read_crop(face.truth), degradation, evaluation.plan.seed)
        cells.append((_open(thumbnail(truth)), Path(face.name).stem[-30:]))
        for column, (picture_drawn, caption) in enumerate(cells):
            left = _GAP_PX + column * step_x
            sheet.paste(picture_drawn, (left, top))
            ink.text((left, top + THUMBNAIL_PX + 1), caption, fill=_INK, font=font)
    return sheet


def _open(data: bytes | None) -> Image.Image:
    if data is None:
        return Image.new("RGB", (THUMBNAIL_PX, THUMBNAIL_PX), (230, 230, 230))
    return Image.open(io.BytesIO(data))


def _references(face: EvaluationFace, most: int) -> Image.Image:
    """The references that were used on one tile, in a grid that holds them all."""
    tile = Image.new("RGB", (THUMBNAIL_PX, THUMBNAIL_PX), (230, 230, 230))
    paths = face.references[:most]
    if not paths:
        return tile
    across = int(np.ceil(np.sqrt(len(paths))))
    side = THUMBNAIL_PX // across
    for position, path in enumerate(paths):
        small = Image.fromarray(read_crop(path)).resize((side, side), Image.Resampling.LANCZOS)
        tile.paste(small, (position % across * side, position // across * side))
    return tile
