"""The values that travel from photos to the restorer: Detection, Quality, Face, Reference, Person."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Landmarks = NDArray[np.float64]
"""(5, 2) x, y in pixels of the upright photo: left eye, right eye, nose tip, left and right mouth corner
(left and right as seen in the picture)."""

Embedding = NDArray[np.float32]
"""(D,) identity embedding; its length and scale belong to the backend that made it."""


@dataclass(frozen=True, slots=True)
class Detection:
    """One face found by a detector in an upright RGB photo."""

    box: tuple[float, float, float, float]
    """left, top, right, bottom in pixels of the upright photo; may reach past its border."""
    landmarks: Landmarks
    confidence: float
    """0..1, comparable only within one backend."""


@dataclass(frozen=True, slots=True)
class Quality:
    """How good a face is, in few numbers that can be explained to a person."""

    face_px: float
    """width of the face, temple to temple, in photo pixels: 2.33 times the distance between the eyes"""
    sharpness: float
    """0..1 at crop scale; 1 is as sharp as a good portrait"""
    yaw: float
    """-1..1; 0 is frontal, +-1 is profile"""
    roll: float
    """degrees"""
    score: float
    """0..1, the product that ranks faces; see quality.py"""
    noise: float = 0.0
    """standard deviation of the noise at crop scale, in levels of 0..255"""


@dataclass(frozen=True, slots=True, eq=False)
class Face:
    """A detection in a photo with its identity embedding and quality."""

    photo: str
    """key of the photo: its path as the scan gives it"""
    index: int
    """number of the face in that photo, from 0, left to right"""
    detection: Detection
    embedding: Embedding | None
    quality: Quality
    taken: float | None = None
    """EXIF time the photo was taken, in POSIX seconds"""

    @property
    def key(self) -> tuple[str, int]:
        """Identifies the face within a run."""
        return (self.photo, self.index)


@dataclass(frozen=True, slots=True, eq=False)
class Reference:
    """A face chosen as a reference of its person, and why."""

    face: Face
    path: Path
    reason: str
    score: float


@dataclass(frozen=True, slots=True, eq=False)
class Person:
    """Faces of one identity and the references chosen for it."""

    name: str
    faces: tuple[Face, ...]
    portraits: tuple[Face, ...]
    """faces of this person among the portraits given by the user"""
    centroid: Embedding | None
    references: tuple[Reference, ...] = ()


FaceKey = tuple[str, int]
