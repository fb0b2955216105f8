"""Makes book/notebooks/*.ipynb from book/src/*.py: runs each in a clean kernel and stores what it prints and draws.

python book/build.py            every chapter
python book/build.py 05 06      those
python book/build.py --stale    those whose source or library files have changed since they ran
"""

import argparse
import ast
import base64
import gzip
import hashlib
import io
import json
import os
import re
import sys
from pathlib import Path

import jupytext
import nbformat
import oxipng
from nbclient import NotebookClient
from PIL import Image

BOOK = Path(__file__).resolve().parent
ROOT, SOURCES, NOTEBOOKS = BOOK.parent, BOOK / "src", BOOK / "notebooks"
KERNEL = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
LANGUAGE = {"name": "python", "file_extension": ".py", "mimetype": "text/x-python", "pygments_lexer": "ipython3"}
STARTUP = re.compile(r"[IW]\d{4} |WARNING: All log messages before absl|$")
LIMIT = 2**20  # bytes of a notebook
COLOURS = 128  # of a stored picture
CELL_TIMEOUT = 120  # seconds
VIEW, STATE = "application/vnd.jupyter.widget-view+json", "application/vnd.jupyter.widget-state+json"
UNPACK = """const packed = Uint8Array.from(atob("%s"), (c) => c.charCodeAt(0));
const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
const code = new Blob([await new Response(stream).text()], { type: "text/javascript" });
export default (await import(URL.createObjectURL(code))).default;
"""  # a widget's code: every widget brings the same 20 kB along
LISTS = re.compile(r"\[\n\s+[\d.e+-]+(?:,\n\s+[\d.e+-]+)*\n\s*\]")  # of numbers: a line for each, not one a number
MACHINE = re.compile(r"(?<![\w.$}~*:/-])/(?:hom[e]|roo[t]|tm[p]|User[s]|wor[k]|op[t]|us[r])/\w|\b[A-Z]:\\\\?User[s]")


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("chapters", nargs="*", metavar="NN", help="numbers or whole names; none means all")
    parser.add_argument("--stale", action="store_true", help="only what is older than its source or library files")
    options = parser.parse_args(arguments)
    for source in chapters(options.chapters):
        if options.stale and not outdated(source):
            continue
        print(f"{source.stem} ...", end=" ", flush=True)
        print(f"{build(source) / 1000:.0f} kB")
    return 0


def chapters(wanted=()) -> list[Path]:
    """The sources, in order; with `wanted`, those whose names start with one of these."""
    found = [path for path in sorted(SOURCES.glob("[0-9]*.py")) if not wanted or path.name.startswith(tuple(wanted))]
    if not found:
        sys.exit(f"No chapter in {SOURCES.relative_to(ROOT)} starts with {' or '.join(wanted)}.")
    return found


def build(source: Path) -> int:
    """Runs one chapter and writes its notebook; returns its size in bytes. Any error leaves the old one in place."""
    notebook = read(source)
    run(notebook)
    clean(notebook)
    shrink(notebook)
    notebook.metadata["book"]["digests"] = digests(source)
    text = LISTS.sub(lambda numbers: " ".join(numbers[0].split()), nbformat.writes(notebook)) + "\n"
    problems = complaints(notebook, len(text.encode()))
    if problems:
        sys.exit(f"\n{source.stem}: " + "\n".join(problems))
    part = NOTEBOOKS / f".{source.stem}.part"
    part.write_text(text, encoding="utf-8")
    os.replace(part, notebook_of(source))
    return len(text.encode())


def notebook_of(source: Path) -> Path:
    return NOTEBOOKS / f"{source.stem}.ipynb"


def read(source: Path):
    """The notebook that a source stands for, without outputs. Its cells are numbered, so that ids stay the same."""
    notebook = jupytext.read(source, fmt="py:percent")
    notebook.metadata = nbformat.from_dict({"kernelspec": KERNEL, "language_info": LANGUAGE, "book": about(source)})
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number:03d}"
    return notebook


