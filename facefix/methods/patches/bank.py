"""The bank that a denoiser in patches is trained from: ``facefix train patches --leg bank``.

In its folder lie the latents of every face and its mirror image (``good.npy``), the sizes of their
files, and folders of records (:mod:`facefix.methods.patches.records`). All of it goes on where it
was stopped.
"""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import VQModel
from numpy.typing import NDArray
from PIL import Image

from facefix.datasets.faces import TrainingFace, find_faces, hold_out
from facefix.errors import UsageError
from facefix.methods.patches.config import PatchTraining
from facefix.methods.patches.records import FULL_PX, RecordBuilder, latents_of, open_table, picture
from facefix.networks.autoencoder import DOWNSAMPLE_FACTOR, LATENT_CHANNELS
from facefix.training.loop import Outcome


def build_bank(config: PatchTraining, *, resume: bool = False) -> Outcome:
    """Make what is missing of a bank, then records until ``records.capacity`` or ``schedule.leg_minutes`` are reached.

    Several may run at once with other seeds, once the faces are done: each has its own folder of records.

    Raises:
        UsageError: the bank is one of other faces.
    """
    began = time.monotonic()
    faces = find_faces(config.faces)
    prepare(config.bank, faces)
    dtype = torch.bfloat16 if config.machine.dtype == "bf16" else torch.float32
    autoencoder = VQModel.from_pretrained(config.autoencoder).eval().requires_grad_(False).to(dtype)
    encode_faces(config.bank, faces, autoencoder, backwards=bool(config.records.seed % 2))
    inside, _ = hold_out(faces, config.held_out, config.seed)
    groups = sources_of(faces, config.faces.manifest)
    builder = RecordBuilder(config.bank, faces, groups, inside, config.records)
    minutes = config.schedule.leg_minutes
    done = 0
    for row in builder.build(f"records{config.records.seed}", autoencoder):
        done = row + 1
        if minutes is not None and time.monotonic() - began > 60 * minutes:
            break
    return Outcome(done, done == config.records.capacity, (time.monotonic() - began) / 60)


def prepare(bank: Path, faces: Sequence[TrainingFace]) -> None:
    """The list of faces and the sizes of their files. Raises UsageError when the bank is one of other faces."""
    bank.mkdir(parents=True, exist_ok=True)
    names = [f"{face.path.parent.name}/{face.path.name}" for face in faces]
    listed = bank / "faces.json"
    if not listed.exists():
        listed.write_text(json.dumps(names) + "\n", encoding="utf-8")
    if json.loads(listed.read_text(encoding="utf-8")) != names:
        raise UsageError(f"{bank}: expected a bank of the same {len(names)} faces, found another; name another folder")
    if not (bank / "sizes.npy").exists():
        sizes = np.zeros(len(faces), np.int32)
        for number, face in enumerate(faces):
            with Image.open(face.path) as opened:
                sizes[number] = min(opened.size)
        np.save(bank / "sizes.npy", sizes)


def encode_faces(
    bank: Path, faces: Sequence[TrainingFace], autoencoder: VQModel, *, backwards: bool = False
) -> NDArray[np.float16]:
    """(N, 2, 8, h, w) latents of every face and its mirror image; those of people with several pictures come first.

    Args:
        backwards: begin at the other end, to meet another process half way.
    """
    side = FULL_PX // DOWNSAMPLE_FACTOR
    good = open_table(bank / "good.npy", np.float16, (len(faces), 2, LATENT_CHANNELS, side, side))
    order = sorted(range(len(faces)), key=lambda number: (not faces[number].references, number))
    for mirrored in (1, 0) if backwards else (0, 1):
        for number in reversed(order) if backwards else order:
            if not good[number, mirrored, 0].any():
                image = picture(faces[number].path)
                good[number, mirrored] = latents_of(autoencoder, image.flip(3) if mirrored else image)
    return good


def sources_of(faces: Sequence[TrainingFace], manifest: Path | None) -> list[str]:
    """Which set each face is from, by the manifest's column ``set``; the folder where it has none."""
    known: dict[Path, str] = {}
    if manifest is not None:
        base = manifest.resolve().parent
        with manifest.open(newline="", encoding="utf-8") as file:
            known = {(base / row["file"]).resolve(): row.get("set") or "" for row in csv.DictReader(file)}
    return [known.get(face.path.resolve()) or face.path.parent.name for face in faces]
