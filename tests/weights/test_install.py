"""The catalogue, and pulling from a server that misbehaves: what is installed is whole and right, or not there."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import random
import re
import resource
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import golden
import pytest
import torch
from command_line import facefix
from faulty_server import FaultyServer, serve
from PIL import Image

from facefix import ReFLDMPipeline
from facefix.errors import CheckpointError, FacefixError, LockHeld, UsageError, WeightsUnavailable
from facefix.weights import catalogue as weights
from facefix.weights import install
from facefix.weights.catalogue import CATALOGUE, PublishedFile, Weights
from facefix.weights.checksums import verify
from facefix.weights.download import Patience
from facefix.weights.install import Observer, PullOptions

QUICK = Patience(attempts=3, stall_seconds=0.3, progress_bytes=10_000, first_pause=0.01, longest_pause=0.05)
DETECTOR = random.Random(1).randbytes(40_000)
EMBEDDER = random.Random(2).randbytes(90_000)


def make_zip(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


ZIP = make_zip({"det_10g.onnx": DETECTOR, "w600k_r50.onnx": EMBEDDER})


@pytest.fixture
def server() -> Iterator[FaultyServer]:
    with serve(FaultyServer(files={"pack.zip": ZIP})) as running:
        yield running


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FACEFIX_WEIGHTS_DIR", str(tmp_path / "weights"))
    return tmp_path / "weights"


def pack(server: FaultyServer, *, known: bool = True, content: bytes = ZIP, name: str = "pack.zip") -> Weights:
    """An entry like buffalo_l whose file the local server has."""
    server.files[name] = content
    file = PublishedFile(name, server.url(name))
    if known:
        file = dataclasses.replace(file, size=len(ZIP), sha256=hashlib.sha256(ZIP).hexdigest())
    return dataclasses.replace(CATALOGUE["buffalo_l"], files=(file,))


def accepted(**changes: object) -> PullOptions:
    return PullOptions(accept_licence=True, patience=QUICK, **changes)  # type: ignore[arg-type]


def installed(home: Path) -> list[str]:
    """Names of what lies in the weights folder, without locks, pins and kept parts."""
    if not home.is_dir():
        return []
    return sorted(
        path.name for path in home.iterdir() if path.suffix not in {".lock", ".json"} and path.name != "downloads"
    )


def test_every_entry_is_complete() -> None:
    assert {"refldm", "buffalo_l", "retinaface-r50", "small"} <= set(CATALOGUE)
    for name, entry in CATALOGUE.items():
        assert entry.name == name
        assert entry.summary and entry.licence and entry.contents
        assert entry.licence_url.startswith("https://")
        assert bool(entry.files) == (entry.install != "shipped")
        for file in entry.files:
            assert file.url.startswith("https://")
            assert file.url.endswith("/" + file.name)
            assert file.sha256 is None or re.fullmatch("[0-9a-f]{64}", file.sha256)
    assert [CATALOGUE[name].non_commercial for name in ("refldm", "buffalo_l", "small")] == [True, True, False]


def test_the_retinaface_address_is_the_packages_own() -> None:
    published = pytest.importorskip("retinaface.pre_trained_models", reason="retinaface-pytorch is not installed")
    assert CATALOGUE["retinaface-r50"].files[0].url == published.models["resnet50_2020-07-20"].url


def test_pull_installs_a_folder_that_verifies(server: FaultyServer, home: Path) -> None:
    said: list[str] = []
    seen: list[int] = []
    observer = Observer(say=said.append, progress=lambda _file, got, _total: seen.append(got))
    folder = install.pull(pack(server), accepted(), observer=observer)
    assert folder == home / "buffalo_l" == weights.installed_folder("buffalo_l")
    assert (folder / "det_10g.onnx").read_bytes() == DETECTOR
    assert (folder / "w600k_r50.onnx").read_bytes() == EMBEDDER
    assert verify(folder) == []
    assert CATALOGUE["buffalo_l"].licence in (folder / "SOURCE.txt").read_text()
    assert installed(home) == ["buffalo_l"]
    assert not (home / "downloads" / "buffalo_l").exists()
    assert seen[-1] == len(ZIP)
    assert any("fetching" in message for message in said)


def test_a_second_pull_does_nothing(server: FaultyServer, home: Path) -> None:
    install.pull(pack(server), accepted())
    before = (home / "buffalo_l").stat().st_mtime_ns
    server.requests.clear()
    install.pull(pack(server), accepted())
    assert server.requests == []
    assert (home / "buffalo_l").stat().st_mtime_ns == before


def test_a_licence_that_was_not_accepted_fetches_nothing(server: FaultyServer, home: Path) -> None:
    with pytest.raises(UsageError, match=r"non-commercial.*https://.*--accept-licence"):
        install.pull(pack(server), PullOptions(patience=QUICK))
    assert server.requests == []
    assert not home.exists()


@pytest.mark.parametrize("faults", [["truncate"], ["stall"], ["corrupt"], ["503", "truncate"], ["429", "stall"]])
def test_a_bad_line_still_ends_in_sound_weights(server: FaultyServer, home: Path, faults: list[str]) -> None:
    server.etags["pack.zip"] = '"one"'
    server.faults["pack.zip"] = list(faults)
    folder = install.pull(pack(server), accepted())
    assert verify(folder) == []


@pytest.mark.parametrize("fault", ["truncate", "stall", "corrupt", "404", "503", "page"])
def test_a_failed_pull_leaves_no_half_installed_weights(server: FaultyServer, home: Path, fault: str) -> None:
    server.without_ranges = True
    server.faults["pack.zip"] = [fault] * 20
    with pytest.raises(WeightsUnavailable, match=re.escape(server.url("pack.zip"))):
        install.pull(pack(server), accepted())
    assert installed(home) == []
    assert weights.installed_folder("buffalo_l") is None


def test_an_interrupted_pull_goes_on_where_it_stopped(server: FaultyServer, home: Path) -> None:
    server.etags["pack.zip"] = '"one"'
    server.faults["pack.zip"] = ["truncate", "503", "503", "503"]
    with pytest.raises(WeightsUnavailable, match="run the command again"):
        install.pull(pack(server), accepted())
    server.requests.clear()
    install.pull(pack(server), accepted())
    assert server.requests == [("pack.zip", f"bytes={len(ZIP) // 2}-")]


def test_redirects_lead_to_the_file(server: FaultyServer, home: Path) -> None:
    entry = pack(server)
    server.redirects["pack.zip"] = server.url("elsewhere")
    server.files["elsewhere"] = ZIP
    assert verify(install.pull(entry, accepted())) == []


def test_an_unknown_checksum_is_pinned_at_first_fetch_and_said_so(server: FaultyServer, home: Path) -> None:
    entry = pack(server, known=False)
    assert install.known_sha256(entry.files[0]) == (None, "unknown")
    said: list[str] = []
    install.pull(entry, accepted(), observer=Observer(say=said.append))
    digest = hashlib.sha256(ZIP).hexdigest()
    assert any(digest in message and "pinned" in message for message in said)
    assert install.known_sha256(entry.files[0]) == (digest, "pinned")

    (home / "buffalo_l" / "det_10g.onnx").write_bytes(b"rotten")
    other = make_zip({"det_10g.onnx": b"other", "w600k_r50.onnx": EMBEDDER})
    server.files["pack.zip"] = other
    with pytest.raises(WeightsUnavailable, match=r"expected \d+ bytes, the server offers"):
        install.pull(entry, accepted())
    install.pull(entry, accepted(repin=True))
    assert install.known_sha256(entry.files[0])[0] == hashlib.sha256(other).hexdigest()


def test_what_could_not_be_installed_is_not_pinned(server: FaultyServer, home: Path) -> None:
    entry = pack(server, known=False, content=b"not an archive")
    with pytest.raises(WeightsUnavailable, match="sound zip"):
        install.pull(entry, accepted())
    assert install.known_sha256(entry.files[0]) == (None, "unknown")
    assert installed(home) == []
    server.files["pack.zip"] = ZIP
    install.pull(entry, accepted())
    assert install.known_sha256(entry.files[0])[1] == "pinned"


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"../../evil.onnx": b"x", "det_10g.onnx": b"1"}, "outside its folder"),
        ({"readme.txt": b"nothing useful"}, r"expected det_10g.onnx, w600k_r50.onnx inside, found readme.txt"),
    ],
)
def test_a_wrong_archive_is_not_installed(
    server: FaultyServer, home: Path, tmp_path: Path, members: dict[str, bytes], message: str
) -> None:
    with pytest.raises(WeightsUnavailable, match=message):
        install.pull(pack(server, known=False, content=make_zip(members)), accepted())
    assert installed(home) == []
    assert not list(tmp_path.rglob("evil.onnx"))


def test_damage_is_found_and_repaired_by_pulling_again(server: FaultyServer, home: Path) -> None:
    folder = install.pull(pack(server), accepted())
    content = bytearray(EMBEDDER)
    content[1000] ^= 1
    (folder / "w600k_r50.onnx").write_bytes(content)
    assert [problem for problem in verify(folder) if "w600k_r50.onnx: expected sha256" in problem]
    (folder / "det_10g.onnx").unlink()
    assert any("det_10g.onnx: missing" in problem for problem in verify(folder))
    assert weights.installed_folder("buffalo_l") is None
    install.pull(pack(server), accepted())
    assert verify(folder) == []
    (folder / "SHA256SUMS").unlink()
    assert "nothing to compare with" in verify(folder)[0]


def test_files_can_be_given_on_a_machine_without_network(home: Path, tmp_path: Path) -> None:
    file = PublishedFile("pack.zip", "https://example.invalid/pack.zip", len(ZIP), hashlib.sha256(ZIP).hexdigest())
    entry = dataclasses.replace(CATALOGUE["buffalo_l"], files=(file,))
    (tmp_path / "pack.zip").write_bytes(ZIP)
    folder = install.pull(entry, accepted(given=(tmp_path,)))
    assert verify(folder) == []
    assert (tmp_path / "pack.zip").read_bytes() == ZIP

    renamed = tmp_path / "renamed.zip"
    renamed.write_bytes(ZIP[:-1] + b"x")
    (folder / "det_10g.onnx").unlink()
    with pytest.raises(WeightsUnavailable, match=r"renamed.zip: expected sha256 \w+, found"):
        install.pull(entry, accepted(given=(renamed,)))
    with pytest.raises(WeightsUnavailable, match=r"expected pack.zip among the files given"):
        install.pull(entry, accepted(given=(tmp_path / "nothing",)))


def test_a_mirror_gives_the_files_under_their_names(server: FaultyServer, home: Path) -> None:
    file = PublishedFile("pack.zip", "https://example.invalid/x/pack.zip", len(ZIP), hashlib.sha256(ZIP).hexdigest())
    entry = dataclasses.replace(CATALOGUE["buffalo_l"], files=(file,))
    install.pull(entry, accepted(mirror=server.url("")))
    assert [path for path, _ in server.requests] == ["/pack.zip".lstrip("/")]


def test_two_pulls_at_once_are_kept_apart(server: FaultyServer, home: Path) -> None:
    server.faults["pack.zip"] = ["stall"]
    started = threading.Event()

    def slow() -> None:
        observer = Observer(say=lambda _message: started.set())
        install.pull(pack(server), accepted(), observer=observer)

    first = threading.Thread(target=slow)
    first.start()
    assert started.wait(5)
    with pytest.raises(LockHeld, match="another pull of buffalo_l is running"):
        install.pull(pack(server), accepted())
    first.join()
    assert verify(home / "buffalo_l") == []


def test_leftovers_of_a_killed_pull_are_removed(server: FaultyServer, home: Path) -> None:
    (home / ".buffalo_l-killed" / "new").mkdir(parents=True)
    install.pull(pack(server), accepted())
    assert installed(home) == ["buffalo_l"]


def test_a_pull_killed_at_any_moment_leaves_whole_weights_or_none(server: FaultyServer, home: Path) -> None:
    """The process is killed after 0 to 100 ms of work; afterwards a pull always succeeds."""
    entry = pack(server)
    program = (
        "import sys, dataclasses\n"
        "from facefix.weights import catalogue as c, install as w\n"
        f"f = c.PublishedFile('pack.zip', {entry.files[0].url!r}, {entry.files[0].size}, {entry.files[0].sha256!r})\n"
        "e = dataclasses.replace(c.CATALOGUE['buffalo_l'], files=(f,))\n"
        "print('ready', flush=True)\n"
        "install.pull(e, install.PullOptions(accept_licence=True))\n"
    )
    generator = random.Random(5)
    for _ in range(8):
        with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            threading.Event().wait(generator.uniform(0, 0.03))
            process.kill()
        folder = weights.installed_folder("buffalo_l")
        assert folder is None or verify(folder) == []
        (home / "buffalo_l" / "det_10g.onnx").unlink(missing_ok=True)
    assert verify(install.pull(entry, accepted())) == []
    assert installed(home) == ["buffalo_l"]


def test_a_folder_that_cannot_be_written_is_named(server: FaultyServer, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(WeightsUnavailable, match=r"file/weights: cannot be made.*FACEFIX_WEIGHTS_DIR"):
        install.pull(pack(server), accepted(), home=tmp_path / "file" / "weights")


def test_weights_dir_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FACEFIX_WEIGHTS_DIR", str(tmp_path / "w"))
    assert weights.weights_dir() == tmp_path / "w"
    monkeypatch.delenv("FACEFIX_WEIGHTS_DIR")
    if sys.platform == "linux":
        monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
        assert weights.weights_dir() == tmp_path / "facefix" / "weights"
        monkeypatch.setenv("XDG_DATA_HOME", "relative")
        assert weights.weights_dir() == Path.home() / ".local" / "share" / "facefix" / "weights"


def test_models_are_found_by_name_and_by_folder(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    with pytest.raises(WeightsUnavailable, match="found a folder without one"):
        weights.find_model(mine)
    (mine / "model_index.json").write_text("{}")
    assert weights.find_model(mine) == mine
    monkeypatch.chdir(tmp_path)
    assert weights.find_model("mine") == Path("mine")
    with pytest.raises(WeightsUnavailable, match="found no such folder"):
        weights.find_model("yours")
    with pytest.raises(UsageError, match="expected a restoration model"):
        weights.find_model("buffalo_l")
    with pytest.raises(WeightsUnavailable, match=r"facefix models pull refldm --accept-licence"):
        weights.find_model("refldm")
    assert weights.best_installed_model() == "small"
    (home / "refldm").mkdir(parents=True)
    (home / "refldm" / "model_index.json").write_text("{}")
    assert weights.find_model("refldm") == home / "refldm"
    assert weights.best_installed_model() == "refldm"


def test_unknown_names_list_the_known_ones() -> None:
    with pytest.raises(UsageError, match=r"'nothing' is not in the catalogue.*small, refldm, buffalo_l"):
        weights.entry("nothing")


def test_the_shipped_model_is_whole() -> None:
    folder = weights.installed_folder("small")
    if folder is None:
        pytest.skip("models/small is not in this checkout")
    assert weights.find_model("small") == folder
    assert verify(folder) == []
    assert install.pull(CATALOGUE["small"]) == folder


@pytest.fixture(scope="module")
def tiny_checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """refldm.ckpt, vqgan.ckpt and small.yaml in the published layouts, of a tiny configuration."""
    folder = tmp_path_factory.mktemp("published")
    golden.write_checkpoints(folder)["flat"].rename(folder / "refldm.ckpt")
    (folder / "small.yaml").write_bytes(golden.CONFIG.read_bytes())
    return folder


def tiny_refldm(server: FaultyServer, folder: Path) -> Weights:
    files = []
    for name in ("refldm.ckpt", "vqgan.ckpt", "small.yaml"):
        content = (folder / name).read_bytes()
        server.files[name] = content
        files.append(PublishedFile(name, server.url(name), len(content), hashlib.sha256(content).hexdigest()))
    return dataclasses.replace(CATALOGUE["refldm"], files=tuple(files))


def test_pull_refldm_ends_with_the_published_model(server: FaultyServer, home: Path, tiny_checkpoints: Path) -> None:
    """What is pulled through a bad line gives the published implementation's own result, by name."""
    entry = tiny_refldm(server, tiny_checkpoints)
    server.faults["refldm.ckpt"] = ["truncate", "corrupt"]
    folder = install.pull(entry, accepted())
    assert folder == home / "refldm" == weights.find_model("refldm")
    assert weights.best_installed_model() == "refldm"
    assert verify(folder) == []
    assert installed(home) == ["refldm"]

    pipeline = ReFLDMPipeline.from_pretrained(weights.find_model("refldm"))
    arrays = golden.arrays()
    references = torch.cat([golden.image(arrays[f"ref{number}_u8"]) for number in range(3)])
    noise = torch.from_numpy(arrays["xT"])
    cache = pipeline.encode_references(references)
    result = pipeline(golden.image(arrays["lq_u8"]), cache, 5, 1.5, latents=noise, output_type="latent").images
    assert golden.relative_rms(result, torch.from_numpy(arrays["ddim5_cfg1.5.z"])) <= 1e-5


