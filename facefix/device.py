"""Which device and dtype the networks run in. Decided once, then passed down."""

from __future__ import annotations

import torch

from facefix.errors import DeviceError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def choose_device(name: str = "auto") -> torch.device:
    """The device that a name stands for; ``auto`` is CUDA, then MPS, then the CPU.

    Raises:
        DeviceError: no such device here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise DeviceError(f"--device: expected auto, cpu, cuda, cuda:N or mps, found {name!r}") from error
    present = {
        "cpu": True,
        "cuda": torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count(),
        "mps": torch.backends.mps.is_available(),
    }
    if not present.get(device.type, False):
        raise DeviceError(f"--device: expected a device that is here, found {name!r}, which is not; try --device auto")
    return device


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """The dtype that a name stands for; ``auto`` is bf16 on CUDA and fp32 elsewhere.

    On the CPU fp32 is exact and the same on every machine; bf16 is there for those with bf16 units.

    Raises:
        DeviceError: no such dtype, or not on this device.
    """
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else torch.float32
    if name not in DTYPES:
        raise DeviceError(f"--dtype: expected auto, {', '.join(DTYPES)}, found {name!r}")
    if name == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported():
        raise DeviceError(f"--dtype: expected one that {device} has, found bf16; try fp16 or fp32")
    return DTYPES[name]
