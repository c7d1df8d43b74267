"""The 68 points of dlib's predictor on an aligned crop: brows, eyes, nose, mouth and the outline of the face."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from facefix.faces import align

POINTS = 68

# Where the box of dlib's frontal detector lies in the aligned 512 crop: centre x, centre y, side.
_BOX = (252.0, 316.0, 308.0)
_STARTS = ((0.0, 0.0, 1.0), (-0.08, 0.0, 1.0), (0.08, 0.0, 1.0), (0.0, -0.08, 1.0), (0.0, 0.08, 1.0), (0.0, 0.0, 0.88))
"""The predictor is started from the box moved right and down by these parts of its side and scaled."""


class CropLandmarks:
    """dlib's regression trees on aligned crops (Kazemi and Sullivan 2014), started from several boxes.

    The median of the starts is steadier than one of them, and their spread says whether the predictor sees a face.
    """

    def __init__(self, predictor_path: Path) -> None:
        import dlib

        self._predictor = dlib.shape_predictor(str(predictor_path))

    def __call__(self, crop: NDArray[np.uint8]) -> tuple[NDArray[np.float64], float]:
        """The points of a clean face.

        :param crop: (S, S, 3) RGB in FFHQ's framing.
        :returns: (68, 2) x, y in pixels of the 512 crop, in the order of Multi-PIE / iBUG 300-W, and the median
            distance of the starts' results to them: below 4 px where the face is not in profile.
        """
        import dlib

        scale = crop.shape[0] / align.CROP_SIZE
        x, y, side = _BOX
        found = []
        for dx, dy, zoom in _STARTS:
            middle, half = np.array([x + dx * side, y + dy * side]), zoom * side / 2
            corners = np.concatenate([middle - half, middle + half]) * scale
            shape = self._predictor(crop, dlib.rectangle(*(round(edge) for edge in corners.tolist())))
            points = np.array([(part.x, part.y) for part in shape.parts()], dtype=np.float64)
            found.append((points + 0.5) / scale - 0.5)
        middle = np.median(found, axis=0)
        spread = float(np.median(np.linalg.norm(np.array(found) - middle, axis=2), axis=0).mean())
        return middle, spread
