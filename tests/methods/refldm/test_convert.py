"""Import of published checkpoints: the full-size names, EMA, configurations, and files that do not fit."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import golden
import pytest
import torch
import yaml
from safetensors.torch import save_file

from facefix import ReFLDMPipeline
from facefix.errors import CheckpointError, UsageError
from facefix.methods.refldm import convert
from facefix.methods.refldm.convert import convert_unet, convert_vqgan, import_refldm, read_published_config
from facefix.networks.checkpoints import read_checkpoint


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    return golden.write_checkpoints(tmp_path_factory.mktemp("checkpoints"))


def full_size(file: str) -> dict[str, torch.Tensor]:
    """The published checkpoint's names with weights of the right shapes (all zero, so no memory is touched)."""
    listed = json.loads((golden.FOLDER / "full_keys.json").read_text())[file]
    return {name: torch.zeros(entry["shape"]) for name, entry in listed.items()}


def test_full_size_names_convert() -> None:
    """No weight is missing or left over: every published weight of the networks is used, and used once."""
    published = full_size("refldm.ckpt")
    for number, name in enumerate(sorted(published)):
        published[name] += number  # so that each can be told apart
    unet = convert_unet(published, convert.PUBLISHED.unet)
    used = {float(tensor.flatten()[0]) for tensor in unet.state_dict().values()}
    ema = {float(number) for number, name in enumerate(sorted(published)) if name.startswith("model_ema.diffusion")}
    assert used == ema
    vqgan = full_size("vqgan.ckpt[state_dict]")
    networks = [name for name in sorted(vqgan) if not name.startswith("loss.")]
    for number, name in enumerate(networks):
        vqgan[name] += number
    autoencoder = convert_vqgan(vqgan, convert.PUBLISHED.autoencoder)
    assert {float(tensor.flatten()[0]) for tensor in autoencoder.state_dict().values()} == set(
        map(float, range(len(networks)))
    )


def test_ema_is_preferred_and_raw_weights_are_the_fallback(paths: Mapping[str, Path]) -> None:
    published = read_checkpoint(paths["flat"])
    config = read_published_config(golden.CONFIG).unet
    name, theirs = "conv_in.weight", "model.diffusion_model.input_blocks.0.0.weight"
    ema = "model_ema.diffusion_modelinput_blocks00weight"
    assert not torch.equal(published[theirs], published[ema])
    assert torch.equal(convert_unet(published, config).state_dict()[name], published[ema])
    raw = {key: tensor for key, tensor in published.items() if not key.startswith("model_ema")}
    assert torch.equal(convert_unet(raw, config).state_dict()[name], published[theirs])


def test_autoencoder_inside_the_denoisers_checkpoint(paths: Mapping[str, Path]) -> None:
    config = read_published_config(golden.CONFIG).autoencoder
    inside = convert_vqgan(read_checkpoint(paths["flat"]), config).state_dict()
    alone = convert_vqgan(read_checkpoint(paths["vqgan"]), config).state_dict()
    assert all(torch.equal(inside[name], alone[name]) for name in alone)


def test_safetensors_and_lightning_bookkeeping(paths: Mapping[str, Path], tmp_path: Path) -> None:
    save_file(golden.weights("vqgan_small.npz"), tmp_path / "vqgan.safetensors")
    flat = read_checkpoint(tmp_path / "vqgan.safetensors")
    assert flat.keys() == golden.weights("vqgan_small.npz").keys()
    assert "loss.logvar_like_extra" in read_checkpoint(paths["vqgan"])


def test_imported_model_is_the_published_kind(paths: Mapping[str, Path], tmp_path: Path) -> None:
    made = import_refldm(paths["flat"], paths["vqgan"], golden.CONFIG, tmp_path / "a" / "model")
    pipeline = ReFLDMPipeline.from_pretrained(made)
    assert pipeline.config.reference_encoding == "strip"
    assert pipeline.config.needs_references
    assert pipeline.config.quantize_latents
    assert pipeline.crop_size == 128
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["model"]


def test_published_configuration_is_the_default() -> None:
    config = yaml.safe_load(golden.CONFIG.read_text())
    unet, first_stage = config["params"]["unet_config"]["params"], config["params"]["first_stage_config"]["params"]
    unet |= {
        "image_size": 64,
        "model_channels": 160,
        "attention_resolutions": [2, 4, 8],
        "num_res_blocks": 2,
        "channel_mult": [1, 2, 2, 4],
        "num_head_channels": 32,
    }
    first_stage["n_embed"] = 8192
    first_stage["ddconfig"] |= {"ch": 128, "ch_mult": [1, 1, 2, 4], "num_res_blocks": 2, "resolution": 512}
    path = Path(os.environ.get("TMPDIR", "/tmp")) / f"facefix-test-{os.getpid()}.yaml"
    path.write_text(yaml.safe_dump(config))
    try:
        read = read_published_config(path)
    finally:
        path.unlink()
    assert read.unet == convert.PUBLISHED.unet
    assert read.autoencoder == convert.PUBLISHED.autoencoder


