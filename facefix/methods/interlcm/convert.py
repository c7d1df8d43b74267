"""Published InterLCM files -> a folder in diffusers layout.

Four sources make a model: Visual Encoder and Spatial Encoder (``.pth`` files of the authors), the latent consistency
model (a diffusers folder with ``unet``, ``vae`` and ``scheduler``) and CLIP ViT-B/16 (OpenAI's or transformers' names).
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from diffusers import AutoencoderKL, ControlNetModel, LCMScheduler, UNet2DConditionModel
from safetensors import SafetensorError

from facefix.errors import CheckpointError, FacefixError, UsageError
from facefix.files.atomic import new_folder
from facefix.methods.interlcm.networks import ClipVisionTower
from facefix.methods.interlcm.pipeline import InterLCMPipeline
from facefix.methods.interlcm.spatial import spatial_encoder_for
from facefix.methods.interlcm.visual import VisualEncoder, config_of
from facefix.methods.loading import _quiet_diffusers
from facefix.networks.checkpoints import StateDict, _load_strictly, read_checkpoint
from facefix.networks.colour_fix import ColourFix

PUBLISHED_STEPS = (3, 1)
"""Numbers of steps that there are published weights for; the first is what ``--steps`` is by default."""

_KINDS = {
    "a Visual Encoder": "blocks.0.weight",
    "a Spatial Encoder": "controlnet_cond_embedding.conv_in.weight",
    "CLIP": "visual.conv1.weight",
    "CLIP (transformers)": "vision_model.embeddings.class_embedding",
    "a U-Net": "up_blocks.0.resnets.0.conv1.weight",
    "an autoencoder": "encoder.conv_in.weight",
}
"""What a file holds, by a name that only that has."""

_CLIP_NOT_USED = re.compile(
    r"(visual\.)?proj|transformer\..*|token_embedding\..*|positional_embedding|ln_final\..*|text_.*|logit_scale"
    r"|input_resolution|context_length|vocab_size|visual_projection\..*|vision_model\.embeddings\.position_ids"
)
"""CLIP's text half, its projections and its three sizes."""

_CLIP_FROM_TRANSFORMERS = (
    ("embeddings.patch_embedding.", "conv1."),
    ("embeddings.class_embedding", "class_embedding"),
    ("embeddings.position_embedding.weight", "positional_embedding"),
    ("pre_layrnorm.", "ln_pre."),  # its name in transformers is misspelt
    ("post_layernorm.", "ln_post."),
    ("encoder.layers.", "resblocks."),
    (".layer_norm1.", ".ln_1."),
    (".layer_norm2.", ".ln_2."),
    (".mlp.fc1.", ".mlp.c_fc."),
    (".mlp.fc2.", ".mlp.c_proj."),
    (".self_attn.", ".attn."),
)


@dataclass(frozen=True, slots=True)
class PublishedFiles:
    """Where the parts of a published model lie."""

    visual: Path
    """Visual Encoder (``visual_encoder_3step.pth``)"""
    spatial: Path
    """Spatial Encoder (``spatial_encoder_3step.pth``)"""
    lcm: Path
    """folder of the latent consistency model in diffusers layout (LCM_Dreamshaper_v7)"""
    clip: Path
    """CLIP ViT-B/16: safetensors, or a plain state dict"""


