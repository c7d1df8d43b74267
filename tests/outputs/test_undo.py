"""Undo: the samples from before come back, exactly where the format is lossless, from records that survive moving."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import photo_factory
import pytest
from exiftool import OURS, changed_by_writing, changed_fields, exiftool
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin
from skimage import data

from facefix.errors import PhotoError, UsageError
from facefix.outputs import undo
from facefix.photos import provenance
from facefix.photos.photo import Photo, Written, read_photo, stored_raster, write_photo
from facefix.photos.provenance import read_provenance
from facefix.photos.region import Region

FILES = photo_factory.ALL | photo_factory.HEICS
LOSSY = {
    *photo_factory.JPEGS,
    *(name for name in FILES if name.startswith("jpeg") or name.endswith((".heic", ".avif"))),
    "lossy.webp",
    "alpha-lossy.webp",
    "metadata.webp",
}


def regions_of(photo: Photo, scale: int = 1) -> list[Region]:
    """Two overlapping ovals of other colours."""
    width, height = photo.size[0] * scale, photo.size[1] * scale
    made = []
    for number, (x, y) in enumerate(((0.45, 0.4), (0.6, 0.55))):
        w, h = int(width * 0.4), int(height * 0.4)
        rows, columns = np.mgrid[0:h, 0:w].astype(np.float32)
        distance = ((columns / w - 0.5) ** 2 + (rows / h - 0.5) ** 2) * 4
        rgb = np.stack([rows / h, columns / w, np.full((h, w), 0.2 + 0.6 * number)], axis=2).astype(np.float32)
        alpha = np.clip(1.2 - distance, 0, 1).astype(np.float32)
        made.append(Region(int(width * x - w / 2), int(height * y - h / 2), rgb, alpha, scale))
    return made


def restore(photo: Photo, out: Path, name: str, scale: int = 1) -> tuple[Written, provenance.Described]:
    """What the job does with one photo."""
    regions = regions_of(photo, scale)
    said = provenance.describe(photo, regions, model="small", recipe="r1")
    written = write_photo(photo, regions, out / name, scale=scale, extra_xmp=said.packet)
    undo.save(out, said.undo_id, photo, regions, written)
    return written, said


def samples(path: Path) -> NDArray[np.int64]:
    return stored_raster(read_photo(path)).samples.astype(np.int64)


def restored(tmp_path: Path, name: str) -> tuple[Path, Path]:
    """(original, output) of one of the factory's photos."""
    album = tmp_path / "album"
    album.mkdir()
    try:
        FILES[name](album / name)
        photo = read_photo(album / name)
    except PhotoError as error:
        if "needs the extra" in str(error):
            pytest.skip(str(error))
        raise
    if photo.copy_reason is not None:
        pytest.skip(f"only copied: {photo.copy_reason}")
    restore(photo, tmp_path / "out", name)
    return album / name, tmp_path / "out" / name


@pytest.mark.parametrize("name", sorted(FILES))
def test_pixels_come_back_without_the_original(tmp_path: Path, name: str) -> None:
    original, output = restored(tmp_path, name)
    before = samples(original)
    changed = samples(output)
    assert not np.array_equal(changed, before)
    original.unlink()
    done = undo.undo(output)
    assert (done.regions, done.exact, done.written) == (2, False, output)
    after = samples(output)
    if name not in LOSSY:
        assert np.array_equal(after, before)
    else:
        height, width = before.shape[:2]
        inside = np.s_[int(height * 0.3) : int(height * 0.65), int(width * 0.35) : int(width * 0.7)]
        step = 257 if name.startswith("deep") else 1  # of 16 bits, in 8-bit steps
        assert np.abs(after - before)[inside].mean() < 3 * step < np.abs(changed - before)[inside].mean()
    assert read_provenance(read_photo(output).xmp) is None
    with pytest.raises(UsageError, match="expected an output of facefix"):
        undo.undo(output)


def test_metadata_comes_back_without_the_original(tmp_path: Path) -> None:
    """Nothing of our own is left in it, no empty packet either."""
    album, out = tmp_path / "album", tmp_path / "out"
    album.mkdir()
    names = []
    for name, make in FILES.items():
        try:
            make(album / name)
        except pytest.skip.Exception:
            continue
        photo = read_photo(album / name)
        if photo.copy_reason is None:
            restore(photo, out, name)
            names.append(name)
    before, packets = exiftool(album), {name: read_photo(album / name).xmp for name in names}
    shutil.rmtree(album)
    for name in names:
        undo.undo(out / name)
        assert (read_photo(out / name).xmp is None) == (packets[name] is None), name
    after = exiftool(out)
    for name in names:
        assert changed_fields(before[name], after[name]) <= changed_by_writing(name), name
        assert not [field for field in after[name] if field.startswith(OURS)], name


