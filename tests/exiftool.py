"""Metadata of files as exiftool sees it, and which fields may differ when a picture is written again."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

OF_THE_FILE = {"SourceFile", "System:Directory", "System:FileName", "System:FileSize"}
OF_THE_FILE |= {"System:FileAccessDate", "System:FileInodeChangeDate"}

OF_THE_PICTURE = {
    ".tif": {"StripOffsets", "StripByteCounts", "TileOffsets", "TileByteCounts", "RowsPerStrip"},
    ".avif": {"MediaDataSize", "MediaData"},
    ".heic": {"MediaDataSize", "MediaData"},
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
    "DNGVersion", "DNGBackwardVersion", "UniqueCameraModel", "WhiteLevel", "BitsPerSample", "Compression",
    "PhotometricInterpretation", "SamplesPerPixel", "PlanarConfiguration", "Predictor", "Orientation", "Software",
    "XResolution", "YResolution", "ResolutionUnit", "ExifByteOrder", "FileType", "FileTypeExtension", "MIMEType",
    "ImageWidth", "ImageHeight", "ImageSize", "StripOffsets", "StripByteCounts", "RowsPerStrip", "ColorComponents",
    "EncodingProcess", "YCbCrSubSampling", "JFIFVersion",
}  # fmt: skip
"""What describes a camera raw file and not the developed picture, or the other way round."""


OURS = ("XMP-iptcExt:", "XMP-facefix:")
"""What an output says about its own making."""


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
