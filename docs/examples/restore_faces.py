"""Restore aligned face crops of one person.

    python restore_faces.py OUT REFERENCE... -- FACE...

References and faces are square crops in FFHQ alignment. The results are written into the folder OUT as PNG. The model
is the one that ships with facefix; the variable FACEFIX_MODEL names another.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from PIL import Image

from facefix import ReFLDMPipeline
from facefix.weights.catalogue import find_model


def main(out: Path, reference_paths: list[Path], face_paths: list[Path]) -> None:
    """Restore each face with all references."""
    folder = find_model(os.environ.get("FACEFIX_MODEL", "small"))
    pipeline = ReFLDMPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    cache = pipeline.encode_references([Image.open(path) for path in reference_paths])  # once for the person
    out.mkdir(parents=True, exist_ok=True)
    for path in face_paths:
        restored = pipeline([Image.open(path)], cache).images[0]
        restored.save(out / f"{path.stem}.png")
        print(out / f"{path.stem}.png")


if __name__ == "__main__":
    paths = [Path(argument) for argument in sys.argv[2:]]
    if Path("--") not in paths[1:-1]:
        sys.exit(__doc__)
    middle = paths.index(Path("--"))
    main(Path(sys.argv[1]), paths[:middle], paths[middle + 1 :])
