"""What the report writes beside its page: nothing twice, thumbnails of turned and enlarged photos, text and links."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from facefix.report.page import link_to, text_of
from facefix.report.thumbnails import Cut, Sheet, make_thumbnails


def test_thumbnails_of_turned_enlarged_and_unreadable_photos(tmp_path: Path) -> None:
    marked = Image.new("RGB", (400, 200), "black")
    marked.paste("red", (300, 40, 380, 120))
    exif = Image.Exif()
    exif[0x0112] = 6
    marked.save(tmp_path / "turned.jpg", exif=exif, quality=95)
    marked.resize((800, 400)).save(tmp_path / "twice.png")
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0nonsense")
    upright_box = (200 - 120, 300, 200 - 40, 380)
    sheets = [
        Sheet(tmp_path / "turned.jpg", (Cut("t"), Cut("t", upright_box)), 200),
        Sheet(tmp_path / "twice.png", (Cut("e", (300, 40, 380, 120)),), 400),
        Sheet(tmp_path / "broken.jpg", (Cut("b"),)),
        Sheet(tmp_path / "gone.jpg", (Cut("g"),)),
    ]
    there = make_thumbnails(sheets, tmp_path / "thumbs")
    assert there == {cut.file for sheet in sheets[:2] for cut in sheet.cuts}
    with Image.open(tmp_path / "thumbs" / Cut("t").file) as whole:
        assert whole.size == (200, 400)
    for cut in (sheets[0].cuts[1], sheets[1].cuts[0]):
        small = Image.open(tmp_path / "thumbs" / cut.file).convert("RGB")
        middle, edge = small.getpixel((small.width // 2, small.height // 2)), small.getpixel((3, 3))
        assert middle[0] > 200 and edge[0] < 60, "the face is in the middle, with a margin"  # type: ignore[index]


def test_text_and_links() -> None:
    assert text_of("caf\udce9\ud800") == "caf\ufffd\ufffd"
    assert link_to(Path("/out/a b#?%é\udce9.jpg"), Path("/out/report")) == "../a%20b%23%3F%25%C3%A9%E9.jpg"
