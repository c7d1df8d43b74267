"""The Embedder protocol and its adapters: identity embeddings of aligned crops, from dlib's or an ArcFace network.

Every embedding has length 1, and two faces are compared by the Euclidean distance d of their embeddings, so that
d^2 = 2 - 2 cos. What a distance means belongs to the network: see Identity. Embeddings of two networks never mix.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from facefix.errors import UsageError
from facefix.faces import align
from facefix.faces.dlib_networks import CHIP_SIZE, load_recognition_network
from facefix.faces.face import Pixels

JOIN_PEOPLE = 1000
"""Number of people among whom ``IdentityScale.join`` was measured."""


@dataclass(frozen=True, slots=True)
class IdentityScale:
    """What distances between the embeddings of one network mean. Measured where ``source`` says so."""

    network: str
    join: float
    """Root mean squared distance, less ``turned``, up to which two groups of clear faces are one person, among
    JOIN_PEOPLE people."""
    join_most: float
    """The same with few people; see join_limit."""
    anchor: float
    """The same, for a group and a person that the user has named by portraits."""
    blurred: float
    """Distance up to which a blurred face belongs to a person, if that person is the only one; see blurred_limit."""
    turned: float
    """What a face turned by a yaw of 1 adds to its squared distances to its own person, and with the square of yaw."""
    per_tenfold: float
    """How much the distances shrink with ten times as many people: there are more who happen to look alike."""
    margin: float
    """How much nearer the right person must be than the next one, where a face is attached beyond ``join``."""
    same: float
    """Distance above which a result is flagged as not clearly the person."""
    source: str
    """Where the numbers come from."""

    def join_limit(self, people: int) -> float:
        """Distance up to which two groups of clear faces are one person, among so many people."""
        return min(self.join - self.per_tenfold * math.log10(max(people, 1) / JOIN_PEOPLE), self.join_most)

    def blurred_limit(self, people: int) -> float:
        """Distance up to which a blurred face belongs to the nearest of so many people."""
        return self.blurred - self.per_tenfold * math.log10(max(people, 1))


DLIB_SCALE = IdentityScale(
    network="dlib",
    join=0.291,
    join_most=0.32,
    anchor=0.34,
    blurred=0.395,
    turned=0.03,
    per_tenfold=0.02,
    margin=0.03,
    same=0.42,
    source="tests/bench/bench_grouping.py, on 1,482 clear crops, and on 480 degraded ones",
)


def arcface_scale(network: str) -> IdentityScale:
    """Distances of an ArcFace network as published, not measured here.

    Cosine distance 0.4 joins two images of FFHQ-Ref (arXiv 2412.05043): d = sqrt(0.8). Verification usually accepts
    from cosine similarity 0.35 to 0.45 on: d = 1.14 to 1.05.
    """
    return IdentityScale(
        network=network,
        join=math.sqrt(0.8),
        join_most=0.95,
        anchor=0.98,
        blurred=1.05,
        turned=0.0,
        per_tenfold=0.02,
        margin=0.05,
        same=1.14,
        source="published: cosine distance 0.4 joins two images of FFHQ-Ref (arXiv 2412.05043)",
    )


def same_person_distance(dim: int) -> float:
    """Distance within which stored embeddings of ``dim`` numbers are taken for one person, to the generous side.

    The length tells the network: dlib's embeddings have 128 numbers, ArcFace's have more.
    """
    return (DLIB_SCALE if dim == DlibEmbedder.dim else arcface_scale("arcface")).same


class Embedder(Protocol):
    """Turns aligned crops into identity embeddings. Safe to call from several threads at once."""

    name: str
    dim: int
    scale: IdentityScale

    def embed(self, crops: Sequence[Pixels]) -> NDArray[np.float32]:
        """(N, dim) embeddings of length 1."""
        ...


def _about_centre(zoom: float, degrees: float) -> align.Matrix:
    """Rotation and zoom about the middle of dlib's chip."""
    cosine, sine = zoom * math.cos(math.radians(degrees)), zoom * math.sin(math.radians(degrees))
    middle = (CHIP_SIZE - 1) / 2
    shift = (middle - cosine * middle + sine * middle, middle - sine * middle - cosine * middle)
    return np.array([[cosine, -sine, shift[0]], [sine, cosine, shift[1]]])


