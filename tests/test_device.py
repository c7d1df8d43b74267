"""Device and dtype: names, what auto takes, and what is refused."""

from __future__ import annotations

import pytest
import torch

from facefix.device import choose_device, choose_dtype
from facefix.errors import DeviceError

CPU = torch.device("cpu")


def test_auto_takes_what_is_there() -> None:
    expected = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    assert choose_device().type == expected
    assert choose_device("cpu") == CPU
    assert choose_dtype("auto", CPU) == torch.float32


@pytest.mark.parametrize("name", ["gpu", "cuda:99", ""])
def test_a_device_that_is_not_there_is_refused(name: str) -> None:
    with pytest.raises(DeviceError, match="--device: expected"):
        choose_device(name)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_missing_gpu_is_named() -> None:
    with pytest.raises(DeviceError, match="found 'cuda', which is not"):
        choose_device("cuda")


@pytest.mark.parametrize(
    ("name", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)]
)
def test_dtypes_by_name(name: str, dtype: torch.dtype) -> None:
    assert choose_dtype(name, CPU) == dtype


def test_an_unknown_dtype_is_refused() -> None:
    with pytest.raises(DeviceError, match="--dtype: expected auto, fp32, bf16, fp16, found 'int8'"):
        choose_dtype("int8", CPU)
