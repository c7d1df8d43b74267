"""Paired evaluation: degrade known faces, restore them, compare with the truth.

Every condition sees the same degraded faces, so differences are taken face by face, with a bootstrap interval. The
identity of every picture is embedded on the aligned crop as it lies: the face is not detected again, because no
detector finds a severely degraded face, and the restored face must lie where the crop says.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from facefix.datasets.degradation import degrade
from facefix.datasets.targets import CROP_SIZE, EvaluationFace, read_crop, wrong_references
from facefix.errors import NotFiniteError, UsageError
from facefix.evaluation.intervals import paired_interval
from facefix.evaluation.memory import PeakMemory
from facefix.evaluation.metrics import Metric, MetricSet
from facefix.evaluation.results import (
    COMPARED,
    GIVEN,
    LQ_INPUT,
    NOT_DEGRADED,
    OTHER_PHOTO,
    Comparison,
    Condition,
    Evaluation,
    Method,
    Plan,
    Run,
    RunKey,
    thumbnail,
)
from facefix.methods.base import Pixels, PreparedReferences
from facefix.progress import Progress, Silent


def evaluate(
    faces: Sequence[EvaluationFace],
    methods: Sequence[Method],
    metrics: MetricSet,
    plan: Plan | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Restore every face with every method under every condition of ``plan``, and score the results.

    Faces are restored one at a time, so that seconds and memory are those of one face. Raises UsageError for a plan
    that ``faces`` cannot serve and PhotoError for a picture that cannot be read.
    """
    plan = plan or Plan()
    _check(faces, methods, plan)
    record = _Record(faces, metrics)
    wrong = wrong_references(faces, plan.seed)
    progress = progress or Silent()
    progress.phase("evaluate", len(faces) * max(1, len(methods)), "faces")
    for index, face in enumerate(faces):
        truth = read_crop(face.truth)
        inputs = {name: degraded_crop(face, truth, name, plan.seed) for name in plan.degradations}
        record.add(index, truth, _baselines(face, inputs))
        task = _Task(
            face, inputs, {Condition.REFERENCES: face.references, Condition.WRONG_REFERENCES: wrong[face.name]}
        )
        for method in methods:
            results = task.restore(method, plan, record.prepare_seconds)
            if method.reconstruct is not None:
                key = RunKey(method.name, NOT_DEGRADED, Condition.AUTOENCODER)
                results[key] = _Result(_at_size(method.reconstruct(_for(method, truth)), CROP_SIZE))
            record.add(index, truth, results)
            progress.advance(detail=face.name)
    return Evaluation(
        plan=plan,
        faces=tuple(faces),
        metrics=metrics.metrics,
        recipes={method.name: method.restorer.recipe for method in methods},
        runs=record.runs,
        prepare_seconds={name: float(np.mean(times)) for name, times in record.prepare_seconds.items()},
        comparisons=tuple(_compare(faces, methods, metrics.metrics, record.runs, plan)),
    )


def degraded_crop(face: EvaluationFace, truth: Pixels, degradation: str, seed: int) -> Pixels:
    """(512, 512, 3) the LQ input of ``face``: its ``truth`` degraded with its own seed, or the picture of the set."""
    if degradation == GIVEN:
        assert face.lq is not None  # checked before the run
        return read_crop(face.lq)
    image = torch.from_numpy(truth).movedim(-1, 0)[None].float() / 255
    degraded = degrade(image, [face.seed(seed)], degradation)
    return (degraded[0] * 255).round().to(torch.uint8).movedim(0, -1).contiguous().numpy()


def _baselines(face: EvaluationFace, inputs: Mapping[str, Pixels]) -> dict[RunKey, _Result]:
    """What needs no method: the degraded inputs, and another photo of the person."""
    results = {RunKey(LQ_INPUT, name, Condition.LQ): _Result(lq) for name, lq in inputs.items()}
    if face.references:
        results[RunKey(OTHER_PHOTO, NOT_DEGRADED, Condition.OTHER_PHOTO)] = _Result(read_crop(face.references[0]))
    return results


@dataclass(frozen=True, slots=True)
class _Result:
    pixels: Pixels
    seconds: float = float("nan")
    peak_bytes: float = float("nan")
    finite: bool = True


class _Record:
    """Collects results; every picture is scored when it is made, and only a small copy of it is kept."""

    def __init__(self, faces: Sequence[EvaluationFace], metrics: MetricSet) -> None:
        self.faces = faces
        self.metrics = metrics
        self.runs: dict[RunKey, Run] = {}
        self.prepare_seconds: dict[str, list[float]] = {}

    def add(self, index: int, truth: Pixels, results: Mapping[RunKey, _Result]) -> None:
        if not results:
            return
        scores = self.metrics.score([result.pixels for result in results.values()], truth)
        for position, (key, result) in enumerate(results.items()):
            run = self._run(key, scores)
            for name, values in scores.items():
                run.scores[name][index] = values[position]
            run.seconds[index], run.peak_bytes[index] = result.seconds, result.peak_bytes
            run.thumbnails[self.faces[index].name] = thumbnail(result.pixels)
            if not result.finite:
                run.not_finite.add(self.faces[index].name)

    def _run(self, key: RunKey, names: Iterable[str]) -> Run:
        if key not in self.runs:
            empty = np.full(len(self.faces), np.nan)
            self.runs[key] = Run({name: empty.copy() for name in names}, empty.copy(), empty.copy())
        return self.runs[key]


