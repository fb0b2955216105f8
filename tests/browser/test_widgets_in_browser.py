"""Each widget in JupyterLab, and on a page without a kernel: keys, mouse, picture, Python's state, themes, latency."""

import json
import re
import shutil
import statistics
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from conftest import missing, watched

import maskrcnn_edu as mr

pytestmark = pytest.mark.browser
WIDGETS = mr.widgets.__all__
# What is moved, with which key, and which of the shown numbers Python knows by which expression.
MOVES = {
    "AnchorExplorer": ("box", "ArrowRight", {"Best IoU": "w.best_iou", "Positive": "w.positives"}),
    "DetectionExplorer": ("mask_threshold", "ArrowRight", {"Detections": "len(w.detections)"}),
    "FieldExplorer": (
        "place", "ArrowRight",
        {"C2 can see": "w.fields[0][2] - w.fields[0][0]", "P2 does see": "w.sides[1]", "Cell": "w.cell[0]"},
    ),
    "IoUPlayground": ("box_a", "ArrowRight", {"IoU": "w.iou", "GIoU": "w.giou", "dx": "w.deltas[1]"}),
    "MaskExplorer": ("box", "ArrowRight", {"Pixels": "w.pasted.sum()", "IoU with the true mask": "w.iou"}),
    "MatchingExplorer": (
        "negative", "PageDown",
        {"Positive": "w.counts['positive']", "Neutral": "w.counts['neutral']", "Negative": "w.counts['negative']"},
    ),
    "NMSStepper": ("step", "ArrowRight", {"Kept at the end": "w.keep.sum()"}),
    "PrecisionRecallExplorer": (
        "score_threshold", "PageUp",
        {"AP": "w.average_precision", "Precision": "w.precision", "Recall": "w.recall"},
    ),
    "ProposalExplorer": ("top_k", "ArrowLeft", {"Proposals": "len(w.proposals)", "Recall": "w.recall"}),
    "ResizeExplorer": (
        "height", "PageUp", {"Detectron2": "w.sizes['Detectron2'][0]", "The seed": "w.sizes['The seed'][0]"},
    ),
    "RoIAlignExplorer": (
        "roi", "ArrowRight",
        {"RoIAlign": "w.align_output[tuple(w.bin)]", "RoIPool": "w.pool_output[tuple(w.bin)]"},
    ),
    "TrainingMonitor": ("cursor", "ArrowLeft", {"Step": "w.steps[w.cursor]", "loss": "w.columns['loss'][w.cursor]"}),
}  # fmt: skip
LIMIT_MS = {"ProposalExplorer": 150, "DetectionExplorer": 150, "TrainingMonitor": 150}  # the others: 100


def widget(page, name):
    """The element of a widget, in sight."""
    found = page.locator(".mrw").nth(WIDGETS.index(name))
    found.scroll_into_view_if_needed()
    return found


def drawn(element):
    """Everything that the pictures of a widget hold."""
    return element.evaluate("(root) => [...root.querySelectorAll('.mrw-picture')].map((svg) => svg.innerHTML).join()")


def shown(element, name):
    """The number that a widget shows under this name."""
    text = element.locator(f'dd[data-name="{name}"]').text_content()
    return float(re.match(r"-?[\d.]+", text)[0])


def settle(page):
    page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")


def press(page, element, control, key):
    element.locator(f'[data-name="{control}"]').first.focus()
    page.keyboard.press(key)
    settle(page)


def drag(page, element, control):
    """Takes the thing in its middle with the mouse and moves it; a slider's knob then lies elsewhere."""
    handle = element.locator(f'[data-name="{control}"]').first
    handle.scroll_into_view_if_needed()
    box = handle.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + 10, y + 6, steps=4)
    page.mouse.move(x + 25, y + 15, steps=4)
    page.mouse.up()
    settle(page)


def in_kernel(page, code):
    """What the notebook's kernel prints."""
    return page.evaluate(
        """async (code) => {
            const kernel = window.jupyterapp.shell.currentWidget.sessionContext.session.kernel;
            const future = kernel.requestExecute({ code });
            let said = "";
            future.onIOPub = (message) => {
                const { msg_type: kind } = message.header, { name, text, traceback } = message.content;
                if (kind === "stream" && name === "stdout") said += text;
                if (kind === "error") said += traceback.join("\\n");
            };
            await future.done;
            return said;
        }""",
        code,
    )


