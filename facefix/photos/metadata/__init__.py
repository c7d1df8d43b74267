"""EXIF, TIFF directories and XMP as they lie in files."""
