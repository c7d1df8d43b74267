"""GuidedPipeline, and the published pipeline under it: as before the two were told apart, and each setting's effect."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import REPOSITORY
from tiny import tiny_guided, tiny_pipeline

from facefix import ReFLDMPipeline
from facefix.errors import UsageError
from facefix.methods.guided.folders import is_guided_folder
from facefix.methods.guided.pipeline import GuidedPipeline
from facefix.methods.registry import method_of

STORED = REPOSITORY / "tests" / "data" / "guided"
"""outputs of random weights, and the model_index.json, of the one pipeline that was both; see its README"""

CASES: dict[str, dict[str, Any]] = {
    "guidance": {"num_inference_steps": 3, "guidance_scale": 1.5},
    "from_lq": {"num_inference_steps": 2, "guidance_scale": 1.0, "start_timestep": 400},
}


def picture(seed: int, size: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    small = torch.rand(1, 3, 8, 8, generator=generator) * 2 - 1
    smooth = torch.nn.functional.interpolate(small, size=(size, size), mode="bilinear", align_corners=False)
    return (smooth + 0.2 * torch.randn(1, 3, size, size, generator=generator)).clamp(-1, 1)


def whole(**changed: Any) -> GuidedPipeline:
    """With everything that the shipped model has."""
    alone, guided = tiny_pipeline(seed=3), tiny_guided(guided=True)
    settings = {
        "reference_encoding": "each",
        "quantize_latents": False,
        "residual": True,
        "keep_detail": True,
        "latent_scale": 0.6367,
        "crop_size": 96,
        "round_pixels": True,
        "default_steps": 2,
        "default_guidance_scale": 1.0,
        "unguided": alone.unet,
        "unguided_latent_scale": 0.6031,
        **changed,
    }
    pipeline = GuidedPipeline(alone.autoencoder, guided.unet, alone.scheduler, **settings)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


MODELS = {
    "published": lambda: tiny_pipeline(reference_encoding="strip", quantize_latents=True, needs_references=True),
    "each": tiny_pipeline,
    "guided": whole,
    "residual": lambda: tiny_guided(
        seed=1, residual=True, latent_scale=0.5, crop_size=96, start_timestep=500, default_steps=3
    ),
}


def folder_of_before(name: str, folder: Path) -> Path:
    """The model as it was saved when every folder was called ReFLDMPipeline and named every setting."""
    MODELS[name]().save_pretrained(folder)
    index = json.loads((STORED / "model_index.json").read_text(encoding="utf-8"))[name]
    (folder / "model_index.json").write_text(json.dumps(index), encoding="utf-8")
    return folder


@pytest.mark.parametrize("name", sorted(MODELS))
def test_folders_of_before_restore_as_before(name: str, tmp_path: Path) -> None:
    pipeline = ReFLDMPipeline.from_pretrained(folder_of_before(name, tmp_path / "model"))
    pipeline.set_progress_bar_config(disable=True)
    assert type(pipeline) is (ReFLDMPipeline if name in ("published", "each") else GuidedPipeline)
    stored = np.load(STORED / "before_the_split.npz")
    size = pipeline.crop_size
    lq = torch.cat([picture(1, size), picture(2, size)])
    references = pipeline.encode_references(torch.cat([picture(3, size), picture(4, size)]))
    start = torch.randn(2, 8, 8, 8, generator=torch.Generator().manual_seed(5))
    default = {"num_inference_steps": 4} if name in ("published", "each") else {}
    for case, arguments in {"default": default, **CASES}.items():
        for given, cache in (("references", references), ("alone", None)):
            latents = pipeline(lq, cache, latents=start, output_type="latent", **arguments).images
            images = pipeline(lq, cache, latents=start, output_type="pt", **arguments).images
            expected = stored[f"{name}/{case}/{given}/latents"]
            scale = np.abs(expected).max()
            np.testing.assert_allclose(latents.numpy()[:, ::2, ::2, ::2] / scale, expected / scale, atol=1e-5)
            expected = stored[f"{name}/{case}/{given}/images"]
            # the codebook's nearest entry can change with the last bit of a latent
            found = np.abs(images.numpy()[:, :, 5::16, 3::16] - expected)
            assert (found > 1e-4).mean() <= (0.02 if name == "published" else 0), (case, given, found.max())


def test_which_method_a_folder_of_before_is(tmp_path: Path) -> None:
    found = {name: method_of(folder_of_before(name, tmp_path / name)).name for name in MODELS}
    assert found == {"published": "refldm", "each": "refldm", "guided": "guided", "residual": "guided"}
    shipped = REPOSITORY / "models" / "small"
    assert method_of(shipped).name == "guided"


def test_a_denoiser_that_takes_a_guide_is_enough(tmp_path: Path) -> None:
    tiny_guided(guided=True).save_pretrained(tmp_path / "model")
    index = json.loads((tmp_path / "model" / "model_index.json").read_text(encoding="utf-8"))
    assert index["_class_name"] == "GuidedPipeline"
    index["_class_name"] = "ReFLDMPipeline"
    assert is_guided_folder(tmp_path / "model", index)
    assert not is_guided_folder(tmp_path, index)
    assert not is_guided_folder(tmp_path / "model", {**index, "_class_name": "OtherPipeline"})


def test_save_and_load(tmp_path: Path) -> None:
    made = whole()
    made.save_pretrained(tmp_path / "model")
    assert method_of(tmp_path / "model").name == "guided"
    loaded = ReFLDMPipeline.from_pretrained(tmp_path / "model")
    assert type(loaded) is GuidedPipeline
    loaded.set_progress_bar_config(disable=True)
    start = torch.randn(1, 8, 8, 8, generator=torch.Generator().manual_seed(1))
    lq, reference = picture(1, 96), picture(2, 96)
    one, two = (p(lq, p.encode_references(reference), latents=start, output_type="pt").images for p in (made, loaded))
    torch.testing.assert_close(one, two, rtol=0, atol=1e-5)


def test_the_published_method_takes_no_guide() -> None:
    with pytest.raises(UsageError, match="unet: expected 16 input channels"):
        ReFLDMPipeline(*(getattr(tiny_guided(guided=True), part) for part in ("autoencoder", "unet", "scheduler")))
    with pytest.raises(TypeError, match="residual"):
        tiny_pipeline(residual=True)
