"""The static site: builds without a warning, names nothing of another host to load, and links what belongs together."""

import html.parser
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
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
