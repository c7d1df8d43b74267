"""SCRFD and ArcFace from a local folder of ONNX files, through the insightface package's own classes.

Nothing is downloaded: the package is only ever given paths of files that are there.
"""

from __future__ import annotations

import threading
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from facefix.errors import CheckpointError, DeviceError, WeightsUnavailable
from facefix.faces.detect import Search, without_overlaps
from facefix.faces.embed import ArcFaceEmbedder
from facefix.faces.face import Detection

DETECTION_INPUT = (640, 640)
CLOSE_UP_INPUT = (128, 128)
"""SCRFD misses faces that fill its input; the package itself searches at both sizes by default."""
LEAST_IN_INPUT = 16.0
"""Side of SCRFD's smallest anchors."""
CONFIDENCE_FLOOR = 0.5
"""insightface's own default."""


def find_model_files(folder: Path) -> tuple[Path, Path] | None:
    """The detection and the recognition model in a folder like buffalo_l: told apart by their outputs, or None."""
    detection = recognition = None
    for path in sorted(folder.glob("*.onnx")):
        outputs, side = _outputs_and_side(path)
        if outputs in (9, 15):
            detection = path
        elif outputs == 1 and side == 112:
            recognition = path
    return None if detection is None or recognition is None else (detection, recognition)


def load_scrfd(folder: Path, device: str = "cpu") -> ScrfdDetector:
    """Raises WeightsUnavailable when the folder holds none, CheckpointError when it cannot be read."""
    return ScrfdDetector(_load(_require(folder)[0], device))


def load_arcface(folder: Path, device: str = "cpu") -> ArcFaceEmbedder:
    """Raises WeightsUnavailable when the folder holds none, CheckpointError when it cannot be read."""
    path = _require(folder)[1]
    return ArcFaceEmbedder(_load(path, device), name=path.stem)


class ScrfdDetector:
    """SCRFD: Guo et al. 2021, "Sample and Computation Redistribution for Efficient Face Detection"."""

    name = "insightface"

    def __init__(self, model: Any) -> None:
        """``model`` is insightface's SCRFD with five key points."""
        self._model = model
        self._lock = threading.Lock()  # the package's class fills a cache of anchors while it runs
        self._sizes = [model.static_input_size] if model.static_input_size else [CLOSE_UP_INPUT, DETECTION_INPUT]

    def search(self, width: int, height: int, min_face_px: float | None = None) -> Search:
        """Photos are searched at the size of the network's input, whatever is asked for."""
        shrink = max(1.0, max(width, height) / max(max(size) for size in self._sizes))
        return Search(LEAST_IN_INPUT * shrink)

    def glance(self, rgb: NDArray[np.uint8]) -> list[Detection]:
        """All its faces: there is no quicker way."""
        return self.detect(rgb)

    def detect(self, rgb: NDArray[np.uint8], min_face_px: float | None = None) -> list[Detection]:
        """Faces of a photo (H, W, 3), best first. Confidence is the network's probability."""
        bgr = np.ascontiguousarray(rgb[:, :, ::-1])  # the package works on OpenCV's channel order
        with self._lock:
            boxes, key_points = self._model.detect(bgr, input_size=self._sizes, det_thresh=CONFIDENCE_FLOOR)
        detections = [
            Detection((float(b[0]), float(b[1]), float(b[2]), float(b[3])), points.astype(np.float64), float(b[4]))
            for b, points in zip(boxes, key_points, strict=True)
        ]
        return without_overlaps(detections)


def _require(folder: Path) -> tuple[Path, Path]:
    found = find_model_files(folder)
    if found is None:
        raise WeightsUnavailable(f"{folder}: expected a detection (SCRFD) and a recognition (ArcFace) .onnx file")
    return found


def _load(path: Path, device: str) -> Any:
    from insightface import model_zoo
    from onnxruntime.capi import onnxruntime_pybind11_state as onnx_errors

    try:
        model = model_zoo.get_model(str(path), providers=_providers(device))
    except (onnx_errors.Fail, onnx_errors.InvalidProtobuf, onnx_errors.InvalidGraph) as error:
        raise CheckpointError(
            f"{path}: expected an ONNX model, found a file that cannot be loaded ({error})"
        ) from error
    if model is None:
        raise CheckpointError(f"{path}: expected an SCRFD or ArcFace model, found an ONNX file of another kind")
    return model


def _providers(device: str) -> list[str]:
    import onnxruntime

    if not device.startswith("cuda"):
        return ["CPUExecutionProvider"]
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        raise DeviceError("device cuda: expected onnxruntime with CUDA, found a build without; install onnxruntime-gpu")
    return ["CUDAExecutionProvider", "CPUExecutionProvider"]


def _outputs_and_side(path: Path) -> tuple[int, int]:
    """Number of outputs and width of the input of an ONNX file; (0, 0) for what is none."""
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            graph = onnx.load_model(str(path), load_external_data=False).graph
        except (DecodeError, OSError, ValueError):
            return 0, 0
    sides = [value.type.tensor_type.shape.dim[-1].dim_value for value in graph.input]
    return len(graph.output), int(sides[0]) if sides else 0
