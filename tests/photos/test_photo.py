"""Photos of every format and mode are read, changed in one place, and written with all else as it was."""

from __future__ import annotations

import dataclasses
import os
import re
import threading
from pathlib import Path

import imagecodecs
import numpy as np
import photo_factory as factory
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image, ImageOps, JpegImagePlugin
from regions import inverted_region

from facefix.errors import PhotoError
from facefix.photos import orientation as turning
from facefix.photos.containers import jpeg
from facefix.photos.photo import Photo, Written, copy_photo, read_photo, write_photo
from facefix.photos.region import Region

EVERYTHING = [*factory.ALL, *factory.HEICS]
LOSSLESS = [name for name in factory.ALL if name.endswith((".png", ".bmp", ".tif")) and "jpeg" not in name]
LOSSLESS += ["lossless.webp", "alpha.webp"]


def layout(name: str) -> str:
    """What the samples of one of the factory's photos are, as its name says."""
    found = re.match(r"(rgba|grey|la|cmyk|ycck|palette|bilevel|alpha|deep)?(?:.*?(16|10|12))?", Path(name).stem)
    return "-".join(filter(None, found.groups())) if found else ""


SAMPLE = list({(Path(name).suffix, layout(name)): name for name in EVERYTHING}.values())
"""Every pair of a container and a layout of samples, once."""

ORIENTATIONS = [("jpg", orientation) for orientation in (None, *range(1, 9))]
ORIENTATIONS += [("png", None), ("png", 5), ("webp", 2), ("webp", 6)]
"""Turning is the same for all; every container writes the tag in its own way."""


@dataclasses.dataclass(frozen=True)
class Changed:
    """A photo, the change made in its middle, and the file that was written."""

    original: Path
    before: bytes
    photo: Photo
    region: Region
    written: Written


@pytest.fixture(scope="module")
def made() -> dict[str, Changed]:
    return {}


@pytest.fixture
def changed(original: Path, made: dict[str, Changed], folder: Path) -> Changed:
    """The photo written with its middle changed; once for all tests."""
    if original.name not in made:
        before = original.read_bytes()
        os.utime(original, ns=(1_700_000_000_123456789, 1_600_000_000_123456789))
        photo = read_photo(original)
        region = inverted_region(photo)
        written = write_photo(photo, [region], folder / f"{original.name}-out" / original.name)
        made[original.name] = Changed(original, before, photo, region, written)
    return made[original.name]


def outside(photo: Photo, region: Region) -> NDArray[np.bool_]:
    mask = np.ones((photo.size[1] * region.scale, photo.size[0] * region.scale), bool)
    mask[region.top : region.box[3], region.left : region.box[2]] = region.alpha == 0
    return mask


def inside(photo: Photo, region: Region) -> NDArray[np.bool_]:
    mask = np.zeros((photo.size[1] * region.scale, photo.size[0] * region.scale), bool)
    mask[region.top : region.box[3], region.left : region.box[2]] = region.alpha == 1
    return mask


def independent(path: Path) -> NDArray[np.generic]:
    """Stored samples by another decoder than the one under test, where there is one."""
    if path.suffix == ".tif" and not any(word in path.name for word in ("group", "bilevel", "jpeg")):
        return np.asarray(tifffile.imread(path))
    if "16.png" in path.name:
        return np.asarray(imagecodecs.png_decode(path.read_bytes()))
    return np.asarray(Image.open(path))


@pytest.mark.parametrize("original", EVERYTHING, indirect=True)
def test_round_trip(original: Path, changed: Changed) -> None:
    photo, region, target = changed.photo, changed.region, changed.written.path
    assert os.listdir(target.parent) == [original.name]
    assert original.read_bytes() == changed.before
    later = 10**9 if target.stat().st_size == original.stat().st_size else 0
    assert target.stat().st_mtime_ns == original.stat().st_mtime_ns + later

    result = read_photo(target)
    fields = ("format", "mode", "size", "orientation", "taken", "xmp", "frames", "is_grey")
    assert result.sha256 == changed.written.sha256
    for field in fields[:-1] if "bilevel" in original.name or "group" in original.name else fields:
        assert getattr(result, field) == getattr(photo, field), field
    assert result.carrier.source.icc == photo.carrier.source.icc

    distance = np.abs(result.pixels.astype(int) - photo.pixels)
    limit = 0 if original.name in LOSSLESS else 4
    assert distance[outside(photo, region)].mean() <= limit
    wanted = (region.rgb[region.alpha == 1] * 255).mean(axis=0)
    if photo.mode not in ("P", "1"):
        assert np.abs(result.pixels[inside(photo, region)].mean(axis=0) - wanted).max() < 6