class RunsCode:
    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, ("touch /tmp/facefix-was-here",))


def damaged(paths: Mapping[str, Path], folder: Path) -> dict[str, tuple[Path, str]]:
    """Files that are no checkpoint of this model, and what the message must say."""
    whole = paths["flat"].read_bytes()
    published = read_checkpoint(paths["flat"])
    first = "model_ema.diffusion_modelinput_blocks00weight"
    cases: dict[str, tuple[Any, str]] = {
        "text": (b"not a checkpoint", "expected"),
        "empty": (b"", "expected"),
        "truncated": (whole[: len(whole) // 2], "truncated|damaged|cannot be read"),
        "cut short": (whole[:-30], "truncated|damaged|cannot be read"),
        "code": (RunsCode(), "pickle that calls posix.system|nt.system"),
        "legacy code": (RunsCode(), "without running code"),
        "list": ([torch.zeros(1)], "expected a dictionary of tensors, found list"),
        "missing": ({k: v for k, v in published.items() if k != first}, first),
        "shape": (
            {**published, first: torch.zeros(32, 8, 3, 3)},
            r"expected shape \(32, 16, 3, 3\) for conv_in.weight",
        ),
        "nan": ({**published, first: published[first] * float("nan")}, "NaN or infinity in conv_in.weight"),
        "vqgan": (golden.weights("vqgan_small.npz"), "model.diffusion_model.time_embed.0.weight"),
    }
    made = {}
    for name, (content, message) in cases.items():
        path = folder / f"{name}.ckpt"
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif name == "legacy code":
            torch.save(content, path, _use_new_zipfile_serialization=False)
        else:
            torch.save(content, path)
        made[name] = (path, message)
    return made


def test_bad_checkpoints_leave_nothing_behind(paths: Mapping[str, Path], tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name, (path, message) in damaged(paths, tmp_path / "in").items():
        with pytest.raises(CheckpointError, match=message) as caught:
            import_refldm(path, paths["vqgan"], golden.CONFIG, tmp_path / "out" / name)
        assert str(path) in str(caught.value)
        assert caught.value.exit_code == 1
    assert not (tmp_path / "out").exists()
    assert not Path("/tmp/facefix-was-here").exists()


def test_an_interrupted_import_leaves_nothing_behind(
    paths: Mapping[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: ReFLDMPipeline, folder: Path, **_: Any) -> None:
        (Path(folder) / "unet").mkdir()
        raise KeyboardInterrupt

    monkeypatch.setattr(ReFLDMPipeline, "save_pretrained", fail)
    with pytest.raises(KeyboardInterrupt):
        import_refldm(paths["flat"], paths["vqgan"], golden.CONFIG, tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_the_target_must_be_new(paths: Mapping[str, Path], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UsageError, match="new or empty folder"):
        import_refldm(paths["flat"], paths["vqgan"], golden.CONFIG, tmp_path)
    with pytest.raises(UsageError, match="nothing"):
        import_refldm(tmp_path / "none.ckpt", paths["vqgan"], golden.CONFIG, tmp_path / "model")
    (tmp_path / "empty").mkdir()
    assert import_refldm(paths["flat"], paths["vqgan"], golden.CONFIG, tmp_path / "empty").is_dir()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["params"].pop("unet_config"), "params.unet_config.params.image_size"),
        (lambda c: c["params"]["unet_config"]["params"].update(model_channels="many"), "model_channels, found 'many'"),
        (lambda c: c["params"]["unet_config"]["params"].update(channel_mult=[]), "channel_mult"),
        (lambda c: c["params"]["unet_config"]["params"].update(in_channels=8), "expected 16 at"),
        (lambda c: c["params"].update(linear_start=None), "expected a number at params.linear_start"),
        (lambda c: c["params"]["unet_config"]["params"].update(model_channels=64), "does the configuration fit"),
        (lambda c: c["params"]["unet_config"]["params"].update(model_channels=33), "multiple of 32 at .*found 33"),
        (lambda c: c["params"]["first_stage_config"]["params"]["ddconfig"].update(ch=40), "multiple of 32 at .*ch,"),
        (lambda c: c["params"].update(linear_end=5), "linear_end < 1, found .* and 5"),
    ],
)
def test_configurations_that_do_not_fit(
    paths: Mapping[str, Path], tmp_path: Path, change: Callable[[Any], Any], message: str
) -> None:
    config = yaml.safe_load(golden.CONFIG.read_text())
    change(config)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(CheckpointError, match=message):
        import_refldm(paths["flat"], paths["vqgan"], tmp_path / "config.yaml", tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_file_that_is_not_yaml(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("a: [1, 2")
    with pytest.raises(CheckpointError, match="expected YAML"):
        read_published_config(tmp_path / "config.yaml")
    (tmp_path / "list.yaml").write_text("- 1")
    with pytest.raises(CheckpointError, match="params"):
        read_published_config(tmp_path / "list.yaml")
