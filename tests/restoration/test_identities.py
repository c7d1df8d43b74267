"""Who is in an album, and who may serve as a reference for whom."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from marked import make_face, marked_backend

from facefix.faces.face import Face
from facefix.outputs.outcomes import IndexedPhoto, NamedBox
from facefix.people.people_file import PEOPLE_FILE
from facefix.restoration.album import Album, Portrait
from facefix.restoration.choices import BackendChoice
from facefix.restoration.identities import Found, People, find_people, names_now
from facefix.restoration.scan import ScannedPhoto
from facefix.settings import Settings

BACKEND = BackendChoice("marked", marked_backend)


@dataclass
class Place:
    """An album that was looked into, said by who is in its photos."""

    root: Path
    photos: dict[ScannedPhoto, IndexedPhoto] = field(default_factory=dict)
    portraits: dict[Portrait, IndexedPhoto] = field(default_factory=dict)

    def photo(self, name: str, *people: str, sha256: str = "", named: tuple[NamedBox, ...] = ()) -> tuple[Face, ...]:
        path = self.root / "album" / name
        faces = tuple(make_face(str(path), number, person) for number, person in enumerate(people))
        found = IndexedPhoto(sha256 or name, (400, 200), None, None, faces, named)
        self.photos[ScannedPhoto(path, Path(name))] = found
        return faces

    def portrait(self, name: str, person: str, colour: str) -> Face:
        path = self.root / "refs" / person / name
        face = make_face(str(path), 0, colour)
        self.portraits[Portrait(path, person, f"refs {name}")] = IndexedPhoto(
            f"refs {name}", (400, 200), None, None, (face,)
        )
        return face

    def found(self) -> Found:
        return Found(self.photos, self.portraits)

    def people(self, **settings: Any) -> People:
        self.root.mkdir(exist_ok=True)
        album = Album(tuple(self.photos), (), self.root, self.root / "album", tuple(self.portraits), self.root / "refs")
        return find_people(self.found(), album, Settings(refs=self.root / "refs", **settings), BACKEND)


def test_faces_alike_are_a_person_and_a_portraits_folder_names_it(tmp_path: Path) -> None:
    place = Place(tmp_path)
    ann, bob = place.photo("1.jpg", "ann", "bob")
    (other,) = place.photo("2.jpg", "ann")
    given = place.portrait("a.jpg", "Ann", "ann")
    people = place.people()
    owner, stranger = people.owner(ann), people.owner(bob)
    assert owner is not None and stranger is not None
    assert (owner.name, stranger.name) == ("Ann", "Person 2")
    assert people.owner(other) is people.owner(given) is owner
    assert people.is_portrait(given) and not people.is_portrait(ann)
    assert people.album_faces(owner) == (ann, other) and people.portraits(owner) == (given,)
    assert names_now(place.found(), people) == {
        (Path("1.jpg"), 0): "Ann",
        (Path("1.jpg"), 1): "Person 2",
        (Path("2.jpg"), 0): "Ann",
    }


def test_names_in_metadata_name_a_person(tmp_path: Path) -> None:
    place = Place(tmp_path)
    (ann,) = place.photo("1.jpg", "ann", named=(NamedBox("Ann Other", (25.0, 45.0, 130.0, 150.0)),))
    owner = place.people().owner(ann)
    assert owner is not None and owner.name == "Ann Other"


def test_people_toml_holds_and_ignored_faces_are_nobodys(tmp_path: Path) -> None:
    place = Place(tmp_path)
    (first,), (second,) = place.photo("1.jpg", "ann"), place.photo("2.jpg", "ann")
    (tmp_path / PEOPLE_FILE).write_text(
        '[[person]]\nid = "p1"\nname = "Ann"\nfaces = ["1.jpg#0"]\nexclude = true\n[ignore]\nfaces = ["2.jpg#0"]\n'
    )
    people = place.people()
    owner = people.owner(first)
    assert owner is not None and owner.name == "Ann" and owner.excluded
    assert people.owner(second) is None
    assert names_now(place.found(), people)[Path("2.jpg"), 0] is None


def test_references_never_come_from_the_photo_itself_nor_from_a_copy(tmp_path: Path) -> None:
    place = Place(tmp_path)
    (target,) = place.photo("1.jpg", "ann", sha256="same")
    place.photo("copy.jpg", "ann", sha256="same")
    (other,) = place.photo("2.jpg", "ann")
    people = place.people(refs_from="album")
    owner = people.owner(target)
    assert owner is not None
    chosen = [reference.path.name for reference in people.references(owner, target)]
    assert "1.jpg" not in chosen and "copy.jpg" not in chosen
    assert set(chosen) <= {"2.jpg"}
    assert other.key in {face.key for face in owner.faces}


def test_where_references_come_from(tmp_path: Path) -> None:
    place = Place(tmp_path)
    place.photo("1.jpg", "ann")
    place.portrait("a.jpg", "Ann", "ann")
    for wanted, folders in (("portraits", {"Ann"}), ("album", {"album"}), ("both", {"Ann", "album"})):
        people = place.people(refs_from=wanted)
        (owner,) = people.persons
        candidates = people.candidates(owner)
        found = {Path(face.photo).parent.name for face in (*candidates.album, *candidates.portraits)}
        assert found == folders


def test_what_was_given_for_a_person_changes_with_their_portraits_alone(tmp_path: Path) -> None:
    place = Place(tmp_path)
    ann, bob = place.photo("1.jpg", "ann", "bob")
    before = place.people()
    place.portrait("a.jpg", "Ann", "ann")
    after = place.people()
    assert before.given(before.owner(ann)) != after.given(after.owner(ann))
    assert before.given(before.owner(bob)) == after.given(after.owner(bob))
    assert after.given(None) == ""


def test_forgotten_faces_keep_the_name_they_have(tmp_path: Path) -> None:
    place = Place(tmp_path)
    (ann,) = place.photo("1.jpg", "ann")
    photo = next(iter(place.photos))
    without = Face(ann.photo, ann.index, ann.detection, None, ann.quality)
    place.photos[photo] = IndexedPhoto("1.jpg", (400, 200), None, None, (without,))
    assert names_now(place.found(), place.people()) == {}