def test_the_pulled_model_restores_from_the_command_line(
    server: FaultyServer, home: Path, tiny_checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = tiny_refldm(server, tiny_checkpoints)
    monkeypatch.setattr(weights, "CATALOGUE", {**CATALOGUE, "refldm": entry})
    refused = facefix("models", "pull", "refldm")
    assert refused.code == 2 and entry.licence in refused.stderr and not home.exists()
    pulled = facefix("models", "pull", "refldm", "--accept-licence")
    assert (pulled.code, pulled.stdout.strip()) == (0, str(home / "refldm")), pulled.stderr
    assert facefix("models", "verify", "refldm").stdout == "refldm: sound\n"
    for name in ("lq", "ref0"):
        Image.fromarray(golden.arrays()[f"{name}_u8"]).save(tmp_path / f"{name}.png")
    out = tmp_path / "out.png"
    restored = facefix(
        "face", tmp_path / "lq.png", "--ref", tmp_path / "ref0.png", "-o", out, "--model", "refldm", "--steps", "2"
    )
    assert restored.code == 0, restored.stderr
    assert Image.open(out).size == (128, 128)


def test_a_disk_that_is_full_for_the_imported_model_is_said(
    server: FaultyServer, home: Path, tiny_checkpoints: Path
) -> None:
    """No file may be as large as the converted denoiser."""
    entry = tiny_refldm(server, tiny_checkpoints)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, limits[1]))
    try:
        with pytest.raises(FacefixError, match=r"refldm.*cannot be written"):
            install.pull(entry, accepted(given=(tiny_checkpoints,)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert installed(home) == []
    assert verify(install.pull(entry, accepted(given=(tiny_checkpoints,)))) == []


def test_checkpoints_that_cannot_be_imported_leave_no_model(
    server: FaultyServer, home: Path, tiny_checkpoints: Path
) -> None:
    entry = tiny_refldm(server, tiny_checkpoints)
    torn = server.files["vqgan.ckpt"][:5000]
    server.files["vqgan.ckpt"] = torn
    file = dataclasses.replace(entry.files[1], size=len(torn), sha256=hashlib.sha256(torn).hexdigest())
    with pytest.raises(CheckpointError, match=r"vqgan.ckpt"):
        install.pull(dataclasses.replace(entry, files=(entry.files[0], file, entry.files[2])), accepted())
    assert installed(home) == []
    assert weights.best_installed_model() == "small"
