"""One typed settings object: flag over ``FACEFIX_*`` variable over ``facefix.toml`` over default."""

from __future__ import annotations

import difflib
import json
import os
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PrivateAttr, ValidationError, model_validator
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

from facefix.errors import UsageError
from facefix.threads import usable_cores

CONFIG_NAME = "facefix.toml"
"""looked for in the working folder when --config is not given"""

ENV_PREFIX = "FACEFIX_"

NOT_SETTINGS = frozenset({"ARCFACE", "CONFIG", "SHARED", "WEIGHTS_DIR", "WEIGHTS_MIRROR"})
"""Variables with our prefix that are read elsewhere: the configuration file, networks, weights, test pictures."""

_NOT_SETTINGS_PREFIXES = ("TEST_", "BENCH_")
_PATHS = ("refs", "output")


def _split_list(value: Any) -> Any:
    """A list from the environment: JSON, or separated like ``PATH``."""
    if not isinstance(value, str):
        return value
    if value.lstrip().startswith("["):
        return json.loads(value)
    return [part for part in value.split(os.pathsep) if part]


class Settings(BaseSettings):
    """What `restore_album` and the commands need to know; immutable. `Settings.load` follows all sources."""

    model_config = SettingsConfigDict(frozen=True, extra="forbid")

    output: Path | None = Field(None, description="output folder; default: ALBUM-restored beside the album")
    refs: Path | None = Field(None, description="portraits: a flat folder, or one subfolder per person that names it")
    refs_from: Literal["album", "portraits", "both"] = Field("both", description="where references may come from")
    max_references: int = Field(5, ge=1, le=5, description="references per person, at most")

    faces: Literal["auto", "insightface", "retinaface", "mtcnn", "dlib"] = Field(
        "auto", description="face detection and recognition"
    )
    min_face: float | None = Field(
        None,
        ge=0,
        description="faces narrower than this many pixels are left alone; default: 24, and in photos of more than 6 "
        "megapixels, where smaller ones are looked for only if asked, more",
    )
    restore: Literal["auto", "all"] = Field("auto", description="restore only degraded faces, or all of them")
    no_ref: Literal["restore", "skip"] = Field("restore", description="what to do with a person without references")

    model: str = Field("auto", description="restoration model: its name, its folder, or auto: the best installed")
    steps: int | None = Field(None, ge=1, le=1000, description="sampling steps; default: the model's own")
    guidance: float | None = Field(None, ge=0, le=20, description="guidance scale; default: the model's own")
    sampler: Literal["ddim", "dpm++", "unipc"] | None = Field(None, description="sampler; default: the model's own")
    seed: int = Field(2024, ge=0, lt=2**63, description="seed of the noise")

    strength: float = Field(1.0, ge=0, le=1, description="how much of the restoration is used, 0 to 1")
    upscale: int = Field(1, ge=1, le=8, description="enlarge the whole photo this many times")
    raw_format: Literal["tiff", "jpeg"] = Field("tiff", description="format of developed camera raw photos")
    only_changed: bool = Field(False, description="write only photos in which a face was restored")
    if_exists: Literal["skip", "overwrite", "fail"] = Field(
        "skip", description="what to do with a file in the output folder that is not known to be ours"
    )
    copy_others: bool = Field(False, description="also copy files that are no photos: films, sidecars, other formats")
    prune: Literal["count", "list", "remove"] = Field(
        "count", description="outputs whose photos are gone: count them, list them, or remove those as written"
    )
    recursive: bool = Field(True, description="look into folders inside folders")
    exclude: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split_list)] = Field(
        (), description="shell patterns of names or paths left out of the scan"
    )
    strict_input: bool = Field(False, description="a photo that cannot be read has failed, and is not copied")
    mtime: Literal["original", "now"] = Field(
        "original", description="date of outputs: the photo's, or the time of writing"
    )
    max_pixels: int = Field(200_000_000, ge=1, description="larger photos are refused before they are decoded")

    device: str = Field("auto", pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$", description="auto, cpu, cuda, cuda:1, mps")
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = Field("auto", description="number format of the network")
    batch_size: int | None = Field(None, ge=1, le=256, description="faces at once on the device; default: by device")
    threads: int | None = Field(None, ge=1, le=256, description="CPU threads; default: one per core")
    cache_mib: int = Field(1024, ge=0, description="memory for encoded references that are kept, in MiB")

    wait: float = Field(0.0, ge=0, description="seconds to wait for another run on the same output folder")
    report: bool = Field(True, description="write the HTML report")
    strict: bool = Field(False, description="exit with 4 when the guard flagged a face")

    _sources: dict[str, str] = PrivateAttr(default_factory=dict)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Only what is given: `load` merges the sources itself, to know where each value came from."""
        return (init_settings,)

    @model_validator(mode="after")
    def _portraits_are_given(self) -> Settings:
        if self.refs_from == "portraits" and self.refs is None:
            raise ValueError("refs_from portraits: expected a folder of portraits, found none; give --refs")
        return self

    @classmethod
    def load(
        cls,
        flags: Mapping[str, Any] | None = None,
        *,
        config: Path | None = None,
        folder: Path | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> Settings:
        """Merge flags (None: not given), the environment, and ``config`` or ``folder``/facefix.toml.

        Paths in a configuration file count from its folder. Raises UsageError that names an unknown or bad key, where
        it stands and what was meant.
        """
        environ = os.environ if environ is None else environ
        config = config or _config_from(environ) or _default_config(folder or Path.cwd())
        given = {key: value for key, value in (flags or {}).items() if value is not None}
        layers: list[tuple[dict[str, Any], dict[str, str]]] = [
            _from_file(config) if config else ({}, {}),
            _from_environment(environ),
            (given, {key: f"--{key.replace('_', '-')}" for key in given}),
        ]
        values: dict[str, Any] = {}
        sources: dict[str, str] = {}
        for layer, origins in layers:
            values |= layer
            sources |= origins
        _refuse_unknown(sources, cls.model_fields)
        try:
            settings = cls(**values)
        except ValidationError as error:
            raise UsageError(_explain(error, sources)) from error
        settings._sources.update(sources)
        return settings

    @property
    def cpu_threads(self) -> int:
        """CPU threads to use: as asked, or one per core that this process may run on."""
        return self.threads or usable_cores()

    def sources(self) -> dict[str, str]:
        """Where each setting came from: ``default``, ``--flag``, a variable's name, or a file with the key."""
        return {name: self._sources.get(name, "default") for name in type(self).model_fields}


def _config_from(environ: Mapping[str, str]) -> Path | None:
    named = environ.get(ENV_PREFIX + "CONFIG")
    return Path(named).expanduser() if named else None


def _default_config(folder: Path) -> Path | None:
    path = folder / CONFIG_NAME
    return path if path.is_file() else None


def _from_file(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    try:
        with open(path, "rb") as file:
            document = tomllib.load(file)
    except OSError as error:
        raise UsageError(f"configuration {path}: cannot be read: {error.strerror or error}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"configuration {path}: expected TOML: {error}") from error
    values = {key.replace("-", "_"): value for key, value in document.items()}
    for key in _PATHS:
        if isinstance(values.get(key), str):
            values[key] = path.absolute().parent / Path(values[key]).expanduser()
    return values, {key: f"{path}: {key}" for key in values}


def _from_environment(environ: Mapping[str, str]) -> tuple[dict[str, Any], dict[str, str]]:
    """Variables with our prefix; an empty one counts as not set."""
    values: dict[str, Any] = {}
    for name, value in environ.items():
        key = name.removeprefix(ENV_PREFIX)
        ours = name.startswith(ENV_PREFIX) and key not in NOT_SETTINGS and not key.startswith(_NOT_SETTINGS_PREFIXES)
        if ours and value != "":
            values[key.lower()] = Path(value).expanduser() if key.lower() in _PATHS else value
    return values, {key: ENV_PREFIX + key.upper() for key in values}


def _refuse_unknown(sources: Mapping[str, str], known: Iterable[str]) -> None:
    names = sorted(known)
    for key, origin in sources.items():
        if key in names:
            continue
        near = difflib.get_close_matches(key, names, n=3, cutoff=0.6)
        hint = f"did you mean {' or '.join(near)}?" if near else f"expected one of: {', '.join(names)}"
        raise UsageError(f"{origin}: there is no setting {key!r}; {hint}")


def _explain(error: ValidationError, sources: Mapping[str, str]) -> str:
    """The first problems of a failed validation, one each, naming the place."""
    problems = []
    for problem in error.errors():
        message = str(problem["msg"]).removeprefix("Value error, ")
        if not problem["loc"]:
            problems.append(message)
            continue
        key = str(problem["loc"][0])
        problems.append(f"{sources.get(key, key)}: {message[0].lower()}{message[1:]}, found {problem['input']!r}")
    return "; ".join(problems)
