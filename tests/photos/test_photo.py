"""Photos of every format and mode are read, changed in one place, and written with all else as it was."""

from __future__ import annotations

import dataclasses
import io
import os
import struct
import threading
import zlib
from pathlib import Path

import imagecodecs
import numpy as np
import photo_factory as factory
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image, ImageOps, JpegImagePlugin

from facefix.errors import PhotoError, UsageError
from facefix.photos import orientation as turning
from facefix.photos.containers import jpeg
from facefix.photos.photo import Photo, copy_photo, read_photo, write_photo
from facefix.photos.region import Region

EVERYTHING = [*factory.ALL, *factory.HEICS]
LOSSLESS = [name for name in factory.ALL if name.endswith((".png", ".bmp", ".tif")) and "jpeg" not in name]
LOSSLESS += ["lossless.webp", "alpha.webp"]
LOSSY = [name for name in EVERYTHING if name not in LOSSLESS]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("photos")


@pytest.fixture
def original(folder: Path, request: pytest.FixtureRequest) -> Path:
    path = folder / request.param
    return path if path.exists() else factory.make(folder, request.param)


def inverted_region(photo: Photo, scale: int = 1) -> Region:
    """The middle of the photo as its negative, all of it within an ellipse and fading round it."""
    image = Image.fromarray(photo.pixels)
    pixels = np.asarray(image.resize((image.width * scale, image.height * scale), Image.Resampling.LANCZOS))
    height, width = pixels.shape[:2]
    box = (width // 4, height // 5, width // 4 + width // 2, height // 5 + height // 2)
    part = pixels[box[1] : box[3], box[0] : box[2]].astype(np.float32) / 255
    y, x = np.mgrid[-1 : 1 : part.shape[0] * 1j, -1 : 1 : part.shape[1] * 1j]
    alpha = np.clip(2 - 2 * np.hypot(x, y), 0, 1).astype(np.float32)
    return Region(box[0], box[1], 1 - part, alpha, scale)


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
def test_round_trip(original: Path, tmp_path: Path) -> None:
    before = original.read_bytes()
    os.utime(original, ns=(1_700_000_000_123456789, 1_600_000_000_123456789))
    photo, target = read_photo(original), tmp_path / original.name
    region = inverted_region(photo)
    written = write_photo(photo, [region], target)
    assert written.path == target and os.listdir(tmp_path) == [original.name]
    assert original.read_bytes() == before
    assert target.stat().st_mtime_ns == original.stat().st_mtime_ns

    result = read_photo(target)
    fields = ("format", "mode", "size", "orientation", "taken", "xmp", "frames", "is_grey")
    assert result.sha256 == written.sha256
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
def test_pillow_sees_the_same_kind_of_file(original: Path, tmp_path: Path) -> None:
    if original.suffix == ".heic":
        pytest.importorskip("pillow_heif").register_heif_opener()
    photo = read_photo(original)
    write_photo(photo, [inverted_region(photo)], tmp_path / original.name)
    with Image.open(original) as old, Image.open(tmp_path / original.name) as new:
        for field in ("format", "mode", "size", "n_frames"):
            assert getattr(new, field, None) == getattr(old, field, None), field
        for key in ("icc_profile", "exif", "xmp", "comment", "dpi", "transparency", "gamma", "progressive"):
            assert new.info.get(key) == old.info.get(key), key
        assert new.getexif().get(0x0112) == old.getexif().get(0x0112)
        new.load()
        assert ImageOps.exif_transpose(new).size == photo.size


@pytest.mark.parametrize(
    ("original", "depth"), [("deep10.heic", 10), ("deep12.heic", 12), ("deep10-alpha.heic", 10)], indirect=["original"]
)
def test_deep_heic_keeps_its_depth_and_colours(original: Path, depth: int, tmp_path: Path) -> None:
    heif = pytest.importorskip("pillow_heif")
    photo = read_photo(original)
    region = inverted_region(photo)
    written = write_photo(photo, [region], tmp_path / original.name)
    before, after = (heif.open_heif(path, convert_hdr_to_8bit=False) for path in (original, tmp_path / original.name))
    assert (written.notes, photo.notes) == ((), ())
    assert after.info["bit_depth"] == before.info["bit_depth"] == depth
    assert after.info["nclx_profile"] == before.info["nclx_profile"]
    old, new = np.asarray(before).astype(int), np.asarray(after).astype(int)
    assert len(np.unique(new)) > 600, "more values than 8 bits have"
    mask = outside(photo, region)
    assert np.abs(new - old)[mask].mean() < 1.5 * 257


@pytest.mark.parametrize("original", LOSSLESS, indirect=True)
def test_lossless_samples_outside_stay_bit_for_bit(original: Path, tmp_path: Path) -> None:
    photo = read_photo(original)
    region = inverted_region(photo)
    write_photo(photo, [region], tmp_path / original.name)
    old, new = independent(original), independent(tmp_path / original.name)
    assert old.dtype == new.dtype and old.shape == new.shape
    mask = outside(photo, region)
    from facefix.photos import orientation as turning

    kept = turning.stored(mask, photo.orientation)
    if "planar" in original.name and old.shape[0] == 3:
        old, new = old.transpose(1, 2, 0), new.transpose(1, 2, 0)
    np.testing.assert_array_equal(new[kept], old[kept])
    assert (new[~kept] != old[~kept]).any()


@pytest.mark.parametrize("original", EVERYTHING, indirect=True)
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
    details = Image.open(tmp_path / "large.jpg").getexif().get_ifd(0x8769)
    assert (details[0xA002], details[0xA003]) == (480, 624)
    assert details[0x927C] == Image.open(folder / "segments.jpg").getexif().get_ifd(0x8769)[0x927C]


@pytest.mark.parametrize("original", [name for name in factory.JPEGS if name != "ycck.jpg"], indirect=True)
def test_jpeg_keeps_tables_sampling_and_segments(original: Path, tmp_path: Path) -> None:
    photo = read_photo(original)
    write_photo(photo, [inverted_region(photo)], tmp_path / original.name)
    with Image.open(original) as old, Image.open(tmp_path / original.name) as new:
        assert isinstance(old, JpegImagePlugin.JpegImageFile) and isinstance(new, JpegImagePlugin.JpegImageFile)
        assert new.quantization == old.quantization
        assert JpegImagePlugin.get_sampling(new) == JpegImagePlugin.get_sampling(old)
        assert new.applist == old.applist
    assert jpeg.tables_and_sampling(original.read_bytes()) == jpeg.tables_and_sampling(
        (tmp_path / original.name).read_bytes()
    )


def test_jpeg_keeps_what_follows_the_picture(folder: Path, tmp_path: Path) -> None:
    photo = read_photo(factory.make(folder, "segments.jpg"))
    write_photo(photo, [], tmp_path / "x.jpg")
    assert (tmp_path / "x.jpg").read_bytes().endswith(b"\xff\xd9trailing bytes of a motion photo")


def multi_picture(kind: int) -> bytes:
    """A JPEG with a second one behind it and an MPF segment that lists both (CIPA DC-007)."""
    buffer = io.BytesIO()
    Image.fromarray(factory.portrait()).save(buffer, "JPEG", quality=80)
    first, second = buffer.getvalue(), buffer.getvalue()
    length = 4 + 8 + 2 + 3 * 12 + 4 + 32
    base = 2 + 4 + 4
    total = len(first) + 4 + length
    entries = struct.pack(">IIIHH", kind, total, 0, 0, 0) + struct.pack(">IIIHH", kind, len(second), total - base, 0, 0)
    block = b"MM\0*\0\0\0\x08" + struct.pack(">H", 3) + struct.pack(">HHI4s", 0xB000, 7, 4, b"0100")
    block += struct.pack(">HHII", 0xB001, 4, 1, 2) + struct.pack(">HHII", 0xB002, 7, 32, 50) + b"\0\0\0\0" + entries
    segment = b"\xff\xe2" + struct.pack(">H", 2 + 4 + len(block)) + b"MPF\0" + block
    assert len(segment) == 4 + length
    return first[:2] + segment + first[2:] + second


def test_previews_and_gain_maps_behind_a_jpeg_stay_in_reach(tmp_path: Path) -> None:
    (tmp_path / "gain.jpg").write_bytes(multi_picture(0))
    with Image.open(tmp_path / "gain.jpg") as image:
        assert image.format == "MPO" and image.n_frames == 2
    photo = read_photo(tmp_path / "gain.jpg")
    assert photo.frames == 1 and photo.copy_reason is None
    write_photo(photo, [inverted_region(photo)], tmp_path / "out.jpg", extra_xmp=factory.XMP)
    with Image.open(tmp_path / "out.jpg") as image:
        assert image.n_frames == 2
        image.seek(1)
        np.testing.assert_array_equal(np.asarray(image), np.asarray(Image.open(io.BytesIO(photo.carrier.source.data))))


def test_stereo_jpegs_are_only_copied(tmp_path: Path) -> None:
    (tmp_path / "stereo.jpg").write_bytes(multi_picture(0x020002))
    assert "stereo" in (read_photo(tmp_path / "stereo.jpg").copy_reason or "")


@pytest.mark.parametrize("original", EVERYTHING, indirect=True)
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


@pytest.mark.parametrize("orientation", [None, *range(1, 9)])
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_every_orientation_is_applied_and_written_back(tmp_path: Path, orientation: int | None, suffix: str) -> None:
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
    rgb = photo.pixels.astype(np.float32) / 255 + np.float32(40 / 65535)
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
        same = photo.pixels.astype(np.float32) / 255
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
    assert Image.open(tmp_path / "y.jpg").info.get("icc_profile") == (profile or None)


def test_time_taken_with_its_offset(folder: Path) -> None:
    photo = read_photo(factory.make(folder, "segments.jpg"))
    assert photo.taken == -14_190_140.0  # 1969-07-20 18:17:40 UTC, before the epoch


def test_what_moves_or_has_pages_is_only_copied(tmp_path: Path) -> None:
    frames = [Image.fromarray(factory.portrait() // part) for part in (1, 2, 3)]
    for name, options in (("x.png", {}), ("x.webp", {}), ("x.tif", {}), ("x.avif", {})):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], **options)
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


def test_camera_raw_is_developed_and_written_as_tiff_or_jpeg(tmp_path: Path) -> None:
    pytest.importorskip("rawpy")
    factory.dng(tmp_path / "x.dng")
    photo = read_photo(tmp_path / "x.dng")
    assert (photo.format, photo.mode, photo.size, photo.orientation) == ("RAW", "RGB;16", (208, 160), None)
    upright = np.rot90(factory.portrait(), 3).astype(int)
    assert np.abs(photo.pixels.astype(int) - upright)[8:-8, 8:-8].mean() < 16
    for suffix, mode in ((".tif", "RGB;16"), (".jpg", "RGB")):
        target = tmp_path / f"x.dng{suffix}"
        write_photo(photo, [inverted_region(photo)], target, extra_xmp=factory.XMP)
        result = read_photo(target)
        assert (result.mode, result.size, result.xmp, result.frames) == (mode, (208, 160), factory.XMP, 1)
        assert Image.open(target).getexif()[0x010F] == "Kodak" and result.orientation == 1
        write_photo(photo, [], target, scale=2)
        assert read_photo(target).size == (416, 320)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_camera_raw_is_developed_upright(tmp_path: Path, orientation: int) -> None:
    pytest.importorskip("rawpy")
    factory.dng(tmp_path / "stored.dng", 1)
    factory.dng(tmp_path / "turned.dng", orientation)
    expected = turning.upright(read_photo(tmp_path / "stored.dng").pixels, orientation)
    assert np.array_equal(read_photo(tmp_path / "turned.dng").pixels, expected)


def bomb(kind: str) -> bytes:
    """A small file that claims a picture of 60,000 x 60,000 pixels."""
    buffer = io.BytesIO()
    Image.fromarray(factory.portrait()).save(buffer, {"tif": "TIFF", "jpg": "JPEG"}.get(kind, kind), lossless=True)
    data = bytearray(buffer.getvalue())
    if kind == "png":
        data[16:24] = struct.pack(">II", 60000, 60000)
        data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    elif kind == "jpg":
        at = data.index(b"\xff\xc0")
        data[at + 5 : at + 9] = struct.pack(">HH", 60000, 60000)
    elif kind == "bmp":
        data[18:26] = struct.pack("<ii", 60000, 60000)
    elif kind == "webp":
        data[21:25] = struct.pack("<I", 16382 | 16382 << 14)
    else:
        at = struct.unpack_from("<I", data, 4)[0] + 2
        struct.pack_into("<HHII", data, at, 256, 4, 1, 60000)
        struct.pack_into("<HHII", data, at + 12, 257, 4, 1, 60000)
    return bytes(data)


@pytest.mark.parametrize("kind", ["png", "jpg", "bmp", "webp", "tif"])
def test_bombs_are_refused_before_decoding(tmp_path: Path, kind: str) -> None:
    (tmp_path / f"bomb.{kind}").write_bytes(bomb(kind))
    with pytest.raises(PhotoError, match=r"bomb\.\w+: .*(pixels are more than the limit of|strip|segments|truncated)"):
        read_photo(tmp_path / f"bomb.{kind}")
    with pytest.raises(PhotoError, match="1000000; raise --max-pixels" if kind != "tif" else "bomb"):
        read_photo(tmp_path / f"bomb.{kind}", max_pixels=1_000_000)


def test_the_limit_is_exact(folder: Path) -> None:
    path = factory.make(folder, "444.jpg")
    assert read_photo(path, max_pixels=160 * 208).size == (160, 208)
    with pytest.raises(PhotoError, match="160 x 208 = 33280 pixels are more than the limit of 33279"):
        read_photo(path, max_pixels=160 * 208 - 1)


def test_a_file_far_larger_than_any_photo_is_not_read(tmp_path: Path) -> None:
    with open(tmp_path / "sparse.jpg", "wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(PhotoError, match="bytes are more than"):
        read_photo(tmp_path / "sparse.jpg")


def test_large_pictures_are_allowed_when_asked_for(tmp_path: Path) -> None:
    """Pillow's own limit, which only its Image.open checks, does not stand in the way."""
    limit = Image.MAX_IMAGE_PIXELS
    assert limit is not None
    buffer = io.BytesIO()
    Image.new("1", (16384, 2 * limit // 16384 + 1)).save(buffer, "PNG")
    (tmp_path / "large.png").write_bytes(buffer.getvalue())
    with pytest.raises(Image.DecompressionBombError):
        Image.open(tmp_path / "large.png")
    with pytest.raises(PhotoError, match="more than the limit of 200"):
        read_photo(tmp_path / "large.png", max_pixels=200)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.jpg", b"", "an empty file"),
        ("text.jpg", b"hello, world", "found another format"),
        ("gif.jpg", b"GIF89a" + bytes(40), "found another format"),
        ("head.jpg", b"\xff\xd8\xff\xe0", "cannot be decoded"),
        ("head.png", b"\x89PNG\r\n\x1a\n", "truncated"),
        ("head.tif", b"II*\0", "cannot be decoded"),
        ("head.webp", b"RIFF\x00\x00\x00\x00WEBP", "cannot be decoded"),
        ("head.bmp", b"BM" + bytes(20), "cannot be decoded"),
        ("head.heic", b"\0\0\0\x18ftypheic" + bytes(30), "cannot be decoded"),
        ("head.avif", b"\0\0\0\x18ftypavif" + bytes(30), "cannot be decoded"),
        ("head.nef", b"II*\0\x08\0\0\0\0\0", "cannot be decoded"),
    ],
)
def test_no_photos_are_named_with_their_reason(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(PhotoError, match=message) as caught:
        read_photo(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(PhotoError, match=r"missing\.jpg: cannot be read: No such file"):
        read_photo(tmp_path / "missing.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(PhotoError, match="not a file"):
        read_photo(tmp_path / "pipe.jpg")


def test_content_counts_and_not_the_name(tmp_path: Path) -> None:
    Image.fromarray(factory.portrait()).save(tmp_path / "x.jpg", "PNG")
    photo = read_photo(tmp_path / "x.jpg")
    assert photo.format == "PNG"
    write_photo(photo, [inverted_region(photo)], tmp_path / "y.jpg")
    assert Image.open(tmp_path / "y.jpg").format == "PNG"


def test_names_with_odd_bytes(tmp_path: Path, folder: Path) -> None:
    data = factory.make(folder, "444.jpg").read_bytes()
    for raw in (b"new\nline.jpg", b"latin-\xe9.jpg", "\U0001f600'\".jpg".encode(), b"x" * 251 + b".jpg"):
        path = tmp_path / os.fsdecode(raw)
        path.write_bytes(data)
        photo = read_photo(path)
        write_photo(photo, [inverted_region(photo)], tmp_path / "out" / path.name)
        path.write_bytes(data[:200])
        with pytest.raises(PhotoError) as caught:
            read_photo(path)
        assert "\n" not in str(caught.value)
        str(caught.value).encode()


def test_a_source_that_vanishes_does_not_matter_for_writing(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.tif"
    path.write_bytes(factory.make(folder, "rgb16.tif").read_bytes())
    photo = read_photo(path)
    path.unlink()
    write_photo(photo, [inverted_region(photo)], tmp_path / "out.tif")
    assert read_photo(tmp_path / "out.tif").mode == "RGB;16"


def test_a_picture_too_large_for_its_format(tmp_path: Path) -> None:
    Image.new("RGB", (9000, 4)).save(tmp_path / "wide.webp")
    photo = read_photo(tmp_path / "wide.webp")
    with pytest.raises(PhotoError, match=r"out\.webp: cannot be encoded"):
        write_photo(photo, [], tmp_path / "out.webp", scale=2)
    assert os.listdir(tmp_path) == ["wide.webp"]


def test_regions_have_to_fit(folder: Path, tmp_path: Path) -> None:
    photo = read_photo(factory.make(folder, "444.jpg"))
    patch, alpha = np.zeros((10, 10, 3), np.float32), np.ones((10, 10), np.float32)
    with pytest.raises(UsageError, match="reaches past"):
        write_photo(photo, [Region(155, 0, patch, alpha)], tmp_path / "x.jpg")
    with pytest.raises(UsageError, match="scale 1"):
        write_photo(photo, [Region(0, 0, patch, alpha)], tmp_path / "x.jpg", scale=2)
    with pytest.raises(UsageError, match="expected rgb of shape"):
        Region(0, 0, patch[:5], alpha)
    assert os.listdir(tmp_path) == []


def test_what_is_written_wrong_is_not_kept(folder: Path, tmp_path: Path) -> None:
    photo = read_photo(factory.make(folder, "444.jpg"))
    lying = dataclasses.replace(photo, mode="L")
    with pytest.raises(PhotoError, match=r"what was written cannot be decoded again: expected JPEG L, found JPEG RGB"):
        write_photo(lying, [], tmp_path / "x.jpg")
    assert os.listdir(tmp_path) == []


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
