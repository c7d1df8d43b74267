"""Photos to faces, faces to people, people to references."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from skimage import data

from facefix.faces import align
from facefix.faces.backends import Backend, load_backend
from facefix.faces.embed import DLIB_SCALE
from facefix.faces.face import Detection, Face, Quality
from facefix.faces.index import index_photo
from facefix.people.groups import group_faces
from facefix.people.references import centroid, choose_references

YEAR = 365.25 * 86400


@dataclass(frozen=True)
class Upright:
    """A photo as index_photo sees it."""

    pixels: NDArray[np.uint8]
    orientation: int | None = None
    taken: float | None = None
    path: Path = Path("album/one.jpg")


@pytest.fixture(scope="module")
def backend() -> Backend:
    return load_backend("dlib")


def direction(person: int) -> NDArray[np.float64]:
    vector = np.random.default_rng(person).normal(size=128)
    return vector / np.linalg.norm(vector)


def face(photo: str, person: int, *, off: float = 0.1, seed: int = 0, sharpness: float = 0.9, **changes: float) -> Face:
    """A face at distance ``off`` from the person's own direction; people are about 1.4 apart."""
    noise = np.random.default_rng([seed, person, *photo.encode()]).normal(size=128)
    own = direction(person)
    noise -= (noise @ own) * own
    vector = own + noise / np.linalg.norm(noise) * off
    embedding = (vector / np.linalg.norm(vector)).astype(np.float32)
    numbers = {"face_px": 250.0, "yaw": 0.0, "roll": 0.0, "score": 0.8} | changes
    taken = numbers.pop("taken", None)
    quality = Quality(sharpness=sharpness, **numbers)
    return Face(photo, 0, Detection((0, 0, 1, 1), align.TEMPLATE_512, 1.0), embedding, quality, taken)


def keys(groups: Sequence[Sequence[Face]]) -> list[list[str]]:
    return [[member.photo for member in group] for group in groups]


def test_index_gives_embedding_quality_and_date(backend: Backend) -> None:
    picture = np.ascontiguousarray(data.astronaut()[:300, 80:380])
    (found,) = index_photo(Upright(picture, taken=5.0), backend)
    assert (found.photo, found.index, found.taken) == ("album/one.jpg", 0, 5.0)
    assert found.embedding is not None and found.embedding.shape == (128,)
    assert 90 < found.quality.face_px < 120
    assert abs(found.quality.yaw) < 0.2


@pytest.mark.parametrize("quarter_turns", [1, 2, 3])
def test_turned_photos_without_orientation(backend: Backend, quarter_turns: int) -> None:
    upright = np.ascontiguousarray(data.astronaut()[:260, 90:350])
    (expected,) = index_photo(Upright(upright), backend)
    turned = np.ascontiguousarray(np.rot90(upright, quarter_turns))
    (found,) = index_photo(Upright(turned), backend)
    side = 259
    x, y = expected.detection.landmarks.T
    there = {1: (y, side - x), 2: (side - x, side - y), 3: (side - y, x)}[quarter_turns]
    assert np.abs(found.detection.landmarks - np.stack(there, axis=1)).max() < 0.5
    assert found.embedding is not None and expected.embedding is not None
    assert backend.similarity(found.embedding, expected.embedding) > 0.97
    assert index_photo(Upright(turned, orientation=1), backend) == []


def test_small_faces_of_a_large_turned_photo(backend: Backend) -> None:
    """They are too small to be found at half the size, where turned photos are looked at first."""
    picture = Image.fromarray(data.astronaut()[:260, 90:350]).resize((120, 120), Image.Resampling.LANCZOS)
    photo = Image.new("RGB", (700, 660), (90, 100, 110))
    photo.paste(picture, (300, 250))
    pixels = np.asarray(photo)
    assert len(index_photo(Upright(pixels), backend)) == 1
    for quarter_turns in (1, 2):
        turned = np.ascontiguousarray(np.rot90(pixels, quarter_turns))
        assert backend.detector.detect(np.asarray(photo.reduce(2))) == []
        (found,) = index_photo(Upright(turned), backend)
        assert found.detection.confidence > 0.7


