"""dlib's networks in torch give dlib's numbers; the detector finds the faces of real photographs, once each."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import dlib
import face_recognition_models
import insightface
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from skimage import data

from facefix.errors import CheckpointError, UsageError
from facefix.faces import align
from facefix.faces.backends import Backend, load_backend
from facefix.faces.dlib_networks import CHIP_SIZE, load_detection_network, load_recognition_network
from facefix.faces.face import Detection

RECOGNITION = Path(face_recognition_models.face_recognition_model_location())
DETECTION = Path(face_recognition_models.cnn_face_detector_model_location())


@pytest.fixture(scope="module")
def backend() -> Backend:
    return load_backend("dlib")


@pytest.fixture(scope="module")
def group_photo() -> NDArray[np.uint8]:
    path = Path(insightface.__file__).parent / "data" / "images" / "t1.jpg"
    return np.array(Image.open(path).convert("RGB"))


def chip() -> NDArray[np.uint8]:
    return np.ascontiguousarray(data.astronaut()[40 : 40 + CHIP_SIZE, 150 : 150 + CHIP_SIZE])


def as_tensor(image: NDArray[np.uint8]) -> torch.Tensor:
    return torch.tensor(image).permute(2, 0, 1)[None].float()


def test_recognition_network_gives_dlibs_embedding() -> None:
    theirs = dlib.face_recognition_model_v1(str(RECOGNITION)).compute_face_descriptor(chip())
    ours = load_recognition_network(RECOGNITION)(as_tensor(chip()))[0].numpy()
    np.testing.assert_allclose(ours, np.array(theirs), atol=2e-6)


def test_recognition_network_has_a_gradient() -> None:
    pixels = as_tensor(chip()).requires_grad_()
    load_recognition_network(RECOGNITION)(pixels).square().sum().backward()
    assert pixels.grad is not None and float(pixels.grad.abs().max()) > 0


def test_detection_network_gives_dlibs_score() -> None:
    # A face of dlib's window size: dlib's pyramid looks at other sizes too, so ours is a lower bound of its best.
    photo = np.array(Image.fromarray(data.astronaut()).resize((384, 384)))
    best = max(found.confidence for found in dlib.cnn_face_detection_model_v1(str(DETECTION))(photo, 0))
    network = load_detection_network(DETECTION)
    sizes = [round(384 * (5 / 6) ** step) for step in range(4)]
    scores = [float(network(as_tensor(np.array(Image.fromarray(photo).resize((s, s))))).max()) for s in sizes]
    assert max(scores) == pytest.approx(best, abs=0.05)


@pytest.mark.parametrize("load", [load_recognition_network, load_detection_network])
def test_other_and_damaged_files_are_refused(load: object, tmp_path: Path) -> None:
    assert callable(load)
    other = DETECTION if load is load_recognition_network else RECOGNITION
    with pytest.raises(CheckpointError, match="expected dlib's"):
        load(other)
    half = tmp_path / "half.dat"
    right = RECOGNITION if load is load_recognition_network else DETECTION
    half.write_bytes(right.read_bytes()[: right.stat().st_size // 2])
    with pytest.raises(CheckpointError, match=r"half\.dat"):
        load(half)


@pytest.fixture(scope="module")
def astronaut(backend: Backend) -> Detection:
    (face,) = backend.detector.detect(data.astronaut())
    return face


@pytest.fixture(scope="module")
def group_faces(backend: Backend, group_photo: NDArray[np.uint8]) -> list[Detection]:
    return backend.detector.detect(group_photo)


def test_finds_the_astronaut_where_she_is(astronaut: Detection) -> None:
    face = astronaut
    eyes_nose_mouth = [(203, 101), (247.5, 103.5), (226.5, 127.5), (202.5, 140), (245, 141)]
    assert np.abs(face.landmarks - eyes_nose_mouth).max() < 4
    assert face.confidence > 0.9
    assert face.box[0] < 201 and face.box[2] > 247 and face.box[1] < 107 and face.box[3] > 159


@pytest.mark.parametrize("factor", [0.4, 1.6])
def test_small_and_large_faces_are_found(backend: Backend, astronaut: Detection, factor: float) -> None:
    side = round(512 * factor)  # faces of 43 and 170 px
    resized = np.array(Image.fromarray(data.astronaut()).resize((side, side), Image.Resampling.LANCZOS))
    faces = backend.detector.detect(resized)
    assert len(faces) == 1
    assert np.abs(faces[0].landmarks / factor - astronaut.landmarks).max() < 6


def test_a_face_that_fills_the_picture_is_found(backend: Backend) -> None:
    close = np.array(Image.fromarray(data.astronaut()[70:190, 165:285]).resize((480, 480)))
    assert len(backend.detector.detect(close)) == 1


def test_every_face_of_a_group_once(group_faces: list[Detection]) -> None:
    faces = group_faces
    middles = np.array([[(face.box[0] + face.box[2]) / 2, (face.box[1] + face.box[3]) / 2] for face in faces])
    assert len(faces) == 6
    gaps = np.linalg.norm(middles[:, None] - middles[None], axis=2) + 1e9 * np.eye(6)
    assert gaps.min() > 100
    assert [face.confidence for face in faces] == sorted((face.confidence for face in faces), reverse=True)


@pytest.mark.parametrize("picture", ["coffee", "rocket", "chelsea", "brick"])
def test_nothing_is_found_where_nobody_is(backend: Backend, picture: str) -> None:
    image = getattr(data, picture)()
    rgb = (image if image.ndim == 3 else np.repeat(image[..., None], 3, axis=2))[:300, :400]
    assert backend.detector.detect(np.ascontiguousarray(rgb)) == []


@pytest.mark.parametrize("shape", [(1, 1, 3), (8, 900, 3)])
def test_pictures_too_small_for_a_face(backend: Backend, shape: tuple[int, ...]) -> None:
    assert backend.detector.detect(np.zeros(shape, np.uint8)) == []


def test_one_backend_in_several_threads(backend: Backend) -> None:
    pictures = [np.ascontiguousarray(data.astronaut()[:250, left : left + 250]) for left in (60, 90)] * 2
    alone = [backend.detector.detect(picture) for picture in pictures]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(backend.detector.detect, pictures))
    for first, second in zip(alone, together, strict=True):
        np.testing.assert_allclose(first[0].landmarks, second[0].landmarks, atol=1e-4)


def test_embeddings_are_of_the_person_and_not_of_the_crop(
    backend: Backend, group_photo: NDArray[np.uint8], group_faces: list[Detection]
) -> None:
    crops = [align.warp(group_photo, align.crop_matrix(face.landmarks)) for face in group_faces]
    embeddings = backend.embedder.embed(crops)
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-5)
    np.testing.assert_array_equal(backend.embedder.embed(crops[:1])[0], embeddings[0])
    mirrored = backend.embedder.embed([np.ascontiguousarray(crops[0][:, ::-1])])[0]
    half = backend.embedder.embed([np.array(Image.fromarray(crops[0]).resize((256, 256), Image.Resampling.LANCZOS))])[0]
    assert backend.similarity(embeddings[0], mirrored) > 0.93
    assert backend.similarity(embeddings[0], half) > 0.95
    others = [backend.similarity(embeddings[0], other) for other in embeddings[1:]]
    assert max(others) < 1 - backend.scale.join_most


def test_embedder_refuses_what_is_no_crop(backend: Backend) -> None:
    assert backend.embedder.embed([]).shape == (0, 128)
    with pytest.raises(UsageError, match="crop: expected a square RGB array"):
        backend.embedder.embed([np.zeros((512, 500, 3), np.uint8)])


def test_recall_on_real_photographs(backend: Backend, shared: Path) -> None:
    folder = shared / "data" / "photos_public"
    there = {"solvay_1927.jpg": 29, "women_1890s.jpg": 4, "hayes_brady.jpg": 1, "congress_tiny.jpg": 1}
    for name, count in there.items():
        assert len(backend.detector.detect(np.array(Image.open(folder / name).convert("RGB")))) == count, name