@pytest.mark.parametrize("original", EVERYTHING, indirect=True)
def test_pillow_sees_the_same_kind_of_file(original: Path, changed: Changed) -> None:
    if original.suffix == ".heic":
        pytest.importorskip("pillow_heif").register_heif_opener()
    with Image.open(original) as old, Image.open(changed.written.path) as new:
        for field in ("format", "mode", "size", "n_frames"):
            assert getattr(new, field, None) == getattr(old, field, None), field
        for key in ("icc_profile", "exif", "xmp", "comment", "dpi", "transparency", "gamma", "progressive"):
            assert new.info.get(key) == old.info.get(key), key
        assert new.getexif().get(0x0112) == old.getexif().get(0x0112)
        new.load()
        assert ImageOps.exif_transpose(new).size == changed.photo.size


@pytest.mark.parametrize(
    ("original", "depth"), [("deep10.heic", 10), ("deep12.heic", 12), ("deep10-alpha.heic", 10)], indirect=["original"]
)
def test_deep_heic_keeps_its_depth_and_colours(original: Path, depth: int, changed: Changed) -> None:
    heif = pytest.importorskip("pillow_heif")
    photo, region, written = changed.photo, changed.region, changed.written
    before, after = (heif.open_heif(path, convert_hdr_to_8bit=False) for path in (original, written.path))
    assert (written.notes, photo.notes) == ((), ())
    assert after.info["bit_depth"] == before.info["bit_depth"] == depth
    assert after.info["nclx_profile"] == before.info["nclx_profile"]
    old, new = np.asarray(before).astype(int), np.asarray(after).astype(int)
    assert len(np.unique(new)) > 600, "more values than 8 bits have"
    mask = outside(photo, region)
    assert np.abs(new - old)[mask].mean() < 1.5 * 257


@pytest.mark.parametrize("original", LOSSLESS, indirect=True)
def test_lossless_samples_outside_stay_bit_for_bit(original: Path, changed: Changed) -> None:
    photo, region = changed.photo, changed.region
    old, new = independent(original), independent(changed.written.path)
    assert old.dtype == new.dtype and old.shape == new.shape
    mask = outside(photo, region)
    kept = turning.stored(mask, photo.orientation)
    if "planar" in original.name and old.shape[0] == 3:
        old, new = old.transpose(1, 2, 0), new.transpose(1, 2, 0)
    np.testing.assert_array_equal(new[kept], old[kept])
    assert (new[~kept] != old[~kept]).any()


@pytest.mark.parametrize("original", SAMPLE, indirect=True)
def test_enlarged(original: Path, tmp_path: Path) -> None:
    photo = read_photo(original)
    region = inverted_region(photo, scale=2)
    write_photo(photo, [region], tmp_path / original.name, scale=2)
    result = read_photo(tmp_path / original.name)
    assert result.size == (photo.size[0] * 2, photo.size[1] * 2)
    assert (result.format, result.mode, result.orientation) == (photo.format, photo.mode, photo.orientation)
    assert result.carrier.source.icc == photo.carrier.source.icc
    large = Image.fromarray(photo.pixels).resize(result.size, Image.Resampling.LANCZOS)
    distance = np.abs(result.pixels.astype(int) - np.asarray(large))[outside(photo, region)].mean()
    if photo.mode == "1":
        assert abs(result.pixels.mean() - photo.pixels.mean()) < 40
    else:
        assert distance < 12


def test_enlarging_corrects_the_exif_size(folder: Path, tmp_path: Path) -> None:
    photo = read_photo(factory.make(folder, "segments.jpg"))
    write_photo(photo, [], tmp_path / "large.jpg", scale=3)
    with Image.open(tmp_path / "large.jpg") as large, Image.open(folder / "segments.jpg") as small:
        details, before = (image.getexif().get_ifd(0x8769) for image in (large, small))
    assert (details[0xA002], details[0xA003]) == (480, 624)
    assert details[0x927C] == before[0x927C]


