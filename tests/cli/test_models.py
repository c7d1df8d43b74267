"""``facefix models``: what it prints where, its exit codes, and that it ends with usable weights."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_line import facefix
from faulty_server import FaultyServer, serve

from facefix.weights import catalogue as weights

ARCHIVE = "retinaface_resnet50_2020-07-20-f168fae3c.zip"


def retinaface_zip(content: bytes = b"weights" * 1000) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("retinaface_resnet50_2020-07-20.pth", content)
    return buffer.getvalue()


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FACEFIX_WEIGHTS_DIR", str(tmp_path / "weights"))
    monkeypatch.delenv("FACEFIX_WEIGHTS_MIRROR", raising=False)
    return tmp_path / "weights"


@pytest.fixture
def server() -> Iterator[FaultyServer]:
    with serve(FaultyServer(files={ARCHIVE: retinaface_zip()})) as running:
        yield running


def test_list_shows_every_entry_with_its_licence(home: Path) -> None:
    shown = facefix("models", "list")
    assert shown.code == 0
    for entry in weights.CATALOGUE.values():
        assert entry.name in shown.stdout
        assert entry.licence in shown.stdout
    assert str(home) in shown.stderr
    assert not home.exists()


def test_list_as_json_says_where_checksums_are_known_from(home: Path, server: FaultyServer) -> None:
    assert facefix("models", "pull", "retinaface-r50", "--mirror", server.address).code == 0
    rows = {row["name"]: row for row in json.loads(facefix("models", "list", "--json").stdout)}
    assert rows["refldm"]["installed"] is False
    assert rows["refldm"]["bytes"] == 1171354376 + 778550621
    assert [file["sha256_known_from"] for file in rows["refldm"]["files"]] == ["catalogue", "catalogue"]
    assert rows["retinaface-r50"]["folder"] == str(home / "retinaface-r50")
    assert rows["retinaface-r50"]["files"][0]["sha256_known_from"] == "pinned"
    assert rows["retinaface-r50"]["files"][0]["sha256"] == hashlib.sha256(server.files[ARCHIVE]).hexdigest()


def test_pull_path_verify(home: Path, server: FaultyServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FACEFIX_WEIGHTS_MIRROR", server.address)
    pulled = facefix("models", "pull", "retinaface-r50")
    assert (pulled.code, pulled.stdout) == (0, f"{home / 'retinaface-r50'}\n")
    assert "is now pinned" in pulled.stderr
    assert "WIDER FACE" in pulled.stderr
    path = facefix("models", "path", "retinaface-r50")
    assert (path.code, path.stdout) == (0, pulled.stdout)
    assert facefix("models", "verify", "retinaface-r50").stdout == "retinaface-r50: sound\n"

    (home / "retinaface-r50" / "retinaface_resnet50_2020-07-20.pth").write_bytes(b"rotten")
    damaged = facefix("models", "verify", "retinaface-r50")
    assert (damaged.code, damaged.stdout) == (1, "retinaface-r50: damaged\n")
    assert "2020-07-20.pth: expected sha256" in damaged.stderr
    assert facefix("models", "pull", "retinaface-r50").code == 0
    assert facefix("models", "verify").code == 0


def test_non_commercial_weights_need_the_licence_accepted(home: Path) -> None:
    for name in ("refldm", "buffalo_l"):
        refused = facefix("models", "pull", name)
        assert refused.code == 2
        assert "non-commercial" in refused.stderr
        assert weights.CATALOGUE[name].licence_url in refused.stderr
        assert "--accept-licence" in refused.stderr
    assert not home.exists()


def test_weights_that_cannot_be_had_exit_with_69(home: Path, server: FaultyServer) -> None:
    for command in ("path", "verify"):
        missing = facefix("models", command, "buffalo_l")
        assert missing.code == 69
        assert "facefix models pull buffalo_l --accept-licence" in missing.stderr
    gone = facefix("models", "pull", "buffalo_l", "--accept-licence", "--mirror", server.address)
    assert gone.code == 69
    assert "buffalo_l.zip: HTTP 404" in gone.stderr


def test_a_fake_of_known_weights_is_refused(home: Path, server: FaultyServer, tmp_path: Path) -> None:
    (tmp_path / "buffalo_l.zip").write_bytes(b"x")
    fake = facefix("models", "pull", "buffalo_l", "--accept-licence", "--from", tmp_path / "buffalo_l.zip")
    assert fake.code == 69
    assert "expected 288621354 bytes, found 1" in fake.stderr
    assert facefix("models", "path", "buffalo_l").code == 69


def test_files_given_need_no_network(home: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.zip").write_bytes(retinaface_zip())
    assert facefix("models", "pull", "retinaface-r50", "--from", tmp_path / "mine.zip").code == 0
    assert facefix("models", "verify", "retinaface-r50").code == 0


@pytest.mark.parametrize("command", [("pull", "nothing"), ("path", "nothing"), ("verify", "nothing")])
def test_unknown_names_are_usage_errors(home: Path, command: tuple[str, str]) -> None:
    wrong = facefix("models", *command)
    assert wrong.code == 2
    assert "'nothing' is not in the catalogue" in wrong.stderr


def test_import_of_what_is_no_checkpoint(home: Path, tmp_path: Path) -> None:
    (tmp_path / "a.ckpt").write_bytes(b"hello")
    target = tmp_path / "model"
    arguments = (tmp_path / "a.ckpt", "--vqgan", tmp_path / "a.ckpt", "--to", target)
    wrong = facefix("models", "import", "refldm", *arguments)
    assert wrong.code == 1
    assert "a.ckpt: expected" in wrong.stderr
    assert not target.exists()
    assert facefix("models", "import", "other", *arguments).code == 2
    assert facefix("models", "import", "refldm", tmp_path / "none.ckpt", *arguments[1:]).code == 2


def test_wrong_use_is_explained_with_exit_code_2() -> None:
    for arguments, message in {
        ("models", "pull"): "Missing argument",
        ("models", "pull", "small", "--nonsense"): "No such option",
        ("nonsense",): "No such command",
    }.items():
        wrong = facefix(*arguments)
        assert wrong.code == 2
        assert message in wrong.stderr
