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


def article(page):
    """A page's own text, without the side bar, which links to every page."""
    text = page.read_text(encoding="utf-8")
    return text[text.index("<article") : text.index("</article>")]


def links(page, folder):
    """Stems of the pages of `folder` that an article links to."""
    return set(re.findall(rf'href="(?:\.\./)?{folder}/([\w.]+)\.html', article(page)))


@pytest.mark.book
def test_chapters_and_modules_link_to_each_other(site):
    chapters = {path.stem: links(path, "library") for path in (site / "notebooks").glob("*.html")}
    modules = {path.stem: links(path, "notebooks") for path in (site / "library").glob("*.html")}
    assert "maskrcnn_edu.boxes" in chapters["05_overlap_deltas_nms"]
    for chapter, named in chapters.items():
        assert named, f"{chapter} links to no module"
        assert all(chapter in modules[module] for module in named)
    for module, named in modules.items():
        if module != "index":
            package = module.rpartition(".")[0]  # the gallery links to `plots`, not to each of its files
            assert all({module, package} & chapters[chapter] for chapter in named), module


@pytest.mark.book
def test_modules_tell_who_builds_them_from_who_shows_them(site):
    def said(module):
        return re.sub(r"\s+", " ", re.sub("<[^>]*>", "", article(site / "library" / f"maskrcnn_edu.{module}.html")))

    assert "Built in 05 Overlap, deltas and NMS." in said("boxes")
    assert "Built in 06 The region proposal network, 08 Heads and their targets." in said("targets")
    assert "Shown in 90 Gallery." in said("plots.regions") and "Built" not in said("plots.regions")


@pytest.mark.book
def test_preface_links_to_every_chapter(site):
    """Each chapter has a row that is a link; each step of the seed's notebooks a link, or the word `planned`."""
    assert links(site / "index.html", "notebooks") == {path.stem for path in (site / "notebooks").glob("*.html")}
    rows = [re.sub("\n", " ", row) for row in re.findall(r"<tr.*?</tr>", article(site / "index.html"), re.DOTALL)]
    titled = [row for row in rows if re.search(r'href="notebooks/(\d\d)_\w+\.html"><span[^>]*>\1 · ', row)]
    assert len(titled) == len(list((site / "notebooks").glob("*.html")))
    steps = [row for row in rows if re.search(r"<p>(demo|inspect_\w+|train_shapes)</p>", row)]
    assert len(steps) > 30 and all('href="notebooks/' in row or "planned" in row for row in steps)


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
