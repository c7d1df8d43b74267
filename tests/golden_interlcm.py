"""A tiny InterLCM in the published file layouts, its inputs and outputs.

The weights are not stored: a counter-based hash makes them from their names, bit for bit the same on every machine.
"""

from __future__ import annotations

import functools
import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from facefix.methods.interlcm.convert import PublishedFiles, import_interlcm

FOLDER = Path(__file__).parent / "data" / "interlcm"
CONFIG: dict[str, Any] = json.loads((FOLDER / "config.json").read_text())
GATE = 1e-5
"""rms of the difference over the standard deviation of the expected values"""

StateDict = dict[str, torch.Tensor]
_WORD = (1 << 64) - 1


def tensor(seed: int, name: str, shape: list[int], offset: float, exponent: int, largest: int) -> np.ndarray:
    """offset + u 2^-exponent, u from -largest to largest: splitmix64 over a counter, started by FNV-1a of the name."""
    state = 0xCBF29CE484222325
    for byte in name.encode():
        state = ((state ^ byte) * 0x100000001B3) & _WORD
    state ^= (seed * 0x9E3779B97F4A7C15) & _WORD
    count = int(np.prod(shape)) if shape else 1
    with np.errstate(over="ignore"):
        z = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(state & _WORD)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    u = ((z >> np.uint64(40)).astype(np.int64) % (2 * largest + 1) - largest).astype(np.float32)
    return (np.float32(offset) + u * np.float32(2.0**-exponent)).reshape(shape).astype(np.float32)


def weights(part: str, named: str | None = None) -> StateDict:
    """A state dict under its published names: ``visual_encoder``, ``spatial_encoder``, ``unet``, ``vae`` or ``clip``.

    :param named: which weights of that part, as ``config.json`` calls them.
    """
    return {name: torch.from_numpy(np.array(array)) for name, array in _arrays(part, named or part).items()}


@functools.cache
def _arrays(part: str, named: str) -> dict[str, np.ndarray]:
    keys = json.loads((FOLDER / "keys.json").read_text())[part]
    arrays = {name: tensor(CONFIG["seeds"][named], name, *recipe) for name, recipe in keys.items()}
    checksum = 0
    for name in sorted(arrays):
        checksum = zlib.crc32(np.ascontiguousarray(arrays[name]).tobytes(), zlib.crc32(name.encode(), checksum))
    assert checksum == CONFIG["checksums"][named]
    return arrays


def write(folder: Path, form: str = "3step") -> PublishedFiles:
    """A model's files as their publishers lay them out: ``3step`` has both sets of weights, ``1step`` one."""
    folder.mkdir(parents=True, exist_ok=True)
    files = PublishedFiles(folder / "visual.pth", folder / "spatial.pth", folder / "lcm", folder / "clip.pt")
    for part, path in (("visual_encoder", files.visual), ("spatial_encoder", files.spatial)):
        tree = {"params_ema": weights(part, f"{part}_{form}")}
        if form == "3step":
            tree = {"params": weights(part, f"{part}_3step_params"), **tree}
        torch.save(tree, path)
    write_lcm(files.lcm, weights("vae"))
    sizes = {name: torch.tensor(CONFIG["clip"][name]) for name in ("input_resolution", "context_length", "vocab_size")}
    torch.save({**weights("clip"), **sizes}, files.clip)
    return files


def imported(files: PublishedFiles, to: Path, **options: Any) -> Path:
    """The model folder ``to`` of these files."""
    return import_interlcm(files.visual, files.spatial, files.lcm, files.clip, to, **options)


def write_lcm(folder: Path, vae: StateDict) -> None:
    """The diffusers folder of the latent consistency model, with these weights of the autoencoder."""
    made = {"unet": ("UNet2DConditionModel", weights("unet")), "vae": ("AutoencoderKL", vae)}
    for part, (name, state) in made.items():
        (folder / part).mkdir(parents=True, exist_ok=True)
        save_file(state, folder / part / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})
        (folder / part / "config.json").write_text(json.dumps({"_class_name": name, **CONFIG[part]}))
    (folder / "scheduler").mkdir(exist_ok=True)
    schedule = {"_class_name": "LCMScheduler", **CONFIG["scheduler"]}
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(schedule))


def old_vae(state: StateDict) -> StateDict:
    """The autoencoder's weights as old versions of diffusers named its attention."""
    new = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
    renamed: StateDict = {}
    for name, value in state.items():
        old = name
        for now, then in new.items():
            old = old.replace(now, then) if ".attentions." in old else old
        renamed[old] = value
    return renamed


def transformers_clip(state: StateDict) -> StateDict:
    """A CLIP state dict under transformers' names, with some of the text half beside it."""
    renames = (
        ("visual.conv1.", "vision_model.embeddings.patch_embedding."),
        ("visual.class_embedding", "vision_model.embeddings.class_embedding"),
        ("visual.positional_embedding", "vision_model.embeddings.position_embedding.weight"),
        ("visual.ln_pre.", "vision_model.pre_layrnorm."),
        ("visual.ln_post.", "vision_model.post_layernorm."),
        ("visual.transformer.resblocks.", "vision_model.encoder.layers."),
        (".ln_1.", ".layer_norm1."),
        (".ln_2.", ".layer_norm2."),
        (".mlp.c_fc.", ".mlp.fc1."),
        (".mlp.c_proj.", ".mlp.fc2."),
        (".attn.out_proj.", ".self_attn.out_proj."),
    )
    renamed: StateDict = {
        "logit_scale": state["logit_scale"],
        "text_model.final_layer_norm.weight": state["ln_final.weight"],
        "visual_projection.weight": state["visual.proj"].T.contiguous(),
        "vision_model.embeddings.position_ids": torch.arange(50)[None],
    }
    for name, value in state.items():
        if not name.startswith("visual.") or name == "visual.proj":
            continue
        theirs = name
        for mine, other in renames:
            theirs = theirs.replace(mine, other)
        if ".attn.in_proj_" in theirs:
            for letter, part in zip("qkv", value.chunk(3), strict=True):
                renamed[theirs.replace(".attn.in_proj_", f".self_attn.{letter}_proj.")] = part.clone()
        else:
            renamed[theirs] = value
    return renamed


def relative_rms(found: torch.Tensor | np.ndarray, expected: np.ndarray) -> float:
    """rms of the difference over the standard deviation of what is expected."""
    mine = np.asarray(found.detach() if isinstance(found, torch.Tensor) else found, dtype=np.float64)
    assert mine.shape == expected.shape
    return float(np.sqrt(np.square(mine - expected).mean()) / expected.std(dtype=np.float64))