@pytest.mark.parametrize("name", WIDGETS)
def test_answers_in_jupyterlab(lab, name):
    control, key, numbers = MOVES[name]
    element = widget(lab, name)
    assert element.bounding_box()["width"] > 600 and element.locator(".mrw-picture").count() >= 1
    name_of_number, number = (element.locator(f"{tag} >> nth=0").bounding_box() for tag in ("dt", "dd"))
    assert abs(name_of_number["y"] - number["y"]) < 3, "JupyterLab's style of lists has got in"
    before = drawn(element)
    press(lab, element, control, key)
    assert drawn(element) != before, "the key changed nothing"
    before = drawn(element)
    drag(lab, element, control)
    assert drawn(element) != before, "the mouse changed nothing"
    values = {label: shown(element, label) for label in numbers}
    expressions = ", ".join(f"{json.dumps(label)}: float({code})" for label, code in numbers.items())
    in_python = json.loads(in_kernel(lab, f"import json; w = {name}; print(json.dumps({{{expressions}}}))"))
    for label, value in values.items():
        assert value == pytest.approx(in_python[label], abs=2e-3 if value < 10 else 0.5), label
    assert lab.errors == []


def test_python_moves_the_picture(lab):
    element = widget(lab, "IoUPlayground")
    in_kernel(lab, "IoUPlayground.box_a = IoUPlayground.box_b")
    lab.wait_for_function(
        "(i) => document.querySelectorAll('.mrw')[i].querySelector('dd[data-name=IoU]').textContent === '1.000'",
        arg=WIDGETS.index("IoUPlayground"), timeout=5000,
    )  # fmt: skip
    assert shown(element, "GIoU") == 1.0


@pytest.mark.parametrize("name", WIDGETS)
def test_latency_from_key_to_picture(lab, name, capsys):
    control, key, _ = MOVES[name]
    element = widget(lab, name)
    back = {"ArrowRight": "ArrowLeft", "ArrowLeft": "ArrowRight", "PageUp": "PageDown", "PageDown": "PageUp"}[key]
    element.evaluate(
        """(root) => {
            window.latencies = [];
            let pressed = null;
            root.addEventListener("keydown", () => (pressed = performance.now()), true);
            new MutationObserver(() => {
                if (pressed === null) return;
                const start = pressed;
                pressed = null;
                requestAnimationFrame(() => setTimeout(() => window.latencies.push(performance.now() - start)));
            }).observe(root.querySelector(".mrw-pictures"), { subtree: true, childList: true, attributes: true });
        }"""
    )
    for k in [key, key, back, back] * 4:
        before = drawn(element)
        press(lab, element, control, k)
        assert drawn(element) != before
        lab.wait_for_timeout(30)
    times = lab.evaluate("window.latencies")
    assert len(times) >= 12
    with capsys.disabled():
        limit = LIMIT_MS.get(name, 100)
        print(f"\n{name}: median {statistics.median(times):.0f} ms, worst {max(times):.0f}, limit {limit}")


CONTRAST = """(root) => {
    const light = (colour) => {
        const [r, g, b] = colour.match(/[\\d.]+/g).slice(0, 3).map((v) => v / 255)
            .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    let behind = root;
    const clear = (node) => /rgba\\(.*, 0\\)|transparent/.test(getComputedStyle(node).backgroundColor);
    while (clear(behind) && behind.parentElement) behind = behind.parentElement;
    const paper = light(getComputedStyle(behind).backgroundColor);
    const texts = [".mrw-help", "dt", "dd", "label"].map((what) => root.querySelector(what)).filter(Boolean);
    return Math.min(...texts.map((node) => {
        const ink = light(getComputedStyle(node).color);
        return (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05);
    }));
}"""


@pytest.mark.parametrize("theme", ["JupyterLab Dark", "JupyterLab Light"])
def test_legible_in_both_themes(lab, theme):
    lab.evaluate("(theme) => window.jupyterapp.commands.execute('apputils:change-theme', { theme })", theme)
    lab.wait_for_function("(light) => document.body.dataset.jpThemeLight === String(light)", arg="Light" in theme)
    lab.wait_for_timeout(300)
    for name in WIDGETS:
        assert widget(lab, name).evaluate(CONTRAST) >= 4.5, name  # WCAG 2.1, 1.4.3


