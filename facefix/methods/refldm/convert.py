"""Published ReF-LDM checkpoints -> a folder in diffusers layout.

The published code is a guided-diffusion U-Net and a taming-transformers VQGAN; this module knows how their modules are
called and laid out there, and what they are in ``UNet2DModel`` and ``VQModel``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from diffusers import UNet2DModel, VQModel

from facefix.errors import CheckpointError, UsageError
from facefix.methods.refldm.pipeline import ReFLDMPipeline
from facefix.networks.autoencoder import AUTOENCODER_CONFIGS, autoencoder_config, build_autoencoder
from facefix.networks.checkpoints import (
    StateDict,
    _first_line,
    _load_strictly,
    _take,
    _YamlReader,
    read_checkpoint,
    save_atomically,
)
from facefix.networks.schedule import ddim_scheduler
from facefix.networks.unet import UNET_CONFIGS, build_unet, unet_config


@dataclass(frozen=True)
class PublishedConfig:
    """What a published YAML says about a model, as arguments of diffusers' classes."""

    unet: Mapping[str, Any]
    autoencoder: Mapping[str, Any]
    scheduler: Mapping[str, Any]


PUBLISHED = PublishedConfig(UNET_CONFIGS["refldm"], AUTOENCODER_CONFIGS["refldm"], {})


def import_refldm(checkpoint: Path, vqgan: Path, config: Path | None, to: Path) -> Path:
    """Turn published checkpoints into a folder that ``ReFLDMPipeline.from_pretrained`` loads.

    :param checkpoint: the denoiser's, flat or under ``state_dict``; EMA weights are taken where there are any.
    :param vqgan: the autoencoder's, likewise.
    :param config: YAML in the published format; None: the published model's configuration.
    :param to: folder to make; it appears whole or not at all.
    :returns: ``to``.
    :raises UsageError: ``to`` exists and is not an empty folder, or a file is not there.
    :raises CheckpointError: a file is not what it should be.
    :raises FacefixError: ``to`` cannot be written.
    """
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise UsageError(f"{to}: expected a new or empty folder, found something there; choose another --to")
    described = PUBLISHED if config is None else read_published_config(config)
    unet = convert_unet(read_checkpoint(checkpoint), described.unet, source=str(checkpoint))
    autoencoder = convert_vqgan(read_checkpoint(vqgan), described.autoencoder, source=str(vqgan))
    pipeline = ReFLDMPipeline(
        autoencoder, unet, ddim_scheduler(**described.scheduler), reference_encoding="strip", needs_references=True
    )
    return save_atomically(pipeline, to)


def convert_unet(published: StateDict, config: Mapping[str, Any], *, source: str = "checkpoint") -> UNet2DModel:
    """The denoiser of a published state dict: its EMA weights, or the raw ones where it has none.

    :param config: arguments of ``UNet2DModel``.
    :param source: the file's name, for messages.
    :raises CheckpointError: weights are missing or have other shapes.
    """
    raw, ema = "model.diffusion_model.", "model_ema.diffusion_model"
    weights: StateDict = {}
    if any(name.startswith(ema) for name in published):
        # An EMA name is the raw name without its dots, so it is looked up rather than taken apart.
        def lookup(name: str) -> str:
            return ema + name.replace(".", "")
    else:

        def lookup(name: str) -> str:
            return raw + name

    for theirs, ours in _unet_modules(config):
        is_attention = theirs.endswith(".qkv")
        for kind in ("weight", "bias"):
            tensor = _take(published, lookup(f"{theirs}.{kind}"), source)
            if is_attention:
                for part, piece in zip(("to_q", "to_k", "to_v"), _split_qkv(tensor, config, source), strict=True):
                    weights[f"{ours}.{part}.{kind}"] = piece
            else:
                weights[f"{ours}.{kind}"] = tensor
    unet = build_unet(config)
    _load_strictly(unet, weights, source)
    return unet


def convert_vqgan(published: StateDict, config: Mapping[str, Any], *, source: str = "checkpoint") -> VQModel:
    """The autoencoder of a published state dict.

    :param config: arguments of ``VQModel``.
    :param source: the file's name, for messages.
    :raises CheckpointError: weights are missing or have other shapes.
    """
    # a denoiser's checkpoint carries the same autoencoder as first_stage_model
    nested = "first_stage_model."
    prefix = "" if any(name.startswith("encoder.") for name in published) else nested
    weights = {"quantize.embedding.weight": _take(published, f"{prefix}quantize.embedding.weight", source)}
    for theirs, ours in _vqgan_modules(config):
        for kind in ("weight", "bias"):
            weights[f"{ours}.{kind}"] = _take(published, f"{prefix}{theirs}.{kind}", source)
    autoencoder = build_autoencoder(config)
    _load_strictly(autoencoder, weights, source)
    return autoencoder


