"""The static site in a real browser whose network is cut off: every page, its formulas, pictures and live widgets."""

import functools
import http.server
import json
import threading
from pathlib import Path

import pytest

pytestmark = pytest.mark.browser
NOTEBOOKS = Path(__file__).resolve().parents[2] / "book" / "notebooks"
CHAPTERS = sorted(path.stem for path in NOTEBOOKS.glob("[0-9]*.ipynb"))
VIEW, STATE = "application/vnd.jupyter.widget-view+json", "application/vnd.jupyter.widget-state+json"
KEYS = ("ArrowRight", "ArrowDown", "ArrowLeft", "Enter")
CONTROLS = "input, select, button, [tabindex='0']"
# What a widget has drawn: markup of SVG, pixels of canvases, addresses of images; its numbers are not drawn.
PICTURE = """(el) => [...el.querySelectorAll("svg, canvas, img")]
    .map((part) => part.outerHTML + (part.toDataURL ? part.toDataURL() : "")).join()"""
BROKEN = "[...document.images].filter((image) => image.complete && !image.naturalWidth).map((image) => image.src)"
LOOK = "() => [document.documentElement.dataset.theme, getComputedStyle(document.body).backgroundColor]"

each_chapter = pytest.mark.parametrize("chapter", CHAPTERS)


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def address(site):
    handler = functools.partial(Quiet, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def page(address, browser):
    """A page that reaches nothing but `address`. It must end with an empty console, and have asked nobody else."""
    page = browser.new_page(viewport={"width": 1280, "height": 900}, base_url=address)
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
    yield page
    page.close()
    assert not said and not asked


def opened(page, path):
    """The page at `path`, with everything that it loads."""
    assert page.goto(path).ok
    page.wait_for_load_state("networkidle")
    return page


@each_chapter
def test_page_is_whole(page, chapter):
    """Formulas are set, pictures are there, and none is wider than the page."""
    opened(page, f"notebooks/{chapter}.html")
    if page.query_selector(".math"):
        page.wait_for_selector("mjx-container")
    assert not page.query_selector("mjx-merror")
    assert page.evaluate(BROKEN) == []
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


@each_chapter
def test_widgets_answer_without_a_kernel(page, chapter):
    """Each widget that the notebook stores draws something, and something else after a key and after the mouse."""
    stored = stored_widgets(chapter)
    assert stored, f"{chapter} has no live widget"
    opened(page, f"notebooks/{chapter}.html")
    page.wait_for_function(f"document.querySelectorAll('.anywidget > *').length >= {len(stored)}")
    widgets = page.query_selector_all(".anywidget")
    assert len(widgets) == len(stored)
    for name, widget in zip(stored, widgets, strict=True):
        widget.scroll_into_view_if_needed()
        size = widget.bounding_box()
        assert size["height"] > 100 and size["width"] > 300 and widget.evaluate(PICTURE), name
        assert answers(page, widget, press), f"{chapter}: {name} does not answer a key"
        assert answers(page, widget, drag), f"{chapter}: {name} does not answer the mouse"


def stored_widgets(chapter):
    """Names of the anywidgets of a notebook, one for each view."""
    notebook = json.loads((NOTEBOOKS / f"{chapter}.ipynb").read_text(encoding="utf-8"))
    state = notebook["metadata"].get("widgets", {}).get(STATE, {}).get("state", {})
    outputs = [output.get("data", {}) for cell in notebook["cells"] for output in cell.get("outputs", [])]
    models = [state[data[VIEW]["model_id"]]["state"] for data in outputs if VIEW in data]
    return [model["_anywidget_id"] for model in models if "_esm" in model]


def answers(page, widget, act):
    """Whether `act` on some control of a widget changes what is drawn."""
    before = widget.evaluate(PICTURE)
    for number in range(len(widget.query_selector_all(CONTROLS))):
        control = widget.query_selector_all(CONTROLS)[number]  # drawing may have replaced it
        for _ in act(page, control):
            page.wait_for_timeout(100)
            if widget.evaluate(PICTURE) != before:
                return True
    return False


def press(page, control):
    """Keys, one after the other."""
    for key in KEYS:
        control.focus()
        page.keyboard.press(key)
        yield key


def drag(page, control):
    """Takes a control in its middle and moves it; for a button that is a click, for a slider another value."""
    control.scroll_into_view_if_needed()
    box = control.bounding_box()
    if box:
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        page.mouse.move(x, y)
        page.mouse.down()
        page.mouse.move(x + 24, y + 16, steps=4)
        page.mouse.up()
        yield box


@each_chapter
def test_previous_and_next(page, chapter):
    """They lead through the book in the order of its chapters, from the preface on; the gallery is the last."""
    row = ["index", *(f"notebooks/{name}" for name in CHAPTERS), "library/index"]
    here = row.index(f"notebooks/{chapter}")
    for button, target in (("left-prev", row[here - 1]), ("right-next", row[here + 1])):
        opened(page, f"notebooks/{chapter}.html").click(f"a.{button}")
        page.wait_for_url(f"**/{target}.html")


@each_chapter
def test_dark_mode(page, chapter):
    """Another background on the page and in its widgets, whose words stay legible on it."""
    opened(page, f"notebooks/{chapter}.html")
    seen = {}
    for mode in ("light", "dark"):
        page.click("button.theme-switch-button >> visible=true")
        page.click(f"button.theme-change-button[data-mode={mode}] >> visible=true")
        page.wait_for_timeout(500)
        theme, background = page.evaluate(LOOK)
        seen[theme] = background
        for widget in page.query_selector_all(".anywidget"):
            assert widget.evaluate(CONTRAST) >= 4.5, (mode, widget.inner_text()[:60])  # WCAG 2.1, 1.4.3
    assert seen.keys() == {"light", "dark"} and seen["light"] != seen["dark"]


# The least contrast of a widget's words with what is behind them.
CONTRAST = """(root) => {
    const light = (colour) => {
        const [r, g, b] = colour.match(/[\\d.]+/g).slice(0, 3).map((v) => v / 255)
            .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const clear = (node) => /rgba\\(.*, 0\\)|transparent/.test(getComputedStyle(node).backgroundColor);
    const words = [...root.querySelectorAll("p, dt, dd, label, button")].filter((node) => node.innerText?.trim());
    return Math.min(...words.map((node) => {
        let behind = node;
        while (clear(behind) && behind.parentElement) behind = behind.parentElement;
        const [ink, paper] = [light(getComputedStyle(node).color), light(getComputedStyle(behind).backgroundColor)];
        return (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05);
    }));
}"""


@each_chapter
def test_search_finds_the_chapter(page, site, chapter):
    title = opened(page, f"notebooks/{chapter}.html").inner_text("article h1").split("·")[1].strip(" \n#")
    opened(page, f"search.html?q={title}").wait_for_selector("#search-results li a")
    assert title in page.inner_text("#search-results")


@pytest.mark.parametrize("path", ["index.html", "library/index.html", "library/maskrcnn_edu.boxes.html"])
def test_other_pages_open(page, path):
    opened(page, path)
    assert page.evaluate(BROKEN) == []


def test_a_word_of_the_text_is_found(page):
    opened(page, "search.html?q=suppression").wait_for_selector("#search-results li a")
    assert "Overlap" in page.inner_text("#search-results")
