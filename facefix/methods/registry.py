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
class PublishedFile:
    """One file as its publisher offers it."""

    name: str
    url: str
    size: int | None = None
    sha256: str | None = None
    """None: not known yet; pinned when it is first fetched and installed"""


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
    """pattern of the published file that this is, for ``facefix models pull``; ``*/``: the folder that holds those
    that are published in folders"""


@dataclass(frozen=True, slots=True)
class Importer:
    """How published checkpoints become a model folder."""

    convert: Named
    """called with the options by name and ``to``, the folder to make; returns it"""
    options: tuple[ImportOption, ...]

    def run(self, to: Path, values: Mapping[str, Any]) -> Path:
        """Make the model folder ``to`` of published files.

        Args:
            values: what each option is told, by its name; those left out keep their defaults.

        Raises:
            UsageError: an option that is required is left out, or what :attr:`convert` raises.
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
    published: tuple[PublishedFile, ...] = ()
    """what ``facefix models pull`` fetches and imports; none: it is not in the catalogue of weights"""
    note: str = ""
    """what else somebody who fetches the weights should know"""
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
    summary="ReF-LDM (NeurIPS 2024), the published reference-based restoration model",
    load=Named("facefix.methods.refldm.restorer:load"),
    pipelines=("ReFLDMPipeline",),
    pipeline=Named("facefix.methods.refldm.pipeline:ReFLDMPipeline"),
    references="optional",
    licence="non-commercial research only (ReF-LDM licence)",
    licence_url="https://github.com/ChiWeiHsiao/ref-ldm#license-and-usage",
    non_commercial=True,
    published=(
        PublishedFile(
            "refldm.ckpt",
            "https://github.com/ChiWeiHsiao/ref-ldm/releases/download/1.0.0/refldm.ckpt",
            1171354376,
            "ad953ba72b52ed32dd280232ff0070bc6cb097a71dce250318730c884e38b778",
        ),
        PublishedFile(
            "vqgan.ckpt",
            "https://github.com/ChiWeiHsiao/ref-ldm/releases/download/1.0.0/vqgan.ckpt",
            778550621,
            "7b08407b454f5328aaaf1eda35418a5a53dcc68caaf3bcf12ab88b8f21ec1a5d",
        ),
    ),
    note="trained on FFHQ, which is under CC BY-NC-SA 4.0",
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

_INTERLCM_RELEASE = "https://github.com/sen-mao/InterLCM/releases/download/v0.1.0"
_LCM = "https://huggingface.co/SimianLuo/LCM_Dreamshaper_v7/resolve/main"

_INTERLCM = RestorationMethod(
    name="interlcm",
    summary="InterLCM (ICLR 2025): the face as an intermediate state of a latent consistency model; one to three steps",
    load=Named("facefix.methods.interlcm.restorer:load"),
    pipelines=("InterLCMPipeline",),
    pipeline=Named("facefix.methods.interlcm.pipeline:InterLCMPipeline"),
    references="none",
    licence="CC BY-NC 4.0 (InterLCM)",
    licence_url="https://github.com/sen-mao/InterLCM#license",
    non_commercial=True,
    published=(
        PublishedFile("visual_encoder_3step.pth", f"{_INTERLCM_RELEASE}/visual_encoder_3step.pth"),
        PublishedFile("spatial_encoder_3step.pth", f"{_INTERLCM_RELEASE}/spatial_encoder_3step.pth"),
        *(
            PublishedFile(part, f"{_LCM}/{part}")
            for part in (
                "unet/config.json",
                "unet/diffusion_pytorch_model.safetensors",
                "vae/config.json",
                "vae/diffusion_pytorch_model.safetensors",
                "scheduler/scheduler_config.json",
            )
        ),
        PublishedFile(
            "pytorch_model.bin", "https://huggingface.co/openai/clip-vit-base-patch16/resolve/main/pytorch_model.bin"
        ),
    ),
    note="6 to 8 GB to fetch, 5.6 GB installed; its base, LCM_Dreamshaper_v7, has a licence of its own",
    importer=Importer(
        Named("facefix.methods.interlcm.convert:import_interlcm"),
        (
            ImportOption("visual", "The Visual Encoder (visual_encoder_3step.pth).", published="visual_encoder_*.pth"),
            ImportOption(
                "spatial", "The Spatial Encoder (spatial_encoder_3step.pth).", published="spatial_encoder_*.pth"
            ),
            ImportOption(
                "lcm", "Folder of LCM_Dreamshaper_v7 in diffusers layout: unet, vae, scheduler.", published="*/"
            ),
            ImportOption(
                "clip",
                "CLIP ViT-B/16: safetensors or a plain state dict, not a TorchScript archive.",
                published="pytorch_model.bin",
            ),
            ImportOption("steps", "Steps that the encoders were trained for: 3 or 1.", default=3, kind=int),
            ImportOption(
                "colour_fix",
                "Colours of the result: wavelet or adain take them from the photo; none, for the encoders that colour.",
                default="wavelet",
                kind=str,
            ),
        ),
    ),
    training={
        "encoders": Leg(
            Named("facefix.methods.interlcm.training_config:RestorerTraining"),
            Named("facefix.methods.interlcm.training:train_interlcm"),
            "the Spatial Encoder and the Visual Encoder on a frozen prior",
        ),
        "prior": Leg(
            Named("facefix.methods.interlcm.training_config:PriorTraining"),
            Named("facefix.methods.interlcm.training:train_interlcm"),
            "the face prior: a denoiser, or a consistency model distilled from one",
        ),
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

BUILT_IN = (_REFLDM, _GUIDED, _PATCHES, _INTERLCM)


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

    Raises:
        UsageError: there is none; the message names those there are.
    """
    try:
        return methods()[name]
    except KeyError:
        raise UsageError(f"method: expected one of {', '.join(methods())}, found {name!r}") from None


def method_of(folder: Path) -> RestorationMethod:
    """The method that a model folder belongs to, by its model_index.json.

    Raises:
        WeightsUnavailable: there is no model in the folder.
        CheckpointError: its model_index.json cannot be read, or names a pipeline of no method.
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

    Raises:
        WeightsUnavailable: there is no model in the folder.
        CheckpointError: the files in it do not make a model, or one of no known method.
    """
    restorer: Restorer = method_of(folder).load.load()(folder, options)
    return restorer
