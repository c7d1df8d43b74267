"""Settings: where values come from, in which order, and how mistakes are named."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from facefix.device import DTYPES
from facefix.errors import UsageError
from facefix.networks.schedule import SAMPLERS
from facefix.settings import Settings


def test_flag_wins_over_environment_over_file_over_default(tmp_path: Path) -> None:
    (tmp_path / "facefix.toml").write_text('steps = 10\nstrength = 0.25\nrefs-from = "album"\n')
    environ = {"FACEFIX_STEPS": "20", "FACEFIX_STRENGTH": "0.5", "PATH": "/bin"}
    settings = Settings.load({"steps": 30, "seed": None}, folder=tmp_path, environ=environ)
    assert (settings.steps, settings.strength, settings.refs_from, settings.seed) == (30, 0.5, "album", 2024)
    sources = settings.sources()
    assert sources["steps"] == "--steps"
    assert sources["strength"] == "FACEFIX_STRENGTH"
    assert sources["refs_from"] == f"{tmp_path / 'facefix.toml'}: refs_from"
    assert sources["seed"] == "default"
    assert set(sources) == set(Settings.model_fields)


@pytest.mark.parametrize(("name", "known"), [("sampler", {*SAMPLERS}), ("dtype", {"auto", *DTYPES})])
def test_the_choices_are_those_of_the_networks(name: str, known: set[str]) -> None:
    """They stand in the settings too, which are read without loading torch."""
    with pytest.raises(UsageError) as refused:
        Settings.load({name: "none-such"}, environ={})
    assert set(re.findall("'([^']+)'", str(refused.value))) == known | {"none-such"}


def test_every_setting_can_come_from_the_environment() -> None:
    environ = {
        "FACEFIX_EXCLUDE": "*.bak:drafts",
        "FACEFIX_ONLY_CHANGED": "true",
        "FACEFIX_REFS": "~/portraits",
        "FACEFIX_BATCH_SIZE": "",
    }
    settings = Settings.load(environ=environ)
    assert settings.exclude == ("*.bak", "drafts")
    assert settings.only_changed is True
    assert settings.refs == Path("~/portraits").expanduser()
    assert settings.batch_size is None
    assert Settings.load(environ={"FACEFIX_EXCLUDE": '["a:b", "c"]'}).exclude == ("a:b", "c")


def test_unknown_keys_are_named_with_near_matches(tmp_path: Path) -> None:
    config = tmp_path / "mine.toml"
    config.write_text("strenght = 0.5\n")
    with pytest.raises(UsageError, match=r"mine.toml: strenght.*did you mean strength"):
        Settings.load(config=config, environ={})
    with pytest.raises(UsageError, match=r"FACEFIX_STEP: there is no setting 'step'; did you mean steps"):
        Settings.load(environ={"FACEFIX_STEP": "3"})
    with pytest.raises(UsageError, match=r"expected one of: batch_size"):
        Settings.load(environ={"FACEFIX_XYZZY": "3"})


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"FACEFIX_STRENGTH": "1.5"}, "FACEFIX_STRENGTH: input should be less than or equal to 1, found '1.5'"),
        ({"FACEFIX_FACES": "mtcnn"}, "FACEFIX_FACES.*'dlib', found 'mtcnn'"),
        ({"FACEFIX_SAMPLER": "euler"}, "FACEFIX_SAMPLER.*'unipc', found 'euler'"),
        ({"FACEFIX_DEVICE": "gpu"}, "FACEFIX_DEVICE"),
        ({"FACEFIX_REFS_FROM": "portraits"}, "give --refs"),
    ],
)
def test_bad_values_name_the_place_and_what_was_expected(environ: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Settings.load(environ=environ)


def test_configuration_files(tmp_path: Path) -> None:
    config = tmp_path / "home" / "f.toml"
    config.parent.mkdir()
    config.write_text('refs = "portraits"\noutput = "/srv/out"\n')
    settings = Settings.load(folder=tmp_path, environ={"FACEFIX_CONFIG": str(config)})
    assert settings.refs == config.parent / "portraits"
    assert settings.output == Path("/srv/out")
    with pytest.raises(UsageError, match=r"none.toml: cannot be read"):
        Settings.load(config=tmp_path / "none.toml", environ={})
    config.write_text("steps = = 3")
    with pytest.raises(UsageError, match=r"f.toml: expected TOML"):
        Settings.load(config=config, environ={})


def test_settings_are_immutable_and_described() -> None:
    settings = Settings.load(environ={})
    with pytest.raises(ValueError, match="frozen"):
        settings.steps = 3
    assert all(field.description for field in Settings.model_fields.values())
