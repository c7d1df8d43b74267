"""Evaluation end to end: restorers with a known answer, a tiny real model, the command, the sheets."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import facefix
from faces_on_disk import write_manifest_set
from PIL import Image
from tiny import tiny_guided

from facefix.datasets import archive
from facefix.datasets.targets import EvaluationFace, read_crop, read_faces
from facefix.errors import NotFiniteError, UsageError
from facefix.evaluation.measure import degraded_crop, evaluate, target_crop
from facefix.evaluation.metrics import MetricSet
from facefix.evaluation.results import (
    GIVEN,
    LQ_INPUT,
    NOT_DEGRADED,
    OTHER_PHOTO,
    RESTORED,
    Condition,
    Evaluation,
    Method,
    Plan,
    RunKey,
)
from facefix.evaluation.sheets import draw_sheet, worst_faces
from facefix.evaluation.tables import as_json
from facefix.methods.base import Pixels, ReferenceUse, RestorerDefaults


@dataclass(frozen=True)
class Prepared:
    pictures: tuple[Pixels, ...]

    @property
    def nbytes(self) -> int:
        return sum(picture.nbytes for picture in self.pictures)

    @property
    def count(self) -> int:
        return len(self.pictures)


@dataclass
class MirroredReference(RestorerDefaults):
    """Restores by showing the first reference in the mirror, which is the truth in the set of ``faces_on_disk``."""

    name: str = "mirror"
    crop_size: int = 256
    recipe: str = "mirror-1"
    prepared: list[tuple[str, ...]] = field(default_factory=list)

    @property
    def references(self) -> ReferenceUse:
        return "optional"

    def prepare(self, references: Sequence[Pixels], sources: Sequence[str] = ()) -> Prepared:
        assert all(reference.shape == (256, 256, 3) for reference in references)
        self.prepared.append(tuple(sources))
        return Prepared(tuple(references))

    def restore(
        self, crops: Sequence[Pixels], references: Prepared | None, seeds: Sequence[int] | None = None
    ) -> list[Pixels]:
        assert all(crop.shape == (256, 256, 3) for crop in crops)
        return [crop if references is None else references.pictures[0][:, ::-1].copy() for crop in crops]

    def in_fp32(self) -> MirroredReference:
        return self


class NeverFinite(MirroredReference):
    """A network that overflows; in fp32 only where there are no references."""

    def __init__(self, *, fp32: bool = False) -> None:
        super().__init__(name="overflow")
        self.fp32 = fp32

    def restore(
        self, crops: Sequence[Pixels], references: Prepared | None, seeds: Sequence[int] | None = None
    ) -> list[Pixels]:
        if self.fp32 and references is None:
            return [np.zeros_like(crop) for crop in crops]
        raise NotFiniteError("result: expected finite values, found NaN")

    def in_fp32(self) -> NeverFinite:
        return NeverFinite(fp32=True)


@pytest.fixture(scope="module")
def metrics() -> MetricSet:
    return MetricSet.load(torch.device("cpu"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_manifest_set(tmp_path_factory.mktemp("set"))


@pytest.fixture(scope="module")
def faces(folder: Path) -> list[EvaluationFace]:
    return read_faces(folder)


@pytest.fixture(scope="module")
def mirror() -> MirroredReference:
    return MirroredReference()


@pytest.fixture(scope="module")
def evaluation(faces: list[EvaluationFace], metrics: MetricSet, mirror: MirroredReference) -> Evaluation:
    return evaluate(faces, [Method("mirror", mirror)], metrics)


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "tiny"
    tiny_guided(default_steps=1, round_pixels=True).save_pretrained(folder)
    return folder


def test_every_condition_of_every_face_is_scored(evaluation: Evaluation) -> None:
    expected = {RunKey(LQ_INPUT, degradation, Condition.LQ) for degradation in ("severe", "moderate")}
    expected |= {RunKey("mirror", degradation, c) for degradation in ("severe", "moderate") for c in RESTORED}
    expected.add(RunKey(OTHER_PHOTO, NOT_DEGRADED, Condition.OTHER_PHOTO))
    assert set(evaluation.runs) == expected
    for run in evaluation.runs.values():
        assert all(np.isfinite(values).all() for values in run.scores.values())
        assert len(run.thumbnails) == 4
    restored = evaluation.runs[RunKey("mirror", "severe", Condition.REFERENCES)]
    assert (restored.seconds > 0).all()
    assert (restored.peak_bytes > 10 * 2**20).all()


def test_a_method_that_finds_the_truth_is_seen_to(evaluation: Evaluation) -> None:
    verdicts = {
        (comparison.degradation, comparison.first, comparison.second, comparison.metric.name): comparison
        for comparison in evaluation.comparisons
    }
    for name in ("dlib distance", "EfficientNet-Lite0 feature distance", "PSNR dB"):
        found = verdicts["severe", Condition.REFERENCES, Condition.LQ, name]
        assert found.verdict == "better"
        assert found.faces == 4
        assert found.difference.low <= found.difference.mean <= found.difference.high
        assert verdicts["severe", Condition.REFERENCES, Condition.NO_REFERENCES, name].verdict == "better"
        assert verdicts["severe", Condition.REFERENCES, Condition.WRONG_REFERENCES, name].verdict == "better"
    unrestored = verdicts["severe", Condition.NO_REFERENCES, Condition.LQ, "dlib distance"]
    assert abs(unrestored.difference.mean) < 0.05


def test_severe_input_is_worse_than_moderate(evaluation: Evaluation) -> None:
    severe = evaluation.runs[RunKey(LQ_INPUT, "severe", Condition.LQ)].scores
    moderate = evaluation.runs[RunKey(LQ_INPUT, "moderate", Condition.LQ)].scores
    assert severe["dlib distance"].mean() > moderate["dlib distance"].mean()
    assert severe["PSNR dB"].mean() < moderate["PSNR dB"].mean()


def test_references_are_prepared_once_for_all_degradations(evaluation: Evaluation, mirror: MirroredReference) -> None:
    own = [sources for sources in mirror.prepared if sources == (str(evaluation.faces[0].references[0]),)]
    assert len(mirror.prepared) == 2 * len(evaluation.faces)  # once as their own, once as another's
    assert own


def test_a_face_scores_the_same_in_another_set(
    faces: list[EvaluationFace], metrics: MetricSet, evaluation: Evaluation
) -> None:
    alone = evaluate(faces[2:3], [], metrics)
    key = RunKey(LQ_INPUT, "severe", Condition.LQ)
    for name, values in alone.runs[key].scores.items():
        assert values[0] == pytest.approx(evaluation.runs[key].scores[name][2], rel=1e-4)


def test_faces_that_overflow_are_tried_in_fp32_and_then_kept(faces: list[EvaluationFace], metrics: MetricSet) -> None:
    plan = Plan(degradations=("moderate",), conditions=(Condition.REFERENCES, Condition.NO_REFERENCES))
    result = evaluate(faces[:2], [Method("overflow", NeverFinite())], metrics, plan)
    kept = result.runs[RunKey("overflow", "moderate", Condition.REFERENCES)]
    assert kept.not_finite == {face.name for face in faces[:2]}
    lq = result.runs[RunKey(LQ_INPUT, "moderate", Condition.LQ)]
    np.testing.assert_allclose(kept.scores["dlib distance"], lq.scores["dlib distance"], atol=0.1)
    retried = result.runs[RunKey("overflow", "moderate", Condition.NO_REFERENCES)]
    assert not retried.not_finite
    assert (retried.scores["PSNR dB"] < 15).all()


def test_lq_pictures_of_the_set(faces: list[EvaluationFace], metrics: MetricSet) -> None:
    with pytest.raises(UsageError, match="4 without, first faces/ann_target"):
        evaluate(faces, [], metrics, Plan(degradations=(GIVEN,)))
    given = EvaluationFace("a", "a", faces[0].truth, (), lq=faces[1].truth)
    np.testing.assert_array_equal(degraded_crop(given, read_crop(given.truth), GIVEN, 0), read_crop(faces[1].truth))


def test_old_photos_are_compared_with_the_truth_in_their_tone(faces: list[EvaluationFace], metrics: MetricSet) -> None:
    truths = [read_crop(face.truth) for face in faces]
    seed = next(seed for seed in range(50) if archive.draw(faces[0].seed(seed)).tone.grey)
    target = target_crop(faces[0], truths[0], "archive", seed)
    assert (target[..., 0] == target[..., 2]).all() and not (truths[0][..., 0] == truths[0][..., 2]).all()
    assert target_crop(faces[0], truths[0], "severe", seed) is truths[0]
    result = evaluate(faces[:1], [], metrics, Plan(degradations=("archive", "severe"), seed=seed))
    for name, truth in (("archive", target), ("severe", truths[0])):
        expected = metrics.score([degraded_crop(faces[0], truths[0], name, seed)], truth)
        found = result.runs[RunKey(LQ_INPUT, name, Condition.LQ)].scores
        assert found["PSNR dB"][0] == pytest.approx(expected["PSNR dB"][0])
        assert found["dlib distance"][0] == pytest.approx(expected["dlib distance"][0], rel=1e-3)


def test_faces_without_references_are_left_out_where_references_are_needed(
    faces: list[EvaluationFace], metrics: MetricSet, mirror: MirroredReference
) -> None:
    lonely = EvaluationFace("lonely", "lonely", faces[0].truth, ())
    plan = Plan(degradations=("moderate",))
    result = evaluate([*faces[1:3], lonely], [Method("mirror", mirror)], metrics, plan)
    with_references = result.runs[RunKey("mirror", "moderate", Condition.REFERENCES)].scores["SSIM"]
    assert np.isfinite(with_references).tolist() == [True, True, False]
    compared = [c for c in result.comparisons if c.second is Condition.LQ and c.first is Condition.REFERENCES]
    assert {c.faces for c in compared} == {2}
    assert as_json(result)["runs"][1]["faces"] == 2


def test_wrong_plans_are_refused(faces: list[EvaluationFace], metrics: MetricSet, mirror: MirroredReference) -> None:
    with pytest.raises(UsageError, match="severe"):
        Plan(degradations=("gentle",))
    with pytest.raises(UsageError, match="different names"):
        evaluate(faces, [Method("a", mirror), Method("a", mirror)], metrics)
    with pytest.raises(UsageError, match="at least one"):
        evaluate([], [], metrics)


def test_sheet_shows_the_faces_and_the_worst_first(evaluation: Evaluation) -> None:
    worst = worst_faces(evaluation, "mirror", "severe")
    distances = evaluation.runs[RunKey("mirror", "severe", Condition.REFERENCES)].scores["dlib distance"]
    assert distances[worst].tolist() == sorted(distances, reverse=True)
    sheet = np.array(draw_sheet(evaluation, "mirror", "severe", [0, 1]))
    truth = np.array(Image.fromarray(read_crop(evaluation.faces[1].truth)).resize((224, 224), Image.Resampling.LANCZOS))
    step_x, top = 224 + 4, 2 * 18 + 4 + 224 + 18 + 4
    shown = sheet[top : top + 224, 4 + 5 * step_x : 4 + 5 * step_x + 224]
    assert np.abs(shown.astype(int) - truth).mean() < 4
    restored = sheet[top : top + 224, 4 + step_x : 4 + step_x + 224]
    assert np.abs(restored.astype(int) - truth).mean() < 8


def test_command_with_a_real_model(folder: Path, tiny_model: Path, tmp_path: Path) -> None:
    output = tmp_path / "results"
    done = facefix("evaluate", folder, "--model", tiny_model, "--limit", 2, "--degradation", "severe", "-o", output)
    assert done.code == 0, done.stderr
    for expected in (
        "LQ input",
        "autoencoder alone",
        "another photo",
        "dlib distance",
        "references - LQ input",
        "worse",
    ):
        assert expected in done.stdout
    results = json.loads((output / "evaluation.json").read_text())
    assert [face["identity"] for face in results["faces"]] == ["ann", "cid"]
    restored = next(run for run in results["runs"] if run["condition"] == "references")
    assert restored["seconds_per_face"] > 0
    assert restored["peak_memory_mib"] > 50
    assert len(restored["per_face"]["dlib distance"]) == 2
    assert sorted(path.name for path in output.glob("*.png")) == ["sheet_tiny_severe.png", "worst_tiny_severe.png"]


def test_command_compares_steps_and_samplers(folder: Path, tiny_model: Path) -> None:
    done = facefix(
        *("evaluate", folder, "--model", tiny_model, "--limit", 1, "--degradation", "moderate"),
        *("--sweep", "--steps", 1, "--steps", 3, "--sampler", "ddim", "--start-timestep", 400, "--json", "--quiet"),
    )
    assert done.code == 0, done.stderr
    results = json.loads(done.stdout)
    names = [method["name"] for method in results["methods"]]
    assert names == ["tiny, 1 steps, ddim, from t=400", "tiny, 3 steps, ddim, from t=400"]
    assert len({method["recipe"] for method in results["methods"]}) == 2
    restored = [run for run in results["runs"] if run["method"] in names]
    assert {run["condition"] for run in restored} == {"references"}
    assert restored[0]["mean"]["PSNR dB"] != restored[1]["mean"]["PSNR dB"]


def test_command_without_a_model_scores_the_input(folder: Path) -> None:
    done = facefix("evaluate", folder, "--model", "none", "--limit", 1, "--json")
    assert done.code == 0, done.stderr
    runs = json.loads(done.stdout)["runs"]
    assert {run["condition"] for run in runs} == {"LQ input", "another photo"}


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--degradation", "gentle"], 2, "expected one of spec, severe, moderate, mild, archive, given"),
        (["--condition", "luck"], 2, "no-references"),
        (["--model", "no-such-model"], 69, "no-such-model"),
        (["--model", "none", "--arcface", "missing.onnx"], 69, r"missing.onnx"),
    ],
)
def test_command_errors(folder: Path, arguments: list[str], code: int, message: str) -> None:
    done = facefix("evaluate", folder, *arguments)
    assert done.code == code
    assert message in done.stderr
    assert done.stdout == ""


def test_identity_distances_of_degraded_faces_are_as_known(shared: Path, metrics: MetricSet) -> None:
    """Severe about 0.64, moderate about 0.30, another photo of the person 0.33 to 0.35 on comparable faces."""
    faces = read_faces(shared / "data" / "eval_public")[::5]
    runs = evaluate(faces, [], metrics).runs

    def mean(key: RunKey) -> float:
        return float(np.nanmean(runs[key].scores["dlib distance"]))

    assert mean(RunKey(LQ_INPUT, "severe", Condition.LQ)) == pytest.approx(0.64, abs=0.08)
    assert mean(RunKey(LQ_INPUT, "moderate", Condition.LQ)) == pytest.approx(0.31, abs=0.06)
    assert mean(RunKey(OTHER_PHOTO, NOT_DEGRADED, Condition.OTHER_PHOTO)) == pytest.approx(0.33, abs=0.06)


class Blind(RestorerDefaults):
    """Takes no references; fails if it is given any."""

    name = "blind"
    crop_size = 512
    recipe = "blind-1"

    def restore(
        self, crops: Sequence[Pixels], references: object | None, seeds: Sequence[int] | None = None
    ) -> list[Pixels]:
        assert references is None
        return list(crops)


class Needing(MirroredReference):
    """Needs references."""

    @property
    def references(self) -> ReferenceUse:
        return "needed"


def test_conditions_that_a_method_does_not_have_are_left_out(faces: list[EvaluationFace], metrics: MetricSet) -> None:
    plan = Plan(degradations=("moderate",))
    methods = [Method("blind", Blind()), Method("needing", Needing())]
    runs = evaluate(faces[:2], methods, metrics, plan).runs
    shown = {name: {key.condition for key in runs if key.method == name} for name in ("blind", "needing")}
    assert shown["blind"] == {Condition.NO_REFERENCES}
    assert shown["needing"] == {Condition.REFERENCES, Condition.WRONG_REFERENCES}


def test_command_leaves_a_part_out(folder: Path, tiny_model: Path) -> None:
    arguments = ("evaluate", folder, "--model", tiny_model, "--limit", 1, "--degradation", "moderate", "--json")
    done = facefix(*arguments, "--ablation", "detail", "--condition", "references", "--no-autoencoder", "--quiet")
    assert done.code == 0, done.stderr
    methods = json.loads(done.stdout)["methods"]
    assert [method["name"] for method in methods] == ["tiny", "tiny, without detail"]
    assert methods[0]["recipe"] != methods[1]["recipe"]
    wrong = facefix(*arguments, "--ablation", "luck")
    assert wrong.code == 2
    assert "--ablation: expected for model tiny one of guide, cachekv, detail; found 'luck'" in wrong.stderr