def about(source: Path) -> dict:
    """What the header says: `title`, and `library`, the modules of which the chapter shows results (maybe none)."""
    header = jupytext.read(source, fmt="py:percent").metadata.get("book", {})
    return {"title": header.get("title", source.stem), "library": list(header.get("library", []))}


def run(notebook):
    """Executes in place, as a reader on a quiet machine without a GPU would."""
    environment = {k: v for k, v in os.environ.items() if k not in ("MPLBACKEND", "KERAS_BACKEND")}
    environment |= {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "", "PYTHONHASHSEED": "0"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), environment.get("PYTHONPATH")]))
    client = NotebookClient(
        notebook, timeout=CELL_TIMEOUT, kernel_name="python3", record_timing=False, resources=_resources()
    )
    client.execute(env=environment)


def _resources():
    NOTEBOOKS.mkdir(exist_ok=True)
    return {"metadata": {"path": str(NOTEBOOKS)}}


def clean(notebook):
    """Takes out what differs from run to run, and widgets that are dead without a kernel: their pictures stay.

    An anywidget brings its JavaScript along and answers anywhere. A core widget (a slider, an image) needs Python.
    """
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = _joined(output for output in cell.outputs if not _is_startup(output))
    saved = notebook.metadata.get("widgets", {}).get(STATE, {}).get("state", {})
    shown, names = [], {}
    for output in (output for cell in notebook.cells for output in cell.get("outputs", [])):
        output.get("metadata", {}).pop("widgets", None)
        model = output.get("data", {}).get(VIEW, {}).get("model_id")
        if model is None:
            continue
        if "_esm" in saved.get(model, {}).get("state", {}):
            shown.append(model)
        elif len(output.data) > 1:
            del output.data[VIEW]
    for model in shown:  # a widget needs its layout, too
        _reach(model, saved, names)
    notebook.metadata.pop("widgets", None)
    if names:
        kept = {"version_major": 2, "version_minor": 0, "state": {model: saved[model] for model in names}}
        notebook.metadata["widgets"] = {STATE: kept}
    text = json.dumps(notebook)
    for model, name in names.items():
        text = text.replace(model, name)
    notebook.update(nbformat.from_dict(json.loads(text)))


def _joined(outputs) -> list:
    """Outputs with neighbouring pieces of one stream as one: where Jupyter cuts a text depends on the clock."""
    joined = []
    for output in outputs:
        last = joined[-1] if joined else {}
        if output.output_type == "stream" and last.get("name") == output.name:
            last.text += output.text
        else:
            joined.append(output)
    return joined


def _is_startup(output):
    """Whether this is what TensorFlow's C++ tells stderr when it is imported, which no setting silences."""
    return output.get("name") == "stderr" and all(map(STARTUP.match, output.text.split("\n")))


def _reach(model, saved, names):
    """Numbers `model` and every model that its state points to, in the order in which they are met."""
    if model in names or model not in saved:
        return
    names[model] = f"{len(names) + 1:032x}"
    for other in re.findall(r"IPY_MODEL_(\w+)", json.dumps(saved[model]["state"])):
        _reach(other, saved, names)


def shrink(notebook):
    """Stores pictures with a palette and widgets' code packed: a third of the bytes.

    What a widget's layout leaves open is not stored, nor are comment lines and indents of its code and style.
    """
    for output in (output for cell in notebook.cells for output in cell.get("outputs", [])):
        if "image/png" in output.get("data", {}):
            output.data["image/png"] = _with_palette(output.data["image/png"])
    for model in notebook.metadata.get("widgets", {}).get(STATE, {}).get("state", {}).values():
        if model["model_name"] == "LayoutModel":
            model["state"] = {name: value for name, value in model["state"].items() if value is not None}
        for name in {"_esm", "_css"} & model["state"].keys():
            model["state"][name] = re.sub(r"^[ \t]*(//.*\n)?", "", model["state"][name], flags=re.MULTILINE)
        if "_esm" in model["state"]:
            packed = gzip.compress(model["state"]["_esm"].encode(), mtime=0)
            model["state"]["_esm"] = UNPACK % base64.b64encode(packed).decode("ascii")


