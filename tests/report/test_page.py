"""The report in a real browser: sliders, sorting, filters, keyboard, hostile names, no network, 2,000 photos."""

from __future__ import annotations

import http.server
import os
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import chromium, errors, requests
from PIL import Image, ImageFilter
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select, WebDriverWait
from skimage import data

from facefix.report import REPORT_FOLDER, ReferenceUse, Report, ReportFace, ReportPhoto, write_report
from facefix.report.page import json_for_script, link_to, text_of
from facefix.report.thumbnails import Cut, Sheet, make_thumbnails

HOSTILE = "\"><img src=x onerror=boom()><script>boom()</script>&amp;{{7*7}}\n\u202e'`caf\udce9.jpg"
FACE = (170.0, 60.0, 290.0, 200.0)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The astronaut, blurred and sharp."""
    folder = tmp_path_factory.mktemp("album")
    sharp = Image.fromarray(data.astronaut())
    before, after = folder / "before.jpg", folder / "after.jpg"
    sharp.filter(ImageFilter.GaussianBlur(3)).save(before)
    sharp.save(after)
    return before, after


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    with chromium(tmp_path_factory.mktemp("profile")) as started:
        yield started


def face(verdict: str, person: str | None, before: float | None, after: float | None, **more: Any) -> ReportFace:
    return ReportFace(FACE, verdict, person, similarity_before=before, similarity_after=after, **more)


def small_report(before: Path, after: Path) -> Report:
    reference = ReferenceUse(after, "portraits/anna <1>.jpg", "sharpest & frontal", FACE)
    size = (512, 512)
    return Report(
        "Album of <2019>",
        (
            ReportPhoto("a.jpg", "copied", before, before, "no face found", size, "a"),
            ReportPhoto(
                "b.jpg",
                "restored",
                before,
                after,
                size=size,
                content="b",
                faces=(
                    face("restored", "Anna", 0.2, 0.7, references=(reference,), model="small", seconds=2.345),
                    face("kept", "Bert <b>", 0.6, 0.5, reason="less like the person"),
                ),
            ),
            ReportPhoto(HOSTILE, "restored", before, after, "", size, "c", (face("flagged", "Bert <b>", 0.3, 0.4),)),
            ReportPhoto("d.jpg", "failed", before, None, "cannot be decoded", None, ""),
            ReportPhoto("e.jpg", "restored", before, after, "", size, "e", (face("restored", None, None, None),)),
        ),
    )


@pytest.fixture(scope="module")
def page(pictures: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(small_report(*pictures), tmp_path_factory.mktemp("out") / REPORT_FOLDER)


def opened(browser: webdriver.Chrome, page: Path) -> webdriver.Chrome:
    errors(browser)
    requests(browser)
    browser.get(page.as_uri())
    WebDriverWait(browser, 20).until(lambda b: b.find_elements(By.CSS_SELECTOR, ".photo .compare"))
    return browser


def names(browser: webdriver.Chrome) -> list[str]:
    script = "return [...document.querySelectorAll('.photo')].map((card) => card.getAttribute('aria-label'))"
    return list(browser.execute_script(script))


def choose(browser: webdriver.Chrome, control: str, text: str) -> None:
    Select(browser.find_element(By.ID, control)).select_by_visible_text(text)


def divider(browser: webdriver.Chrome, slider: Any) -> float:
    """Where the slider's handle really is, in percent of its width."""
    script = (
        "const s = arguments[0], h = s.shadowRoot.querySelector('.handle').getBoundingClientRect(),"
        " r = s.getBoundingClientRect(); return ((h.left + h.right) / 2 - r.left) / r.width * 100"
    )
    return float(browser.execute_script(script, slider))


def test_slider_moves_by_mouse_and_by_key(browser: webdriver.Chrome, page: Path) -> None:
    opened(browser, page)
    slider = browser.find_element(By.CSS_SELECTOR, "img-comparison-slider")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", slider)
    assert divider(browser, slider) == pytest.approx(50, abs=1)
    width = slider.size["width"]
    ActionChains(browser).move_to_element(slider).click_and_hold().move_by_offset(
        int(width * 0.3), 0
    ).release().perform()
    WebDriverWait(browser, 5).until(lambda b: divider(b, slider) == pytest.approx(80, abs=2))
    assert int(slider.get_attribute("aria-valuenow") or 0) == pytest.approx(80, abs=2)
    slider.send_keys(Keys.HOME)
    WebDriverWait(browser, 5).until(lambda b: divider(b, slider) == pytest.approx(0, abs=1))
    slider.send_keys(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.PAGE_UP)
    WebDriverWait(browser, 5).until(lambda b: divider(b, slider) == pytest.approx(14, abs=1))
    assert slider.get_attribute("aria-valuenow") == "14"
    assert slider.get_attribute("role") == "slider"


