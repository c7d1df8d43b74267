"""The restoration methods: a row for each, as plain data. What a row names is imported when it is used.

Another package adds a method through the entry point group ``facefix.methods``; see docs/add-a-method.md.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from facefix.errors import CheckpointError, UsageError, WeightsUnavailable
from facefix.methods.base import LoadOptions, ReferenceUse, Restorer

ENTRY_POINTS = "facefix.methods"

MODEL_INDEX = "model_index.json"

REQUIRED = "required"
"""default of an option that must be given"""


@dataclass(frozen=True, slots=True)
class Named:
    """An object by its address, ``package.module:name``: imported when it is used."""

    address: str

    def load(self) -> Any:
        """The object itself."""
        module, _, name = self.address.partition(":")
        return getattr(importlib.import_module(module), name)


@dataclass(frozen=True, slots=True)
class ImportOption:
    """One thing that the import of published checkpoints is told: a file, a folder, a number or a word."""

    name: str
    """argument of the converter; ``--name`` on the command line"""
    help: str
    default: Any = REQUIRED
    kind: type = Path
    positional: bool = False
    published: str = ""
    """pattern of the published file that this is, for ``facefix models pull``"""


@dataclass(frozen=True, slots=True)
class Importer:
    """How published checkpoints become a model folder."""

    convert: Named
    """called with the options by name and ``to``, the folder to make; returns it"""
    options: tuple[ImportOption, ...]

    def run(self, to: Path, values: Mapping[str, Any]) -> Path:
        """Make the model folder ``to`` of published files.

        :param values: what each option is told, by its name; those left out keep their defaults.
        :raises UsageError: an option that is required is left out, or what :attr:`convert` raises.
        """
        told = {option.name: values.get(option.name, option.default) for option in self.options}
        missing = [name for name, value in told.items() if value == REQUIRED]
        if missing:
            raise UsageError(f"import: expected {', '.join(missing)}, found nothing")
        folder: Path = self.convert.load()(to=to, **told)
        return folder


@dataclass(frozen=True, slots=True)
class Leg:
    """One stage of training: what its configuration is, and what runs it."""

    config: Named
    """pydantic model of the YAML file"""
    train: Named
    """called with the configuration and ``resume=``; returns an Outcome"""
    help: str


@dataclass(frozen=True, slots=True)
class RestorationMethod:
    """A row: everything that the rest of facefix knows about a method."""

    name: str
    summary: str
    load: Named
    """``Loader``: (folder, LoadOptions) -> Restorer"""
    pipelines: tuple[str, ...]
    """names in ``_class_name`` of a model_index.json that are this method's"""
    references: ReferenceUse
    licence: str
    """of the published weights; weights that somebody trained have their own"""
    licence_url: str = ""
    non_commercial: bool = False
    default_rank: int | None = None
    """of the installed models the one with the highest is used when none is asked for; None: only when asked for"""
    pipeline: Named | None = None
    """class of its diffusers pipeline"""
    claims: Named | None = None
    """(folder, its model_index.json) -> whether it is this method's although its ``_class_name`` is another's"""
    importer: Importer | None = None
    training: Mapping[str, Leg] = field(default_factory=dict)


_REFLDM = RestorationMethod(
    name="refldm",
    summary="ReF-LDM (NeurIPS 2024): latent diffusion that attends to references of the person",
    load=Named("facefix.methods.refldm.restorer:load"),
    pipelines=("ReFLDMPipeline",),
    pipeline=Named("facefix.methods.refldm.pipeline:ReFLDMPipeline"),
    references="optional",
    licence="non-commercial research only (ReF-LDM licence)",
    licence_url="https://github.com/ChiWeiHsiao/ref-ldm#license-and-usage",
    non_commercial=True,
    default_rank=20,
    importer=Importer(
        Named("facefix.methods.refldm.convert:import_refldm"),
        (
            ImportOption(
                "checkpoint",
                "The published checkpoint of the denoiser (refldm.ckpt).",
                positional=True,
                published="refldm.ckpt",
            ),
            ImportOption("vqgan", "The published checkpoint of the autoencoder (vqgan.ckpt).", published="vqgan.ckpt"),
            ImportOption(
                "config", "YAML in the published format; the published model's.", default=None, published="*.y*ml"
            ),
        ),
    ),
    training={
        "denoiser": Leg(
            Named("facefix.training.config:DenoiserTraining"),
            Named("facefix.methods.refldm.training:train_denoiser"),
            "the denoiser on a frozen autoencoder",
        )
    },
)

