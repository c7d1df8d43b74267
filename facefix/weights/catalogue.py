"""The catalogue of weights: what each is, where it comes from, its sha256 and licence; find, pull and verify them.

Nothing is fetched without being asked. Installed weights lie in one folder each under `weights_dir()`, with a
``SHA256SUMS`` over its files and a ``SOURCE.txt`` that says where they come from and under which licence.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from facefix.errors import UsageError, WeightsUnavailable
from facefix.methods.registry import MODEL_INDEX, RestorationMethod, methods

SHIPPED_MODEL = "small"


@dataclass(frozen=True, slots=True)
class PublishedFile:
    """One file as its publisher offers it."""

    name: str
    url: str
    size: int | None = None
    sha256: str | None = None
    """None: not known yet; pinned when it is first fetched and installed"""


@dataclass(frozen=True, slots=True)
class Weights:
    """One entry of the catalogue."""

    name: str
    summary: str
    licence: str
    licence_url: str
    non_commercial: bool
    """such a licence is shown, and must be accepted before anything is fetched"""
    install: str
    """``unzip``: the one file is a zip; ``import``: published checkpoints of ``method``; ``shipped``: with facefix"""
    files: tuple[PublishedFile, ...] = ()
    contents: tuple[str, ...] = ()
    """patterns; each must match a file in the installed folder"""
    note: str = ""
    method: str | None = None
    """the restoration method of a model (:mod:`facefix.methods.registry`); None for other weights"""

    @property
    def is_model(self) -> bool:
        """Whether it is a restoration model in diffusers layout."""
        return self.method is not None

    @property
    def download_bytes(self) -> int | None:
        """Size of everything to fetch, None where it is not known."""
        sizes = [file.size for file in self.files]
        return None if not sizes or None in sizes else sum(size for size in sizes if size is not None)


CATALOGUE: Mapping[str, Weights] = {
    entry.name: entry
    for entry in (
        Weights(
            name="small",
            summary="facefix's own restoration model, trained on free pictures only",
            licence="Apache-2.0",
            licence_url="https://www.apache.org/licenses/LICENSE-2.0",
            non_commercial=False,
            install="shipped",
            contents=(MODEL_INDEX,),
            method="guided",
        ),
        Weights(
            name="refldm",
            summary="ReF-LDM (NeurIPS 2024), the published reference-based restoration model",
            licence="non-commercial research only (ReF-LDM licence)",
            licence_url="https://github.com/ChiWeiHsiao/ref-ldm#license-and-usage",
            non_commercial=True,
            install="import",
            method="refldm",
            files=(
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
            contents=(MODEL_INDEX,),
            note="trained on FFHQ, which is under CC BY-NC-SA 4.0",
        ),
        Weights(
            name="buffalo_l",
            summary="insightface: SCRFD-10GF face detector and ArcFace ResNet-50 embeddings",
            licence="non-commercial research only (insightface model licence)",
            licence_url="https://github.com/deepinsight/insightface#license",
            non_commercial=True,
            install="unzip",
            files=(
                PublishedFile(
                    "buffalo_l.zip",
                    "https://github.com/deepinsight/insightface/releases/download/v0.7/buffalo_l.zip",
                    288621354,
                    "80ffe37d8a5940d59a7384c201a2a38d4741f2f3c51eef46ebb28218a7b0ca2f",
                ),
            ),
            contents=("det_10g.onnx", "w600k_r50.onnx"),
        ),
        Weights(
            name="retinaface-r50",
            summary="RetinaFace ResNet-50 face detector of the retinaface-pytorch package",
            licence="MIT",
            licence_url="https://github.com/ternaus/retinaface",
            non_commercial=False,
            install="unzip",
            files=(
                PublishedFile(
                    "retinaface_resnet50_2020-07-20-f168fae3c.zip",
                    "https://github.com/ternaus/retinaface/releases/download/0.01/"
                    "retinaface_resnet50_2020-07-20-f168fae3c.zip",
                ),
            ),
            contents=("*.pth",),
            note="trained on WIDER FACE, a research data set: its publishers' terms are stricter than MIT",
        ),
    )
}


def imported(method: RestorationMethod) -> Weights:
    """What is imported of a method's published checkpoints: its entry in the catalogue, or one of its row."""
    for weights in CATALOGUE.values():
        if weights.install == "import" and weights.method == method.name:
            return weights
    return Weights(
        method.name,
        method.summary,
        method.licence,
        method.licence_url,
        method.non_commercial,
        install="import",
        contents=(MODEL_INDEX,),
        method=method.name,
    )


