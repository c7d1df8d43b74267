"""JPEG files without end marker, with stray bytes, with the height after the scan: read where every pixel is there."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
from photo_factory import portrait
from PIL import Image

from facefix.photos.containers import jpeg

END = b"\xff\xd9"


def picture(*, progressive: bool) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(portrait()).save(buffer, "JPEG", quality=90, progressive=progressive)
    return buffer.getvalue()


def shown(data: bytes) -> np.ndarray:
    return jpeg.decode(jpeg.open(data)).samples


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize(
    "trailer", [b"", b"SEFT and some more, without markers" * 9, b"xyz\xff\xe1\xff\xffabc" * 9], ids=["none", "a", "b"]
)
def test_a_whole_picture_without_end_marker_is_read_and_what_follows_it_kept(progressive: bool, trailer: bytes) -> None:
    whole = picture(progressive=progressive)
    data = whole.removesuffix(END) + trailer
    source = jpeg.open(data)
    assert np.array_equal(jpeg.decode(source).samples, shown(whole))
    written = jpeg.encode(source, jpeg.decode(source), None).data
    assert written.endswith(END + trailer)
    assert np.asarray(Image.open(io.BytesIO(written))).shape == shown(whole).shape


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("kept", [0.3, 0.7, 0.97])
def test_a_truncated_picture_is_not_taken_for_a_whole_one(progressive: bool, kept: float) -> None:
    whole = picture(progressive=progressive)
    with pytest.raises(ValueError, match="truncated"):
        jpeg.decode(jpeg.open(whole[: int(len(whole) * kept)]))


def test_a_progressive_picture_without_its_last_scans_is_truncated() -> None:
    whole = picture(progressive=True)
    last_scan = whole.rindex(b"\xff\xda")
    last_table = whole.rfind(b"\xff\xc4", 0, last_scan)
    with pytest.raises(ValueError, match="truncated"):
        jpeg.open(whole[:last_table])


def test_stray_bytes_between_segments_are_passed_over() -> None:
    whole = picture(progressive=False)
    tables = whole.index(b"\xff\xdb")
    data = whole[:tables] + b"\x01\x02\x00stray" + whole[tables:]
    assert np.array_equal(shown(data), shown(whole))


def test_the_height_may_stand_after_the_scan() -> None:
    """Define number of lines, T.81 annex B.2.5; libjpeg does not know it."""
    whole = picture(progressive=False)
    frame = whole.index(b"\xff\xc0")
    height = struct.unpack_from(">H", whole, frame + 5)[0]
    lines = b"\xff\xdc\x00\x04" + struct.pack(">H", height)
    data = whole[: frame + 5] + b"\0\0" + whole[frame + 7 :].removesuffix(END) + lines + END
    assert jpeg.open(data).size == (160, 208)
    assert np.array_equal(shown(data), shown(whole))


def test_a_noisy_progressive_picture_of_the_best_quality_is_written() -> None:
    """Pillow's buffer of a byte a pixel is too small for it."""
    noise = np.random.default_rng(0).integers(0, 256, (200, 240, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "JPEG", quality=97, subsampling=0)
    source = jpeg.open(buffer.getvalue())
    details = source.details
    assert not details.progressive
    progressive = io.BytesIO()
    image = Image.fromarray(noise[:100])
    tables = [[1] * 64, [1] * 64]
    from PIL import ImageFile

    usual, ImageFile.MAXBLOCK = ImageFile.MAXBLOCK, 1 << 22
    try:
        image.save(progressive, "JPEG", qtables=tables, subsampling=0, progressive=True)
    finally:
        ImageFile.MAXBLOCK = usual
    source = jpeg.open(progressive.getvalue())
    written = jpeg.open(jpeg.encode(source, jpeg.decode(source), None).data)
    assert written.details.progressive
    difference = jpeg.decode(written).samples.astype(int) - jpeg.decode(source).samples
    assert float(np.abs(difference).mean()) < 1
    assert usual == ImageFile.MAXBLOCK
