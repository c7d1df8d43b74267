"""RetinaFace (ResNet-50) through the package retinaface-pytorch, with weights from a local file."""

from __future__ import annotations

import copy
import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from facefix.errors import CheckpointError
from facefix.faces.detect import without_overlaps
from facefix.faces.face import Detection

CONFIDENCE_FLOOR = 0.7
"""The package's own default."""
_NMS_IOU = 0.4
_MAX_ENLARGEMENT = 2.0
_MAX_SIDE = 1600
"""Photos are searched at up to this length of their longer side."""


def find_weights(folder: Path) -> Path | None:
    """``retinaface_resnet50*.pth`` (as published) or ``.safetensors`` in ``folder``, or None."""
    found = [
        path for suffix in (".pth", ".safetensors") for path in sorted(folder.glob(f"retinaface_resnet50*{suffix}"))
    ]
    return found[0] if found else None


class RetinaFaceDetector:
    """Deng et al. 2019, "RetinaFace: Single-stage Dense Face Localisation in the Wild"."""

    name = "retinaface"

    def __init__(self, weights: Path, device: str = "cpu") -> None:
        """Raises CheckpointError when the file is not a state dict of this network."""
        from retinaface.predict_single import Model

        state = _read_state(weights)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # torchvision has renamed an argument the package uses
            self._model = Model(max_size=_MAX_SIDE, device=device)
        try:
            self._model.load_state_dict(state)
        except RuntimeError as error:
            raise CheckpointError(
                f"{weights}: expected RetinaFace with ResNet-50, found other weights ({error})"
            ) from error
        self._model.eval()

    def detect(self, rgb: NDArray[np.uint8]) -> list[Detection]:
        """Faces of a photo (H, W, 3), best first. Confidence is the network's probability, in steps of 0.01."""
        model = self._sized_for(max(rgb.shape[:2]))
        found = model.predict_jsons(rgb, confidence_threshold=CONFIDENCE_FLOOR, nms_threshold=_NMS_IOU)
        detections = [
            Detection(
                (float(face["bbox"][0]), float(face["bbox"][1]), float(face["bbox"][2]), float(face["bbox"][3])),
                np.array(face["landmarks"], dtype=np.float64),
                float(face["score"]),
            )
            for face in found
            if face["bbox"]  # "no face" is an entry without a box
        ]
        return without_overlaps(detections)

    def _sized_for(self, longer_side: int) -> Any:
        """The model with the size at which a photo is searched.

        The package has one size for all, and would enlarge a small photo to it. The copy shares the network, so
        threads do not disturb each other.
        """
        import albumentations  # type: ignore[import-untyped]

        model = copy.copy(self._model)
        model.max_size = min(_MAX_SIDE, round(longer_side * _MAX_ENLARGEMENT))
        model.transform = albumentations.Compose(
            [albumentations.LongestMaxSize(max_size=model.max_size, p=1), albumentations.Normalize(p=1)]
        )
        return model


def _read_state(weights: Path) -> dict[str, torch.Tensor]:
    if weights.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(weights)
        except SafetensorError as error:
            raise CheckpointError(f"{weights}: expected safetensors, found {error}") from error
    try:
        state = torch.load(weights, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise CheckpointError(f"{weights}: expected a PyTorch state dict, found {error}") from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{weights}: expected a state dict, found {type(state).__name__}")
    return state