def test_slider_shows_before_on_the_left_and_after_on_the_right(browser: webdriver.Chrome, page: Path) -> None:
    opened(browser, page)
    slider = browser.find_element(By.CSS_SELECTOR, "img-comparison-slider")
    first = slider.find_element(By.CSS_SELECTOR, "[slot=first]")
    second = slider.find_element(By.CSS_SELECTOR, "[slot=second]")
    assert first.get_attribute("src") != second.get_attribute("src")
    loaded = "return arguments[0].complete && arguments[0].naturalWidth > 0 && arguments[1].complete"
    browser.execute_script("arguments[0].scrollIntoView()", slider)
    WebDriverWait(browser, 10).until(lambda b: b.execute_script(loaded, first, second))
    files = {part: Path(page.parent, "thumbs", Path(str(tag.get_attribute("src"))).name)
             for part, tag in (("before", first), ("after", second))}  # fmt: skip

    def detail(path: Path) -> float:
        return float(
            Image.open(path)
            .convert("L")
            .filter(ImageFilter.FIND_EDGES)
            .resize((1, 1), Image.Resampling.BOX)
            .getpixel((0, 0))
        )  # type: ignore[arg-type]

    assert detail(files["after"]) > 1.5 * detail(files["before"]), "the blurred one is before"


def test_everything_about_a_face_is_said(browser: webdriver.Chrome, page: Path) -> None:
    opened(browser, page)
    card = browser.find_elements(By.CSS_SELECTOR, ".photo")[1]
    row = card.find_element(By.CSS_SELECTOR, ".face")
    row.find_element(By.CSS_SELECTOR, "summary").send_keys(Keys.ENTER)
    WebDriverWait(browser, 5).until(lambda b: "sharpest & frontal" in row.text)
    for said in ("Anna", "restored", "0.200", "0.700", "small", "2.3 s", "1 reference", "portraits/anna <1>.jpg"):
        assert said in row.text
    assert len(row.find_elements(By.CSS_SELECTOR, ".pair img")) == 2
    thumb = row.find_element(By.CSS_SELECTOR, ".references img")
    WebDriverWait(browser, 5).until(lambda b: b.execute_script("return arguments[0].naturalWidth", thumb) > 0)
    assert "less like the person" in card.text
    failed = browser.find_elements(By.CSS_SELECTOR, ".photo")[3]
    assert "cannot be decoded" in failed.text
    totals = browser.find_element(By.CSS_SELECTOR, ".totals").text.split("\n")
    assert {"5 photos", "3 photos restored", "1 photos failed", "4 faces", "2 faces restored"} <= set(totals)


def test_sorting_and_filtering(browser: webdriver.Chrome, page: Path) -> None:
    opened(browser, page)
    shown = {name[0]: name for name in names(browser)}
    order = lambda: "".join(name[0] for name in names(browser))  # noqa: E731
    assert order() == 'ab"de'
    assert len(shown) == 5
    choose(browser, "sort", "change in likeness")
    assert order() == 'b"ade'
    choose(browser, "sort", "verdict")
    assert order() == 'd"bea'
    browser.find_element(By.ID, "reverse").send_keys(Keys.SPACE)
    assert order() == 'aeb"d'
    browser.find_element(By.ID, "reverse").send_keys(Keys.SPACE)
    choose(browser, "sort", "change in the picture")
    assert set(order()[:3]) == set('b"e')
    choose(browser, "sort", "album order")
    choose(browser, "person", "Bert <b> (2)")
    assert order() == 'b"'
    assert browser.find_element(By.ID, "shown").text == "2 of 5 photos"
    assert "Anna" not in browser.find_element(By.ID, "photos").text, "only this person's faces are listed"
    choose(browser, "verdict", "flagged")
    assert order() == '"'
    choose(browser, "person", "everybody")
    choose(browser, "verdict", "any")
    browser.find_element(By.ID, "search").send_keys("B.J")
    assert order() == "b"
    browser.find_element(By.ID, "search").send_keys("zzz")
    assert order() == ""
    assert "No photo matches" in browser.find_element(By.ID, "photos").text