def import_interlcm(
    visual: Path,
    spatial: Path,
    lcm: Path,
    clip: Path,
    to: Path,
    steps: int = PUBLISHED_STEPS[0],
    colour_fix: ColourFix = "wavelet",
) -> Path:
    """Turn published files into a folder that ``InterLCMPipeline.from_pretrained`` loads.

    :param visual: and the three after it, see :class:`PublishedFiles`.
    :param to: folder to make; it appears whole or not at all.
    :param steps: what the Visual and the Spatial Encoder were trained for: 3 or 1.
    :param colour_fix: ``"none"`` for the weights that colour or fill in; grey faces are then not kept grey either.
    :returns: ``to``.
    :raises UsageError: ``to`` exists and is not an empty folder, a file is not there, ``steps`` is neither 3 nor 1, or
        there is no such colour fix.
    :raises CheckpointError: a file is not what it should be.
    :raises FacefixError: ``to`` cannot be written.
    """
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise UsageError(f"{to}: expected a new or empty folder, found something there; choose another --to")
    if isinstance(steps, bool) or steps not in PUBLISHED_STEPS:
        raise UsageError(f"steps: expected 3 or 1, which there are published weights for, found {steps!r}")
    if colour_fix not in get_args(ColourFix):
        raise UsageError(f"colour_fix: expected one of {', '.join(get_args(ColourFix))}, found {colour_fix!r}")
    files = PublishedFiles(visual, spatial, lcm, clip)
    pipeline = convert_interlcm(files, steps=steps, colour_fix=colour_fix)
    try:
        with new_folder(to) as folder:
            pipeline.save_pretrained(folder, safe_serialization=True)
    except (OSError, SafetensorError) as error:
        raise FacefixError(f"{to}: the model cannot be written: {error}") from error
    return to.absolute()


@_quiet_diffusers()
def convert_interlcm(files: PublishedFiles, *, steps: int, colour_fix: ColourFix = "wavelet") -> InterLCMPipeline:
    """The pipeline of published files, in memory; see :func:`import_interlcm`."""
    # Read first what is quick to read: an exchanged file is named before gigabytes are.
    visual = _read_ema(files.visual, "a Visual Encoder", "--visual")
    spatial = _read_ema(files.spatial, "a Spatial Encoder", "--spatial")
    clip = convert_clip(_read(files.clip, "--clip"), source=str(files.clip))
    visual_encoder = convert_visual_encoder(visual, length=clip.tokens_shape[1], source=str(files.visual))
    unet, vae, scheduler = read_lcm(files.lcm)
    controlnet = convert_spatial_encoder(spatial, unet, source=str(files.spatial))
    try:
        return InterLCMPipeline(
            vae,
            unet,
            controlnet,
            visual_encoder,
            clip,
            scheduler,
            steps=(steps,),
            colour_fix=colour_fix,
            grey=colour_fix != "none",
        )
    except UsageError as error:
        raise CheckpointError(
            f"{files.visual}, {files.lcm}, {files.clip}: these do not fit together: {error}"
        ) from error


def convert_visual_encoder(published: StateDict, *, length: int, source: str = "checkpoint") -> VisualEncoder:
    """The Visual Encoder of a published state dict, of the size that it has.

    :param length: features of a token.
    :raises CheckpointError: weights are missing, are left over or have other shapes.
    """
    try:
        encoder: VisualEncoder = VisualEncoder(**config_of(published, length))
    except (KeyError, ValueError, IndexError, UsageError) as error:
        raise CheckpointError(
            f"{source}: expected the blocks of a Visual Encoder, found others; is it complete, and the right file?"
        ) from error
    _load_strictly(encoder, published, source)
    encoder.eval()
    return encoder


def convert_spatial_encoder(
    published: StateDict, unet: UNet2DConditionModel, *, source: str = "checkpoint"
) -> ControlNetModel:
    """The Spatial Encoder of a published state dict, which has the shape of the U-Net's first half.

    :raises CheckpointError: weights are missing, are left over or have other shapes.
    """
    widths = conditioning_widths(published, source)
    encoder = spatial_encoder_for(unet, conditioning=widths)
    _load_strictly(encoder, published, source)
    return encoder.eval()


