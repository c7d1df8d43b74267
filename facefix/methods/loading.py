"""Loading of models: without advice on the terminal, with one digest for a folder of weights."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from diffusers.utils import logging


@contextmanager
def _quiet_diffusers() -> Iterator[None]:
    """Without its bar while it loads, and its advice against fp16 on the CPU, which works here.

    This module has no business on the terminal.
    """
    shown, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if shown:
            logging.enable_progress_bar()


def weights_digest(folder: Path) -> str:
    """sha256 over all files of a model (names and contents): any change of weights or configuration changes it."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.suffix in (".json", ".safetensors")):
        digest.update(str(path.relative_to(folder)).encode() + b"\0")
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
