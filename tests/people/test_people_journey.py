"""From the contact sheet to the outputs and back: corrections by hand, names in XMP, undo, the report."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from albums import Borrow, make_portraits, old_photo, portrait
from PIL import Image
from tiny import tiny_pipeline

from facefix.faces.backends import Backend, load_backend
from facefix.jobs.restore import restore_album
from facefix.jobs.survey import survey_album
from facefix.jobs.undo import take_back
from facefix.outputs.ledger import Ledger
from facefix.outputs.outcomes import FaceOutcome
from facefix.report import write_output_report
from facefix.report.contact_sheet import write_people_page
from facefix.restoration.run import Options, Request
from facefix.restoration.summary import Summary
from facefix.settings import Settings

REGION = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    b'<rdf:Description rdf:about="" xmlns:mwg-rs="http://www.metadataworkinggroup.com/schemas/regions/" '
    b'xmlns:stArea="http://ns.adobe.com/xmp/sType/Area#"><mwg-rs:Regions rdf:parseType="Resource"><mwg-rs:RegionList>'
    b'<rdf:Bag><rdf:li><rdf:Description mwg-rs:Name="Daniel" mwg-rs:Type="Face"><mwg-rs:Area stArea:x="0.5" '
    b'stArea:y="0.5" stArea:w="0.6" stArea:h="0.6"/></rdf:Description></rdf:li></rdf:Bag></mwg-rs:RegionList>'
    b"</mwg-rs:Regions></rdf:Description></rdf:RDF></x:xmpmeta>"
)

CORRECTED = """\
next = 9
[[person]]
id = "p7"
name = "Aunt Ann"
faces = ["ann.jpg#0", "@refs/ann/0.png#0"]
[[person]]
exclude = true  # she asked for it
faces = ["bea.jpg#0", "@refs/bea/0.png#0"]
"""


@pytest.fixture(scope="module")
def backend() -> Backend:
    return load_backend("dlib")


def outcomes(out: Path) -> dict[str, FaceOutcome]:
    with Ledger.snapshot(out) as ledger:
        return {str(photo.relative): face for photo in ledger.photos() for face in photo.faces}


def test_corrections_are_honoured_and_can_be_taken_back(tmp_path: Path, backend: Backend) -> None:
    album, out = tmp_path / "album", tmp_path / "out"
    album.mkdir()
    for person in ("ann", "bea"):
        old_photo(person, 0).save(album / f"{person}.jpg", quality=90)
    old_photo("dan", 0).save(album / "dan.jpg", quality=90, xmp=REGION)
    make_portraits(tmp_path / "refs", ("ann", "bea"))
    request = Request((album,))
    settings = Settings.load({"output": out, "refs": tmp_path / "refs", "faces": "dlib", "restore": "all"})

    def options() -> Options:
        return Options(backend=backend, restorer=Borrow())

    page = write_people_page(survey_album(request, settings, options()))
    people_file = out / "people.toml"
    text = people_file.read_text()
    assert "Daniel" in text, "named by the region in the photo's XMP"
    assert "Daniel" in page.read_text()

    assert all(f'"{label}#0"' in text for label in ("ann.jpg", "bea.jpg", "dan.jpg", "@refs/ann/0.png"))
    people_file.write_text(CORRECTED)

    summary = restore_album(request, settings, options())
    assert summary.statuses["restored"] == 2
    found = outcomes(out)
    assert found["ann.jpg"].person == "Aunt Ann"
    assert [Path(note.path).parent.name for note in found["ann.jpg"].references] == ["ann"]
    assert (found["bea.jpg"].verdict, found["bea.jpg"].reason) == ("kept", "excluded in people.toml")
    assert (out / "bea.jpg").read_bytes() == (album / "bea.jpg").read_bytes()
    assert found["dan.jpg"].person == "Daniel"
    report = (out / "facefix-report" / "index.html").read_text()
    assert "Aunt Ann" in report
    assert "she asked for it" in people_file.read_text()
    for _ in range(2):
        write_people_page(survey_album(request, settings, options()))
        completed = people_file.read_text()
        assert "exclude = true  # she asked for it" in completed
        assert [completed.count(f'id = "p{number}"') for number in (7, 9, 10)] == [1, 1, 1]
        assert completed.count('name = "Daniel"') == 1

    (album / "ann.jpg").rename(tmp_path / "ann.jpg")
    (taken,) = take_back([out / "ann.jpg"])
    assert taken.undone is not None and not taken.undone.exact
    (tmp_path / "ann.jpg").rename(album / "ann.jpg")
    undone = (out / "ann.jpg").read_bytes()
    assert restore_album(request, settings, options()).already_done == 3
    assert (out / "ann.jpg").read_bytes() == undone, "the next run leaves it so"
    with Image.open(out / "dan.jpg") as image:
        assert b"Daniel" in image.info["xmp"], "the names that were there stay"
    (out / "ann.jpg").unlink()
    assert restore_album(request, settings, options()).statuses["restored"] == 1


def names(out: Path) -> dict[str, str | None]:
    return {photo: face.person for photo, face in outcomes(out).items()}


def shown_people(out: Path) -> list[str]:
    """Who is on the report's page."""
    found = re.search(
        r'<script type="application/json" id="data">(.*?)</script>',
        (out / "facefix-report" / "index.html").read_text(),
        re.DOTALL,
    )
    assert found
    return list(json.loads(found[1])["people"])


