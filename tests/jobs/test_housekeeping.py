"""What a run does beside restoring: files that are no photos, and outputs whose photos are gone."""

from __future__ import annotations

from places import Place


def test_others_are_counted_by_kind_and_mirrored_where_that_is_asked(place: Place) -> None:
    (place.album / "holiday").mkdir(exist_ok=True)
    for name in ("clip.mov", "holiday/clip2.mov", "ann0.jpg.xmp"):
        (place.album / name).write_bytes(name.encode())
    (place.album / "@eaDir").mkdir()
    (place.album / "@eaDir" / "ann0.jpg").write_bytes((place.album / "ann0.jpg").read_bytes())
    summary = place.restore()
    assert summary.others == {".mov": 2, ".xmp": 1} and summary.mirrored is None
    assert "3 files that are no photos: 2 .mov, 1 .xmp; left out (--copy-others)" in summary.lines()
    assert not (place.output / "clip.mov").exists() and not (place.output / "@eaDir").exists()

    summary = place.restore(copy_others=True)
    assert summary.mirrored is not None and (summary.mirrored.copied, summary.exit_code()) == (3, 0)
    assert (place.output / "holiday" / "clip2.mov").read_bytes() == b"holiday/clip2.mov"
    (place.album / "clip.mov").write_bytes(b"cut")
    (place.output / "ann0.jpg.xmp").write_bytes(b"edited in the output")
    again = place.restore(copy_others=True)
    assert again.mirrored is not None and (again.mirrored.copied, again.mirrored.current) == (1, 1)
    assert (place.output / "clip.mov").read_bytes() == b"cut"
    assert (place.output / "ann0.jpg.xmp").read_bytes() == b"edited in the output" and again.exit_code() == 3


def test_outputs_of_photos_that_are_gone_are_removed_only_on_demand(place: Place) -> None:
    assert place.restore().orphans == 0
    gone = [place.album / "sea.png", place.album / "ann0.jpg"]
    for path in gone:
        path.unlink()
    for settings in ({}, {"prune": "list"}):
        summary = place.restore(**settings)
        assert (summary.orphans, summary.pruned) == (2, 0)
        assert all((place.output / path.name).exists() for path in gone)
    (place.output / "sea.png").write_bytes(b"edited by hand")
    records = len(list((place.output / ".facefix" / "undo").iterdir()))
    summary = place.restore(prune="remove")
    assert (summary.orphans, summary.pruned) == (2, 1)
    assert (place.output / "sea.png").exists() and not (place.output / "ann0.jpg").exists()
    assert len(list((place.output / ".facefix" / "undo").iterdir())) == records - 1
    assert place.restore().orphans == 1
