"""Shell completion: commands and names of weights are offered, for each shell that Typer knows."""

from __future__ import annotations

import pytest
from command_line import facefix


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("facefix mod", {"models"}),
        ("facefix models ", {"list", "path", "verify", "pull", "import"}),
        ("facefix models pull re", {"refldm", "retinaface-r50"}),
        ("facefix config ", {"show"}),
    ],
)
def test_bash_is_offered_what_can_follow(monkeypatch: pytest.MonkeyPatch, words: str, offered: set[str]) -> None:
    monkeypatch.setenv("_FACEFIX_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(len(words.split(" ")) - 1))
    done = facefix()
    assert (done.code, set(done.stdout.split())) == (0, offered)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_for_a_shell_names_facefix(monkeypatch: pytest.MonkeyPatch, shell: str) -> None:
    monkeypatch.setenv("_FACEFIX_COMPLETE", f"source_{shell}")
    assert "facefix" in facefix().stdout