_GUIDED = RestorationMethod(
    name="guided",
    summary="ReF-LDM that diffuses the difference to a guide, the face completed with a reference's detail",
    load=Named("facefix.methods.guided.restorer:load"),
    pipelines=("GuidedPipeline",),
    pipeline=Named("facefix.methods.guided.pipeline:GuidedPipeline"),
    references="optional",
    licence="Apache-2.0",
    licence_url="https://www.apache.org/licenses/LICENSE-2.0",
    default_rank=10,
    claims=Named("facefix.methods.guided.folders:is_guided_folder"),
    training={
        "denoiser": Leg(
            Named("facefix.training.config:DenoiserTraining"),
            Named("facefix.methods.guided.training:train_guided"),
            "the denoiser on a frozen autoencoder",
        )
    },
)

_PATCHES = RestorationMethod(
    name="patches",
    summary="512 px in one step: references through CacheKV with positions, and a guide taken where it fits",
    load=Named("facefix.methods.patches.restorer:load"),
    pipelines=("PatchPipeline",),
    pipeline=Named("facefix.methods.patches.pipeline:PatchPipeline"),
    references="optional",
    licence="Apache-2.0",
    licence_url="https://www.apache.org/licenses/LICENSE-2.0",
    default_rank=10,
    training={
        "denoiser": Leg(
            Named("facefix.methods.patches.config:PatchTraining"),
            Named("facefix.methods.patches.training:train_patches"),
            "the denoiser on a frozen autoencoder",
        ),
        "bank": Leg(
            Named("facefix.methods.patches.config:PatchTraining"),
            Named("facefix.methods.patches.bank:build_bank"),
            "what it is trained from, before it: latents of faces, degraded faces and guides",
        ),
    },
)

BUILT_IN = (_REFLDM, _GUIDED, _PATCHES)


@functools.cache
def methods() -> Mapping[str, RestorationMethod]:
    """Every method by name: those of facefix, and those that other installed packages add.

    One that cannot be imported, or is called like one of ours, is left out with a warning.
    """
    found = {method.name: method for method in BUILT_IN}
    for point in importlib.metadata.entry_points(group=ENTRY_POINTS):
        try:
            method = point.load()
        except Exception as error:  # another package's code may fail in any way, and must not fail every command
            warnings.warn(f"method {point.name} ({point.value}) is left out: {error}", stacklevel=2)
            continue
        if not isinstance(method, RestorationMethod) or method.name in found:
            expected = f"a RestorationMethod with a name other than {', '.join(found)}"
            warnings.warn(
                f"method {point.name} ({point.value}) is left out: expected {expected}, found {method!r}", stacklevel=2
            )
            continue
        found[method.name] = method
    return MappingProxyType(found)


def method_named(name: str) -> RestorationMethod:
    """The method of that name.

    :raises UsageError: there is none; the message names those there are.
    """
    try:
        return methods()[name]
    except KeyError:
        raise UsageError(f"method: expected one of {', '.join(methods())}, found {name!r}") from None


def method_of(folder: Path) -> RestorationMethod:
    """The method that a model folder belongs to, by its model_index.json.

    :raises WeightsUnavailable: there is no model in the folder.
    :raises CheckpointError: its model_index.json cannot be read, or names a pipeline of no method.
    """
    path = folder / MODEL_INDEX
    if not path.is_file():
        raise WeightsUnavailable(
            f"{folder}: expected a model in diffusers layout ({MODEL_INDEX}), found none; "
            "see `facefix models list`, or make one with `facefix models import`"
        )
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        class_name = index.get("_class_name")
    except (OSError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{path}: expected the index of a model in JSON, found: {error}") from error
    for method in methods().values():
        if method.claims is not None and method.claims.load()(folder, index):
            return method
    for method in methods().values():
        if class_name in method.pipelines:
            return method
    known = [name for method in methods().values() for name in method.pipelines]
    raise CheckpointError(f"{path}: expected _class_name to be one of {', '.join(known)}, found {class_name!r}")


def load(folder: Path, options: LoadOptions) -> Restorer:
    """The restorer of a model folder.

    :raises WeightsUnavailable: there is no model in the folder.
    :raises CheckpointError: the files in it do not make a model, or one of no known method.
    """
    restorer: Restorer = method_of(folder).load.load()(folder, options)
    return restorer