def weights_dir() -> Path:
    """Folder of the installed weights: ``FACEFIX_WEIGHTS_DIR``, or ``facefix/weights`` in the user's data folder."""
    chosen = os.environ.get("FACEFIX_WEIGHTS_DIR")
    if chosen:
        return Path(chosen).expanduser()
    return _user_data_dir() / "facefix" / "weights"


def _user_data_dir() -> Path:
    """The platform's folder for data of programs (XDG Base Directory Specification on Linux)."""
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    base = os.environ.get("XDG_DATA_HOME", "")
    return Path(base) if os.path.isabs(base) else Path.home() / ".local" / "share"


def entry(name: str) -> Weights:
    """The catalogue's entry of that name; UsageError names those there are."""
    try:
        return CATALOGUE[name]
    except KeyError:
        raise UsageError(
            f"{name!r} is not in the catalogue of weights; expected one of: {', '.join(CATALOGUE)}"
        ) from None


def installed_folder(name: str, home: Path | None = None) -> Path | None:
    """Folder of the installed weights of that name, None when they are not (wholly) there."""
    weights = entry(name)
    folders = _shipped_folders(name) if weights.install == "shipped" else ((home or weights_dir()) / name,)
    return next((folder for folder in folders if _is_complete(weights, folder)), None)


def _shipped_folders(name: str) -> tuple[Path, ...]:
    """Where weights that ship with facefix lie: in the wheel, or in a checkout."""
    package = Path(__file__).resolve().parent.parent
    return package / "_models" / name, package.parent / "models" / name


def _is_complete(weights: Weights, folder: Path) -> bool:
    return folder.is_dir() and all(any(folder.glob(pattern)) for pattern in weights.contents)


def find_model(name_or_dir: str | Path) -> Path:
    """Folder (diffusers layout) of a restoration model given by its name in the catalogue or by its folder.

    A name of the catalogue wins over a folder of the same name; write ``./small`` for the folder. Raises
    WeightsUnavailable when it is not installed, with what to do.
    """
    name = str(name_or_dir)
    if name in CATALOGUE:
        weights = CATALOGUE[name]
        if not weights.is_model:
            raise UsageError(f"model {name!r}: expected a restoration model, found {weights.summary}")
        folder = installed_folder(name)
        if folder is None:
            raise WeightsUnavailable(how_to_install(weights))
        return folder
    for folder in (Path(name).expanduser(), weights_dir() / name):
        if (folder / MODEL_INDEX).is_file():
            return folder
    models = ", ".join(weights.name for weights in CATALOGUE.values() if weights.is_model)
    raise WeightsUnavailable(
        f"model {name!r}: expected {models} or a folder with a {MODEL_INDEX}, found "
        + ("a folder without one" if Path(name).is_dir() else "no such folder")
    )


def best_installed_model() -> str:
    """Name of the model used when none is asked for: of those installed, the one whose method ranks first."""
    ranks = {
        weights.name: methods()[weights.method].default_rank
        for weights in CATALOGUE.values()
        if weights.method in methods()
    }
    candidates = [name for name, rank in ranks.items() if rank is not None and installed_folder(name)]
    return max(candidates, key=lambda name: ranks[name] or 0, default=SHIPPED_MODEL)


def how_to_install(weights: Weights) -> str:
    """One line: it is not installed, and what to do."""
    if weights.install == "shipped":
        return f"{weights.name}: comes with facefix but is not there, so this installation is damaged: install it again"
    accept = " --accept-licence" if weights.non_commercial else ""
    return (
        f"{weights.name} is not installed in {weights_dir()}: run `facefix models pull {weights.name}{accept}` "
        f"(licence: {weights.licence}), or point FACEFIX_WEIGHTS_DIR to where it is"
    )