def read_published_config(path: Path) -> PublishedConfig:
    """The configuration of a model from a YAML in the published format (refldm.yaml).

    :raises UsageError: the file is not there.
    :raises CheckpointError: it is not such a YAML; the message names the key.
    """
    if not path.is_file():
        raise UsageError(f"{path}: expected a YAML file, found {'a folder' if path.is_dir() else 'nothing'}")
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: expected YAML, found: {_first_line(error)}") from error
    if isinstance(tree, Mapping) and "model" in tree and "params" not in tree:
        tree = tree["model"]
    reader = _YamlReader(path, tree)
    latent_size = reader.integer("params.unet_config.params.image_size")
    channels = reader.integer("params.unet_config.params.model_channels")
    multipliers = reader.integers("params.unet_config.params.channel_mult")
    attention = reader.integers("params.unet_config.params.attention_resolutions")
    base = reader.integer("params.first_stage_config.params.ddconfig.ch")
    base_multipliers = reader.integers("params.first_stage_config.params.ddconfig.ch_mult")
    reader.require("params.unet_config.params.in_channels", 16)
    reader.require("params.unet_config.params.out_channels", 8)
    reader.require("params.first_stage_config.params.embed_dim", 8)
    reader.require("params.first_stage_config.params.ddconfig.z_channels", 8)
    reader.require("params.first_stage_config.params.ddconfig.attn_resolutions", [])
    reader.require_groups("params.unet_config.params.model_channels", channels)
    reader.require_groups("params.first_stage_config.params.ddconfig.ch", base)
    betas = reader.number("params.linear_start"), reader.number("params.linear_end")
    if not 0 < betas[0] <= betas[1] < 1:
        raise CheckpointError(
            f"{path}: expected 0 < params.linear_start <= params.linear_end < 1, found {betas[0]} and {betas[1]}"
        )
    return PublishedConfig(
        unet=unet_config(
            tuple(channels * factor for factor in multipliers),
            layers_per_block=reader.integer("params.unet_config.params.num_res_blocks"),
            sample_size=latent_size,
            attention=tuple(2**level in attention for level in range(len(multipliers))),
            attention_head_dim=reader.integer("params.unet_config.params.num_head_channels"),
        ),
        autoencoder=autoencoder_config(
            tuple(base * factor for factor in base_multipliers),
            layers_per_block=reader.integer("params.first_stage_config.params.ddconfig.num_res_blocks"),
            codes=reader.integer("params.first_stage_config.params.n_embed"),
            sample_size=reader.integer("params.first_stage_config.params.ddconfig.resolution"),
        ),
        scheduler={
            "beta_start": betas[0],
            "beta_end": betas[1],
            "num_train_timesteps": reader.integer("params.timesteps"),
        },
    )


