"""What is said of a photo: a manifest that no longer fits, high dynamic range."""

from __future__ import annotations

from pathlib import Path

import photo_factory as factory
import pytest
from regions import inverted_region

from facefix.photos.photo import read_photo, write_photo


def test_a_c2pa_manifest_is_kept_and_said_to_fit_no_more(tmp_path: Path) -> None:
    store = bytes.fromhex("0000001f6a756d62000000176a756d64") + b"c2pa" + bytes.fromhex("00110010800000aa00389b71")
    original = factory.make(tmp_path, "rgb.png" if "rgb.png" in factory.ALL else next(iter(factory.PNGS)))
    stream = original.read_bytes()
    original.write_bytes(stream[:33] + factory.png_chunk(b"caBX", store) + stream[33:])
    written = write_photo(read_photo(original), [inverted_region(read_photo(original))], tmp_path / "out.png")
    assert any("C2PA" in note for note in written.notes)
    assert store in (tmp_path / "out.png").read_bytes()


@pytest.mark.parametrize(("transfer", "name"), [(16, "PQ"), (18, "HLG"), (13, None)])
def test_a_png_of_high_dynamic_range_says_so(transfer: int, name: str | None, tmp_path: Path) -> None:
    original = factory.make(tmp_path, next(iter(factory.PNGS)))
    stream = original.read_bytes()
    original.write_bytes(stream[:33] + factory.png_chunk(b"cICP", bytes([9, transfer, 0, 1])) + stream[33:])
    notes = [note for note in read_photo(original).notes if "high dynamic range" in note]
    assert notes == [] if name is None else f"({name})" in notes[0]