def conditioning_widths(published: StateDict, source: str = "checkpoint") -> tuple[int, ...]:
    """Widths of the embedding of the LQ picture, by the shapes of its convolutions.

    :raises CheckpointError: it has none.
    """
    prefix = "controlnet_cond_embedding."
    names = [f"{prefix}conv_in.weight"]
    numbers = sorted(
        int(n) for n in re.findall(rf"^{re.escape(prefix)}blocks\.(\d+)\.weight$", "\n".join(published), re.M)
    )
    names += [f"{prefix}blocks.{number}.weight" for number in numbers if number % 2]
    if missing := [name for name in names if name not in published]:
        raise CheckpointError(f"{source}: expected a Spatial Encoder, found none of its {missing[0]!r}")
    return tuple(int(published[name].shape[0]) for name in names)


def convert_clip(published: StateDict, *, source: str = "checkpoint") -> ClipVisionTower:
    """The vision tower of a CLIP state dict, of the size that it has.

    :raises CheckpointError: weights are missing, are left over or have other shapes.
    """
    weights = clip_weights(published, source)
    try:
        patches, positions = weights["conv1.weight"], weights["positional_embedding"]
        grid = round((positions.shape[0] - 1) ** 0.5)
        tower: ClipVisionTower = ClipVisionTower(
            patch_size=int(patches.shape[2]),
            grid=grid,
            width=int(patches.shape[0]),
            layers=1 + max(int(name.split(".")[1]) for name in weights if name.startswith("resblocks.")),
        )
    except (KeyError, ValueError, IndexError) as error:
        raise CheckpointError(f"{source}: expected CLIP's vision transformer, found no {error}") from error
    _load_strictly(tower, weights, source)
    tower.eval()
    return tower


def clip_weights(published: StateDict, source: str = "checkpoint") -> StateDict:
    """A CLIP state dict under our names: the vision transformer alone, from OpenAI's names or transformers'.

    :raises CheckpointError: it is none of the two.
    """
    if _KINDS["CLIP"] in published:
        kept = {name.removeprefix("visual."): tensor for name, tensor in _clip_used(published).items()}
        return {
            name.removeprefix("transformer.").replace(".in_proj_", ".in_proj."): tensor for name, tensor in kept.items()
        }
    if _KINDS["CLIP (transformers)"] not in published:
        raise CheckpointError(f"{source}: expected CLIP ViT-B/16, found {_what(published)}{_hint(published, '--clip')}")
    renamed: StateDict = {}
    for name, tensor in _clip_used(published).items():
        ours = name.removeprefix("vision_model.")
        for theirs, mine in _CLIP_FROM_TRANSFORMERS:
            ours = ours.replace(theirs, mine)
        renamed[ours] = tensor
    return _joined_qkv(renamed, source)


def _clip_used(published: StateDict) -> StateDict:
    return {name: tensor for name, tensor in published.items() if not _CLIP_NOT_USED.fullmatch(name)}


def _joined_qkv(weights: StateDict, source: str) -> StateDict:
    """``q_proj``, ``k_proj`` and ``v_proj`` of every layer as one ``in_proj``."""
    joined = dict(weights)
    for name in weights:
        if ".attn.q_proj." not in name:
            continue
        parts = [name.replace(".q_proj.", f".{letter}_proj.") for letter in "qkv"]
        if missing := [part for part in parts if part not in weights]:
            raise CheckpointError(f"{source}: expected the weight {missing[0]!r}, found none; is the file complete?")
        joined[name.replace(".q_proj.", ".in_proj.")] = torch.cat([joined.pop(part) for part in parts])
    return joined