@pytest.mark.parametrize("original", [name for name in factory.JPEGS if name != "ycck.jpg"], indirect=True)
def test_jpeg_keeps_tables_sampling_and_segments(original: Path, changed: Changed) -> None:
    with Image.open(original) as old, Image.open(changed.written.path) as new:
        assert isinstance(old, JpegImagePlugin.JpegImageFile) and isinstance(new, JpegImagePlugin.JpegImageFile)
        assert new.quantization == old.quantization
        assert JpegImagePlugin.get_sampling(new) == JpegImagePlugin.get_sampling(old)
        assert new.applist == old.applist
    assert jpeg.tables_and_sampling(original.read_bytes()) == jpeg.tables_and_sampling(
        changed.written.path.read_bytes()
    )


@pytest.mark.parametrize("original", SAMPLE, indirect=True)
def test_another_xmp_packet(original: Path, tmp_path: Path) -> None:
    packet = factory.XMP.replace(b"A portrait", b"Another title, rather longer than the one before")
    photo = read_photo(original)
    written = write_photo(photo, [], tmp_path / original.name, extra_xmp=packet)
    result = read_photo(tmp_path / original.name)
    if photo.format == "BMP":
        assert written.notes == ("BMP has no place for XMP",)
    else:
        assert result.xmp == packet and written.notes == ()
    if original.name in LOSSLESS:
        np.testing.assert_array_equal(result.pixels, photo.pixels)


@pytest.mark.parametrize(("suffix", "orientation"), ORIENTATIONS)
def test_every_orientation_is_applied_and_written_back(tmp_path: Path, suffix: str, orientation: int | None) -> None:
    path = tmp_path / f"photo.{suffix}"
    Image.fromarray(factory.portrait(96, 64)).save(path, exif=factory.exif(orientation), quality=95)
    photo = read_photo(path)
    shown = np.asarray(ImageOps.exif_transpose(Image.open(path)).convert("RGB"))
    np.testing.assert_array_equal(photo.pixels, shown)
    assert photo.orientation == orientation
    red = np.zeros((12, 20, 3), np.float32)
    red[:, :, 0] = 1
    write_photo(photo, [Region(5, 30, red, np.ones((12, 20), np.float32))], tmp_path / f"out.{suffix}")
    with Image.open(tmp_path / f"out.{suffix}") as image:
        assert image.getexif().get(0x0112) == orientation
        result = np.asarray(ImageOps.exif_transpose(image).convert("RGB")).astype(int)
    assert np.abs(result[32:40, 8:22] - [255, 0, 0]).mean() < 25
    assert np.abs(result[:26] - shown[:26]).mean() < 6


@pytest.mark.parametrize("original", ["rgb16.png", "rgba16.png", "rgb16-lzw.tif", "grey16.tif"], indirect=True)
def test_16_bit_regions_keep_their_depth(original: Path, tmp_path: Path) -> None:
    """A change smaller than an 8-bit step arrives."""
    photo = read_photo(original)
    height, width = photo.size[1], photo.size[0]
    rgb = np.asarray(photo.pixels / 255 + 40 / 65535, np.float32)
    write_photo(photo, [Region(0, 0, rgb, np.ones((height, width), np.float32))], tmp_path / original.name)
    change = independent(tmp_path / original.name).astype(int) - independent(original)
    change = change[..., :3] if change.ndim == 3 else change
    assert abs(np.median(change) - 40) <= 1


def test_overlapping_regions_lie_in_order(folder: Path, tmp_path: Path) -> None:
    photo = read_photo(factory.make(folder, "interlaced.png"))
    opaque = np.ones((40, 40), np.float32)
    red, blue = (np.tile(np.array(colour, np.float32), (40, 40, 1)) for colour in ((1, 0, 0), (0, 0, 1)))
    write_photo(photo, [Region(10, 10, red, opaque), Region(30, 30, blue, opaque)], tmp_path / "x.png")
    result = read_photo(tmp_path / "x.png").pixels
    assert (result[20, 20] == [255, 0, 0]).all() and (result[40, 40] == [0, 0, 255]).all()