def test_every_control_has_a_name_and_shows_its_focus(lab):
    for name in WIDGETS:
        element = widget(lab, name)
        assert element.get_attribute("role") == "group" and element.get_attribute("aria-label")
        for control in element.locator("input, select, button, [tabindex]").all():
            label = control.get_attribute("aria-label") or control.text_content()
            assert label and label.strip(), (name, control.evaluate("(node) => node.outerHTML.slice(0, 200)"))
        for handle in element.locator(".mrw-drag").all():
            ring = """(node) => [...node.children].map((part) => {
                const { stroke, strokeWidth } = getComputedStyle(part);
                return stroke + strokeWidth;
            }).join()"""
            element.evaluate("() => document.activeElement.blur()")
            plain = handle.evaluate(ring)
            handle.focus()
            assert handle.evaluate(ring) != plain, name


# Without a kernel


@pytest.fixture(scope="session")
def page_without_kernel(browser, folder, tmp_path_factory):
    """The notebook as nbconvert makes a page of it. What that fetches from a CDN is answered from local packages."""
    packages = tmp_path_factory.mktemp("npm")
    local = {
        "require.min.js": package(packages, "requirejs", "require.js"),
        "embed-amd.js": package(packages, "@jupyter-widgets/html-manager", "dist/embed-amd.js"),
        "anywidget": Path(__import__("anywidget").__file__).parent / "nbextension" / "index.js",
    }
    subprocess.run(
        [sys.executable, "-m", "nbconvert", "--to", "html", "widgets.ipynb"],
        cwd=folder,
        check=True,
        capture_output=True,
    )
    page = watched(browser.new_page(viewport={"width": 1000, "height": 1000}))

    def answer(route):
        found = next((path for part, path in local.items() if part in route.request.url), None)
        if route.request.url.startswith("file:"):
            route.continue_()
        elif found is None:
            route.abort()
        else:
            route.fulfill(path=found, content_type="text/javascript")

    page.route("**/*", answer)
    page.goto(f"file://{folder}/widgets.html")
    page.wait_for_function(f"document.querySelectorAll('.mrw').length === {len(WIDGETS)}", timeout=60_000)
    yield page
    page.close()


def package(folder, name, file):
    """A file of a package of npm's."""
    if shutil.which("npm") is None:
        missing("There is no npm to fetch what nbconvert's page loads from a CDN; install Node.js.")
    done = subprocess.run(["npm", "pack", "--silent", name], cwd=folder, capture_output=True, text=True)
    if done.returncode:
        missing(f"npm pack {name} failed: {done.stderr[-300:]}")
    with tarfile.open(folder / done.stdout.strip().splitlines()[-1]) as archive:
        archive.extract(f"package/{file}", folder / name.replace("/", "-"), filter="data")
    return folder / name.replace("/", "-") / "package" / file


@pytest.mark.parametrize("name", WIDGETS)
def test_answers_without_a_kernel(page_without_kernel, name):
    page, (control, key, numbers) = page_without_kernel, MOVES[name]
    element = widget(page, name)
    before = drawn(element)
    press(page, element, control, key)
    assert drawn(element) != before, "the key changed nothing"
    before = drawn(element)
    drag(page, element, control)
    assert drawn(element) != before, "the mouse changed nothing"
    assert all(shown(element, label) is not None for label in numbers)
    assert page.errors == []


@pytest.mark.parametrize("name", WIDGETS)
def test_tab_reaches_every_control(page_without_kernel, name):
    page, element = page_without_kernel, widget(page_without_kernel, name)
    controls = "[...root.querySelectorAll('input, select, button, [tabindex]')].filter((node) => !node.disabled)"
    count = element.evaluate(f"(root) => {{ const all = {controls}; all[0].focus(); return all.length; }}")
    for i in range(1, count):
        page.keyboard.press("Tab")
        assert element.evaluate(f"(root) => {controls}.indexOf(document.activeElement)") == i


def test_a_notebook_without_widget_state_shows_pictures(folder):
    import nbformat
    from nbconvert import HTMLExporter

    notebook = nbformat.read(folder / "widgets.ipynb", 4)
    del notebook.metadata["widgets"]
    page, _ = HTMLExporter().from_notebook_node(notebook)
    assert page.count('src="data:image/png;base64') == len(WIDGETS)