@pytest.mark.parametrize("where", ["album", "single photos from elsewhere"])
def test_a_new_name_reaches_photos_that_are_not_done_again(tmp_path: Path, backend: Backend, where: str) -> None:
    album, out = tmp_path / "album", tmp_path / "out"
    album.mkdir()
    for person in ("ann", "bea"):
        old_photo(person, 0).save(album / f"{person}.jpg", quality=90)
    request = Request((album,) if where == "album" else tuple(sorted(album.iterdir())))
    settings = Settings.load({"output": out, "faces": "dlib", "restore": "all"})

    def options() -> Options:
        return Options(backend=backend, restorer=Borrow())

    write_people_page(survey_album(request, settings, options()))
    restore_album(request, settings, options())
    before = names(out)
    assert set(before.values()) == {"Person 1", "Person 2"}
    people_file = out / "people.toml"
    people_file.write_text(people_file.read_text().replace(f'"{before["ann.jpg"]}"', '"Aunt Ann"'))

    write_output_report(out, again=True)
    assert shown_people(out) == sorted(("Aunt Ann", str(before["bea.jpg"])))
    assert names(out) == before, "the report command shows; it does not write"
    summary = restore_album(request, settings, options())
    assert (summary.already_done, summary.statuses) == (2, {})
    assert names(out) == {"ann.jpg": "Aunt Ann", "bea.jpg": before["bea.jpg"]}
    assert "Aunt Ann" in shown_people(out)

    people_file.write_text(people_file.read_text().replace(f'"{before["bea.jpg"]}"', '"Bea"'))
    summary = restore_album(request, settings, options())
    assert (summary.already_done, summary.statuses) == (2, {})
    assert shown_people(out) == ["Aunt Ann", "Bea"], "the run writes the page again for a name alone"


def test_photos_are_done_again_when_a_reference_turns_out_to_be_somebody_else(tmp_path: Path, backend: Backend) -> None:
    album, out = tmp_path / "album", tmp_path / "out"
    album.mkdir()
    for number in range(2):
        old_photo("ann", number).save(album / f"ann{number}.jpg", quality=90)
    portrait("ann").save(album / "sharp.png")
    old_photo("bea", 0).save(album / "bea.jpg", quality=90)
    request, settings = Request((album,)), Settings.load({"output": out, "faces": "dlib"})

    def run() -> tuple[Summary, dict[str, list[str]]]:
        summary = restore_album(request, settings, Options(backend=backend, restorer=Borrow()))
        used = {photo: [Path(note.path).name for note in face.references] for photo, face in outcomes(out).items()}
        return summary, used

    _, used = run()
    assert used["ann0.jpg"] == used["ann1.jpg"] == ["sharp.png"] and used["bea.jpg"] == []
    split = '[[person]]\nname = "Ann"\nfaces = ["ann0.jpg#0", "ann1.jpg#0"]\n'
    others = '[[person]]\nid = "p8"\nname = "Her sister"\nfaces = ["sharp.png#0"]\n'
    bea = '[[person]]\nid = "p9"\nname = "Bea"\nfaces = ["bea.jpg#0"]\n'
    people_file = out / "people.toml"

    people_file.write_text(split + others + bea)
    summary, used = run()
    assert summary.statuses["restored"] == 2 and summary.already_done == 2
    assert used["ann0.jpg"] == used["ann1.jpg"] == []

    people_file.write_text(split + others + bea.replace("id =", 'merge = ["p8"]\nid ='))
    summary, used = run()
    assert used["bea.jpg"] == ["sharp.png"], "merged by hand: what had no references has some now"
    assert summary.statuses.total() == 1 and names(out)["sharp.png"] == "Bea"
    summary, _ = run()
    assert (summary.already_done, summary.statuses) == (4, {})


HOSTILE = (os.fsdecode(b"\xff <b>ann\n"), os.fsdecode(b"m\xf6re \x1b[31m"), os.fsdecode(b"\xfe {{7}}.jpg"))
"""A person's folder of portraits, a folder of the album, a photo: not UTF-8, with markup and control characters."""


def test_hostile_names_of_folders_portraits_and_photos(tmp_path: Path) -> None:
    """Every command, in a UTF-8 locale: nothing stops at such a name, and the person can be forgotten by it."""
    folder, place, name = HOSTILE
    photo, out, refs = tmp_path / "album" / place / name, tmp_path / "out", tmp_path / "refs"
    photo.parent.mkdir(parents=True)
    old_photo("ann", 0).save(tmp_path / "photo.jpg", quality=90)
    (tmp_path / "photo.jpg").rename(photo)
    make_portraits(refs, ("ann",))
    (refs / "ann").rename(refs / folder)
    tiny_pipeline(default_steps=1).save_pretrained(tmp_path / "tiny")
    album = (tmp_path / "album", "--refs", refs, "-o", out, "--faces", "dlib")

    def run(*arguments: object, code: int = 0) -> str:
        command = [sys.executable, "-m", "facefix", *map(os.fspath, map(str, arguments))]
        environment = os.environ | {"PYTHONIOENCODING": "utf-8:strict"}
        done = subprocess.run(command, capture_output=True, cwd=tmp_path, env=environment, check=False)
        stdout, stderr = (os.fsdecode(stream) for stream in (done.stdout, done.stderr))
        assert done.returncode == code and "Traceback" not in stderr, stderr
        return stdout

    table = run("people", *album, "--html")
    assert "\x1b" not in table and "%FF <b>ann" in table
    assert 'name = "%FF <b>ann\\n"' in (out / "people.toml").read_text("utf-8")
    options = ("--restore", "all", "--model", tmp_path / "tiny")
    (row,) = map(json.loads, run("restore", *album, *options, "--jsonl").splitlines())
    assert row["photo"] == str(photo) and row["faces"][0]["person"] == "%FF <b>ann\n"
    assert (out / place / name).is_file()
    run("report", out)
    run("undo", out)
    assert json.loads(run("forget", out, "%FF <b>ann\n", "--json"))["embeddings"] == 2
    run("people", *album, "--json")