def test_keyboard_alone_reaches_everything(browser: webdriver.Chrome, page: Path) -> None:
    opened(browser, page)
    body = browser.find_element(By.TAG_NAME, "body")
    reached = []
    body.send_keys(Keys.TAB)
    for _ in range(40):
        active = browser.switch_to.active_element
        reached.append(active.get_attribute("id") or active.tag_name)
        active.send_keys(Keys.TAB)
    assert reached[:6] == ["a", "sort", "reverse", "person", "verdict", "search"]
    assert {"img-comparison-slider", "summary"} <= set(reached)
    opened(browser, page)
    focused = lambda: browser.execute_script("return document.activeElement.closest('.photo')?.dataset.place")  # noqa: E731
    ActionChains(browser).send_keys("j").perform()
    assert focused() == "0"
    ActionChains(browser).send_keys("jjk").perform()
    assert focused() == "1"


def test_hostile_names_stay_text(browser: webdriver.Chrome, page: Path) -> None:
    opened(browser, page)
    title = browser.find_elements(By.CSS_SELECTOR, ".photo h2")[2]
    assert title.get_attribute("textContent") == text_of(HOSTILE)
    assert "49" not in str(title.get_attribute("textContent"))
    assert not browser.find_elements(By.CSS_SELECTOR, ".photo h2 img, .photo h2 script, .photo script")
    assert browser.find_element(By.TAG_NAME, "h1").text == "Album of <2019>"
    assert browser.title == "Album of <2019>"
    assert "Bert <b> (2)" in browser.find_element(By.ID, "person").text
    assert errors(browser) == []


def test_pages_hold_no_markup_from_names(page: Path) -> None:
    html = page.read_text(encoding="utf-8")
    assert "<img src=x" not in html
    assert "boom()</script>" not in html
    assert "Album of &lt;2019&gt;" in html
    hostile = "</script><!--<script>\u2028'"
    assert json_for_script([hostile]) == '["\\u003c/script\\u003e\\u003c!--\\u003cscript\\u003e\\u2028\\u0027"]'


def test_no_request_leaves_the_machine(browser: webdriver.Chrome, page: Path) -> None:
    html = page.read_text(encoding="utf-8")
    assert not re.search(r"(src|href)=[\"']?(https?:)?//", html)
    opened(browser, page)
    asked = requests(browser)
    assert asked
    assert [url for url in asked if not url.startswith(page.parent.as_uri())] == []


def test_policy_forbids_the_network(browser: webdriver.Chrome, page: Path) -> None:
    hits: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            hits.append(self.path)
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        opened(browser, page)
        outcome = browser.execute_async_script(
            "const [address, done] = arguments; const picture = new Image(); picture.src = address + '/picture';"
            "const script = document.createElement('script'); script.src = address + '/script';"
            "document.head.append(script); navigator.sendBeacon(address + '/beacon');"
            "fetch(address + '/fetch', {mode: 'no-cors'})"
            ".then(() => done('sent'), () => setTimeout(done, 500, 'refused'))",
            address,
        )
        server.shutdown()
    assert outcome == "refused"
    assert hits == []


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_both_schemes_are_readable(page: Path, tmp_path: Path, dark: bool) -> None:
    with chromium(tmp_path / "profile", dark=dark) as browser:
        scheme = "dark" if dark else "light"
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        opened(browser, page)
        for selector in (
            "h1",
            ".photo h2",
            ".numbers",
            ".verdict.restored",
            ".verdict.flagged",
            ".verdict.kept",
            "#shown",
        ):
            assert contrast(browser, selector) >= 4.5, selector
        ground = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
        assert (luminance(ground) < 0.1) == dark


def luminance(colour: str) -> float:
    """Relative luminance of a CSS colour, after WCAG 2.1."""
    channels = [float(part) / 255 for part in re.findall(r"[\d.]+", colour)[:3]]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(browser: webdriver.Chrome, selector: str) -> float:
    colours = browser.execute_script(
        "const e = document.querySelector(arguments[0]); let g = e;"
        "while (g && getComputedStyle(g).backgroundColor === 'rgba(0, 0, 0, 0)') g = g.parentElement;"
        "return [getComputedStyle(e).color, getComputedStyle(g).backgroundColor]",
        selector,
    )
    high, low = sorted((luminance(colour) for colour in colours), reverse=True)
    return (high + 0.05) / (low + 0.05)


