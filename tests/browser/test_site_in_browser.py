"""The static site in a real browser whose network is cut off: pages, formulas, widgets, search and dark mode."""

import functools
import http.server
import threading

import pytest

VIEW = 'script[type="application/vnd.jupyter.widget-view+json"]'


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


@pytest.fixture(scope="module")
def browsing(address, browser):
    """A page that reaches nothing but `address`, with what it complained about and what else it asked for."""
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
    page.close()


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
    look = "[document.documentElement.dataset.theme, getComputedStyle(document.body).backgroundColor]"
    seen = {}
    for mode in ("light", "dark"):
        page.click("button.theme-switch-button >> visible=true")
        page.click(f"button.theme-change-button[data-mode={mode}] >> visible=true")
        page.wait_for_timeout(500)
        theme, background = page.evaluate(look)
        seen[theme] = background
    assert seen.keys() == {"light", "dark"} and seen["light"] != seen["dark"] and not said and not asked
