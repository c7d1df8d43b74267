"""Published files: every layout, full-size names, and what is wrong with a file."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import golden_interlcm as published
import pytest
import torch
from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel
from safetensors.torch import save_file

from facefix.errors import CheckpointError, FacefixError, UsageError
from facefix.methods.interlcm.convert import (
    PublishedFiles,
    clip_weights,
    conditioning_widths,
    convert_interlcm,
)
from facefix.methods.interlcm.networks import ClipVisionTower
from facefix.methods.interlcm.pipeline import InterLCMPipeline
from facefix.methods.interlcm.spatial import LCM_UNET, spatial_encoder_for
from facefix.methods.interlcm.visual import VisualEncoder, config_of

PARTS = ("vae", "unet", "controlnet", "visual_encoder", "image_encoder")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> PublishedFiles:
    return published.write(tmp_path_factory.mktemp("published"))


@pytest.fixture(scope="module")
def expected(files: PublishedFiles) -> InterLCMPipeline:
    return convert_interlcm(files, steps=3)


def assert_same_weights(found: InterLCMPipeline, expected: InterLCMPipeline) -> None:
    for part in PARTS:
        mine, theirs = getattr(found, part).state_dict(), getattr(expected, part).state_dict()
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[name], theirs[name]) for name in theirs), part


def test_averaged_weights_are_taken_under_their_own_names(expected: InterLCMPipeline) -> None:
    for part, ours in (("visual_encoder", "visual_encoder"), ("spatial_encoder", "controlnet")):
        theirs = published.weights(part, f"{part}_3step")
        mine = getattr(expected, ours).state_dict()
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
        assert not torch.equal(
            mine[next(iter(theirs))], published.weights(part, f"{part}_3step_params")[next(iter(theirs))]
        )


def _module_prefix(files: PublishedFiles, folder: Path) -> PublishedFiles:
    for name in ("visual", "spatial"):
        tree = torch.load(getattr(files, name), weights_only=True)
        torch.save({"params_ema": {f"module.{k}": v for k, v in tree["params_ema"].items()}}, folder / name)
    return replace(files, visual=folder / "visual", spatial=folder / "spatial")


def _raw_only(files: PublishedFiles, folder: Path) -> PublishedFiles:
    for name in ("visual", "spatial"):
        tree = torch.load(getattr(files, name), weights_only=True)
        torch.save({"params": tree["params_ema"]}, folder / name)
    return replace(files, visual=folder / "visual", spatial=folder / "spatial")


def _flat(files: PublishedFiles, folder: Path) -> PublishedFiles:
    tree = torch.load(files.visual, weights_only=True)
    save_file({k: v.clone() for k, v in tree["params_ema"].items()}, folder / "visual.safetensors")
    return replace(files, visual=folder / "visual.safetensors")


def _with_counters(files: PublishedFiles, folder: Path) -> PublishedFiles:
    torch.save({**torch.load(files.visual, weights_only=True), "iteration": torch.tensor(5)}, folder / "visual")
    return replace(files, visual=folder / "visual")


def _old_vae(files: PublishedFiles, folder: Path) -> PublishedFiles:
    published.write_lcm(folder / "lcm", published.old_vae(published.weights("vae")))
    return replace(files, lcm=folder / "lcm")


def _transformers_clip(files: PublishedFiles, folder: Path) -> PublishedFiles:
    save_file(published.transformers_clip(published.weights("clip")), folder / "model.safetensors")
    return replace(files, clip=folder / "model.safetensors")


def _half_clip(files: PublishedFiles, folder: Path) -> PublishedFiles:
    torch.save({name: value.half() for name, value in published.weights("clip").items()}, folder / "clip.pt")
    return replace(files, clip=folder / "clip.pt")


@pytest.mark.parametrize(
    "layout", [_module_prefix, _raw_only, _flat, _with_counters, _old_vae, _transformers_clip, _half_clip]
)
def test_every_layout_gives_the_same_model(
    files: PublishedFiles,
    expected: InterLCMPipeline,
    tmp_path: Path,
    layout: Callable[[PublishedFiles, Path], PublishedFiles],
) -> None:
    assert_same_weights(convert_interlcm(layout(files, tmp_path), steps=3), expected)


def test_saved_and_loaded_again(files: PublishedFiles, expected: InterLCMPipeline, tmp_path: Path) -> None:
    made = published.imported(files, tmp_path / "model", steps=1, colour_fix="none")
    loaded = InterLCMPipeline.from_pretrained(made, local_files_only=True)
    assert_same_weights(loaded, expected)
    assert (loaded.config.steps, loaded.config.colour_fix, loaded.config.grey) == ([1], "none", False)
    loaded.save_pretrained(tmp_path / "again")
    again = InterLCMPipeline.from_pretrained(tmp_path / "again", local_files_only=True)
    assert_same_weights(again, expected)
    assert again.config.steps == [1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again", "model"]


def test_names_and_shapes_in_published_size(golden_folder: Path) -> None:
    """None missing, none left over; shapes only, since the weights are 5.6 GB."""
    listed = json.loads((golden_folder / "full_keys.json").read_text())
    with torch.device("meta"):
        theirs = {
            part: {name: torch.empty(recipe[0]) for name, recipe in listed[part].items()}
            for part in ("visual_encoder", "spatial_encoder", "unet", "vae", "clip")
        }
        unet = UNet2DConditionModel(**LCM_UNET)
        encoder = VisualEncoder(**config_of(theirs["visual_encoder"], 768))
        spatial = spatial_encoder_for(unet, conditioning=conditioning_widths(theirs["spatial_encoder"]))
        tower, vae = ClipVisionTower(), AutoencoderKL(**listed["_config"]["vae"])
        clip = clip_weights(theirs["clip"])
        hf = clip_weights(published.transformers_clip(theirs["clip"]))
    assert {part: len(state) for part, state in theirs.items()} == {
        "visual_encoder": 110,
        "spatial_encoder": 340,
        "unet": 687,
        "vae": 248,
        "clip": 302,
    }
    pairs = [(encoder, theirs["visual_encoder"]), (spatial, theirs["spatial_encoder"]), (unet, theirs["unet"])]
    pairs += [(vae, theirs["vae"]), (tower, clip), (tower, hf)]
    for network, weights in pairs:
        wanted = {name: tuple(value.shape) for name, value in network.state_dict().items()}
        assert {name: tuple(value.shape) for name, value in weights.items()} == wanted
    assert encoder.config.widths == (128, 256, 512)
    assert isinstance(spatial, ControlNetModel)


# What is wrong with a file

Change = Callable[[published.StateDict], None]


class _Runs:
    """A pickle of this makes a folder when it is loaded."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(MUST_NOT_EXIST),)