def _with_palette(encoded) -> str:
    """A PNG in base64 with at most COLOURS colours, or with all it has, if it has transparent parts.

    Of Pillow's ways this one is nearest to photographs, and leaves the colours of surfaces as they are.
    """
    picture = Image.open(io.BytesIO(base64.b64decode(encoded))).convert("RGBA")
    if picture.getchannel("A").getextrema() != (255, 255):
        return _packed(picture)
    return _packed(
        picture.convert("RGB").quantize(COLOURS, Image.Quantize.MEDIANCUT, kmeans=8, dither=Image.Dither.NONE)
    )


def _packed(picture) -> str:
    """A small PNG of a picture as it is, in base64."""
    written = io.BytesIO()
    picture.save(written, "png")
    return base64.b64encode(oxipng.optimize_from_memory(written.getvalue(), level=4)).decode("ascii")


def complaints(notebook, size) -> list[str]:
    """What keeps a run notebook out of the book, in sentences."""
    found = [f"{size} bytes are more than {LIMIT}; draw smaller or fewer pictures."] if size > LIMIT else []
    for number, cell in enumerate(notebook.cells):
        for output in cell.get("outputs", []):
            said = output.get("text", "") + str(output.get("data", {}).get("text/plain", ""))
            where = f"Cell {number} ({cell.source.strip().splitlines()[0][:60]!r})"
            if output.output_type == "error":
                found.append(f"{where} raised {output.ename}: {output.evalue}.")
            if output.get("name") == "stderr":
                found.append(f"{where} wrote to stderr: {said.strip()[:200]}")
            if " at 0x" in said:
                found.append(f"{where} shows an address in memory, another in every run; end a figure in plt.show().")
            if MACHINE.search(said):
                found.append(f"{where} shows a path of this machine: {said.strip()[:200]}")
    return found


def digests(source: Path) -> dict[str, str]:
    """What a chapter's outputs depend on: its source, and the code of the library files that its header names.

    Those files are the ones whose results the chapter shows. Their comments and docstrings do not count, nor does
    the rest of the library: the tests run every chapter anyway, and compare what it prints where that is marked.
    """
    library = about(source)["library"]
    files = {source.relative_to(ROOT).as_posix(): _hash(source.read_text(encoding="utf-8"))}
    for path in sorted(p for name in library for p in module_files(name)):
        text = path.read_text(encoding="utf-8")
        files[path.relative_to(ROOT).as_posix()] = _hash(_code(text) if path.suffix == ".py" else text)
    return files


def module_files(name) -> list[Path]:
    """The file of `boxes` or `datasets.shapes`, or all those of a folder such as `widgets`, JavaScript and CSS, too."""
    path = ROOT / "maskrcnn_edu" / name.replace(".", "/")
    parts = path.iterdir() if path.is_dir() else [path.with_suffix(".py")]
    files = sorted(part for part in parts if part.suffix in (".py", ".js", ".css"))
    if not files or not files[0].is_file():
        sys.exit(f"A chapter's header names the library file {name!r}, which does not exist.")
    return files


def _code(text) -> str:
    """Python without docstrings, comment lines and empty lines; the same from every version of Python."""
    lines = text.splitlines()
    for node in ast.walk(ast.parse(text)):
        body = getattr(node, "body", None)
        first = body[0] if isinstance(body, list) and body else None
        if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
            lines[first.lineno - 1 : first.end_lineno] = [""] * (first.end_lineno - first.lineno + 1)
    return "\n".join(line for line in lines if line.strip() and not line.lstrip().startswith("#"))


def _hash(text) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def outdated(source: Path) -> list[str]:
    """Files that changed since the chapter's notebook was made; the notebook itself where there is none."""
    notebook = notebook_of(source)
    if not notebook.is_file():
        return [notebook.relative_to(ROOT).as_posix()]
    stored = nbformat.read(notebook, as_version=4).metadata.get("book", {}).get("digests", {})
    now = digests(source)
    return sorted(name for name in stored.keys() | now.keys() if stored.get(name) != now.get(name))


if __name__ == "__main__":
    sys.exit(main())
