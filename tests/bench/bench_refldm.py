"""ReF-LDM at the published size, random weights: our path against a plain implementation of the same step.

    python tests/bench/bench_refldm.py [--device cpu|cuda] [--dtype fp32|bf16] [--repeats 5] [--batch 8] [--json FILE]

The plain implementation follows the published code: attention as einsum with a materialised softmax over own and all
reference tokens, joined anew in every call; the unconditional half holds N copies of the null reference; references
are encoded, and passed through the denoiser in a batch of (null, reference), for every face. Both run interleaved in
one process; figures are medians. A person with 20 faces, 5 references and 50 steps is added up from its parts.

Faces per second are those of a batch that shares one cache of 5 references, added up from its parts, beside what the
device could do if it ran the published arithmetic as fast as a large matrix product or convolution. More than that is
possible: Winograd and the shared null reference multiply less.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import resource
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention
from diffusers.utils import logging
from rich.console import Console
from rich.table import Table

from facefix import ReferenceCache, ReFLDMPipeline
from facefix.device import DTYPES, choose_device
from facefix.networks.autoencoder import build_autoencoder
from facefix.networks.cachekv import attention_layers, denoise, reference_pass
from facefix.networks.schedule import ddim_scheduler
from facefix.networks.unet import build_unet

REFERENCES = (0, 1, 2, 5)
FACES, STEPS, SET_SIZE = 20, 50, 5
PAIR_GFLOP, REFERENCE_GFLOP, DECODE_GFLOP = 186.0, 14.4, 1214.0
BATCHES = {"cuda": (8, 32)}
"""sizes of batches, beside single faces"""
THROUGHPUT_STEPS = (10, 50)

Timings = dict[str, list[float]]


class PlainAttention:
    """Attention as the published code computes it, with one list of keys and values per reference pass."""

    def __init__(self) -> None:
        self.saving = False
        self.saved: list[tuple[torch.Tensor, torch.Tensor]] = []

    def __call__(self, attn: Attention, hidden_states: torch.Tensor, temb: Any = None, **_: Any) -> torch.Tensor:
        batch, channels, height, width = hidden_states.shape
        tokens = attn.group_norm(hidden_states.flatten(2)).transpose(1, 2)
        query, key, value = (
            layer(tokens).unflatten(2, (attn.heads, -1)).permute(0, 2, 3, 1)  # (B, heads, dim, T)
            for layer in (attn.to_q, attn.to_k, attn.to_v)
        )
        if self.saving:
            self.saved.append((key, value))
        elif self.saved:
            key = torch.cat([key, *(k for k, _ in self.saved)], dim=-1)
            value = torch.cat([value, *(v for _, v in self.saved)], dim=-1)
        scale = query.shape[2] ** -0.25
        weight = torch.einsum("bhct,bhcs->bhts", query * scale, key * scale).float()
        weight = torch.softmax(weight, dim=-1).type(query.dtype)
        attended = torch.einsum("bhts,bhcs->bhct", weight, value).flatten(1, 2).transpose(1, 2)
        return hidden_states + attn.to_out[0](attended).transpose(1, 2).reshape(batch, channels, height, width)


class Plain:
    """The same networks as a pipeline's, run as the published code runs them."""

    def __init__(self, pipeline: ReFLDMPipeline) -> None:
        self.pipeline = pipeline
        self.layers = [PlainAttention() for _ in attention_layers(pipeline.unet)]

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Plain attention in the denoiser and in the autoencoder; ours again afterwards."""
        modules = [*attention_layers(self.pipeline.unet).values(), *_mid_attentions(self.pipeline)]
        ours = [module.processor for module in modules]
        plain = [*self.layers, *(PlainAttention() for _ in _mid_attentions(self.pipeline))]
        for module, processor in zip(modules, plain, strict=True):
            module.set_processor(processor)
        try:
            yield
        finally:
            for module, processor in zip(modules, ours, strict=True):
                module.set_processor(processor)

    def reference_pass(self, latents: torch.Tensor) -> None:
        """One pass per reference of a batch of (null, reference)."""
        for layer in self.layers:
            layer.saved, layer.saving = [], True
        for latent in latents:
            pair = torch.stack([torch.zeros_like(latent), latent])
            self.pipeline.unet(torch.cat([pair, torch.zeros_like(pair)], dim=1), 0)
        for layer in self.layers:
            layer.saving = False

    def pair(self, sample: torch.Tensor) -> torch.Tensor:
        """One guidance pair; reads what the last reference pass left."""
        return self.pipeline.unet(sample.repeat(2, 1, 1, 1), 500).sample

    def forget(self) -> None:
        for layer in self.layers:
            layer.saved = []


def _mid_attentions(pipeline: ReFLDMPipeline) -> list[Attention]:
    halves = (pipeline.autoencoder.encoder, pipeline.autoencoder.decoder)
    return [half.mid_block.attentions[0] for half in halves]


def build(device: torch.device, dtype: torch.dtype) -> ReFLDMPipeline:
    """The published size with random weights."""
    torch.manual_seed(0)
    pipeline = ReFLDMPipeline(build_autoencoder("refldm").eval(), build_unet("refldm").eval(), ddim_scheduler())
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device, dtype)


class Clock:
    """Times calls by name, in wall seconds and in CPU seconds of this process."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.wall: Timings = {}
        self.cpu: Timings = {}

    def __call__(self, name: str, call: Callable[[], Any]) -> Any:
        self._synchronize()
        wall, cpu = time.perf_counter(), time.process_time()
        result = call()
        self._synchronize()
        self.wall.setdefault(name, []).append(time.perf_counter() - wall)
        self.cpu.setdefault(name, []).append(time.process_time() - cpu)
        return result

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def medians(self) -> dict[str, float]:
        return {name: statistics.median(values[1:] or values) for name, values in self.wall.items()}

    def cpu_medians(self) -> dict[str, float]:
        return {name: statistics.median(values[1:] or values) for name, values in self.cpu.items()}