def test_faces_are_numbered_left_to_right(backend: Backend) -> None:
    portrait = data.astronaut()[:260, 90:350]
    both = np.ascontiguousarray(np.concatenate([portrait, portrait[:, ::-1]], axis=1))
    found = index_photo(Upright(both), backend)
    assert [one.index for one in found] == [0, 1]
    assert found[0].detection.box[0] < 260 < found[1].detection.box[0]


def test_people_are_told_apart(backend: Backend) -> None:
    faces = [face(f"{person}-{picture}", person) for picture in range(4) for person in range(5)]
    groups = group_faces(faces, backend)
    assert [len(group) for group in groups] == [4] * 5
    assert all(len({name.split("-")[0] for name in names}) == 1 for names in keys(groups))


def test_every_face_is_in_one_group_and_order_does_not_matter(backend: Backend) -> None:
    faces = [face(f"{person}-{picture}", person, off=0.2) for picture in range(3) for person in range(6)]
    groups = {frozenset(names) for names in map(frozenset, keys(group_faces(faces, backend)))}
    again = {frozenset(names) for names in map(frozenset, keys(group_faces(faces[::-1], backend)))}
    assert groups == again
    assert sum(len(group) for group in groups) == len(faces)


def test_two_faces_in_one_photo_are_two_people(backend: Backend) -> None:
    twins = [face("both", 1), replace(face("both", 1, seed=2), index=1), face("alone", 1)]
    assert sorted(len(group) for group in group_faces(twins, backend)) == [1, 2]


def test_blurred_faces_join_only_a_sharp_one(backend: Backend) -> None:
    blurred = [face(f"b{number}", 1, sharpness=0.1) for number in range(3)]
    assert [len(group) for group in group_faces(blurred, backend)] == [1, 1, 1]
    with_sharp = group_faces([*blurred, face("sharp", 1), face("other", 2)], backend)
    assert sorted(map(len, with_sharp)) == [1, 4]


@pytest.mark.parametrize("sharpness", [0.05, 0.5])
def test_portraits_hold_blurred_faces_however_sharp_they_are(backend: Backend, sharpness: float) -> None:
    portraits = [face(f"refs/{person}.jpg", person, sharpness=sharpness) for person in (1, 2)]
    album = [face(f"{person}-{number}", person, off=0.3, sharpness=0.1) for person in (1, 2, 3) for number in (1, 2)]
    alone = group_faces([*portraits, *album], backend)
    assert all(len(group) == 1 for group in alone)
    given = group_faces([*portraits, *album], backend, portraits={portrait.key for portrait in portraits})
    assert sorted(sorted(names) for names in keys(given)) == [
        ["1-1", "1-2", "refs/1.jpg"],
        ["2-1", "2-2", "refs/2.jpg"],
        ["3-1"],
        ["3-2"],
    ]


def test_soft_portraits_of_one_person_do_not_chase_each_other(backend: Backend) -> None:
    portraits = [face(f"refs/{number}.jpg", 1, off=0.24, sharpness=0.5) for number in range(2)]
    assert portraits[0].embedding is not None and portraits[1].embedding is not None
    distance = np.linalg.norm(portraits[0].embedding - portraits[1].embedding)
    assert DLIB_SCALE.join_limit(1) < distance < DLIB_SCALE.blurred_limit(2)
    blurred = face("blurred", 1, off=0.05, sharpness=0.1)
    groups = group_faces([*portraits, blurred], backend, portraits={portrait.key for portrait in portraits})
    assert sorted(map(len, groups)) in ([1, 1, 1], [1, 2])
    assert not any({"refs/0.jpg", "refs/1.jpg"} <= set(names) for names in keys(groups))