def test_original_is_copied_while_it_is_there(tmp_path: Path) -> None:
    original, output = restored(tmp_path, "segments.jpg")
    done = undo.undo(output)
    assert done.exact
    assert output.read_bytes() == original.read_bytes()


def test_travelled_output_is_known_by_its_xmp(tmp_path: Path) -> None:
    original, output = restored(tmp_path, "chunks.png")
    before = samples(original)
    original.unlink()
    elsewhere = tmp_path / "desk" / "from a friend.png"
    elsewhere.parent.mkdir()
    shutil.move(output, elsewhere)
    with pytest.raises(UsageError, match="name the output folder by --from"):
        undo.undo(elsewhere)
    target = tmp_path / "desk" / "before.png"
    marked = elsewhere.read_bytes()
    done = undo.undo(elsewhere, stores=[tmp_path / "out"], target=target)
    assert done.written == target
    assert np.array_equal(samples(target), before)
    assert elsewhere.read_bytes() == marked, "with a target the photo itself stays"


def test_tagged_or_recompressed_output_is_still_taken_back(tmp_path: Path) -> None:
    original, output = restored(tmp_path, "444.jpg")
    before = samples(original)
    original.unlink()
    with Image.open(output) as image:
        packet = image.info["xmp"]
        image.save(tmp_path / "out" / "smaller.jpg", quality=70, xmp=packet)
    done = undo.undo(tmp_path / "out" / "smaller.jpg")
    assert not done.exact
    assert np.abs(samples(done.written) - before)[70:130, 60:110].mean() < 6