class DlibEmbedder:
    """dlib's residual network on the chip that its own aligner would cut, as a mean over views of the same face.

    The views (slight turns and zooms, each also mirrored) take out most of what alignment adds to an embedding; the
    length of the mean is divided out. tests/bench/bench_grouping.py measures what that is worth.
    """

    name = "dlib"
    dim = 128
    scale = DLIB_SCALE

    _VIEWS = ((1.0, 0.0), (1.03, 4.0), (1.03, -4.0), (1.08, 0.0))

    def __init__(self, network_path: Path, device: str | torch.device = "cpu") -> None:
        self._device = torch.device(device)
        network = load_recognition_network(network_path)
        self._network = network.to(self._device).to(memory_format=torch.channels_last)
        self._chips_from_crop = [
            align.compose(_about_centre(zoom, degrees), align.DLIB_CHIP_FROM_CROP) for zoom, degrees in self._VIEWS
        ]

    @torch.inference_mode()
    def embed(self, crops: Sequence[Pixels]) -> NDArray[np.float32]:
        """(N, 128) embeddings of length 1. Raises UsageError for a crop that is not square RGB."""
        embeddings = [self._embed_one(crop) for crop in crops]
        return np.stack(embeddings) if embeddings else np.zeros((0, self.dim), np.float32)

    def _embed_one(self, crop: Pixels) -> NDArray[np.float32]:
        chips = np.stack([_cut(crop, chip_from_crop, CHIP_SIZE) for chip_from_crop in self._chips_from_crop])
        views = torch.from_numpy(chips).to(self._device).permute(0, 3, 1, 2).float()  # (V, 3, 150, 150)
        views = torch.cat([views, views.flip(3)]).contiguous(memory_format=torch.channels_last)
        return _unit(self._network(views).mean(dim=0).cpu().numpy())


ARCFACE_TEMPLATE_112 = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
)
"""Where the five landmarks lie in the 112 x 112 input of ArcFace networks (insightface, utils/face_align.py)."""


class ArcFaceEmbedder:
    """An ArcFace network in ONNX, as in insightface's model packs, through the package's own class.

    Deng et al. 2019, "ArcFace: Additive Angular Margin Loss for Deep Face Recognition".
    """

    name = "arcface"

    def __init__(self, model: Any, name: str) -> None:
        """``model`` is insightface's ArcFaceONNX; ``name`` says which weights, so that embeddings never mix."""
        self.name = name
        self._model = model
        self._side = int(model.input_size[0])
        self.dim = int(model.output_shape[1])
        self.scale = arcface_scale(name)

    def embed(self, crops: Sequence[Pixels]) -> NDArray[np.float32]:
        """(N, dim) embeddings of length 1, mean of the face and its mirror image."""
        template = ARCFACE_TEMPLATE_112 * (self._side / 112)
        input_from_crop = align.similarity(align.TEMPLATE_512, template)
        embeddings = np.zeros((len(crops), self.dim), np.float32)
        for index, crop in enumerate(crops):
            rgb = _cut(crop, input_from_crop, self._side)
            bgr = np.ascontiguousarray(rgb[:, :, ::-1])  # the package works on OpenCV's channel order
            views = [self._model.get_feat(view)[0] for view in (bgr, np.ascontiguousarray(bgr[:, ::-1]))]
            embeddings[index] = _unit(np.mean(views, axis=0))
        return embeddings


def _cut(crop: Pixels, target_from_crop: align.Matrix, side: int) -> Pixels:
    """The network's input from a crop of any size in the 512 crop's framing."""
    if crop.ndim != 3 or crop.shape[0] != crop.shape[1] or crop.shape[2] != 3:
        raise UsageError(f"crop: expected a square RGB array (S, S, 3), found shape {crop.shape}")
    factor = align.CROP_SIZE / crop.shape[0]
    full_from_crop = np.array([[factor, 0.0, (factor - 1) / 2], [0.0, factor, (factor - 1) / 2]])
    return align.warp(crop, align.compose(target_from_crop, full_from_crop), side)


def _unit(embedding: NDArray[np.float32]) -> NDArray[np.float32]:
    length = float(np.linalg.norm(embedding))
    scaled: NDArray[np.float32] = (embedding / max(length, 1e-9)).astype(np.float32)
    return scaled
