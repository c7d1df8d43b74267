"""dlib's network in torch gives dlib's own numbers, with a gradient; ArcFace reads an ONNX file as onnxruntime does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import dlib
import numpy as np
import onnx
import onnxruntime
import pytest
import skimage.data
import torch
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from torch.nn import functional as F

from facefix.errors import CheckpointError, WeightsUnavailable
from facefix.faces.align import crop_matrix, warp
from facefix.metrics.identity import ArcFace, DlibFaceNet, dlib_weights_path


@pytest.fixture(scope="module")
def network() -> DlibFaceNet:
    return DlibFaceNet()


@pytest.fixture(scope="module")
def recogniser() -> dlib.face_recognition_model_v1:
    return dlib.face_recognition_model_v1(str(dlib_weights_path()))


@pytest.fixture(scope="module")
def crop() -> torch.Tensor:
    """(1, 3, 512, 512) in [-1, 1]: a face in FFHQ's framing."""
    photo = skimage.data.astronaut()
    predictor = dlib.shape_predictor(str(dlib_weights_path().with_name("shape_predictor_68_face_landmarks.dat")))
    found = predictor(photo, dlib.get_frontal_face_detector()(photo, 1)[0])
    points = np.array([[point.x, point.y] for point in found.parts()])
    landmarks = np.stack([points[36:42].mean(0), points[42:48].mean(0), points[30], points[48], points[54]])
    pixels = warp(photo, crop_matrix(landmarks))
    return torch.tensor(pixels).permute(2, 0, 1)[None].float() / 127.5 - 1


def as_pixels(chips: torch.Tensor) -> np.ndarray:
    return ((chips + 1) * 127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1).contiguous().numpy()


def as_input(pixels: np.ndarray) -> torch.Tensor:
    return torch.tensor(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1


def test_embeddings_are_dlibs_own(
    network: DlibFaceNet, recogniser: dlib.face_recognition_model_v1, crop: torch.Tensor
) -> None:
    noise = torch.rand((1, 3, 150, 150), generator=torch.Generator().manual_seed(0)) * 2 - 1
    pixels = as_pixels(torch.cat([network.chip(crop), network.chip(crop.flip(3)), noise]))
    expected = np.stack([np.array(recogniser.compute_face_descriptor(chip)) for chip in pixels])
    np.testing.assert_allclose(network(as_input(pixels)).numpy(), expected, atol=2e-6)


def test_fixed_chip_is_close_to_dlibs_landmarks(
    network: DlibFaceNet, recogniser: dlib.face_recognition_model_v1, crop: torch.Tensor
) -> None:
    pixels = as_pixels(crop)[0]
    predictor = dlib.shape_predictor(str(dlib_weights_path().with_name("shape_predictor_5_face_landmarks.dat")))
    (box,) = dlib.get_frontal_face_detector()(pixels, 0)
    own = np.array(recogniser.compute_face_descriptor(pixels, predictor(pixels, box), 0, 0.25))
    assert np.linalg.norm(network.embed(crop)[0].numpy() - own) < 0.25


def test_crop_size_hardly_matters(network: DlibFaceNet, crop: torch.Tensor) -> None:
    half = F.interpolate(crop, scale_factor=0.5, mode="area")
    assert network.chip(half).shape == (1, 3, 150, 150)
    assert float(network.dissimilarity(network.embed(crop), network.embed(half))) < 0.05**2


def test_identities_of_real_people(network: DlibFaceNet, shared: Path) -> None:
    folder = shared / "data" / "eval_public"
    files = sorted(folder.glob("*lisa*.jpg"))[:4] + sorted(folder.glob("*london*.jpg"))[:4]
    crops = [np.asarray(Image.open(file).convert("RGB").resize((512, 512))) for file in files]
    embeddings = network.embed(as_input(np.stack(crops)))
    assert float(torch.pdist(embeddings[:4]).max()) < 0.6
    assert float(torch.cdist(embeddings[:4], embeddings[4:]).min()) > 0.6


def test_gradient_brings_an_identity_back(network: DlibFaceNet, crop: torch.Tensor) -> None:
    truth = network.embed(crop)
    blurred = F.interpolate(F.interpolate(crop, size=40, mode="area"), size=512, mode="bilinear")
    image = blurred.detach()
    distances = []
    for _ in range(6):
        image.requires_grad_()
        distance = network.dissimilarity(network.embed(image), truth).sum()
        (gradient,) = torch.autograd.grad(distance, image)
        distances.append(float(distance.detach()))
        image = image.detach() - 100 * gradient
    assert distances[-1] < 0.7 * distances[0]
    assert not any(parameter.requires_grad for parameter in network.parameters())
    assert not network.train().training


def test_bfloat16(network: DlibFaceNet, crop: torch.Tensor) -> None:
    exact = network.embed(crop)
    with torch.autocast("cpu", torch.bfloat16):
        rough = network.embed(crop)
    assert float((rough.float() - exact).norm()) < 0.05


@pytest.mark.parametrize(
    "damage",
    [lambda data: data[: len(data) // 2], lambda data: b"not a network"],
    ids=["truncated", "foreign"],
)
def test_damaged_files_are_refused(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "face.dat"
    path.write_bytes(damage(dlib_weights_path().read_bytes()))
    with pytest.raises(CheckpointError, match=r"face\.dat"):
        DlibFaceNet(path)


def small_recognition_model(path: Path) -> Path:
    """An ONNX network 112 x 112 -> 8 numbers with random weights."""
    random = np.random.default_rng(0)
    constants = [
        numpy_helper.from_array(random.normal(size=(4, 3, 7, 7)).astype(np.float32) / 10, "kernel"),
        numpy_helper.from_array(random.normal(size=(4 * 8 * 8, 8)).astype(np.float32) / 10, "matrix"),
        numpy_helper.from_array(np.zeros(8, np.float32), "bias"),
    ]
    nodes = [
        helper.make_node("Conv", ["face", "kernel"], ["h"], strides=[14, 14]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Flatten", ["r"], ["flat"]),
        helper.make_node("Gemm", ["flat", "matrix", "bias"], ["embedding"]),
    ]
    graph = helper.make_graph(
        nodes,
        "recognition",
        [helper.make_tensor_value_info("face", TensorProto.FLOAT, ["n", 3, 112, 112])],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["n", 8])],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(model, path)
    return path


def test_arcface_is_the_onnx_network_on_the_middle_of_the_crop(tmp_path: Path, crop: torch.Tensor) -> None:
    path = small_recognition_model(tmp_path / "r50.onnx")
    network = ArcFace(path)
    image = crop.clone().requires_grad_()
    embedding = network.embed(image)
    middle = F.interpolate(crop[:, :, 32:480, 32:480], (112, 112), mode="area")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (expected,) = session.run(None, {"face": middle.numpy()})
    expected /= np.linalg.norm(expected)
    np.testing.assert_allclose(embedding.detach().numpy(), expected, atol=1e-5)
    (gradient,) = torch.autograd.grad(embedding[0, 0], image)
    assert float(gradient.abs().sum()) > 0
    assert float(network.dissimilarity(embedding, -embedding).detach()) == pytest.approx(2, abs=1e-5)
    assert network.name == "arcface r50"


def test_arcface_without_weights(tmp_path: Path) -> None:
    with pytest.raises(WeightsUnavailable, match="no such file"):
        ArcFace(tmp_path / "missing.onnx")
    (tmp_path / "broken.onnx").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match=r"broken\.onnx"):
        ArcFace(tmp_path / "broken.onnx")
