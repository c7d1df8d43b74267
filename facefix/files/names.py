"""File names as people can read them, whatever bytes they hold."""

from __future__ import annotations

import os


def printable(path: str | os.PathLike[str]) -> str:
    """``path`` on one line and in valid UTF-8, for messages: as it is where that is so, else quoted with escapes."""
    text = os.fspath(path)
    return text if text.isprintable() else ascii(text)


def readable(name: str) -> str:
    """A file's or folder's name in valid UTF-8, as the name of a person: other bytes become %XX."""
    return "".join(f"%{ord(char) - 0xDC00:02X}" if "\udc80" <= char <= "\udcff" else char for char in name)
