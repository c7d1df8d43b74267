"""Keys and values of the null reference, made once for a model's weights."""

from __future__ import annotations

import threading
from typing import Any

import torch
from diffusers import UNet2DModel

from facefix.networks.blocks import contents
from facefix.networks.cachekv import reference_pass
from facefix.networks.reference_cache import ReferenceCache


class NullCaches:
    """What was made of the null reference, by shape, dtype and device. A copy of it starts empty."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.weights: tuple[tuple[int, int], ...] = ()
        self.caches: dict[tuple[Any, ...], ReferenceCache] = {}
        self.first_weight: torch.Tensor | None = None

    def __reduce__(self) -> tuple[type[NullCaches], tuple[()]]:
        return NullCaches, ()

    def get(self, unet: UNet2DModel, like: torch.Tensor) -> ReferenceCache:
        """Those for latents of this shape, dtype and device; made when they are not there or the weights changed."""
        key = (*like.shape[1:], like.dtype, str(like.device))
        weights = tuple(map(contents, unet.parameters()))
        with self.lock:
            if weights != self.weights:
                self.weights, self.caches = weights, {}
                self.first_weight = next(unet.parameters()).detach()  # its address cannot be reused meanwhile
            if key not in self.caches:
                self.caches[key] = reference_pass(unet, like.new_zeros(1, *like.shape[1:]))
            return self.caches[key]
