"""Metadata of files as exiftool sees it, and which fields may differ when a picture is written again."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

OF_THE_FILE = {"SourceFile", "System:Directory", "System:FileName", "System:FileSize"}
OF_THE_FILE |= {"System:FileAccessDate", "System:FileInodeChangeDate", "System:FileModifyDate"}

OF_THE_PICTURE = {
    ".tif": {"StripOffsets", "StripByteCounts", "TileOffsets", "TileByteCounts", "RowsPerStrip"},
    ".avif": {"MediaDataSize", "MediaData", "MediaDataOffset"},
    ".heic": {"MediaDataSize", "MediaData", "MediaDataOffset"},
    ".jpg": set[str](),
}
"""Where the compressed picture lies and how long it is."""

OF_A_JPEG_STRIP = {"PreviewImage", "PreviewImageStart", "PreviewImageLength", "Warning"}
"""exiftool shows the strips of a JPEG-compressed TIFF as a preview."""

OF_THE_SIZE = {
    "ImageWidth", "ImageHeight", "ImageSize", "Megapixels", "ExifImageWidth", "ExifImageHeight", "ImageSpatialExtent",
    "ImageLength", "GeneralLevelIDC",
}  # fmt: skip
"""What says how large the picture is, and HEVC's level, which follows from it."""

OF_THE_PACKET = {"FileType", "WebP_Flags", "ApplicationNotes", "MediaDataOffset"}
"""What changes when an XMP packet is added: a WebP becomes an extended one, TIFF lists the packet as a tag."""

OF_THE_SENSOR = {
    "CFAPattern", "CFAPattern2", "CFARepeatPatternDim", "AsShotNeutral", "CalibrationIlluminant1", "ColorMatrix1",
    "DNGVersion", "DNGBackwardVersion", "WhiteLevel", "BitsPerSample", "Compression", "PhotometricInterpretation",
    "SamplesPerPixel", "PlanarConfiguration", "Predictor", "ExifByteOrder", "FileType", "FileTypeExtension",
    "MIMEType", "ImageWidth", "ImageHeight", "ImageSize", "StripOffsets", "StripByteCounts", "RowsPerStrip",
}  # fmt: skip
"""What describes a camera raw file and not the developed picture, or the other way round."""

OF_A_FRESH_JPEG = {
    "ColorComponents", "EncodingProcess", "YCbCrSubSampling", "JFIFVersion", "ResolutionUnit", "XResolution",
    "YResolution", "CurrentIPTCDigest",
}  # fmt: skip
"""What a JPEG has that a camera raw file has not; the resolution is JFIF's."""

OF_TURNING = {
    "Orientation", "RegionAppliedToDimensionsH", "RegionAppliedToDimensionsW", "RegionAreaH", "RegionAreaW",
    "RegionAreaX", "RegionAreaY",
}  # fmt: skip
"""What says which way is up, and where faces are: a camera raw file is developed upright."""


OURS = ("XMP-iptcExt:", "XMP-facefix:")
"""What an output says about its own making."""

OUR_FIELDS = {
    "XMP-iptcExt:DigitalSourceType", "XMP-iptcExt:AISystemUsed", "XMP-iptcExt:AISystemVersionUsed",
    "XMP-facefix:Version", "XMP-facefix:Model", "XMP-facefix:ModelHash", "XMP-facefix:UndoId",
    "XMP-facefix:PriorDigitalSourceType",
}  # fmt: skip
"""The fields themselves, but for those of the structure ImageRegion."""


def exiftool(folder: Path) -> dict[str, dict[str, Any]]:
    """Every field of every file below ``folder``, by file name; the test is skipped where exiftool is missing."""
    if shutil.which("exiftool") is None:
        pytest.skip("exiftool is not installed (Debian: libimage-exiftool-perl)")
    command = ["exiftool", "-j", "-a", "-G1", "-b", "-U", "-ee", str(folder)]
    found = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    return {Path(fields["SourceFile"]).name: fields for fields in found}


def changed_fields(one: dict[str, Any], other: dict[str, Any]) -> set[str]:
    """Names, without their group, of the fields that differ, but for those of the file and of our own provenance."""
    changed = {key for key in one.keys() | other.keys() if key not in OF_THE_FILE and one.get(key) != other.get(key)}
    return {key.split(":")[-1] for key in changed if not key.startswith(OURS)}


def changed_by_writing(name: str) -> set[str]:
    """Fields of a file called ``name`` that may differ once its picture is another."""
    allowed = set(OF_THE_PICTURE.get(Path(name).suffix, ()))
    if name.startswith("jpeg"):
        allowed |= OF_A_JPEG_STRIP
    return allowed | {"ColorTransform"} if name == "ycck.jpg" else allowed  # YCCK is written as CMYK


def our_fields(fields: dict[str, Any]) -> set[str]:
    """What an output says about its own making, the structure ImageRegion by its name alone."""
    names = {key for key in fields if key.startswith(OURS)}
    return {"XMP-iptcExt:ImageRegion" if key.startswith("XMP-iptcExt:ImageRegion") else key for key in names}


def describe(photo: Path) -> None:
    """Give a photo EXIF, a place, XMP with a named face, and IPTC, as photographers do."""
    if shutil.which("exiftool") is None:
        pytest.skip("exiftool is not installed (Debian: libimage-exiftool-perl)")
    region = "{Area={X=0.3,Y=0.4,W=0.2,H=0.1,Unit=normalized},Name=Eileen,Type=Face}"
    fields = (
        "-EXIF:DateTimeOriginal=1969:07:20 20:17:40", "-EXIF:OffsetTimeOriginal=+02:00", "-EXIF:UserComment=Unicode",
        "-EXIF:ExposureTime=1/250", "-EXIF:FNumber=2.8", "-EXIF:LensModel=50mm", "-InteropIFD:InteropIndex=R98",
        "-GPS:GPSLatitude=28.57", "-GPS:GPSLatitudeRef=N", "-GPS:GPSAltitude=12.5", "-IFD0:Artist=Neil",
        "-IFD0:Copyright=NASA", "-IFD0:Rating=4", "-IFD0:XPTitle=Titel", "-XMP-dc:Title=Portrait",
        "-XMP-tiff:Orientation#=6", "-IPTC:Keywords=moon", "-IPTC:Keywords=1969", "-IPTC:Caption-Abstract=Landing",
        f"-XMP-mwg-rs:RegionInfo={{AppliedToDimensions={{W=160,H=208,Unit=pixel}},RegionList=[{region}]}}",
    )  # fmt: skip
    subprocess.run(["exiftool", "-q", "-overwrite_original", *fields, str(photo)], check=True)