def test_nothing_to_change_keeps_every_sample(folder: Path, tmp_path: Path) -> None:
    for name in ("cmyk.tif", "adobergb.png", "palette-transparent.png", "rgba16.png", "premultiplied.tif"):
        photo = read_photo(factory.make(folder, name))
        same = np.asarray(photo.pixels / 255, np.float32)
        region = Region(0, 0, same, np.ones(same.shape[:2], np.float32))
        write_photo(photo, [region], tmp_path / name)
        np.testing.assert_array_equal(independent(tmp_path / name), independent(folder / name))


def test_transparent_pixels_and_alpha_stay(folder: Path, tmp_path: Path) -> None:
    for name in ("rgba.png", "key.png", "palette-transparent.png", "premultiplied.tif", "alpha.webp"):
        photo = read_photo(factory.make(folder, name))
        white = np.ones((photo.size[1], photo.size[0], 3), np.float32)
        write_photo(photo, [Region(0, 0, white, white[:, :, 0])], tmp_path / name)
        before, after = (np.asarray(Image.open(place / name).convert("RGBA")) for place in (folder, tmp_path))
        np.testing.assert_array_equal(after[:, :, 3], before[:, :, 3])
        if name != "premultiplied.tif":
            clear = before[:, :, 3] == 0
            np.testing.assert_array_equal(after[clear], before[clear])
        assert clear.any() or name == "alpha.webp"


def test_wide_gamut_is_shown_in_srgb_and_written_in_its_own(folder: Path, tmp_path: Path) -> None:
    photo = read_photo(factory.make(folder, "adobergb.png"))
    plain = np.asarray(Image.open(folder / "adobergb.png"))
    assert np.abs(photo.pixels.astype(int) - plain).max() > 8
    colour = np.tile(np.array([0.8, 0.4, 0.3], np.float32), (60, 60, 1))
    write_photo(photo, [Region(40, 40, colour, np.ones((60, 60), np.float32))], tmp_path / "x.png")
    result = read_photo(tmp_path / "x.png")
    shown = result.pixels[45:95, 45:95].reshape(-1, 3)
    assert np.abs(np.median(shown, axis=0) - [204, 102, 76]).max() <= 1
    assert np.abs(np.asarray(Image.open(tmp_path / "x.png"))[70, 70].astype(int) - [204, 102, 76]).max() > 8


@pytest.mark.parametrize("profile", [b"", b"not a profile" * 30, factory.adobe_rgb()[:300]])
def test_a_broken_profile_is_noted_and_kept(tmp_path: Path, profile: bytes) -> None:
    Image.fromarray(factory.portrait()).save(tmp_path / "x.jpg", icc_profile=profile)
    photo = read_photo(tmp_path / "x.jpg")
    assert bool(profile) == any("ICC profile ignored" in note for note in photo.notes)
    write_photo(photo, [inverted_region(photo)], tmp_path / "y.jpg")
    with Image.open(tmp_path / "y.jpg") as image:
        assert image.info.get("icc_profile") == (profile or None)


def test_time_taken_with_its_offset(folder: Path) -> None:
    photo = read_photo(factory.make(folder, "segments.jpg"))
    assert photo.taken == -14_190_140.0  # 1969-07-20 18:17:40 UTC, before the epoch