def test_turned_faces_may_be_further_away(backend: Backend) -> None:
    frontal = face("frontal", 1, off=0.001)
    far = face("far", 1, off=0.34)
    turned = replace(far, quality=replace(far.quality, yaw=0.9))
    assert len(group_faces([frontal, far, face("other", 2)], backend)) == 3
    assert len(group_faces([frontal, turned, face("other", 2)], backend)) == 2


def test_a_blurred_face_between_two_people_stays_alone(backend: Backend) -> None:
    between = direction(1) + 0.98 * direction(2)
    unsure = replace(face("unsure", 1, sharpness=0.1), embedding=(between / np.linalg.norm(between)).astype(np.float32))
    assert len(group_faces([face("a", 1), face("b", 2), unsure], backend)) == 3


def test_names_decide(backend: Backend) -> None:
    ada = [face("refs/ada/1", 1), face("refs/ada/2", 7)]  # two looks that nothing but the name joins
    bo = face("refs/bo/1", 1, seed=5)
    names = {ada[0].key: "Ada", ada[1].key: "Ada", bo.key: "Bo"}
    groups = [set(members) for members in keys(group_faces([*ada, bo, face("x", 1, off=0.15)], backend, names))]
    assert any({"refs/ada/1", "refs/ada/2"} <= members for members in groups)
    assert not any({"refs/ada/1", "refs/bo/1"} <= members for members in groups)


def test_portraits_draw_groups_that_are_clearly_theirs(backend: Backend) -> None:
    portrait, far = face("refs/ada.jpg", 1, off=0.001), face("far", 2)
    near = face("near", 1, off=0.345)  # beyond what joins, within what a named portrait draws
    assert portrait.embedding is not None and near.embedding is not None
    distance = np.linalg.norm(portrait.embedding - near.embedding)
    assert DLIB_SCALE.join_limit(3) < distance < DLIB_SCALE.anchor
    assert len(group_faces([portrait, near, far], backend)) == 3
    named = group_faces([portrait, near, far], backend, {portrait.key: "Ada"})
    assert keys(named) == [["refs/ada.jpg", "near"], ["far"]]


def test_faces_without_embedding_stay_alone(backend: Backend) -> None:
    assert group_faces([], backend) == []
    nameless = replace(face("a", 1), embedding=None)
    assert len(group_faces([nameless, face("b", 1), face("c", 1)], backend)) == 2


def pictures(references: Sequence[object]) -> list[str]:
    return [str(reference.path) for reference in references]  # type: ignore[attr-defined]


def test_best_first_up_to_five_never_the_own_photo(backend: Backend) -> None:
    album = [face(f"p{number}", 1, off=0.15, score=0.5 + number / 20) for number in range(8)]
    chosen = choose_references(album, (), album[7], backend)
    assert len(chosen) == 5
    assert "p7" not in pictures(chosen)
    assert chosen[0].face.photo == "p6"
    assert all("px wide, sharpness 0.90" in reference.reason for reference in chosen)


def test_the_set_is_the_persons_except_for_the_own_photo(backend: Backend) -> None:
    album = [face(f"p{number}", 1, off=0.15, score=0.5 + number / 20) for number in range(9)]
    target = face("target", 1, sharpness=0.1)
    usual = pictures(choose_references(album, (), target, backend))
    for member in album:
        own = pictures(choose_references(album, (), member, backend))
        assert own == usual if member.photo not in usual else own[:4] == [p for p in usual if p != member.photo]
    without = choose_references(album, (), target, backend, excluded={("p8", 0)})
    assert "p8" not in pictures(without) and len(without) == 5


def test_poor_faces_and_other_people_do_not_serve(backend: Backend) -> None:
    album = [
        face("blurred", 1, sharpness=0.2),
        face("small", 1, face_px=60.0),
        face("profile", 1, yaw=0.95),
        face("stranger", 2),
        face("good", 1),
        face("good too", 1),
    ]
    chosen = choose_references(album, [face("refs/1", 1)], face("t", 1), backend)
    assert sorted(pictures(chosen)) == ["good", "good too", "refs/1"]