def seconds_to_open(browser: webdriver.Chrome, page: Path) -> float:
    """From asking for the page until its first photos are there."""
    browser.get("about:blank")
    start = time.perf_counter()
    browser.get(page.as_uri())
    filled = "return document.querySelectorAll('.photo .compare').length"
    WebDriverWait(browser, 20, poll_frequency=0.02).until(lambda b: b.execute_script(filled) > 0)
    return time.perf_counter() - start


OPENING_LIMIT_SECONDS = 20
"""Far above what it takes (0.3 to 0.5 s on two idle cores), so that a busy machine fails no test; a freeze does."""


def test_2000_photos_open_and_scroll(browser: webdriver.Chrome, pictures: tuple[Path, Path], tmp_path: Path) -> None:
    before, after = pictures
    faces = tuple(
        face("restored", f"Person {n}", 0.2, 0.5, references=(ReferenceUse(after, "r.jpg", "sharp", FACE),) * 5)
        for n in range(3)
    )
    photos = tuple(
        ReportPhoto(f"2019/{n:04}.jpg", "restored", before, after, "", (512, 512), f"{n % 40}", faces)
        for n in range(2000)
    )
    page = write_report(Report("Two thousand", photos), tmp_path / REPORT_FOLDER)
    seconds = min(seconds_to_open(browser, page) for _ in range(3))  # whatever else the machine does only adds
    print(f"\n2,000 photos opened in {seconds:.2f} s")
    assert seconds < OPENING_LIMIT_SECONDS
    assert len(names(browser)) == 2000
    height = browser.execute_script("return document.documentElement.scrollHeight")
    frames = browser.execute_async_script(
        "const done = arguments[0], gaps = []; let last = performance.now();"
        "const step = (now) => { gaps.push(now - last); last = now; scrollBy(0, 300);"
        " gaps.length < 60 ? requestAnimationFrame(step) : done(gaps); }; requestAnimationFrame(step);"
    )
    assert height > 100_000
    print(f"60 frames of scrolling: median {sorted(frames)[30]:.0f} ms, longest {max(frames):.0f} ms")
    assert len(frames) == 60
    browser.execute_script("scrollTo(0, document.documentElement.scrollHeight)")
    last = ".photo:last-child .compare img"
    WebDriverWait(browser, 20).until(lambda b: b.find_elements(By.CSS_SELECTOR, last) != [])
    script = "return document.querySelectorAll('.photo > .compare').length"
    WebDriverWait(browser, 10).until(lambda b: b.execute_script(script) < 200, "photos far away are taken out again")


def test_nothing_new_is_not_written_again(pictures: tuple[Path, Path], tmp_path: Path) -> None:
    report = small_report(*pictures)
    steps: list[int] = []
    page = write_report(report, tmp_path / REPORT_FOLDER, progress=steps.append)
    assert sum(steps) == len(report.photos)
    thumbs = page.parent / "thumbs"
    stamps = {path: path.stat().st_mtime_ns for path in [page, *thumbs.iterdir()]}
    write_report(report, page.parent)
    assert {path: path.stat().st_mtime_ns for path in [page, *thumbs.iterdir()]} == stamps
    fewer = Report(report.title, report.photos[:1])
    write_report(fewer, page.parent)
    assert len(list(thumbs.iterdir())) == 1, "pictures nobody shows any more are removed"
    (thumbs / next(iter(os.listdir(thumbs)))).unlink()
    write_report(fewer, page.parent, again=True)
    assert len(list(thumbs.iterdir())) == 1


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
    assert Image.open(tmp_path / "thumbs" / Cut("t").file).size == (200, 400)
    for cut in (sheets[0].cuts[1], sheets[1].cuts[0]):
        small = Image.open(tmp_path / "thumbs" / cut.file).convert("RGB")
        middle, edge = small.getpixel((small.width // 2, small.height // 2)), small.getpixel((3, 3))
        assert middle[0] > 200 and edge[0] < 60, "the face is in the middle, with a margin"  # type: ignore[index]


def test_text_and_links() -> None:
    assert text_of("caf\udce9\ud800") == "caf\ufffd\ufffd"
    assert link_to(Path("/out/a b#?%é\udce9.jpg"), Path("/out/report")) == "../a%20b%23%3F%25%C3%A9%E9.jpg"
