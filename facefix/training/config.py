"""What a training run is told: one YAML file, checked on reading, copied into the run folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import Field, ValidationError, model_validator

from facefix.datasets.degradation import PRESETS
from facefix.datasets.sources import Count, Faces, Positive, Probability, Section
from facefix.errors import UsageError


class Schedule(Section):
    """How long and how fast."""

    steps: Count
    minutes: Positive | None = None
    """stop (and finish the decay of the learning rate) after so many minutes of training, if that comes first"""
    batch: Count
    learning_rate: Positive
    optimiser: Literal["adamw", "muon"] = "adamw"
    """``muon``: inner kernels by Muon with ``muon_rate``, the rest by AdamW"""
    muon_rate: Positive = 0.01
    final_rate: Probability = 0.02
    """fraction of the learning rate that the cosine ends at"""
    warmup_steps: int = Field(100, ge=0)
    weight_decay: float = Field(1e-3, ge=0)
    gradient_limit: Positive = 1.0
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.9999
    leg_minutes: Positive | None = None
    """write a checkpoint and stop after so many minutes of one call; ``--resume`` goes on"""


class Machine(Section):
    """What it runs on. ``auto`` takes CUDA where there is one."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: Literal["fp32", "bf16"] = "bf16"
    """bf16 is autocast: weights and optimiser stay in fp32"""
    channels_last: bool = False
    compile: bool = False


class Watching(Section):
    """What is written along the way."""

    log_steps: Count = 20
    checkpoint_steps: Count = 200
    sheet_steps: Count = 500
    sheet_faces: Count = 6


class AutoencoderLosses(Section):
    """Weights of the autoencoder's losses; 0 switches one off."""

    l1: float = 1.0
    l2: float = 0.0
    perceptual: float = 0.0
    perceptual_every: Count = 1
    """on every k-th step only, with k times the weight"""
    identity: float = 0.0
    """on every k-th step, which then sees whole faces ``whole`` px wide in their own colours"""
    identity_every: Count = 3
    codebook: float = 1.0
    commitment: float = 0.25
    adversarial: float = 0.0
    """hinge patch GAN, balanced by the gradients at the last layer (Esser et al. 2021, eq. 7) times this"""
    adversarial_from: int = 0
    """first step with the discriminator"""
    latent_scale: float = 0.0
    """pulls the latents' mean and variance to 0 and 1"""


class AutoencoderTraining(Section):
    """``facefix train autoencoder``."""

    kind: Literal["autoencoder"] = "autoencoder"
    run: Path
    seed: int = 1
    faces: Faces
    model: str | dict[str, Any] = "small"
    start_from: Path | None = None
    """folder of a VQModel to go on from"""
    freeze_encoder: bool = False
    """improve the decoder only, so that latents cached for a denoiser stay valid"""
    quantize: bool = True
    """train through the codebook; without it, only the codebook loss sees the codes"""
    latent_noise: float = Field(0.0, ge=0)
    """standard deviation of noise on the latents, so that small errors of the denoiser do not show"""
    crop: int = Field(96, ge=32, multiple_of=8)
    whole_from: Probability = 1.0
    """fraction of the run after which every third step sees larger pieces, ``whole`` px wide"""
    whole: int = Field(256, ge=32, multiple_of=8)
    colour: Probability = 0.5
    """share of crops with colour jitter"""
    low_quality: Probability = 0.15
    """share of crops that are blurred and noisy, since the autoencoder has to encode those too"""
    losses: AutoencoderLosses = AutoencoderLosses()
    schedule: Schedule
    machine: Machine = Machine()
    watching: Watching = Watching()


class References(Section):
    """The reference images of a sample."""

    count: Count = 1
    """per sample, repeated when a person has fewer"""
    share: Count = 1
    """so many degraded versions of one face share a reference pass"""
    nulled: Probability = 0.1
    """references replaced by zeros (the unconditional branch of guidance)"""
    absent: Probability = 0.0
    """no references at all"""
    paired: Probability | None = None
    """share of samples of people with several pictures, whose references are other pictures; by default as they are"""
    pristine: Probability = 0.5
    """share of other pictures that are taken as they are, with a guided bank"""


class Bank(Section):
    """Latents computed once with the frozen autoencoder."""

    path: Path
    """file; computed when it is not there"""
    presets: dict[str, Count] = Field({"severe": 4, "moderate": 2, "spec": 2})
    """degraded versions of each face"""
    references: Count = 3
    """augmented versions of each face as a reference"""
    guided: bool = False
    """for a denoiser that takes a guide: guides for all degraded versions, and references that stay on the template.
    There must be an even number of references and of degraded versions."""

    @model_validator(mode="after")
    def _known(self) -> Bank:
        if unknown := set(self.presets) - set(PRESETS):
            raise ValueError(f"presets: expected some of {sorted(PRESETS)}, found {sorted(unknown)}")
        counts = {"references": self.references, "presets": sum(self.presets.values())}
        if self.guided and (odd := [name for name, count in counts.items() if count % 2]):
            raise ValueError(f"{odd}: expected even numbers with guides, found {counts}")
        return self