def test_what_moves_or_has_pages_is_only_copied(tmp_path: Path) -> None:
    frames = [Image.fromarray(factory.portrait() // part) for part in (1, 2, 3)]
    for name in ("x.png", "x.webp", "x.tif", "x.avif"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
        photo = read_photo(tmp_path / name)
        assert photo.animated and photo.frames == 3 and "3" in (photo.copy_reason or "")
        assert photo.size == (160, 208)
        with pytest.raises(PhotoError, match="can only be copied"):
            write_photo(photo, [], tmp_path / "out" / name)
        copy_photo(photo.path, tmp_path / "out" / name)
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / name).read_bytes()


def test_a_tiff_thumbnail_is_no_second_page(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "x.tif") as writer:
        writer.write(factory.portrait(), photometric="rgb")
        writer.write(factory.portrait(16, 20), photometric="rgb", subfiletype=1)
    photo = read_photo(tmp_path / "x.tif")
    assert photo.frames == 1
    write_photo(photo, [inverted_region(photo)], tmp_path / "y.tif")
    with tifffile.TiffFile(tmp_path / "y.tif") as written:
        np.testing.assert_array_equal(written.pages[1].asarray(), factory.portrait(16, 20))


@pytest.mark.parametrize("compression", ["jpeg", "group4", "tiff_lzw"])
def test_turned_tiffs(tmp_path: Path, compression: str) -> None:
    image = Image.fromarray(factory.portrait(96, 64)).convert("1" if compression == "group4" else "RGB")
    image.save(tmp_path / "x.tif", compression=compression, tiffinfo={274: 6})
    photo = read_photo(tmp_path / "x.tif")
    assert (photo.size, photo.orientation) == ((64, 96), 6)
    black = Region(8, 40, np.zeros((40, 32, 3), np.float32), np.ones((40, 32), np.float32))
    write_photo(photo, [black], tmp_path / "y.tif")
    with Image.open(tmp_path / "y.tif") as written:
        shown = np.asarray(written.convert("L")).astype(int)
    assert shown.shape == (96, 64) and shown[44:76, 12:36].mean() < 12
    assert np.abs(shown[:36] - photo.pixels[:36, :, 1]).mean() < 30


def test_only_the_touched_strips_of_a_tiff_are_written(folder: Path, tmp_path: Path) -> None:
    photo = read_photo(factory.make(folder, "deflate.tif"))
    patch = np.zeros((8, 8, 3), np.float32)
    write_photo(photo, [Region(4, 4, patch, np.ones((8, 8), np.float32))], tmp_path / "x.tif")
    old, new = (folder / "deflate.tif").read_bytes(), (tmp_path / "x.tif").read_bytes()
    with tifffile.TiffFile(folder / "deflate.tif") as before, tifffile.TiffFile(tmp_path / "x.tif") as after:
        pairs = list(zip(before.pages[0].databytecounts, after.pages[0].databytecounts, strict=True))
        places = list(zip(before.pages[0].dataoffsets, after.pages[0].dataoffsets, strict=True))
    same = [a == b and old[a : a + n] == new[b : b + m] for (a, b), (n, m) in zip(places, pairs, strict=True)]
    assert same.count(False) == 1


def test_black_and_white_and_sepia_are_told_from_colour(tmp_path: Path) -> None:
    colour = factory.portrait()
    grey = np.asarray(Image.fromarray(colour).convert("L").convert("RGB"))
    sepia = (grey * [1.0, 0.87, 0.7]).astype(np.uint8)
    for name, pixels, expected in (("colour", colour, False), ("grey", grey, True), ("sepia", sepia, True)):
        Image.fromarray(pixels).save(tmp_path / f"{name}.jpg", quality=80)
        assert read_photo(tmp_path / f"{name}.jpg").is_grey is expected, name


def test_many_threads_at_once(folder: Path, tmp_path: Path) -> None:
    names = ["segments.jpg", "rgb16.png", "rgb16-lzw.tif", "metadata.webp"] * 3
    for name in set(names):
        factory.make(folder, name)
    failures: list[BaseException] = []

    def work(index: int, name: str) -> None:
        try:
            photo = read_photo(folder / name)
            write_photo(photo, [inverted_region(photo)], tmp_path / f"{index}-{name}")
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=pair) for pair in enumerate(names)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert len({(tmp_path / f"{index}-rgb16.png").read_bytes() for index in (1, 5, 9)}) == 1


def test_real_photos(shared: Path, tmp_path: Path) -> None:
    """Every whole photograph of the collection: size, mode, format, orientation; originals as they were."""
    for path in sorted((shared / "data" / "photos_public").iterdir()):
        before = path.read_bytes()
        photo = read_photo(path)
        write_photo(photo, [inverted_region(photo)], tmp_path / path.name)
        result = read_photo(tmp_path / path.name)
        for field in ("format", "mode", "size", "orientation", "taken", "xmp"):
            assert getattr(result, field) == getattr(photo, field), (path.name, field)
        assert path.read_bytes() == before