@torch.inference_mode()
def measure(pipeline: ReFLDMPipeline, repeats: int, slow_repeats: int) -> Clock:
    """Every part, ours and plain in turn; the first round of each warms up."""
    device, dtype = pipeline.unet.device, pipeline.unet.dtype
    clock, plain = Clock(device), Plain(pipeline)
    sample = torch.randn(1, 16, 64, 64, device=device, dtype=dtype)
    reference_latents = torch.randn(SET_SIZE, 8, 64, 64, device=device, dtype=dtype)
    latents = sample[:, :8].float()
    images = torch.rand(SET_SIZE, 3, 512, 512, device=device, dtype=dtype) * 2 - 1
    caches = {count: _cache(pipeline, reference_latents[:count]) for count in REFERENCES if count}
    for _ in range(repeats + 1):
        for count in REFERENCES:
            branches, copies = pipeline._branches(caches.get(count), 1.5, latents.to(dtype))
            if count == 0:  # the pair as the published code runs it, both rows alike
                branches, copies = (), 2
            clock(f"fast/pair {count}", lambda b=branches, c=copies: _pair(pipeline, sample, b, c))
            with plain.installed():
                plain.reference_pass(reference_latents[:count]) if count else plain.forget()
                clock(f"plain/pair {count}", lambda: plain.pair(sample))
                plain.forget()
    for _ in range(slow_repeats + 1):
        clock("fast/reference pass", lambda: _cache(pipeline, reference_latents))
        clock("fast/encode references", lambda: pipeline._encode_strip(images))
        clock("fast/encode LQ", lambda: pipeline._encode(images[:1]))
        clock("fast/decode", lambda: pipeline.decode(latents))
        with plain.installed():
            clock("plain/reference pass", lambda: plain.reference_pass(reference_latents))
            plain.forget()
            clock("plain/encode references", lambda: _plain_encode(pipeline, torch.cat(images.unbind(0), dim=2)[None]))
            clock("plain/encode LQ", lambda: _plain_encode(pipeline, images[:1]))
            clock("plain/decode", lambda: _plain_decode(pipeline, latents))
    return clock


@torch.inference_mode()
def measure_bf16(pipeline: ReFLDMPipeline, repeats: int) -> Clock:
    """Our pair with 5 references in the pipeline's dtype and in bf16, in turn."""
    device = pipeline.unet.device
    clock = Clock(device)
    sample, reference_latents = (
        torch.randn(1, 16, 64, 64, device=device),
        torch.randn(SET_SIZE, 8, 64, 64, device=device),
    )
    calls = {}
    for name, unet in (("own", pipeline.unet), ("bf16", copy.deepcopy(pipeline.unet).to(torch.bfloat16))):
        other = ReFLDMPipeline(pipeline.autoencoder, unet, pipeline.scheduler)
        inputs = sample.to(unet.dtype)
        branches, copies = other._branches(_cache(other, reference_latents.to(unet.dtype)), 1.5, inputs[:, :8])
        calls[f"{name}/pair {SET_SIZE}"] = lambda p=other, s=inputs, b=branches, c=copies: _pair(p, s, b, c)
    for _ in range(repeats + 1):
        for name, call in calls.items():
            clock(name, call)
    return clock


