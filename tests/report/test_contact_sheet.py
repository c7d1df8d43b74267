"""The contact sheet of people, in a real browser."""

from __future__ import annotations

from pathlib import Path

from browser import chromium, errors, requests
from PIL import Image
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait
from skimage import data

from facefix.report.contact_sheet import SheetFace, SheetPerson, write_contact_sheet

FACE = (170.0, 60.0, 290.0, 200.0)
HOSTILE = "<script>document.title = 'gone'</script>\"'>&.jpg"


def test_groups_references_and_reasons_are_shown(tmp_path: Path) -> None:
    Image.fromarray(data.astronaut()).save(tmp_path / "a.jpg")
    face = SheetFace(tmp_path / "a.jpg", FACE, f"{HOSTILE}#0", "120 px, quality 0.80")
    gone = SheetFace(tmp_path / "gone.jpg", FACE, "gone.jpg#1")
    persons = [
        SheetPerson("p1", "Eva <b>", (face, gone), ((face, "sharpest & frontal"),)),
        SheetPerson("p2", "Person 2", (gone,), excluded=True),
    ]
    page = write_contact_sheet(
        persons, tmp_path / "sheet", title="People of <2019>", people_file=tmp_path / "people.toml"
    )
    assert len(list((page.parent / "thumbs").iterdir())) == 1
    with chromium(tmp_path / "profile") as browser:
        browser.get("about:blank")
        requests(browser)
        browser.get(page.as_uri())
        assert browser.title == "People of <2019>"
        sections = browser.find_elements(By.CSS_SELECTOR, "section.person")
        assert [section.get_attribute("aria-label") for section in sections] == ["Eva <b>", "Person 2"]
        assert "sharpest & frontal" in sections[0].text
        assert f"{HOSTILE}#0" in sections[0].text
        assert "p1" in sections[0].text
        assert "excluded" in sections[1].text
        assert "No face is good enough" in sections[1].text
        thumb = sections[0].find_element(By.TAG_NAME, "img")
        WebDriverWait(browser, 5).until(lambda b: b.execute_script("return arguments[0].naturalWidth", thumb) > 0)
        assert str(tmp_path / "people.toml") in browser.find_element(By.TAG_NAME, "header").text
        assert browser.find_elements(By.TAG_NAME, "script") == []
        assert errors(browser) == []
        own = page.parent.as_uri()
        assert [url for url in requests(browser) if not url.startswith((own, "data:", "about:"))] == []


def test_faces_that_left_are_cleaned_up(tmp_path: Path) -> None:
    Image.fromarray(data.astronaut()).save(tmp_path / "a.jpg")
    face = SheetFace(tmp_path / "a.jpg", FACE, "a.jpg#0")
    for persons, left in (([SheetPerson("p1", "Eva", (face,))], 1), ([SheetPerson("p1", "Eva", ())], 0)):
        page = write_contact_sheet(persons, tmp_path / "sheet", title="People", people_file=Path("people.toml"))
        assert len(list((page.parent / "thumbs").iterdir())) == left