MUST_NOT_EXIST = Path(tempfile.gettempdir()) / f"facefix-test-{os.getpid()}"


def _nan(weights: published.StateDict) -> None:
    weights["blocks.3.q.bias"][0] = torch.nan


def _without_block(weights: published.StateDict) -> None:
    for name in [name for name in weights if name.startswith("blocks.12.")]:
        weights.pop(name)


def _drop(name: str) -> Change:
    def change(weights: published.StateDict) -> None:
        weights.pop(name)

    return change


def _add(name: str) -> Change:
    def change(weights: published.StateDict) -> None:
        weights[name] = torch.zeros(3)

    return change


def _torchscript(path: Path, _: PublishedFiles) -> None:
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(path))  # type: ignore[no-untyped-call]


FAULTY_WEIGHTS: dict[str, tuple[str, Change, str]] = {
    "weight missing": ("visual", _drop("blocks.3.q.bias"), "blocks.3.q.bias"),
    "weight left over": ("visual", _add("blocks.3.more.bias"), "blocks.3.more.bias"),
    "block missing": ("visual", _without_block, "Visual Encoder"),
    "NaN": ("visual", _nan, "finite"),
    "no weights": ("visual", dict.clear, "found none"),
    "spatial missing": ("spatial", _drop("controlnet_mid_block.bias"), "controlnet_mid_block.bias"),
    "spatial left over": ("spatial", _add("up_blocks.0.bias"), "up_blocks.0.bias"),
    "half of CLIP": (
        "clip",
        _drop("visual.transformer.resblocks.1.mlp.c_fc.weight"),
        "resblocks.1.mlp.c_fc.weight",
    ),
    "another CLIP": ("clip", _add("visual.layer9.weight"), "layer9"),
}
FAULTY_FILES: dict[str, tuple[str, Callable[[Path, PublishedFiles], Any], str]] = {
    "not a checkpoint": ("spatial", lambda path, _: path.write_bytes(b"GIF89a" * 50), "spatial-faulty"),
    "truncated": (
        "spatial",
        lambda path, files: path.write_bytes(files.spatial.read_bytes()[:100_000]),
        "spatial-faulty",
    ),
    "runs code": ("spatial", lambda path, _: torch.save({"params_ema": _Runs()}, path), "not loaded"),
    "TorchScript": ("clip", _torchscript, "openai/clip-vit-base-patch16"),
    "no file": ("clip", lambda path, _: None, "clip-faulty: expected a checkpoint file, found nothing"),
    "a folder": ("visual", lambda path, _: path.mkdir(), "found a folder"),
    "no LCM": ("lcm", lambda path, _: None, "--lcm"),
}
EXCHANGED = {
    "visual and spatial": (
        {"visual": "spatial", "spatial": "visual"},
        "found a Spatial Encoder; was it meant for --spatial",
    ),
    "clip as visual": ({"visual": "clip"}, "found CLIP; was it meant for --clip"),
    "spatial as clip": ({"clip": "spatial"}, "found a Spatial Encoder; was it meant for --spatial"),
    "visual as spatial": ({"spatial": "visual"}, "found a Visual Encoder; was it meant for --visual"),
}