@torch.inference_mode()
def measure_batches(pipeline: ReFLDMPipeline, sizes: Sequence[int], repeats: int) -> dict[int, dict[str, float]]:
    """Seconds of each part for batches of faces that share 5 references: batch size -> part -> median."""
    device, dtype = pipeline.unet.device, pipeline.unet.dtype
    cache = _cache(pipeline, torch.randn(SET_SIZE, 8, 64, 64, device=device, dtype=dtype))
    measured = {}
    for size in sizes:
        clock = Clock(device)
        images = torch.rand(size, 3, 512, 512, device=device, dtype=dtype) * 2 - 1
        sample = torch.randn(size, 16, 64, 64, device=device, dtype=dtype)
        branches, copies = pipeline._branches(cache, 1.5, sample[:, :8])
        for _ in range(repeats + 1):
            clock("encode LQ", lambda i=images: pipeline._encode(i))
            clock("pair", lambda s=sample, b=branches, c=copies: _pair(pipeline, s, b, c))
            clock("decode", lambda s=sample: [pipeline.decode(row) for row in s[:, :8].float().split(1)])
        measured[size] = clock.medians()
    return measured


def single(parts: dict[str, float]) -> dict[str, float]:
    """The parts of a batch of one face, out of those of :func:`measure`."""
    pair = parts[f"fast/pair {SET_SIZE}"]
    return {"encode LQ": parts["fast/encode LQ"], "pair": pair, "decode": parts["fast/decode"]}


@torch.inference_mode()
def peak_gflops(device: torch.device, dtype: torch.dtype) -> float:
    """What a large matrix product or a large convolution reaches here, in GFLOP/s, whichever is faster."""
    side, batch = (8192, 32) if device.type == "cuda" else (2048, 1)
    left, right = torch.randn(2, side, side, device=device, dtype=dtype)
    maps = torch.randn(batch, 512, 64, 64, device=device, dtype=dtype).contiguous(memory_format=torch.channels_last)
    kernel = torch.randn(512, 512, 3, 3, device=device, dtype=dtype).contiguous(memory_format=torch.channels_last)
    clock = Clock(device)
    for _ in range(10):
        clock("product", lambda: left @ right)
        clock("convolution", lambda: F.conv2d(maps, kernel, padding=1))
    flop = {"product": 2 * side**3, "convolution": 2 * maps.numel() * 512 * 9}
    return max(flop[name] / seconds for name, seconds in clock.medians().items()) / 1e9


def faces_per_second(batches: dict[int, dict[str, float]], peak: float) -> dict[str, dict[str, float]]:
    """Batch size (or "limit", from the published arithmetic) -> steps -> faces per second with 5 references."""
    rates = {
        str(size): {str(n): size / (parts["encode LQ"] + n * parts["pair"] + parts["decode"]) for n in THROUGHPUT_STEPS}
        for size, parts in batches.items()
    }
    pair = PAIR_GFLOP + SET_SIZE * REFERENCE_GFLOP
    rates["limit"] = {str(n): peak / (n * pair + DECODE_GFLOP) for n in THROUGHPUT_STEPS}
    return rates


def show_rates(console: Console, rates: dict[str, dict[str, float]], peak: float) -> None:
    limit = rates["limit"]
    title = f"faces per second, {SET_SIZE} references; limit: {peak:.0f} GFLOP/s"
    table = Table("batch", *(f"{n} steps" for n in limit), *(f"of the limit, {n}" for n in limit), title=title)
    for size, by_steps in rates.items():
        shares = (f"{by_steps[n] / limit[n]:.2f}" for n in limit)
        table.add_row(size, *(f"{by_steps[n]:.3g}" for n in limit), *shares)
    console.print(table)


def _cache(pipeline: ReFLDMPipeline, latents: torch.Tensor) -> ReferenceCache:
    return reference_pass(pipeline.unet, latents, encoding="strip")


def _pair(pipeline: ReFLDMPipeline, sample: torch.Tensor, branches: Any, copies: int) -> torch.Tensor:
    return denoise(pipeline.unet, sample, 500, branches, copies=copies)


def _plain_encode(pipeline: ReFLDMPipeline, images: torch.Tensor) -> torch.Tensor:
    return pipeline.autoencoder.encode(images).latents


def _plain_decode(pipeline: ReFLDMPipeline, latents: torch.Tensor) -> torch.Tensor:
    """Full distance matrix |z|^2 + |e|^2 - 2 z e, then the decoder."""
    codes = pipeline.autoencoder.quantize.embedding.weight.float()
    vectors = latents.permute(0, 2, 3, 1).reshape(-1, 8)
    distances = vectors.square().sum(1, keepdim=True) + codes.square().sum(1) - 2 * vectors @ codes.T
    nearest = codes[distances.argmin(1)].view(1, 64, 64, 8).permute(0, 3, 1, 2)
    return pipeline.autoencoder.decode(nearest.to(pipeline.autoencoder.dtype), force_not_quantize=True).sample