class DecodedLosses(Section):
    """Losses on the decoded prediction, for some samples of a batch."""

    after: Probability = 0.0
    """from this fraction of the run on"""
    samples: Count = 2
    window: Count | None = None
    """side of the piece that is decoded, in latents, around the face's centre; the whole face by default"""
    truth: Literal["reconstruction", "image"] = "reconstruction"
    """compare with what the autoencoder makes of the truth, as published, or with the truth"""
    l1: float = 0.0
    perceptual: float = 0.0
    identity: float = 0.0
    identity_weighting: Literal["none", "naive", "sqrt_abar"] = "sqrt_abar"
    """the paper's ablation: no identity loss, the same weight at every timestep, or sqrt(alphas_cumprod[t])"""
    identity_network: Literal["arcface", "dlib"] = "dlib"

    @property
    def active(self) -> bool:
        """Whether anything is decoded at all."""
        return bool(self.l1 or self.perceptual or (self.identity and self.identity_weighting != "none"))


class Objective(Section):
    """What the denoiser learns."""

    prediction: Literal["epsilon", "sample", "v_prediction"] = "epsilon"
    residual: bool = False
    """diffuse the difference between the HQ and the LQ latent"""
    loss: Literal["l2", "l1"] = "l2"
    high_timesteps: Positive = 1.0
    """t = 1000 u^(1/this): 1 is uniform, larger values favour the noisiest timesteps"""
    lq_dropout: Probability = 0.1
    lq_pooled: Probability = 0.0
    """share of LQ latents averaged over 8 x 8 places: only the references can tell who that is"""
    decoded: DecodedLosses = DecodedLosses()


class DenoiserTraining(Section):
    """``facefix train denoiser``."""

    kind: Literal["denoiser"] = "denoiser"
    run: Path
    seed: int = 1
    faces: Faces
    held_out: int = Field(16, ge=0)
    """people left out of training, for the losses with right, wrong and no references"""
    autoencoder: Path
    """folder of a trained VQModel"""
    quantize: bool = False
    """decode through the codebook"""
    model: str | dict[str, Any] = "small"
    start_from: Path | None = None
    """folder of a UNet2DModel to go on from; without a guide's input channels, these and the output start at zero"""
    bank: Bank
    references: References = References()
    objective: Objective = Objective()
    schedule: Schedule
    machine: Machine = Machine()
    watching: Watching = Watching()


class LandmarkTraining(Section):
    """``facefix train landmarks``."""

    kind: Literal["landmarks"] = "landmarks"
    run: Path
    seed: int = 1
    faces: Faces
    """``size`` is that of the degraded pictures before they are made as small as the network sees them"""
    held_out: int = Field(60, ge=0)
    """people left out of training, for the errors in pixels"""
    model: dict[str, Any] = Field(default_factory=dict)
    """arguments of LandmarkNetwork"""
    bank: Path
    """file of the small degraded pictures and the true points; computed when it is not there"""
    presets: dict[str, Count] = Field({"severe": 3, "moderate": 2, "archive": 4, "mild": 1}, min_length=1)
    """degraded versions of each face; it is seen as it is too"""
    predictor: Path | None = None
    """dlib's 68-point predictor; that of the package face_recognition_models by default"""
    rotation_deg: float = Field(6.0, ge=0)
    zoom: float = Field(0.06, ge=0)
    shift_px: float = Field(10.0, ge=0)
    """crops are turned, enlarged and moved by up to so much of the 512 crop"""
    schedule: Schedule
    machine: Machine = Machine()
    watching: Watching = Watching()


class SurvivalTraining(Section):
    """``facefix train survival``."""

    kind: Literal["survival"] = "survival"
    run: Path
    seed: int = 1
    faces: Faces
    """only pictures of at least 512 px are used: smaller ones have lost their finest band already"""
    held_out: int = Field(60, ge=0)
    """people left out of training, for the errors"""
    model: dict[str, Any] = Field(default_factory=dict)
    """arguments of SurvivalNetwork"""
    bank: Path
    """file of pieces of degraded pictures and what survived in them; computed when it is not there"""
    presets: dict[str, Count] = Field({"severe": 1, "moderate": 1, "archive": 2, "mild": 1}, min_length=1)
    """degraded versions of each face"""
    piece: int = Field(256, ge=64, multiple_of=32)
    """side in px of the random piece of each version"""
    schedule: Schedule
    machine: Machine = Machine()
    watching: Watching = Watching()


Training = TypeVar("Training", bound=Section)


def read_config(path: Path, kind: type[Training]) -> Training:
    """The configuration in a YAML file, its paths made absolute (relative ones start at the file's folder).

    Raises UsageError when the file cannot be read, is not YAML, or holds a wrong, missing or unknown key.
    """
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"{path}: expected a YAML file with a training configuration: {error}") from error
    try:
        config = kind.model_validate(raw)
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'file'}: {e['msg']}" for e in error.errors())
        raise UsageError(f"{path}: {faults}") from error
    absolute: Training = _absolute(config, path.resolve().parent)
    return absolute


def _absolute(section: Any, base: Path) -> Any:
    """A copy of a section with every relative path joined to ``base``."""
    if isinstance(section, Section):
        fields = {name: _absolute(getattr(section, name), base) for name in type(section).model_fields}
        return section.model_copy(update=fields)
    if isinstance(section, Path):
        return section if section.is_absolute() else base / section
    if isinstance(section, tuple):
        return tuple(_absolute(item, base) for item in section)
    return section


def write_config(config: Section, path: Path) -> None:
    """Write a configuration as YAML that :func:`read_config` reads back."""
    path.write_text(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False), encoding="utf-8")