def _unet_modules(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Every module of the denoiser with weights: its published name and its name in ``UNet2DModel``."""
    widths, layers = config["block_out_channels"], config["layers_per_block"]
    levels = len(widths)
    yield "time_embed.0", "time_embedding.linear_1"
    yield "time_embed.2", "time_embedding.linear_2"
    yield "input_blocks.0.0", "conv_in"
    block = 1
    for level, kind in enumerate(config["down_block_types"]):
        for layer in range(layers):
            shortcut = layer == 0 and level > 0 and widths[level] != widths[level - 1]
            yield from _resnet(f"input_blocks.{block}.0", f"down_blocks.{level}.resnets.{layer}", shortcut)
            if kind.startswith("Attn"):
                yield from _attention(f"input_blocks.{block}.1", f"down_blocks.{level}.attentions.{layer}")
            block += 1
        if level < levels - 1:
            yield f"input_blocks.{block}.0.op", f"down_blocks.{level}.downsamplers.0.conv"
            block += 1
    yield from _resnet("middle_block.0", "mid_block.resnets.0", False)
    yield from _attention("middle_block.1", "mid_block.attentions.0")
    yield from _resnet("middle_block.2", "mid_block.resnets.1", False)
    block = 0
    for level, kind in enumerate(config["up_block_types"]):
        attends = kind.startswith("Attn")
        for layer in range(layers + 1):
            # the input is the hidden state joined with a skip, so its width always differs
            yield from _resnet(f"output_blocks.{block}.0", f"up_blocks.{level}.resnets.{layer}", True)
            if attends:
                yield from _attention(f"output_blocks.{block}.1", f"up_blocks.{level}.attentions.{layer}")
            block += 1
        if level < levels - 1:
            yield f"output_blocks.{block - 1}.{1 + attends}.conv", f"up_blocks.{level}.upsamplers.0.conv"
    yield "out.0", "conv_norm_out"
    yield "out.2", "conv_out"


def _resnet(theirs: str, ours: str, shortcut: bool) -> Iterator[tuple[str, str]]:
    yield f"{theirs}.in_layers.0", f"{ours}.norm1"
    yield f"{theirs}.in_layers.2", f"{ours}.conv1"
    yield f"{theirs}.emb_layers.1", f"{ours}.time_emb_proj"
    yield f"{theirs}.out_layers.0", f"{ours}.norm2"
    yield f"{theirs}.out_layers.3", f"{ours}.conv2"
    if shortcut:
        yield f"{theirs}.skip_connection", f"{ours}.conv_shortcut"


def _attention(theirs: str, ours: str) -> Iterator[tuple[str, str]]:
    yield f"{theirs}.norm", f"{ours}.group_norm"
    yield f"{theirs}.qkv", ours
    yield f"{theirs}.proj_out", f"{ours}.to_out.0"


def _vqgan_modules(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Every module of the autoencoder with weights: its published name and its name in ``VQModel``."""
    widths, layers = config["block_out_channels"], config["layers_per_block"]
    levels = len(widths)
    for half in ("encoder", "decoder"):
        yield f"{half}.conv_in", f"{half}.conv_in"
        yield from _vqgan_resnet(f"{half}.mid.block_1", f"{half}.mid_block.resnets.0", False)
        yield from _vqgan_attention(f"{half}.mid.attn_1", f"{half}.mid_block.attentions.0")
        yield from _vqgan_resnet(f"{half}.mid.block_2", f"{half}.mid_block.resnets.1", False)
        yield f"{half}.norm_out", f"{half}.conv_norm_out"
        yield f"{half}.conv_out", f"{half}.conv_out"
    for level, width in enumerate(widths):
        ours = f"encoder.down_blocks.{level}"
        for layer in range(layers):
            shortcut = layer == 0 and level > 0 and width != widths[level - 1]
            yield from _vqgan_resnet(f"encoder.down.{level}.block.{layer}", f"{ours}.resnets.{layer}", shortcut)
        if level < levels - 1:
            yield f"encoder.down.{level}.downsample.conv", f"{ours}.downsamplers.0.conv"
    for level, width in enumerate(widths):
        ours = f"decoder.up_blocks.{levels - 1 - level}"  # published levels count from full resolution
        for layer in range(layers + 1):
            shortcut = layer == 0 and level < levels - 1 and width != widths[level + 1]
            yield from _vqgan_resnet(f"decoder.up.{level}.block.{layer}", f"{ours}.resnets.{layer}", shortcut)
        if level > 0:
            yield f"decoder.up.{level}.upsample.conv", f"{ours}.upsamplers.0.conv"
    yield "quant_conv", "quant_conv"
    yield "post_quant_conv", "post_quant_conv"


def _vqgan_resnet(theirs: str, ours: str, shortcut: bool) -> Iterator[tuple[str, str]]:
    for name in ("norm1", "conv1", "norm2", "conv2"):
        yield f"{theirs}.{name}", f"{ours}.{name}"
    if shortcut:
        yield f"{theirs}.nin_shortcut", f"{ours}.conv_shortcut"


def _vqgan_attention(theirs: str, ours: str) -> Iterator[tuple[str, str]]:
    yield f"{theirs}.norm", f"{ours}.group_norm"
    for letter in "qkv":
        yield f"{theirs}.{letter}", f"{ours}.to_{letter}"
    yield f"{theirs}.proj_out", f"{ours}.to_out.0"


def _split_qkv(qkv: torch.Tensor, config: Mapping[str, Any], source: str) -> Iterable[torch.Tensor]:
    """Queries, keys and values of a published qkv convolution: its output is [head 0: q k v | head 1: q k v | ...]."""
    dim = config["attention_head_dim"]
    if qkv.shape[0] % (3 * dim):
        raise CheckpointError(
            f"{source}: expected attention of a multiple of {dim} channels per head, found qkv {tuple(qkv.shape)}"
        )
    by_head = qkv.unflatten(0, (-1, 3, dim))  # (heads, 3, dim, ...)
    return [by_head[:, part].flatten(0, 1).contiguous() for part in range(3)]