def test_edited_output_is_refused(tmp_path: Path) -> None:
    original, output = restored(tmp_path, "chunks.png")
    before = samples(original)
    original.unlink()
    with Image.open(output) as image:
        info = PngImagePlugin.PngInfo()
        info.add_itxt("XML:com.adobe.xmp", image.info["xmp"].decode())
        image.point(lambda value: value // 2).save(output, pnginfo=info)
    edited = output.read_bytes()
    with pytest.raises(PhotoError, match="edited since"):
        undo.undo(output)
    assert output.read_bytes() == edited
    undo.undo(output, target=tmp_path / "forced.png", force=True)
    forced = samples(tmp_path / "forced.png")
    assert np.array_equal(forced[60:100, 50:80], before[60:100, 50:80])
    with Image.open(output) as image:
        image.resize((50, 60)).save(output, pnginfo=info)
    with pytest.raises(PhotoError, match="cropped, resized or converted"):
        undo.undo(output, force=True)


def test_enlarged_output_gives_the_enlarged_original(tmp_path: Path) -> None:
    album = tmp_path / "album"
    album.mkdir()
    photo_factory.PNGS["rgb16.png"](album / "a.png")
    photo = read_photo(album / "a.png")
    restore(photo, tmp_path / "out", "a.png", scale=2)
    done = undo.undo(tmp_path / "out" / "a.png")
    assert not done.exact, "the original has another size"
    assert np.array_equal(samples(done.written), stored_raster(photo, 2).samples)


def test_a_developed_raw_photo_gives_what_was_developed(tmp_path: Path) -> None:
    pytest.importorskip("rawpy")
    photo_factory.dng(tmp_path / "a.dng")
    photo = read_photo(tmp_path / "a.dng")
    restore(photo, tmp_path / "out", "a.dng.tif")
    for keeps_original in (True, False):
        copy = tmp_path / "out" / f"{keeps_original}.tif"
        shutil.copy(tmp_path / "out" / "a.dng.tif", copy)
        if not keeps_original:
            (tmp_path / "a.dng").unlink()
        done = undo.undo(copy)
        assert not done.exact, "the original is no TIFF"
        assert np.array_equal(samples(copy), stored_raster(photo).samples)
        assert read_photo(copy).xmp is None


def test_never_over_the_original(tmp_path: Path) -> None:
    original, output = restored(tmp_path, "chunks.png")
    content = original.read_bytes()
    with pytest.raises(UsageError, match="never touched"):
        undo.undo(output, target=original)
    assert original.read_bytes() == content


def test_records_are_the_same_for_the_same_restoration(tmp_path: Path) -> None:
    restored(tmp_path, "rgb16.png")
    (record,) = (tmp_path / "out" / ".facefix" / "undo").iterdir()
    content, name = record.read_bytes(), record.name
    record.unlink()
    restore(read_photo(tmp_path / "album" / "rgb16.png"), tmp_path / "out", "rgb16.png")
    (record,) = (tmp_path / "out" / ".facefix" / "undo").iterdir()
    assert (record.name, record.read_bytes()) == (name, content)


@pytest.mark.parametrize("damage", ["cut", "empty", "other"])
def test_damaged_record_is_named(tmp_path: Path, damage: str) -> None:
    original, output = restored(tmp_path, "chunks.png")
    original.unlink()
    (record,) = (tmp_path / "out" / ".facefix" / "undo").iterdir()
    content = record.read_bytes()
    record.write_bytes({"cut": content[: len(content) // 2], "empty": b"", "other": b"PK\5\6" + b"\0" * 18}[damage])
    with pytest.raises(PhotoError, match="found it damaged") as caught:
        undo.undo(output)
    assert record.name in str(caught.value)


def test_a_photo_without_restored_faces_says_nothing(tmp_path: Path) -> None:
    photo_factory.make(tmp_path, "chunks.png")
    photo = read_photo(tmp_path / "chunks.png")
    said = provenance.describe(photo, [], model="small", recipe="r1")
    assert (said.packet, said.note) == (None, None)
    written = write_photo(photo, [], tmp_path / "out" / "a.png", scale=2, extra_xmp=said.packet)
    assert undo.save(tmp_path / "out", said.undo_id, photo, [], written) is None
    assert read_photo(written.path).xmp == photo.xmp


def test_broken_xmp_and_bmp_say_why_they_are_not_marked(tmp_path: Path) -> None:
    bmp = next(name for name in FILES if name.endswith(".bmp"))
    FILES[bmp](tmp_path / bmp)
    photo = read_photo(tmp_path / bmp)
    said = provenance.describe(photo, regions_of(photo), model="small", recipe="r1")
    assert said.packet is None
    assert "BMP" in str(said.note)
    Image.fromarray(photo_factory.portrait()).save(tmp_path / "a.jpg", xmp=b"<not xmp")
    photo = read_photo(tmp_path / "a.jpg")
    said = provenance.describe(photo, regions_of(photo), model="small", recipe="r1")
    assert said.packet is None
    assert "XMP packet" in str(said.note)


@pytest.mark.parametrize(("quality", "subsampling"), [(95, 0), (85, 2), (60, 2)])
def test_jpeg_comes_back_within_its_own_recompression(tmp_path: Path, quality: int, subsampling: int) -> None:
    """The regions are as near to the original as one more coding with the same tables leaves any picture."""
    album = tmp_path / "album"
    album.mkdir()
    path = album / "a.jpg"
    Image.fromarray(data.astronaut()).save(path, quality=quality, subsampling=subsampling)
    photo = read_photo(path)
    written, _ = restore(photo, tmp_path / "out", "a.jpg")
    before = samples(path)
    regions = regions_of(photo)
    again = write_photo(photo, [], tmp_path / "again.jpg")
    path.unlink()
    undo.undo(written.path)
    after, recompressed = samples(written.path), samples(again.path)
    for region in regions:
        left, top, right, bottom = region.box
        inside = np.s_[top:bottom, left:right]
        error, own = np.abs(after - before)[inside], np.abs(recompressed - before)[inside]
        measured = f"mean {error.mean():.3f}, max {error.max()}; coding alone: mean {own.mean():.3f}, max {own.max()}"
        print(f"quality {quality}, subsampling {subsampling}: {measured}")
        assert error.mean() <= own.mean() * 1.1 + 0.01
    record = next((tmp_path / "out" / ".facefix" / "undo").iterdir())
    pixels = sum((region.box[2] - region.box[0]) * (region.box[3] - region.box[1]) for region in regions)
    size = record.stat().st_size
    print(f"record: {size} bytes for {pixels} pixels; the photo has {written.path.stat().st_size} bytes")
    assert size < 1.1 * pixels
