"""The static site: sphinx-build -W book book/_build/site. Committed outputs, and nothing loaded from elsewhere."""

import ast
import importlib
import pkgutil
import re
import sys
from pathlib import Path

BOOK = Path(__file__).resolve().parent
sys.path[:0] = [str(BOOK.parent), str(BOOK)]

import build  # noqa: E402

import maskrcnn_edu  # noqa: E402

project = "maskrcnn_edu"
author = copyright = "maskrcnn_edu contributors"
release = maskrcnn_edu.__version__
REPOSITORY = "https://github.com/maskrcnn-edu/maskrcnn_edu"  # as the chapters' badges have it

extensions = [
    "myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode", "sphinx.ext.mathjax",
    "sphinx-mathjax-offline", "sphinx_copybutton",
]  # fmt: skip
exclude_patterns = ["_build", "src", "assignments", "AUTHORS.md", "**/.ipynb_checkpoints"]
nb_execution_mode = "off"
nb_ipywidgets_js = {"widgets.js": {"defer": "defer"}}  # instead of Jupyter's manager, which comes from another host
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 3
myst_links_external_new_tab = False
suppress_warnings = ["mystnb.unknown_mime_type"]  # a widget's view in a page that is not HTML
autodoc_default_options = {
    "members": True, "member-order": "bysource", "show-inheritance": True, "ignore-module-all": True,
}  # fmt: skip
autodoc_inherit_docstrings = False  # Keras' own are on Keras' site
napoleon_use_ivar = True
autodoc_typehints = "none"  # docstrings say it
python_use_unqualified_type_names = True
default_role = "code"  # docstrings write `name`
copybutton_selector = "div.cell_input div.highlight pre, div.highlight-bash pre"

html_title = "Mask R-CNN, one idea per file"
html_theme = "sphinx_book_theme"
html_static_path = ["_static"]
html_css_files = ["book.css"]
html_copy_source = False
html_context = {"default_mode": "auto"}  # light or dark as the reader's system has it
html_theme_options = {
    "repository_url": REPOSITORY,
    "repository_branch": "main",
    "path_to_docs": "book",
    "use_repository_button": True,
    "use_download_button": False,
    "show_navbar_depth": 1,
    "show_toc_level": 2,
    "navbar_persistent": [],  # the side bar has the search
    "home_page_in_toc": True,
    "navigation_with_keys": True,
}

INSIDE = {"maskrcnn_edu.cli", "maskrcnn_edu.cli_weights", "maskrcnn_edu.commands"}  # described by --help


def modules():
    """Dotted names of the library's modules, without those that only speak to the terminal."""
    found = pkgutil.walk_packages(maskrcnn_edu.__path__, "maskrcnn_edu.")
    return sorted({module.name for module in found} - INSIDE)


def chapters_of_module():
    """module -> what its page says of the chapters that build some of it, and of those that only show or use it."""
    found = {}
    for source in build.chapters():
        about, text = build.about(source), source.read_text(encoding="utf-8")
        link = f"[{source.stem[:2]} {about['title']}](../notebooks/{source.stem}.ipynb)"
        for name in sorted({*about["library"], *map(module_of, FILE.findall(text))}):
            files = [path for path in build.module_files(name) if path.suffix == ".py"]
            theirs = set().union(*(names(path.read_text(encoding="utf-8")) for path in files))
            how = "Built" if names(text) & theirs else "Shown"
            found.setdefault(f"maskrcnn_edu.{name}", {"Built": [], "Shown": []})[how].append(link)
    return {
        name: " ".join(f"{how} in {', '.join(links)}." for how, links in chapters.items() if links)
        for name, chapters in found.items()
    }


def names(code):
    """The public functions and classes that Python code defines, a chapter's or a module's."""
    defined = (node.name for node in ast.parse(code).body if isinstance(node, (ast.FunctionDef, ast.ClassDef)))
    return {name for name in defined if not name.startswith("_")}


def write_library_pages(app):
    """A page for each module, from its docstrings, with the chapters that build or show it; and their list."""
    folder = BOOK / "library"
    folder.mkdir(exist_ok=True)
    chapters, rows, wanted = chapters_of_module(), [], {"index.md"}
    for name in modules():
        where = chapters.get(name) or chapters.get(name.rpartition(".")[0], "")
        page = f"# {name.removeprefix('maskrcnn_edu.')}\n\n{where}\n\n```{{eval-rst}}\n.. automodule:: {name}\n```\n"
        _write(folder / f"{name}.md", page)
        wanted.add(f"{name}.md")
        first = (importlib.import_module(name).__doc__ or "").strip().split("\n")[0]
        rows.append(f"| [{name.removeprefix('maskrcnn_edu.')}]({name}.md) | {first} | {where} |")
    table = "\n".join(["| module | what it holds | chapters |", "|---|---|---|", *rows])
    toctree = "```{toctree}\n:hidden:\n" + "\n".join(modules()) + "\n```"
    _write(folder / "index.md", f"# The library\n\n{table}\n\n{toctree}\n")
    for path in folder.iterdir():
        if path.name not in wanted:
            path.unlink()


def _write(path, text):
    if not path.is_file() or path.read_text(encoding="utf-8") != text:  # or Sphinx would read it again
        path.write_text(text, encoding="utf-8")


BADGE = re.compile(r"!\[([^\]]*)\]\(https?://[^)]*\)")  # a picture from another host: its words instead
FILE = re.compile(re.escape(REPOSITORY) + r"/blob/main/maskrcnn_edu/([\w/]+)\.py")


def module_of(file):
    """`datasets.shapes` of datasets/shapes, `plots` of plots/__init__."""
    return file.replace("/", ".").removesuffix(".__init__")


def stay_here(app, docname, source):
    """Badges as words, links to library files as links to their pages."""
    library = "../library" if "/" in docname else "library"

    def page(match):
        name = f"maskrcnn_edu.{module_of(match[1])}"
        return f"{library}/{name}.md" if name in modules() else match[0]

    if docname == "index" or docname.startswith("notebooks/"):
        source[0] = FILE.sub(page, BADGE.sub(r"\1", source[0]))


def plain_words(app, what, name, obj, options, lines):
    """Docstrings are plain words with `names`: asterisks and bars mean themselves, indented lines are examples."""
    for i, line in enumerate(lines):
        if line.endswith(":") and i + 2 < len(lines) and not lines[i + 1] and lines[i + 2].startswith("    "):
            lines[i] = line + ":"  # what follows is an example
        parts = re.split(r"(``[^`]*``|`[^`]*`)", lines[i])
        lines[i] = "".join(
            p if p.startswith("`") or line.startswith("    ") else MARKUP.sub(r"\\\g<0>", p) for p in parts
        )


MARKUP = re.compile(r"[*|]|(?<=\w)_(?!\w)")


def only_ours(app, what, name, obj, skip, options):
    """What a class has from elsewhere, such as matplotlib's methods, is described there."""
    home = getattr(obj, "__module__", None) or "maskrcnn_edu"
    return True if not home.startswith("maskrcnn_edu") else None


def setup(app):
    app.connect("builder-inited", write_library_pages)
    app.connect("autodoc-skip-member", only_ours)
    app.connect("autodoc-process-docstring", plain_words, priority=1)  # before napoleon
    app.connect("source-read", stay_here)
