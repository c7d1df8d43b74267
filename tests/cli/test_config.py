"""``facefix config show``: every setting, its value, and where it came from."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import facefix

from facefix.settings import Settings


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No configuration but the test's own."""
    monkeypatch.chdir(tmp_path)
    for name in ("FACEFIX_CONFIG", "FACEFIX_WEIGHTS_DIR", "FACEFIX_WEIGHTS_MIRROR", "FACEFIX_STEPS"):
        monkeypatch.delenv(name, raising=False)


def shown() -> dict[str, dict[str, object]]:
    done = facefix("config", "show", "--json")
    assert done.code == 0
    found: dict[str, dict[str, object]] = json.loads(done.stdout)
    return found


def test_every_setting_is_shown_with_its_default() -> None:
    settings = shown()
    assert set(Settings.model_fields) <= set(settings)
    assert {row["source"] for row in settings.values()} == {"default"}
    assert settings["strength"]["value"] == 1.0


def test_each_value_names_where_it_came_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "facefix.toml").write_text('strength = 0.5\nsteps = 7\nexclude = ["*.bak", "drafts"]\n')
    monkeypatch.setenv("FACEFIX_STEPS", "9")
    monkeypatch.setenv("FACEFIX_WEIGHTS_DIR", str(tmp_path / "w"))
    settings = shown()
    assert settings["strength"] == {"value": 0.5, "source": f"{tmp_path / 'facefix.toml'}: strength"}
    assert settings["steps"] == {"value": 9, "source": "FACEFIX_STEPS"}
    assert settings["exclude"]["value"] == ["*.bak", "drafts"]
    assert settings["weights_dir"] == {"value": str(tmp_path / "w"), "source": "FACEFIX_WEIGHTS_DIR"}
    lines = facefix("config", "show").stdout.splitlines()
    assert next(line for line in lines if line.startswith("steps ")).split() == ["steps", "9", "FACEFIX_STEPS"]
    assert len(lines) == len(settings)


def test_another_file_can_be_shown(tmp_path: Path) -> None:
    (tmp_path / "other.toml").write_text("seed = 5\n")
    done = facefix("config", "show", "--config", tmp_path / "other.toml", "--json")
    assert json.loads(done.stdout)["seed"] == {"value": 5, "source": f"{tmp_path / 'other.toml'}: seed"}


@pytest.mark.parametrize(
    ("content", "message"),
    [("strenght = 1", "strenght"), ("strength = 7", "strength"), ("strength = ", "expected TOML")],
)
def test_mistakes_are_usage_errors_that_name_the_file(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "facefix.toml").write_text(content)
    done = facefix("config", "show")
    assert (done.code, done.stdout) == (2, "")
    assert "facefix.toml" in done.stderr
    assert message in done.stderr


def test_standard_output_on_a_full_disk_is_an_error_without_a_traceback() -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "facefix", "config", "show"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "facefix: error: [Errno 28] No space left on device\n")
