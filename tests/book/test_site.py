"""The static site: builds without a warning, loads nothing from another host, and answers without a kernel."""

import contextlib
import functools
import html.parser
import http.server
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

pytest.importorskip("sphinx", reason="needs the extra `book`")
ROOT = Path(__file__).resolve().parents[2]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
VIEW = 'script[type="application/vnd.jupyter.widget-view+json"]'
LOADED = {
    "script": "src",
    "img": "src",
    "iframe": "src",
    "source": "src",
    "video": "src",
    "audio": "src",
    "link": "href",
}
LINKS_ONLY = {"canonical", "next", "prev", "search", "index", "author"}  # of <link rel=...>: named, not loaded


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    out = tmp_path_factory.mktemp("site")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-d", out / "doctrees", ROOT / "book", out / "html"],
        env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-5000:]
    return out / "html"


class Resources(html.parser.HTMLParser):
    """Addresses that a browser loads on its own."""

    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        if tag in LOADED and attributes.get("rel") not in LINKS_ONLY and attributes.get(LOADED[tag]):
            self.found.append(attributes[LOADED[tag]])


def elsewhere(address):
    return re.match(r"(?:[a-z]+:)?//", address, re.IGNORECASE) is not None


def test_scanner_finds_what_it_should():
    page = (
        '<script src="https://x.org/a.js"></script><img src="a.png"><link rel="next" href="//x.org"><a href="//x.org">'
    )
    assert Resources(page).found == ["https://x.org/a.js", "a.png"]
    assert elsewhere("//x.org/a") and elsewhere("https://x.org") and not elsewhere("data:image/png;base64,//8=")


@pytest.mark.book
def test_pages_load_nothing_from_elsewhere(site):
    pages = list(site.rglob("*.html"))
    assert len(pages) > 20
    for page in pages:
        assert not [address for address in Resources(page.read_text(encoding="utf-8")).found if elsewhere(address)], (
            page
        )
    for sheet in site.rglob("*.css"):
        text = sheet.read_text(encoding="utf-8")
        wanted = re.findall(r"url\(\s*['\"]?([^'\")]+)|@import\s+['\"]([^'\"]+)", text)
        assert not [address for pair in wanted for address in pair if elsewhere(address)], sheet


@pytest.mark.book
def test_chapters_and_modules_link_to_each_other(site):
    chapter = (site / "notebooks" / "05_overlap_deltas_nms.html").read_text(encoding="utf-8")
    module = (site / "library" / "maskrcnn_edu.boxes.html").read_text(encoding="utf-8")
    assert 'href="../library/maskrcnn_edu.boxes.html"' in chapter
    assert 'href="../notebooks/05_overlap_deltas_nms.html"' in module
    assert "Generalised" in module or "Intersection over union" in module  # its docstrings
    assert 'class="next-page"' in (site / "index.html").read_text(encoding="utf-8") or "next-info" in chapter


@pytest.mark.book
def test_every_module_has_a_page(site):
    modules = {path.stem for path in (ROOT / "maskrcnn_edu").glob("*.py")} - {
        "__init__",
        "cli",
        "cli_weights",
        "commands",
    }
    pages = {path.name for path in (site / "library").glob("*.html")}
    assert {f"maskrcnn_edu.{name}.html" for name in modules} <= pages


@pytest.mark.book
def test_search_knows_the_chapters(site):
    index = (site / "searchindex.js").read_text(encoding="utf-8")
    known = json.loads(index[index.index("{") : index.rindex("}") + 1])
    assert "notebooks/05_overlap_deltas_nms" in known["docnames"] and "suppress" in known["terms"]


# In a real browser


@pytest.fixture(scope="module")
def address(site):
    handler = functools.partial(Quiet, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@contextlib.contextmanager
def browser_page(address):
    """A page of headless Chromium that reaches nothing but `address`, with what it complained about and asked for."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        said, asked = [], []

        def here_only(route):
            url = route.request.url
            if url.startswith((address, "data:", "blob:")):
                return route.continue_()
            asked.append(url)
            return route.abort()

        page.route("**/*", here_only)
        page.on("console", lambda message: said.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: said.append(str(error)))
        yield page, said, asked
        browser.close()


@pytest.fixture(scope="module")
def browsing(address):
    pytest.importorskip("playwright")
    with browser_page(address) as found:
        yield found


def pages_with_widgets(site):
    return sorted(p for p in (site / "notebooks").glob("*.html") if "widget-view+json" in p.read_text(encoding="utf-8"))


@pytest.mark.browser
def test_every_page_opens_without_a_network(site, address, browsing):
    page, said, asked = browsing
    for path in [site / "index.html", *sorted((site / "notebooks").glob("*.html")), site / "library" / "index.html"]:
        page.goto(f"{address}/{path.relative_to(site).as_posix()}")
        page.wait_for_load_state("networkidle")
        assert not asked and not said, path.name
        if "math notranslate" in path.read_text(encoding="utf-8"):
            page.wait_for_selector("mjx-container svg, mjx-container mjx-math")
            assert not page.query_selector("mjx-merror")


@pytest.mark.browser
def test_widgets_answer_without_a_kernel(site, address, browsing):
    page, said, asked = browsing
    shown = 0
    for path in pages_with_widgets(site):
        page.goto(f"{address}/notebooks/{path.name}")
        page.wait_for_load_state("networkidle")
        assert len(page.query_selector_all(VIEW)) == len(page.query_selector_all(".anywidget")), path.name
        for widget in page.query_selector_all(".anywidget"):
            widget.scroll_into_view_if_needed()
            assert widget.bounding_box()["height"] > 50
            assert answers(page, widget), f"{path.name}: {widget.inner_text()[:80]} does not answer a key"
            shown += 1
    assert shown and not asked and not said


def answers(page, widget):
    """Whether some control of a widget, given the focus and an arrow key or Enter, changes what is drawn."""
    for control in widget.query_selector_all("input, select, button, [tabindex='0']"):
        for key in ("ArrowRight", "ArrowDown", "Enter"):
            before = widget.evaluate(PICTURE)
            control.focus()
            page.keyboard.press(key)
            page.wait_for_timeout(150)
            if widget.evaluate(PICTURE) != before:
                return True
    return False


# Everything drawn: markup of SVG and text, pixels of canvases.
PICTURE = "el => el.innerHTML + [...el.querySelectorAll('canvas')].map(c => c.toDataURL()).join()"


@pytest.mark.browser
def test_search_and_dark_mode(address, browsing):
    page, said, asked = browsing
    page.goto(f"{address}/search.html?q=suppression")
    page.wait_for_selector("#search-results li a")
    assert "Overlap" in page.inner_text("#search-results")
    page.goto(f"{address}/notebooks/05_overlap_deltas_nms.html")
    background = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(f"document.documentElement.dataset.theme = 'light', {background}")
    for _ in range(3):  # the button goes through light, dark and the system's
        page.click("button.theme-switch-button >> visible=true")
        if page.evaluate("document.documentElement.dataset.theme") == "dark":
            break
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    page.wait_for_timeout(500)
    assert page.evaluate(background) != light and not said and not asked
