"""What counts in pixels follows the size of an enlarged photo; what counts in fractions stays."""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path

import photo_factory as factory
import pytest
from exiftool import exiftool

from facefix.errors import PhotoError
from facefix.photos.metadata import exif
from facefix.photos.metadata.scaled import scaled_packet
from facefix.photos.photo import read_photo, write_photo

REGION = "{Area={X=0.3,Y=0.4,W=0.2,H=0.1,Unit=normalized},Name=Eileen,Type=Face}"
IN_PIXELS = {
    "-XMP-GPano:CroppedAreaImageWidthPixels": "160", "-XMP-GPano:CroppedAreaLeftPixels": "11",
    "-XMP-GPano:FullPanoWidthPixels": "400", "-XMP-exif:ExifImageWidth": "160", "-XMP-tiff:ImageHeight": "208",
    "-ExifIFD:SubjectArea": "80 104 60 50", "-XMP-exif:SubjectArea": "80, 104, 60, 50",
    "-ExifIFD:FocalPlaneXResolution": "1200",
}  # fmt: skip
AS_THEY_WERE = {"-IFD0:XResolution": "300", "-ExifIFD:FocalLength": "50"}


@pytest.mark.parametrize("name", ["baseline.jpg", "rgb.png", "photo.avif", "lzw.tif", "lossless.webp"])
def test_exiftool_sees_pixels_multiplied(name: str, tmp_path: Path) -> None:
    if shutil.which("exiftool") is None:
        pytest.skip("exiftool is not installed (Debian: libimage-exiftool-perl)")
    if name not in factory.ALL:
        name = next(each for each in factory.ALL if each.endswith(Path(name).suffix))
    path = factory.make(tmp_path, name)
    fields = [f"{key}={value}" for key, value in (IN_PIXELS | AS_THEY_WERE).items()]
    fields.append(f"-XMP-mwg-rs:RegionInfo={{AppliedToDimensions={{W=160,H=208,Unit=pixel}},RegionList=[{REGION}]}}")
    subprocess.run(["exiftool", "-q", "-overwrite_original", "-sep", ", ", *fields, str(path)], check=True)
    write_photo(read_photo(path), [], tmp_path / "out" / name, scale=3)
    before, after = exiftool(tmp_path / name)[name], exiftool(tmp_path / "out")[name]
    for key, value in IN_PIXELS.items():
        field = key[1:]
        small, large = (str(each[field]).strip("[]").replace(",", "").split() for each in (before, after))
        assert [float(each) for each in large] == [3 * float(each) for each in small], (field, value)
    for key in AS_THEY_WERE:
        assert after[key[1:]] == before[key[1:]]
    region = "XMP-mwg-rs:Region"
    assert (after[f"{region}AppliedToDimensionsW"], after[f"{region}AppliedToDimensionsH"]) == (480, 624)
    assert after[f"{region}AreaX"] == before[f"{region}AreaX"] == 0.3


def test_a_packet_without_pixels_stays_byte_for_byte() -> None:
    assert scaled_packet(factory.XMP, 2) is factory.XMP
    with pytest.raises(PhotoError):
        scaled_packet(b"no XMP", 2)


def test_a_number_that_does_not_fit_stays() -> None:
    block = b"II*\0" + struct.pack("<IHHHIII", 8, 1, 0x8769, 4, 1, 26, 0)
    block += struct.pack("<HHHIHHI", 1, 0xA214, 3, 2, 40_000, 7, 0)
    assert exif.with_size(block, 1, 1, 2) == block
    assert exif.with_size(block, 1, 1, 1) == block
    small = block.replace(struct.pack("<H", 40_000), struct.pack("<H", 40))
    assert exif.with_size(small, 1, 1, 2) == small.replace(struct.pack("<HH", 40, 7), struct.pack("<HH", 80, 14))