def test_less_is_asked_of_portraits(backend: Backend) -> None:
    chosen = choose_references((), [face("refs/1", 1, sharpness=0.45, face_px=95.0)], face("t", 1), backend)
    assert pictures(chosen) == ["refs/1"]
    assert chosen[0].reason.startswith("portrait")


def test_a_poor_portrait_serves_for_want_of_a_better_one(backend: Backend) -> None:
    poor = face("refs/poor", 1, sharpness=0.0, face_px=40.0, score=0.0)
    target = face("t", 1)
    assert pictures(choose_references((), [poor], target, backend)) == ["refs/poor"]
    assert pictures(choose_references((), [poor, face("refs/good", 1)], target, backend)) == ["refs/good"]
    assert pictures(choose_references([face("album", 1)], [poor], target, backend)) == ["album"]


def test_copies_add_nothing_other_poses_do(backend: Backend) -> None:
    first = face("first", 1, score=0.9)
    copy = replace(first, photo="copy", quality=replace(first.quality, score=0.89))
    turned = face("turned", 1, score=0.6, yaw=0.4)
    frontal = face("frontal", 1, score=0.6)
    chosen = choose_references([first, copy, frontal, turned], (), face("t", 1), backend)
    assert pictures(chosen) == ["first", "turned", "frontal"]
    assert "yaw +0.40" in chosen[1].reason


def test_close_in_years_first(backend: Backend) -> None:
    young = face("young", 1, taken=5 * YEAR)
    old = face("old", 1, taken=45 * YEAR)
    assert pictures(choose_references([young, old], (), face("t", 1, taken=47 * YEAR), backend)) == ["old", "young"]
    chosen = choose_references([young, old], (), face("t", 1, taken=3 * YEAR), backend)
    assert pictures(chosen) == ["young", "old"]
    assert "years apart" in chosen[1].reason


def test_a_sharper_print_of_the_same_picture_serves_a_copy_does_not(backend: Backend) -> None:
    target = face("t", 1, score=0.2, sharpness=0.3)
    copy = replace(target, photo="scan", quality=replace(target.quality, sharpness=0.65, score=0.22))
    sharp = replace(target, photo="negative", quality=replace(target.quality, sharpness=0.9, score=0.8))
    assert pictures(choose_references((), [copy], target, backend)) == []
    assert pictures(choose_references((), [sharp], target, backend)) == ["negative"]


def test_nobody_no_references(backend: Backend) -> None:
    assert choose_references((), (), face("t", 1), backend) == ()


def test_centroid_has_length_one() -> None:
    embeddings = [face(f"{number}", 1).embedding for number in range(3)]
    middle = centroid([embedding for embedding in embeddings if embedding is not None])
    assert np.linalg.norm(middle) == pytest.approx(1, abs=1e-6)
    assert middle @ direction(1) > 0.99


def test_real_people_are_grouped_without_a_mistake(backend: Backend, shared: Path) -> None:
    with open(shared / "data" / "manifest.csv", newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "eval_public"]
    faces = []
    for row in rows:
        crop = np.array(Image.open(shared / "data" / row["file"]).convert("RGB"))
        embedding = backend.embedder.embed([crop])[0]
        detection = Detection((0, 0, 1, 1), align.TEMPLATE_512, 1.0)
        faces.append(Face(row["file"], 0, detection, embedding, Quality(292, 0.9, 2 * float(row["yaw"]), 0, 0.8)))
    people = {row["file"]: row["identity"] for row in rows}
    right = wrong = 0
    for group in group_faces(faces, backend):
        names = [people[member.photo] for member in group]
        same = sum(a == b for index, a in enumerate(names) for b in names[:index])
        right, wrong = right + same, wrong + len(names) * (len(names) - 1) // 2 - same
        for member in group:
            for reference in choose_references(group, (), member, backend):
                assert people[reference.face.photo] == people[member.photo]
    identities = list(people.values())
    pairs = sum(a == b for index, a in enumerate(identities) for b in identities[:index])
    assert wrong == 0
    assert right / pairs >= 0.97
