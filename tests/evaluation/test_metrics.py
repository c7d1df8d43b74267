"""Metrics against independent implementations, and what they say about known pictures."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import skimage.data
import skimage.metrics
import torch
from PIL import Image, ImageFilter

from facefix.evaluation.metrics import MetricSet
from facefix.metrics.pixels import psnr, ssim


@pytest.fixture(scope="module")
def face() -> np.ndarray:
    return np.array(Image.fromarray(skimage.data.astronaut()[30:220, 135:325]).resize((512, 512)))


@pytest.fixture(scope="module")
def metrics() -> MetricSet:
    return MetricSet.load(torch.device("cpu"))


def blurred(face: np.ndarray, radius: float) -> np.ndarray:
    return np.array(Image.fromarray(face).filter(ImageFilter.GaussianBlur(radius)))


def as_tensor(pixels: np.ndarray) -> torch.Tensor:
    return torch.tensor(pixels).permute(2, 0, 1)[None].double() / 255


def test_psnr_and_ssim_are_those_of_scikit_image(face: np.ndarray) -> None:
    other = blurred(face, 3)
    expected = skimage.metrics.peak_signal_noise_ratio(face, other)
    assert float(psnr(as_tensor(other), as_tensor(face))) == pytest.approx(expected, abs=1e-4)
    luma = np.array([0.299, 0.587, 0.114])
    expected = skimage.metrics.structural_similarity(
        face / 255 @ luma,
        other / 255 @ luma,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        data_range=1.0,
    )
    assert float(ssim(as_tensor(other), as_tensor(face))) == pytest.approx(expected, abs=1e-6)


def test_equal_pictures_score_perfectly(metrics: MetricSet, face: np.ndarray) -> None:
    scores = {name: float(values[0]) for name, values in metrics.score([face], face).items()}
    assert scores["PSNR dB"] == pytest.approx(100)
    assert scores["SSIM"] == pytest.approx(1)
    assert scores["dlib distance"] == pytest.approx(0, abs=1e-5)
    assert scores["dlib cosine"] == pytest.approx(1)
    assert scores["EfficientNet-Lite0 feature distance"] == pytest.approx(0, abs=1e-5)


def test_every_metric_notices_damage_in_its_direction(metrics: MetricSet, face: np.ndarray) -> None:
    scores = metrics.score([blurred(face, 2), blurred(face, 8), blurred(face, 24)], face)
    assert [metric.name for metric in metrics.metrics] == list(scores)
    for metric in metrics.metrics:
        steps = np.diff(scores[metric.name])
        assert (steps < 0).all() if metric.better == "higher" else (steps > 0).all(), metric.name


PEAK_MEMORY = """
import numpy as np, torch
from facefix.evaluation.memory import PeakMemory
memory = PeakMemory(torch.device("cpu"))
block = np.ones(200 * 2**20, dtype=np.uint8)
high = memory.read()
del block
memory.reset()
low = memory.read()
block = np.ones(400 * 2**20, dtype=np.uint8)
print(high, low, memory.read())
"""


def test_peak_memory_starts_over() -> None:
    """In a process of its own, where nothing else takes and frees memory."""
    run = subprocess.run([sys.executable, "-c", PEAK_MEMORY], capture_output=True, text=True, check=True)
    high, low, higher = map(int, run.stdout.split())
    assert low <= high
    assert higher - low > 150 * 2**20