def read_lcm(folder: Path) -> tuple[UNet2DConditionModel, AutoencoderKL, LCMScheduler]:
    """The networks and the schedule of a latent consistency model in diffusers layout.

    :raises UsageError: there is no such folder.
    :raises CheckpointError: a part is missing, does not load, or is another network.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder}: expected the folder of an LCM in diffusers layout (--lcm), found no folder")
    for part in ("unet/config.json", "vae/config.json", "scheduler/scheduler_config.json"):
        if not (folder / part).is_file():
            raise CheckpointError(f"{folder}: expected {part}, as a diffusers folder of an LCM has, found none")
    unet = _read_part(UNet2DConditionModel, folder / "unet")
    if unet.config.time_cond_proj_dim is None:
        raise CheckpointError(
            f"{folder / 'unet'}: expected the U-Net of a latent consistency model, which embeds the guidance scale "
            "(time_cond_proj_dim), found one that does not; give LCM_Dreamshaper_v7"
        )
    vae = _read_part(AutoencoderKL, folder / "vae")
    try:
        scheduler = LCMScheduler.from_pretrained(folder / "scheduler", local_files_only=True)
    except Exception as error:  # diffusers raises many kinds for damaged files
        raise CheckpointError(f"{folder / 'scheduler'}: expected an LCMScheduler, found none: {error}") from error
    return unet, vae, scheduler


def _read_part(kind: Any, folder: Path) -> Any:
    """A network of a diffusers folder, with every weight from its file and none left over."""
    if not any(folder.glob("*.safetensors")):
        raise CheckpointError(f"{folder}: expected weights as safetensors, found none; fetch the safetensors files")
    try:
        network, seen = kind.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, output_loading_info=True, low_cpu_mem_usage=False
        )
    except Exception as error:  # diffusers and safetensors raise many kinds for damaged files
        raise CheckpointError(
            f"{folder}: expected a complete {kind.__name__}, found files that do not load "
            f"({type(error).__name__}: {error})"
        ) from error
    for fault, names in (("lacks", seen["missing_keys"]), ("has too many:", seen["unexpected_keys"])):
        if names:
            raise CheckpointError(f"{folder}: expected the weights of its configuration, found that it {fault} {names}")
    if not all(bool(torch.isfinite(weight).all()) for weight in network.parameters()):
        raise CheckpointError(f"{folder}: expected finite weights, found NaN or infinity")
    return network.eval()


def _read_ema(path: Path, kind: str, option: str) -> StateDict:
    """The averaged weights of a file of the authors: under ``params_ema``, else under ``params``, else as they lie."""
    weights = {name.removeprefix("module."): tensor for name, tensor in _read(path, option).items()}
    if _KINDS[kind] not in weights:
        raise CheckpointError(f"{path}: expected {kind} ({option}), found {_what(weights)}{_hint(weights, option)}")
    return weights


def _read(path: Path, option: str) -> StateDict:
    if path.is_file() and _is_torchscript(path):
        raise CheckpointError(
            f"{path}: expected a plain state dict ({option}), found a TorchScript archive, which would run code when "
            "it is loaded; give the weights of openai/clip-vit-base-patch16 instead, or, if you trust the file, "
            "save torch.jit.load(FILE, map_location='cpu').state_dict() with torch.save"
        )
    flat = read_checkpoint(path)
    # That has seen that nothing in the file is code. The authors' files have their weights one level deeper.
    nested = {} if path.suffix == ".safetensors" else _nested(path)
    weights = nested.get("params_ema") or nested.get("params") or flat
    if not weights:
        raise CheckpointError(f"{path}: expected weights ({option}), flat or under params_ema or params, found none")
    return weights


def _nested(path: Path) -> dict[str, StateDict]:
    """The dictionaries of tensors in a checkpoint that :func:`read_checkpoint` has read."""
    tree = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    return {
        key: {name: tensor for name, tensor in inner.items() if isinstance(tensor, torch.Tensor)}
        for key, inner in tree.items()
        if isinstance(inner, Mapping)
    }


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.split("/")[1:2] == ["constants.pkl"] for name in archive.namelist())


def _what(weights: Mapping[str, Any]) -> str:
    """What a state dict is, for messages."""
    for kind, name in _KINDS.items():
        if name in weights:
            return kind
    return f"{len(weights)} other tensors" if weights else "nothing"


def _hint(weights: Mapping[str, Any], option: str) -> str:
    places = {"a Visual Encoder": "--visual", "a Spatial Encoder": "--spatial", "CLIP": "--clip"}
    place = places.get(_what(weights).removesuffix(" (transformers)"))
    return f"; was it meant for {place}?" if place and place != option else ""
