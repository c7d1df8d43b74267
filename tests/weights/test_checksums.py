"""Sealed folders: every change of a file is found, and sha256sum agrees."""

from __future__ import annotations

import random
import shutil
import subprocess
from pathlib import Path

import pytest

from facefix.weights.checksums import CHECKSUMS, seal, verify


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "model"
    (made / "unet").mkdir(parents=True)
    (made / "model_index.json").write_text("{}")
    (made / "unet" / "weights.safetensors").write_bytes(random.Random(1).randbytes(10_000))
    (made / "unet" / "empty").write_bytes(b"")
    seal(made)
    return made


def test_a_sealed_folder_is_sound_until_a_file_changes(folder: Path) -> None:
    assert verify(folder) == []
    generator = random.Random(2)
    path = folder / "unet" / "weights.safetensors"
    sound = path.read_bytes()
    for _ in range(50):
        damaged = bytearray(sound)
        damaged[generator.randrange(len(damaged))] ^= 1 << generator.randrange(8)
        path.write_bytes(damaged)
        (problem,) = verify(folder)
        assert problem.startswith(f"{path}: expected sha256")
    path.write_bytes(sound)
    assert verify(folder) == []


def test_missing_files_and_a_missing_or_torn_seal_are_named(folder: Path) -> None:
    (folder / "unet" / "empty").unlink()
    assert verify(folder) == [f"{folder / 'unet' / 'empty'}: missing"]
    sums = folder / CHECKSUMS
    sums.write_bytes(sums.read_bytes()[:90])
    assert "expected lines of a sha256" in verify(folder)[0]
    sums.write_text("0" * 64 + "  ../../etc/passwd\n")
    assert "expected lines of a sha256" in verify(folder)[0]
    sums.unlink()
    assert "nothing to compare with" in verify(folder)[0]


def test_sealing_again_gives_the_same_seal(folder: Path) -> None:
    before = (folder / CHECKSUMS).read_bytes()
    seal(folder)
    assert (folder / CHECKSUMS).read_bytes() == before


def test_sha256sum_reads_it(folder: Path) -> None:
    program = shutil.which("sha256sum")
    if program is None:
        pytest.skip("sha256sum is not installed")
    assert subprocess.run([program, "--check", "--quiet", CHECKSUMS], cwd=folder, check=False).returncode == 0
