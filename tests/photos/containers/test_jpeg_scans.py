"""Chroma subsampling that Pillow cannot write stays as it was."""

from __future__ import annotations

import io

import numpy as np
import pytest
from photo_factory import portrait
from PIL import Image

from facefix.photos.containers import jpeg, jpeg_scans

TABLES = [[6] * 64, [9] * 64, [9] * 64]


@pytest.mark.parametrize("sampling", [(1, 2), (4, 1), (2, 2), (1, 1)], ids=["4:4:0", "4:1:1", "4:2:0", "4:4:4"])
@pytest.mark.parametrize("size", [(160, 208), (157, 203)])
def test_other_decoders_see_the_picture(sampling: tuple[int, int], size: tuple[int, int]) -> None:
    pixels = portrait(*size)
    stream = jpeg_scans.encode(pixels, TABLES, [sampling, (1, 1), (1, 1)], [1, 2, 3])
    seen = np.asarray(Image.open(io.BytesIO(stream)))
    assert seen.shape == pixels.shape
    assert float(np.abs(seen.astype(int) - pixels).mean()) < 3


@pytest.mark.parametrize("sampling", [(1, 2), (4, 1)], ids=["4:4:0", "4:1:1"])
def test_a_file_keeps_its_sampling_and_tables(sampling: tuple[int, int]) -> None:
    source = jpeg.open(jpeg_scans.encode(portrait(), TABLES, [sampling, (1, 1), (1, 1)], [1, 2, 3]))
    written = jpeg.open(jpeg.encode(source, jpeg.decode(source), None).data)
    assert [component.sampling for component in written.details.components] == [sampling, (1, 1), (1, 1)]
    assert jpeg.tables_and_sampling(written.data)[0] == TABLES
    difference = jpeg.decode(written).samples.astype(int) - jpeg.decode(source).samples
    assert float(np.abs(difference).mean()) < 0.5
