"""Both legs of training on tiny sizes: they learn, and a stopped run goes on to the same numbers."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from skimage import data
from tiny_interlcm import UNET

from facefix.errors import CheckpointError, UsageError
from facefix.methods.interlcm.pipeline import InterLCMPipeline
from facefix.methods.interlcm.prior import ConsistencyFunction, FacePrior, PriorTask, draw_window
from facefix.methods.interlcm.spatial import lcm_scheduler
from facefix.methods.interlcm.training import RestorerTask, train_interlcm
from facefix.methods.interlcm.training_config import PriorTraining, RestorerTraining, Windows
from facefix.methods.registry import method_named
from facefix.training.config import read_config
from facefix.training.loop import Moment

CONFIGS = Path(__file__).resolve().parents[3] / "facefix" / "methods" / "interlcm" / "configs"
AUTOENCODER = Path(__file__).resolve().parents[3] / "models" / "small" / "autoencoder"


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Faces of four people, two pictures each."""
    folder = tmp_path_factory.mktemp("material")
    (folder / "faces").mkdir()
    picture = Image.fromarray(data.astronaut())
    lines = ["file,identity"]
    for number in range(8):
        left, top = 40 * (number // 2), 10 * (number % 2)
        piece = picture.crop((left, top, left + 160, top + 150))
        piece.resize((64, 64)).save(folder / "faces" / f"{number}.png")
        lines.append(f"faces/{number}.png,person {number // 2}")
    (folder / "manifest.csv").write_text("\n".join(lines) + "\n")
    return folder


def common(material: Path, run: Path, steps: int) -> dict[str, Any]:
    return {
        "run": run,
        "faces": {"images": [material / "faces"], "manifest": material / "manifest.csv", "size": 64},
        "held_out": 2,
        "autoencoder": AUTOENCODER,
        "bank": {"path": material / "bank", "presets": {"severe": 1, "moderate": 1}, "references": 1},
        "schedule": {"steps": steps, "batch": 2, "learning_rate": 2e-3, "warmup_steps": 1, "ema_decay": 0.9},
        "machine": {"device": "cpu", "dtype": "fp32"},
        "watching": {"log_steps": 1, "checkpoint_steps": 100, "sheet_steps": 100, "sheet_faces": 1},
    }


def prior_config(material: Path, run: Path, steps: int = 6, **changes: Any) -> PriorTraining:
    settings = {**common(material, run, steps), "model": UNET, "null_tokens": 4}
    return PriorTraining.model_validate({**settings, **changes})


def restorer_config(material: Path, run: Path, prior: Path, length: int = 6, **changes: Any) -> RestorerTraining:
    settings: dict[str, Any] = {
        **common(material, run, length),
        "prior": prior,
        "conditioning": (8, 8, 16, 16),
        "visual": {"widths": (8, 16, 16), "norm_num_groups": 8},
        "token_steps": 2,
        "losses": {"perceptual": 0.2, "adversarial": 0.1, "adversarial_after": 0.5, "window": 4},
        "windows": {"side": 4, "until": 0.5},
    }
    return RestorerTraining.model_validate({**settings, **changes})


@pytest.fixture(scope="module")
def prior(material: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A consistency model that was trained for a moment."""
    folder = tmp_path_factory.mktemp("prior")
    train_interlcm(prior_config(material, folder / "denoiser", 3))
    distilled = {"teacher": folder / "denoiser" / "model"}
    train_interlcm(prior_config(material, folder / "consistency", 3, consistency=distilled))
    return folder / "consistency" / "model"


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def assert_resumes(config: Any, folder: Path) -> dict[str, Any]:
    """Whole and in legs, a run ends in the same state, which is returned."""
    whole = config.model_copy(update={"run": folder / "whole"})
    assert train_interlcm(whole).finished
    leg = config.model_copy(update={"run": folder / "legs"})
    short = leg.model_copy(update={"schedule": leg.schedule.model_copy(update={"leg_minutes": 1e-9})})
    assert train_interlcm(short).step == 1
    assert train_interlcm(short, resume=True).step == 2
    assert train_interlcm(leg, resume=True).finished
    states = [torch.load(folder / name / "checkpoint.pt", weights_only=True) for name in ("whole", "legs")]
    first, second = (_tensors(state) for state in states)
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []
    logs = [[row["loss"] for row in rows(folder / name / "losses.csv")] for name in ("whole", "legs")]
    assert logs[0] == logs[1]
    checkpoint: dict[str, Any] = states[0]
    return checkpoint


def _tensors(tree: Any, prefix: str = "") -> dict[str, torch.Tensor]:
    if isinstance(tree, torch.Tensor):
        return {prefix: tree}
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list | tuple) else ()
    return {name: t for key, value in items for name, t in _tensors(value, f"{prefix}.{key}").items()}


def test_denoiser_in_legs(material: Path, tmp_path: Path) -> None:
    assert_resumes(prior_config(material, tmp_path, 3, windows={"side": 4, "until": 0.5}), tmp_path)
    held_out = rows(tmp_path / "whole" / "held_out.csv")[-1]
    assert {"t259", "t499", "t759"} <= held_out.keys()
    assert (tmp_path / "whole" / "sheets" / "0000003.png").is_file()


def test_distillation_in_legs(material: Path, prior: Path, tmp_path: Path) -> None:
    state = assert_resumes(prior_config(material, tmp_path, 3, consistency={"teacher": prior}, held_out=0), tmp_path)
    student, target = state["network"], state["task"]["target"]
    assert student.keys() == target.keys()
    assert not torch.equal(student["null_tokens"], target["null_tokens"])  # an average lags behind


def test_restorer_in_legs(material: Path, prior: Path, tmp_path: Path) -> None:
    losses = {"perceptual": 0.2, "adversarial": 0.1, "adversarial_after": 0.0, "window": 4}
    config = restorer_config(material, tmp_path, prior, 3, token_steps=1, losses=losses, steps=[2, 1], held_out=0)
    state = assert_resumes(config, tmp_path)
    assert {"discriminator", "optimiser"} == state["task"].keys()
    log = rows(tmp_path / "whole" / "losses.csv")
    assert [bool(row["tokens"]) for row in log] == [True, False, False]
    assert log[-1]["discriminator"]
    pipeline = InterLCMPipeline.from_pretrained(tmp_path / "whole" / "model", dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline.config.steps == [2, 1]
    assert pipeline.crop_size == 64
    assert pipeline(Image.open(material / "faces" / "0.png")).images[0].size == (64, 64)


def test_the_denoiser_learns(material: Path, tmp_path: Path) -> None:
    task = PriorTask(prior_config(material, tmp_path / "run"), torch.device("cpu"))
    assert _loss_falls(task, 40, 5e-3)


def test_the_restorer_learns(material: Path, prior: Path, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"token_steps": 0, "steps": [2], "losses": {"perceptual": 0.0}, "windows": {}}
    task = RestorerTask(restorer_config(material, tmp_path / "run", prior, **changes), torch.device("cpu"))
    frozen = {name: value.clone() for name, value in task.prior.state_dict().items()}
    assert _loss_falls(task, 15, 1e-2)
    assert all(torch.equal(value, frozen[name]) for name, value in task.prior.state_dict().items())


def _loss_falls(task: Any, steps: int, rate: float) -> bool:
    """On the same batch again and again, by a fifth at least."""
    optimiser = torch.optim.Adam(task.network.parameters(), rate)
    losses = []
    for _ in range(steps):
        loss, _ = task.losses(Moment(0, 0.0, 1))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    return losses[-1] < 0.8 * losses[0]


@torch.no_grad()
def test_what_is_watched_tells_every_part_apart(material: Path, prior: Path, tmp_path: Path) -> None:
    task = RestorerTask(restorer_config(material, tmp_path / "run", prior, steps=[1]), torch.device("cpu"))
    for parameter in task.network.parameters():  # zero convolutions let nothing through at the start
        torch.nn.init.normal_(parameter, std=0.1)
    values = task.held_out(task.network)
    names = {"lq", "steps1", "no_spatial", "from_noise"}
    assert values.keys() == {f"{name}_{measure}" for name in names for measure in ("psnr", "perceptual")}
    assert len({round(value, 6) for value in values.values()}) == len(values)


def test_both_encoders_get_a_gradient_through_every_step(material: Path, prior: Path, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"token_steps": 0, "steps": [3], "losses": {"identity": 0.1, "window": 6}}
    task = RestorerTask(restorer_config(material, tmp_path / "run", prior, **changes), torch.device("cpu"))
    for parameter in task.network.parameters():  # zero convolutions let nothing through at the start
        torch.nn.init.normal_(parameter, std=0.1)
    assert "identity" not in task.losses(Moment(0, 0.0, 1))[1]  # squares are no faces
    loss, values = task.losses(Moment(0, 1.0, 1))
    assert {"l1", "perceptual", "identity", "steps"} <= values.keys()
    loss.backward()
    for part in (task.network.spatial, task.network.visual):
        assert all(bool(weight.grad is not None and weight.grad.abs().sum() > 0) for weight in part.parameters())


def test_the_consistency_function_is_exact_without_noise(material: Path, prior: Path) -> None:
    consistent = ConsistencyFunction(lcm_scheduler(), torch.device("cpu"))
    latents = torch.randn(2, 8, 8, 8)
    with torch.no_grad():
        found = consistent(FacePrior.load(prior), latents, torch.tensor([0, 999]))
    assert torch.allclose(found[0], latents[0])
    assert not torch.allclose(found[1], latents[1], atol=0.1)


class _Knows(torch.nn.Module):
    """A teacher that knows the clean latents."""

    prediction = "sample"

    def __init__(self, clean: torch.Tensor) -> None:
        super().__init__()
        self.clean = clean

    def forward(self, noisy: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        return self.clean


def test_a_step_of_ddim_keeps_the_noise() -> None:
    consistent = ConsistencyFunction(lcm_scheduler(), torch.device("cpu"))
    clean, noise = torch.randn(2, 8, 4, 4), torch.randn(2, 8, 4, 4)
    later, earlier = torch.tensor([999, 39]), torch.tensor([979, 19])

    def noised(timesteps: torch.Tensor) -> torch.Tensor:
        signal, sigma = consistent.noise.levels(timesteps)
        return signal * clean + sigma * noise

    found = consistent.ddim(_Knows(clean), noised(later), later, earlier)  # type: ignore[arg-type]
    assert torch.allclose(found, noised(earlier), atol=1e-5)


def test_degraded_pictures_are_those_of_the_bank(material: Path, prior: Path, tmp_path: Path) -> None:
    task = RestorerTask(restorer_config(material, tmp_path / "run", prior), torch.device("cpu"))
    from facefix.networks.autoencoder import encode

    for face, version in ((0, 0), (3, 1)):
        _, lq = task.pictures.pair(face, version)
        with torch.no_grad():
            latents = encode(task.autoencoder, lq)
        stored = task.degraded[face, version].float()[None]
        assert float((latents - stored).square().mean() / stored.square().mean()) < 1e-3


def test_windows_end_when_the_configuration_says() -> None:
    generator = torch.Generator().manual_seed(0)
    settings = Windows(side=4, until=0.5)
    for progress, side in ((0.0, 4), (0.49, 4), (0.5, 16), (1.0, 16)):
        rows_, columns = draw_window(torch.Size((16, 16)), settings, Moment(0, progress, 1), generator)
        assert (rows_.stop - rows_.start, columns.stop - columns.start) == (side, side)
        assert 0 <= rows_.start <= rows_.stop <= 16


def test_wrong_configurations(material: Path, prior: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="kind"):
        read_config(CONFIGS / "interlcm-small.yaml", PriorTraining)
    with pytest.raises(ValidationError, match="adversarial_after"):
        restorer_config(material, tmp_path / "run", prior, losses={"adversarial_after": 2.0})
    with pytest.raises(CheckpointError, match="face prior"):
        RestorerTask(restorer_config(material, tmp_path / "run", material), torch.device("cpu"))
    other = prior_config(material, tmp_path / "run", prediction="epsilon", start_from=prior)
    with pytest.raises(UsageError, match="predicts epsilon"):
        PriorTask(other, torch.device("cpu"))


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_configurations(path: Path) -> None:
    leg = method_named("interlcm").training["encoders" if path.stem == "interlcm-small" else "prior"]
    config = read_config(path, leg.config.load())
    assert config.run.is_absolute()
    assert (config.run.parent, config.run.name) == (path.parent / "runs", path.stem)
