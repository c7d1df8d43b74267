"""libtiff prints what is wrong with a file straight to standard error. Pillow raises the same; nobody needs both."""

from __future__ import annotations

import ctypes
import ctypes.util
import functools
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import PIL
from PIL import _imaging  # noqa: F401  (loads the libtiff that Pillow uses)


@functools.cache
def silence() -> int:
    """Take libtiff's handlers of errors and warnings away, in every libtiff of this process.

    Returns:
        How many there are; 0 where none was found, and it goes on printing.
    """
    silenced = 0
    for path in set(_libraries()):
        try:
            library = ctypes.CDLL(path)
            for name in ("TIFFSetErrorHandler", "TIFFSetWarningHandler"):
                setter = getattr(library, name)
                setter.argtypes, setter.restype = [ctypes.c_void_p], ctypes.c_void_p
                setter(None)
        except (OSError, AttributeError):
            continue
        silenced += 1
    return silenced


def _libraries() -> Iterator[str]:
    """Where libtiff was loaded from: as Linux says, else where wheels and systems keep it."""
    if sys.platform == "linux":
        yield from re.findall(r"(/\S*/libtiff[^/\s]*)$", Path("/proc/self/maps").read_text(), re.MULTILINE)
        return
    package = Path(PIL.__file__).parent
    for folder in (package / ".dylibs", package.parent / "pillow.libs"):
        yield from map(str, folder.glob("libtiff*"))
    if (system := ctypes.util.find_library("tiff")) is not None:
        yield system
