"""Reading of published checkpoints, without running what is in them, and atomic saving of converted models."""

from __future__ import annotations

import contextlib
import pickle
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from facefix.errors import CheckpointError, FacefixError, UsageError
from facefix.files.atomic import new_folder
from facefix.methods.refldm.pipeline import ReFLDMPipeline

StateDict = dict[str, torch.Tensor]


NORM_GROUPS = 32
"""groups of channels in every normalisation of the published networks"""


def save_atomically(pipeline: ReFLDMPipeline, to: Path) -> Path:
    """``save_pretrained`` into a folder that appears whole or not at all.

    :raises FacefixError: it cannot be written.
    """
    try:
        with new_folder(to) as folder:
            pipeline.save_pretrained(folder, safe_serialization=True)
    except (OSError, SafetensorError) as error:
        raise FacefixError(f"{to}: the model cannot be written: {error}") from error
    return to.absolute()


def read_checkpoint(path: Path) -> StateDict:
    """The tensors of a checkpoint, flat or under ``state_dict``, by name. No code in it is ever run.

    :param path: a torch pickle, read with ``weights_only=True``, or a safetensors file.
    :raises UsageError: the file is not there.
    :raises CheckpointError: it is not a checkpoint, is truncated, or would run code.
    """
    if not path.is_file():
        raise UsageError(f"{path}: expected a checkpoint file, found {'a folder' if path.is_dir() else 'nothing'}")
    try:
        loaded = load_file(path) if path.suffix == ".safetensors" else _load_pickle(path)
    except CheckpointError:
        raise
    except pickle.UnpicklingError as error:
        raise CheckpointError(_unsafe(path, ())) from error
    except (OSError, RuntimeError, ValueError, EOFError, KeyError, SafetensorError, zipfile.BadZipFile) as error:
        raise CheckpointError(
            f"{path}: expected a complete torch or safetensors checkpoint, found a file that cannot be read "
            f"({_first_line(error)}); it may be truncated: fetch it again"
        ) from error
    except Exception as error:  # a damaged pickle can fail in any way inside the unpickler
        raise CheckpointError(
            f"{path}: expected a torch checkpoint, found a damaged one ({type(error).__name__}: {_first_line(error)})"
        ) from error
    if isinstance(loaded, Mapping) and isinstance(loaded.get("state_dict"), Mapping):
        loaded = loaded["state_dict"]
    if not isinstance(loaded, Mapping):
        raise CheckpointError(f"{path}: expected a dictionary of tensors, found {type(loaded).__name__}")
    return {name: tensor for name, tensor in loaded.items() if isinstance(tensor, torch.Tensor)}


@dataclass(frozen=True)
class _YamlReader:
    """Typed access by dotted key, with errors that name file, key, what was expected and what was found."""

    path: Path
    tree: Any

    def value(self, key: str, expected: str) -> Any:
        here = self.tree
        for part in key.split("."):
            if not isinstance(here, Mapping) or part not in here:
                raise CheckpointError(f"{self.path}: expected {expected} at {key}, found no {part!r}")
            here = here[part]
        return here

    def integer(self, key: str) -> int:
        value = self.value(key, "a whole number above 0")
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise CheckpointError(f"{self.path}: expected a whole number above 0 at {key}, found {value!r}")
        return value

    def number(self, key: str) -> float:
        value = self.value(key, "a number")
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise CheckpointError(f"{self.path}: expected a number at {key}, found {value!r}")
        return float(value)

    def integers(self, key: str) -> list[int]:
        value = self.value(key, "a list of whole numbers")
        if not isinstance(value, list) or not value or not all(isinstance(entry, int) and entry > 0 for entry in value):
            raise CheckpointError(f"{self.path}: expected a list of whole numbers above 0 at {key}, found {value!r}")
        return value

    def require_groups(self, key: str, channels: int) -> None:
        if channels % NORM_GROUPS:
            raise CheckpointError(f"{self.path}: expected a multiple of {NORM_GROUPS} at {key}, found {channels}")

    def require(self, key: str, expected: Any) -> None:
        value = self.value(key, repr(expected))
        if value != expected:
            raise CheckpointError(f"{self.path}: expected {expected!r} at {key} (as ReF-LDM has), found {value!r}")


def _take(published: StateDict, name: str, source: str) -> torch.Tensor:
    if name not in published:
        raise CheckpointError(
            f"{source}: expected the weight {name!r}, found {len(published)} tensors without it; is it the right "
            "checkpoint, and does the configuration fit it?"
        )
    return published[name]


def _load_strictly(model: torch.nn.Module, weights: StateDict, source: str) -> None:
    """Load weights into a model, every one of them and of the right shape (1x1 convolutions may be linear layers)."""
    own = model.state_dict()
    missing = sorted(own.keys() - weights.keys())
    if missing:
        raise CheckpointError(f"{source}: the configuration needs weights that the checkpoint has none for: {missing}")
    fitted: StateDict = {}
    for name, tensor in weights.items():
        expected = own[name].shape if name in own else None
        if expected is None or tensor.numel() != expected.numel() or _squeezed(tensor) != _squeezed(own[name]):
            raise CheckpointError(
                f"{source}: expected shape {tuple(expected) if expected else 'no such weight'} for {name}, found "
                f"{tuple(tensor.shape)}; does the configuration fit the checkpoint?"
            )
        fitted[name] = tensor.reshape(expected).to(own[name].dtype).contiguous()
        if not bool(torch.isfinite(fitted[name]).all()):
            raise CheckpointError(f"{source}: expected finite weights, found NaN or infinity in {name}")
    model.load_state_dict(fitted)


def _squeezed(tensor: torch.Tensor) -> tuple[int, ...]:
    return tuple(size for size in tensor.shape if size != 1)


class _Inert:
    """Stands in for training-time objects inside a Lightning checkpoint. It does nothing and keeps nothing."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setstate__(self, _: Any) -> None:
        pass


INERT_PACKAGES = ("pytorch_lightning.", "lightning.", "lightning_fabric.", "omegaconf.")
"""Packages whose objects Lightning leaves in a checkpoint beside the weights; they are read as nothing."""


def _load_pickle(path: Path) -> Any:
    """``torch.load(weights_only=True)``; bookkeeping objects of Lightning are read as inert stand-ins."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore", UserWarning)  # torch's about pickles of other protocols: what matters is raised
        if zipfile.is_zipfile(path):
            unknown = torch.serialization.get_unsafe_globals_in_checkpoint(path)
            inert = [name for name in unknown if name.startswith(INERT_PACKAGES)]
            if len(inert) < len(unknown):
                raise CheckpointError(_unsafe(path, sorted(set(unknown) - set(inert))))
            stack.enter_context(torch.serialization.safe_globals([(_Inert, name) for name in inert]))
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        return torch.load(path, map_location="cpu", weights_only=True)


def _unsafe(path: Path, names: Sequence[str]) -> str:
    calls = f" that calls {', '.join(names)}" if names else " that cannot be read without running code"
    return (
        f"{path}: expected a checkpoint of plain tensors, found a pickle{calls}; it was not loaded. "
        "Fetch it again from its publisher"
    )


def _first_line(error: Exception) -> str:
    if isinstance(error, KeyError):  # its text is the key alone
        return "it does not begin as one does"
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