def totals(parts: dict[str, float]) -> dict[str, float]:
    """Seconds for a person with 20 faces and 5 references at 50 steps, added up from the parts."""

    def of(side: str, name: str) -> float:
        return parts[f"{side}/{name}"]

    per_face = {
        side: of(side, "encode LQ") + STEPS * of(side, f"pair {SET_SIZE}") + of(side, "decode")
        for side in ("fast", "plain")
    }
    references = {side: of(side, "encode references") + of(side, "reference pass") for side in ("fast", "plain")}
    return {
        "fast": FACES * per_face["fast"] + references["fast"],
        "plain": FACES * (per_face["plain"] + references["plain"]),
    }


def peak_encode_bytes(pipeline: ReFLDMPipeline) -> int:
    """Highest resident memory of the process while 5 references are encoded (weights included)."""
    if pipeline.unet.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        pipeline.encode_references(torch.zeros(SET_SIZE, 3, 512, 512))
        return torch.cuda.max_memory_allocated()
    pipeline.encode_references(torch.zeros(SET_SIZE, 3, 512, 512))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def show(console: Console, parts: dict[str, float], sums: dict[str, float], title: str) -> None:
    table = Table("part", "fast s", "plain s", "fast / plain", title=title)
    names = [name.removeprefix("fast/") for name in parts if name.startswith("fast/")]
    for name in names:
        fast, plain = parts[f"fast/{name}"], parts[f"plain/{name}"]
        table.add_row(name, f"{fast:.3f}", f"{plain:.3f}", f"{fast / plain:.3f}")
    table.add_row(
        f"{FACES} faces, {SET_SIZE} references, {STEPS} steps",
        f"{sums['fast']:.0f}",
        f"{sums['plain']:.0f}",
        f"{sums['fast'] / sums['plain']:.3f}",
    )
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="fp32", choices=sorted(DTYPES))
    parser.add_argument("--repeats", type=int, default=5, help="counted runs of each pair")
    parser.add_argument("--slow-repeats", type=int, default=2, help="counted runs of encoding and decoding")
    parser.add_argument(
        "--batch", type=int, action="append", help="faces in a batch, beside one; may be given more than once"
    )
    parser.add_argument("--json", type=Path, help="also write the figures there")
    arguments = parser.parse_args()
    device, dtype = choose_device(arguments.device), DTYPES[arguments.dtype]
    logging.set_verbosity_error()  # diffusers has remarks on every change of dtype
    pipeline = build(device, dtype)
    peak = peak_encode_bytes(pipeline)
    clock = measure(pipeline, arguments.repeats, arguments.slow_repeats)
    parts, cpu_parts = clock.medians(), clock.cpu_medians()
    peak_rate = peak_gflops(device, dtype)
    sizes = arguments.batch or BATCHES.get(device.type, ())
    batches = {1: single(parts), **measure_batches(pipeline, sizes, arguments.slow_repeats)}
    rates = faces_per_second(batches, peak_rate)
    in_bf16 = measure_bf16(pipeline, 2 * arguments.repeats) if dtype == torch.float32 else None
    figures = {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "dtype": arguments.dtype,
        "wall_s": parts,
        "cpu_s": cpu_parts,
        "person_wall_s": totals(parts),
        "person_cpu_s": totals(cpu_parts),
        "peak_encode_bytes": peak,
        "peak_gflops": peak_rate,
        "batches_wall_s": batches,
        "faces_per_second": rates,
        "bf16_pair_wall_s": in_bf16 and in_bf16.medians(),
        "bf16_pair_cpu_s": in_bf16 and in_bf16.cpu_medians(),
    }
    console = Console(width=100)
    title = f"{figures['device']}, {figures['threads']} threads, torch {torch.__version__}, {arguments.dtype}"
    show(console, parts, totals(parts), f"wall seconds, medians: {title}")
    if device.type == "cpu":
        show(console, cpu_parts, totals(cpu_parts), "CPU seconds, medians")
    console.print(f"peak memory while 5 references are encoded: {peak / 2**30:.2f} GiB")
    gflop = PAIR_GFLOP + SET_SIZE * REFERENCE_GFLOP
    console.print(f"pair with 5 references: {gflop / parts['fast/pair 5']:.0f} GFLOP/s; ", end="")
    console.print(f"decode: {DECODE_GFLOP / parts['fast/decode']:.0f} GFLOP/s")
    show_rates(console, rates, peak_rate)
    if in_bf16 is not None:
        for kind, seconds in (("wall", in_bf16.medians()), ("CPU", in_bf16.cpu_medians())):
            own, half = seconds[f"own/pair {SET_SIZE}"], seconds[f"bf16/pair {SET_SIZE}"]
            console.print(f"pair with 5 references in bf16: {half:.3f} {kind} seconds, {half / own:.3f} of fp32")
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