def assert_refused(files: PublishedFiles, folder: Path, said: str, **options: Any) -> None:
    before = sorted(folder.rglob("*"))
    with pytest.raises(FacefixError) as raised:
        published.imported(files, folder / "to" / "model", **options)
    assert isinstance(raised.value, CheckpointError | UsageError)
    assert said in str(raised.value)
    assert sorted(folder.rglob("*")) == before
    assert not MUST_NOT_EXIST.exists()


@pytest.mark.parametrize("wrong", FAULTY_WEIGHTS)
def test_faulty_weights_are_named_and_nothing_is_written(files: PublishedFiles, tmp_path: Path, wrong: str) -> None:
    part, change, said = FAULTY_WEIGHTS[wrong]
    tree = torch.load(getattr(files, part), weights_only=True)
    weights = tree.get("params_ema", tree)
    change(weights)
    path = tmp_path / f"{part}-faulty"
    torch.save({"params_ema": weights} if part != "clip" else weights, path)
    assert_refused(replace(files, **{part: path}), tmp_path, said)


@pytest.mark.parametrize("wrong", FAULTY_FILES)
def test_a_faulty_file_is_named_and_nothing_is_written(files: PublishedFiles, tmp_path: Path, wrong: str) -> None:
    part, make, said = FAULTY_FILES[wrong]
    path = tmp_path / f"{part}-faulty"
    make(path, files)
    assert_refused(replace(files, **{part: path}), tmp_path, said)


@pytest.mark.parametrize("wrong", EXCHANGED)
def test_exchanged_files_are_named(files: PublishedFiles, tmp_path: Path, wrong: str) -> None:
    changes, said = EXCHANGED[wrong]
    assert_refused(replace(files, **{to: getattr(files, of) for to, of in changes.items()}), tmp_path, said)


def test_a_number_of_steps_without_published_weights(files: PublishedFiles, tmp_path: Path) -> None:
    assert_refused(files, tmp_path, "steps: expected 3 or 1", steps=4)
    assert_refused(files, tmp_path, "colour_fix: expected one of wavelet, adain, none", colour_fix="sepia")


def _config(folder: Path, **changes: Any) -> None:
    path = folder / "unet" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def _save_unet(folder: Path, weights: published.StateDict) -> None:
    save_file(weights, folder / "unet" / "diffusion_pytorch_model.safetensors")


def _pickled(folder: Path) -> None:
    torch.save(published.weights("unet"), folder / "unet" / "diffusion_pytorch_model.bin")
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()


def _truncated(folder: Path) -> None:
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:5000])


def _no_guidance(folder: Path) -> None:
    _config(folder, time_cond_proj_dim=None)
    _save_unet(folder, {k: v for k, v in published.weights("unet").items() if "cond_proj" not in k})


DAMAGED_LCM: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no scheduler": (lambda folder: shutil.rmtree(folder / "scheduler"), "scheduler/scheduler_config.json"),
    "weight missing": (
        lambda folder: _save_unet(folder, {k: v for k, v in published.weights("unet").items() if k != "conv_in.bias"}),
        "conv_in.bias",
    ),
    "weight left over": (
        lambda folder: _save_unet(folder, {**published.weights("unet"), "more.bias": torch.zeros(3)}),
        "more.bias",
    ),
    "another shape": (
        lambda folder: _save_unet(folder, {**published.weights("unet"), "conv_in.bias": torch.zeros(3)}),
        "lcm/unet",
    ),
    "truncated": (_truncated, "lcm/unet"),
    "pickled": (_pickled, "safetensors"),
    "no guidance embedding": (_no_guidance, "time_cond_proj_dim"),
}


@pytest.mark.parametrize("wrong", DAMAGED_LCM)
def test_a_damaged_consistency_model_is_named(files: PublishedFiles, tmp_path: Path, wrong: str) -> None:
    damage, said = DAMAGED_LCM[wrong]
    shutil.copytree(files.lcm, tmp_path / "lcm")
    damage(tmp_path / "lcm")
    assert_refused(replace(files, lcm=tmp_path / "lcm"), tmp_path, said)


def test_a_folder_with_something_in_it_is_left_alone(files: PublishedFiles, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UsageError, match="new or empty folder"):
        published.imported(files, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
