"""``facefix face``: one aligned crop through the command line."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import tiny_pipeline

import facefix.cli  # noqa: F401 (registers the commands)
from facefix.cli.app import run as run_command_line

SIZE = 64


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny_pipeline(default_steps=2).save_pretrained(folder)
    return folder


@pytest.fixture
def album(tmp_path: Path) -> Path:
    for name, seed, size in [("lq.png", 1, SIZE), ("a.png", 2, SIZE), ("b.jpg", 3, 80)]:
        pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / name)
    Image.new("RGB", (40, 64)).save(tmp_path / "tall.png")
    (tmp_path / "text.png").write_text("not an image")
    return tmp_path


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    returncode: int
    stdout: str
    stderr: str


class CommandLine:
    """The command line in this process: the same entry point, without a new interpreter for every case."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.monkeypatch = monkeypatch
        self.capsys = capsys

    def __call__(self, folder: Path, *arguments: str) -> Ended:
        self.monkeypatch.chdir(folder)
        self.monkeypatch.setattr("sys.argv", ["facefix", "face", *arguments])
        self.capsys.readouterr()
        code = run_command_line()
        printed = self.capsys.readouterr()
        return Ended(code, printed.out, printed.err)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> CommandLine:
    return CommandLine(monkeypatch, capsys)


def test_a_face_is_restored_the_same_way_twice(run: CommandLine, model: Path, album: Path) -> None:
    words = ["lq.png", "--ref", "a.png", "--ref", "b.jpg", "--model", str(model), "--steps", "2"]
    first = run(album, *words, "-o", "out/1.png")
    assert first.returncode == 0, first.stderr
    assert "references: resized from 80 to 64 px" in first.stderr
    assert first.stdout == ""
    assert run(album, *words, "-o", "out/2.png").returncode == 0
    assert run(album, *words, "-o", "out/3.png", "--seed", "7").returncode == 0
    one, two, three = (np.asarray(Image.open(album / "out" / f"{number}.png")) for number in (1, 2, 3))
    assert one.shape == (SIZE, SIZE, 3)
    assert np.array_equal(one, two)
    assert not np.array_equal(one, three)
    assert sorted(path.name for path in (album / "out").iterdir()) == ["1.png", "2.png", "3.png"]


def test_no_references(run: CommandLine, model: Path, album: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    assert run(album, "lq.png", "--model", str(model), "-o", "out.png").returncode == 0
    needing = tmp_path_factory.mktemp("models") / "needing"
    tiny_pipeline(needs_references=True).save_pretrained(needing)
    refused = run(album, "lq.png", "--model", str(needing), "-o", "none.png")
    assert refused.returncode == 2
    assert "--ref: expected at least one reference" in refused.stderr
    assert not (album / "none.png").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["none.png"], 2, "none.png: expected an image file, found nothing"),
        (["text.png"], 1, "text.png: expected an image"),
        (["tall.png"], 1, "tall.png: expected a square aligned face crop, found 40x64 px"),
        (["lq.png", "--ref", "text.png"], 1, "text.png: expected an image"),
        (["lq.png", "--steps", "0"], 2, "num_inference_steps: expected a whole number from 1 to 1000, found 0"),
        (["lq.png", "--guidance", "99"], 2, "guidance_scale: expected a number from 0 to 20, found 99"),
        (["lq.png", "--sampler", "euler"], 2, "sampler: expected one of"),
        (["lq.png", "--seed", str(2**64)], 2, "seed: expected a whole number from 0"),
        (["lq.png", "--device", "cuda:7"], 2, "--device: expected a device that is here, found 'cuda:7'"),
        (["lq.png", "--device", "toaster"], 2, "--device: expected auto, cpu, cuda"),
        (["lq.png", "--dtype", "int8"], 2, "--dtype: expected auto, fp32, bf16, fp16, found 'int8'"),
        (["lq.png", "--model", "./nowhere"], 69, "nowhere"),
        (["lq.png", "-o", "out.gif"], 2, "--output: expected a name ending in"),
        (["lq.png", "-o", "lq.png"], 2, "which is an input"),
    ],
)
def test_wrong_use(run: CommandLine, model: Path, album: Path, arguments: list[str], code: int, message: str) -> None:
    defaults = [] if "--model" in arguments else ["--model", str(model)]
    defaults += [] if "-o" in arguments else ["-o", "out.png"]
    before = {path.name: path.read_bytes() for path in album.iterdir()}
    result = run(album, *arguments, *defaults)
    assert (result.returncode, message in result.stderr) == (code, True), result.stderr
    assert "Traceback" not in result.stderr
    assert {path.name: path.read_bytes() for path in album.iterdir()} == before


def test_damaged_models(run: CommandLine, model: Path, album: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    tiny_pipeline().save_pretrained(damaged)
    weights = next((damaged / "unet").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:1000])
    result = run(album, "lq.png", "--model", str(damaged), "-o", "out.png")
    assert result.returncode == 1
    assert f"{damaged}: expected a complete model" in result.stderr
    assert "Traceback" not in result.stderr
