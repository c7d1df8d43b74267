"""``facefix restore`` and ``facefix people`` as users run them, with a tiny random-weight model."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from albums import PEOPLE, landscape, make_album, make_portraits
from command_line import facefix
from tiny import tiny_pipeline


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with random weights."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny_pipeline(default_steps=2).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small album and portraits."""
    folder = tmp_path_factory.mktemp("place")
    make_album(folder / "album", photos_per_person=1, people=PEOPLE[:2])
    make_portraits(folder / "refs", people=PEOPLE[:2])
    return folder


@pytest.fixture(autouse=True)
def no_settings_of_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither variables nor a facefix.toml of whoever runs the tests."""
    monkeypatch.chdir(tmp_path)
    for name in os.environ:
        if name.startswith("FACEFIX_") and name not in ("FACEFIX_SHARED", "FACEFIX_TEST_KILLS"):
            monkeypatch.delenv(name)


def test_restore_from_the_first_run_to_the_second(place: Path, model: Path) -> None:
    arguments = (
        "restore",
        place / "album",
        "--refs",
        place / "refs",
        "--model",
        model,
        "--restore",
        "all",
        "--faces",
        "dlib",
    )
    planned = facefix(*arguments, "--dry-run", "--json")
    assert planned.code == 0 and not (place / "album-restored").exists()
    assert json.loads(planned.stdout)["faces"] == {"found": 2, "to_restore": 2}
    assert json.loads(planned.stdout)["seconds"] > 0
    people = facefix("people", place / "album", "--refs", place / "refs", "--faces", "dlib", "--json")
    found = {row["name"]: row for row in json.loads(people.stdout)["people"]}
    assert set(found) == {"ann", "bea"}
    assert all(row["references"][0]["reason"] for row in found.values())

    first = facefix(*arguments, "--jsonl")
    rows = [json.loads(line) for line in first.stdout.splitlines()]
    assert first.code == 0 and len(rows) == 3
    faces = [face for row in rows for face in row["faces"]]
    assert {face["person"] for face in faces} == {"ann", "bea"}
    assert all(face["verdict"] in ("restored", "kept", "flagged") and face["references"] for face in faces)
    assert (place / "album-restored" / "facefix-report" / "index.html").is_file()
    assert "restoring: 2 faces" in first.stderr and "\x1b" not in first.stderr and "\r" not in first.stderr

    second = facefix(*arguments, "--json", "-q")
    assert second.code == 0 and second.stderr == ""
    summary = json.loads(second.stdout)
    assert summary["photos"]["already_done"] == 3 and summary["device"]["faces"] == 0
    third = facefix(*arguments, "-q")
    assert (third.code, third.stdout, third.stderr) == (0, "", ""), "cron mails nothing"


def test_the_people_table_names_everybody_and_why(place: Path) -> None:
    shown = facefix("people", place / "album", "--refs", place / "refs", "--faces", "dlib", "-q")
    assert shown.code == 0
    assert "ann" in shown.stdout and "bea" in shown.stdout and "portrait" in shown.stdout


def test_names_of_photos_from_a_list(place: Path, model: Path, tmp_path: Path) -> None:
    (tmp_path / "list").write_bytes(b"pictures/one\nphoto.png\0pictures/two.png\0")
    (tmp_path / "pictures").mkdir()
    landscape(1).save(tmp_path / "pictures" / "one\nphoto.png")
    landscape(2).save(tmp_path / "pictures" / "two.png")
    done = facefix("restore", "--files-from", "list", "-0", "-o", "out", "--model", model, "--faces", "dlib", "--json")
    assert done.code == 0 and json.loads(done.stdout)["photos"]["copied"] == 2
    assert (tmp_path / "out" / "pictures" / "one\nphoto.png").is_file()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["restore"], 2, "ALBUM"),
        (["restore", "nowhere"], 2, "nowhere"),
        (["restore", "a.png"], 2, "-o"),
        (["restore", "a.png", "-o", "out", "--strength", "7"], 2, "--strength"),
        (["restore", "a.png", "-o", "out", "-0"], 2, "-0"),
        (["restore", "a.png", "-o", "out", "--device", "cuda:77", "--model", "small"], 2, "cuda:77"),
        (["restore", "a.png", "-o", "out", "--faces", "mtcnn"], 2, "mtcnn"),
        (["restore", "a.png", "-o", "out", "--model", "none-such"], 69, "none-such"),
        (["restore", "a.png", "-o", "out", "--files-from", "gone"], 2, "gone"),
        (["restore", "a.png", "-o", "/proc/nothing/here"], 1, "/proc/nothing/here"),
    ],
)
def test_mistakes_end_with_their_exit_code_and_name_the_argument(
    arguments: list[str], code: int, message: str, tmp_path: Path
) -> None:
    landscape(1).save(tmp_path / "a.png")
    done = facefix(*arguments)
    assert (done.code, done.stdout) == (code, "")
    assert message in done.stderr and "Traceback" not in done.stderr


def test_flagged_faces_end_with_4_if_strict(place: Path, model: Path) -> None:
    """The likeness of a face whose embedding was forgotten cannot be checked, so it is flagged."""
    arguments = ("restore", place / "album", "-o", place / "flagged", "--faces", "dlib", "--restore", "all", "-q")
    arguments += ("--model", model, "--no-report")
    assert facefix(*arguments).code == 0
    assert facefix("forget", place / "flagged").code == 0
    assert facefix(*arguments, "--seed", "1", "--strict").code == 4
    assert facefix(*arguments, "--seed", "2").code == 0
    assert facefix(*arguments, "--seed", "2", "--strict").code == 0, "nothing was left to do"


def test_unreadable_photos_end_with_3(place: Path, model: Path, tmp_path: Path) -> None:
    landscape(1).save(tmp_path / "a.png")
    (tmp_path / "b.jpg").write_bytes(b"\xff\xd8\xff\xe0 no more")
    done = facefix("restore", "a.png", "b.jpg", "-o", "out", "--model", model, "--faces", "dlib", "-q")
    assert done.code == 3 and "b.jpg" in done.stderr and "Traceback" not in done.stderr
    assert (tmp_path / "out" / "a.png").is_file()


def test_a_full_disk_ends_the_run_and_a_later_run_goes_on(model: Path, tmp_path: Path) -> None:
    """Files may not grow beyond some size here, which fails as a full disk does."""
    landscape(1).resize((1200, 900)).save(tmp_path / "large.bmp")
    script = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20));"
        "from facefix.cli import main; main()"
    )
    arguments = ["restore", "large.bmp", "-o", "out", "--model", str(model), "--faces", "dlib"]
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode in (1, 3) and "large.bmp" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "out" / "large.bmp").exists()
    assert facefix(*arguments).code == 0 and (tmp_path / "out" / "large.bmp").is_file()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_the_run_with_their_code(number: signal.Signals, place: Path, model: Path, tmp_path: Path) -> None:
    make_album(tmp_path / "album", photos_per_person=3)
    arguments = [
        "restore",
        "album",
        "--model",
        str(model),
        "--faces",
        "dlib",
        "--restore",
        "all",
        "--jsonl",
        "--threads",
        "1",
    ]
    child = subprocess.Popen(
        [sys.executable, "-m", "facefix", *arguments],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None and child.stderr is not None
    first = child.stdout.readline()
    child.send_signal(number)
    rest, errors = child.communicate(timeout=120)
    assert first and child.returncode == 128 + number, errors
    assert "Traceback" not in errors
    done = [json.loads(line) for line in (first + rest).splitlines()]
    assert 0 < len(done) < 10
    finished = facefix(*arguments)
    assert finished.code == 0 and len(done) + len(finished.stdout.splitlines()) == 10
