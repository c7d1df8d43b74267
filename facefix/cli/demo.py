"""``make demo``: the main job on real photos that come with the dependencies.

The album is degraded copies of NASA's portrait of Eileen Collins (public domain, in scikit-image) and of insightface's
sample group photo; the portraits are the faces of the sharp ones. That is the best case: seldom does a person have a
portrait with the very look of the photo. The astronaut's is mirrored, so that it is at least not the very same pixels;
the group's are not, since mirrored they would look the other way.
"""

from __future__ import annotations

import io
import sys
from importlib.resources import files
from pathlib import Path

import numpy as np
import skimage.data
from PIL import Image, ImageFilter

from facefix.cli import run
from facefix.faces.backends import load_backend

PORTRAIT_MARGIN = 1.2
"""Room around a face's box in its portrait, as a part of the box"""


def astronaut() -> Image.Image:
    """NASA's portrait of Eileen Collins, 512 x 512 px."""
    pixels: np.ndarray = skimage.data.astronaut()  # type: ignore[no-untyped-call]
    return Image.fromarray(pixels)


def group() -> Image.Image:
    """insightface's sample photo of six people, 1280 x 886 px."""
    return Image.open(str(files("insightface") / "data" / "images" / "t1.jpg")).convert("RGB")


def degraded(image: Image.Image, *, blur: float, shrink: float, noise: float, quality: int, seed: int) -> Image.Image:
    """A bad copy: blurred, shrunk, noisy, JPEG-compressed, enlarged again.

    :param blur: radius in px of the original.
    :param shrink: factor; :param noise: standard deviation in levels; :param quality: of the JPEG.
    """
    small = image.filter(ImageFilter.GaussianBlur(blur)).resize(
        (round(image.width / shrink), round(image.height / shrink)), Image.Resampling.BILINEAR
    )
    noisy = np.asarray(small, float) + np.random.default_rng(seed).normal(0, noise, (small.height, small.width, 3))
    buffer = io.BytesIO()
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("RGB").resize(image.size, Image.Resampling.BICUBIC)


def portraits(image: Image.Image) -> list[Image.Image]:
    """Every face of a photo with room around it."""
    made = []
    for detection in load_backend("dlib").detector.detect(np.asarray(image)):
        left, top, right, bottom = detection.box
        x, y = PORTRAIT_MARGIN * (right - left) / 2, PORTRAIT_MARGIN * (bottom - top) / 2
        box = (max(left - x, 0), max(top - y, 0), min(right + x, image.width), min(bottom + y, image.height))
        made.append(image.crop(box))
    return made


def prepare(folder: Path) -> tuple[Path, Path]:
    """Write the album and the portraits; returns their folders."""
    album, references = folder / "album", folder / "portraits"
    album.mkdir(parents=True, exist_ok=True)
    references.mkdir(exist_ok=True)
    bad = {
        "astronaut.jpg": degraded(astronaut(), blur=2.0, shrink=3.0, noise=4, quality=60, seed=1),
        "group.jpg": degraded(group(), blur=1.5, shrink=2.2, noise=4, quality=60, seed=2),
    }
    for name, image in bad.items():
        image.save(album / name, quality=90)
    mirrored = astronaut().transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    for name, image in (("astronaut", mirrored), ("group", group())):
        for number, portrait in enumerate(portraits(image), start=1):
            portrait.save(references / f"{name}-{number}.jpg", quality=95)
    return album, references


def main() -> int:
    """Prepare the demo in the folder that is the first argument and run ``facefix restore`` on it."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "demo").absolute()
    album, references = prepare(folder)
    sys.argv = ["facefix", "restore", str(album), "--refs", str(references), "-o", str(folder / "restored"), "-v"]
    print("$ " + " ".join(sys.argv), flush=True)
    code = run()
    report = folder / "restored" / "facefix-report" / "index.html"
    print("The portraits show the faces of the same photos before they were degraded: the best case.")
    print(f"before: {album}\nafter:  {folder / 'restored'}\nreport: {report}")
    return code


if __name__ == "__main__":
    sys.exit(main())