def _check(faces: Sequence[EvaluationFace], methods: Sequence[Method], plan: Plan) -> None:
    if not faces:
        raise UsageError("faces: expected at least one, found none")
    if len({method.name for method in methods}) != len(methods):
        raise UsageError(f"methods: expected different names, found {[method.name for method in methods]}")
    without = [face.name for face in faces if face.lq is None]
    if GIVEN in plan.degradations and without:
        raise UsageError(
            f"degradation {GIVEN!r}: expected an LQ picture for every face, found {len(without)} without, "
            f"first {without[0]}"
        )


@dataclass(slots=True)
class _Task:
    """One face with its degraded versions; references are prepared once for every condition, family and degradation."""

    face: EvaluationFace
    inputs: Mapping[str, Pixels]
    references: Mapping[Condition, Sequence[Path]]
    prepared: dict[tuple[str, tuple[Path, ...]], PreparedReferences] = field(default_factory=dict)

    def restore(
        self, method: Method, plan: Plan, prepare_seconds: dict[str, list[float]]
    ) -> dict[RunKey, _Result]:
        """The face under every condition and degradation of ``plan``; nothing where it lacks the references."""
        results: dict[RunKey, _Result] = {}
        for condition in plan.conditions:
            paths = tuple(self.references.get(condition, ()))[: plan.max_references]
            if not _can_be_shown(method, condition, paths):
                continue
            references = self._prepare(method, paths, prepare_seconds) if paths else None
            for degradation, lq in self.inputs.items():
                key = RunKey(method.name, degradation, condition)
                results[key] = _restore(method, lq, references, self.face.seed(plan.seed))
        return results

    def _prepare(
        self, method: Method, paths: tuple[Path, ...], prepare_seconds: dict[str, list[float]]
    ) -> PreparedReferences:
        key = (method.family or method.name, paths)
        if key not in self.prepared:
            crops = [_for(method, read_crop(path)) for path in paths]
            start = time.perf_counter()
            self.prepared[key] = method.restorer.prepare(crops, [str(path) for path in paths])
            prepare_seconds.setdefault(method.name, []).append(time.perf_counter() - start)
        return self.prepared[key]


def _can_be_shown(method: Method, condition: Condition, paths: Sequence[Path]) -> bool:
    """Whether the condition exists for a method and a face: a blind one has no references to be given or taken."""
    if condition is Condition.NO_REFERENCES:
        return method.restorer.references != "needed"
    return method.restorer.references != "none" and bool(paths)


def _restore(method: Method, lq: Pixels, references: PreparedReferences | None, seed: int) -> _Result:
    memory = PeakMemory(method.restorer.device)
    memory.reset()
    crop = _for(method, lq)
    start = time.perf_counter()
    finite = True
    try:
        (restored,) = method.restorer.restore([crop], references, [seed])
    except NotFiniteError:
        try:
            (restored,) = method.restorer.in_fp32().restore([crop], references, [seed])
        except NotFiniteError:
            restored, finite = crop, False
    seconds = time.perf_counter() - start
    return _Result(_at_size(restored, CROP_SIZE), seconds, float(memory.read()), finite)


def _for(method: Method, crop: Pixels) -> Pixels:
    return _at_size(crop, method.restorer.crop_size)


def _at_size(crop: Pixels, size: int) -> Pixels:
    if crop.shape[0] == size:
        return crop
    return np.array(Image.fromarray(crop).resize((size, size), Image.Resampling.BICUBIC))


def _compare(
    faces: Sequence[EvaluationFace],
    methods: Sequence[Method],
    metrics: Sequence[Metric],
    runs: Mapping[RunKey, Run],
    plan: Plan,
) -> Iterable[Comparison]:
    identities = np.array([face.identity for face in faces])
    for method in methods:
        for degradation in plan.degradations:
            for first, second in COMPARED:
                one = runs.get(RunKey(method.name, degradation, first))
                other = runs.get(RunKey(LQ_INPUT if second is Condition.LQ else method.name, degradation, second))
                if one is None or other is None:
                    continue
                for metric in metrics:
                    difference = one.scores[metric.name] - other.scores[metric.name]
                    both = np.isfinite(difference)
                    if both.any():
                        interval = paired_interval(difference[both], list(identities[both]), seed=plan.seed)
                        yield Comparison(method.name, degradation, first, second, metric, int(both.sum()), interval)
