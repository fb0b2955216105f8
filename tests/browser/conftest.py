"""A real browser, a real JupyterLab and one notebook with every widget, shared by the tests of this folder."""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
TOKEN = "for-this-test-only"


def missing(reason):
    """Without what a browser test needs: in CI (the variable CI is set) a failure, for a developer a skip."""
    (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)


def find_browser():
    return next(filter(None, map(shutil.which, BROWSERS)), None)


@pytest.fixture(scope="session")
def chromium():
    """Path of a Chromium, which CI installs with apt-get where there is none."""
    if find_browser() is None and os.environ.get("CI") and shutil.which("apt-get"):
        sudo = [] if os.geteuid() == 0 else ["sudo", "-n"]
        for command in (["update"], ["install", "-y", "--no-install-recommends", "chromium", "fonts-dejavu-core"]):
            done = subprocess.run([*sudo, "apt-get", *command], capture_output=True, text=True)
            if done.returncode:
                pytest.fail(f"apt-get {command[0]} failed, so there is no browser: {done.stderr[-500:]}")
    return find_browser() or missing("There is no Chromium; install it, such as with: apt-get install chromium")


@pytest.fixture(scope="session")
def browser(chromium):
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as engine:
        launched = engine.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """widgets.ipynb, executed: a cell for each widget. JupyterLab runs it again, nbconvert makes a page of it."""
    import nbformat
    from nbclient import NotebookClient

    from maskrcnn_edu.widgets import __all__ as names

    folder = tmp_path_factory.mktemp("notebook")
    cells = ["import maskrcnn_edu as mr", *(f"{name} = mr.widgets.{name}()\n{name}" for name in names)]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code) for code in cells])
    notebook.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(folder)}}).execute()
    nbformat.write(notebook, folder / "widgets.ipynb")
    return folder


@pytest.fixture(scope="session")
def server(folder):
    """The address of a JupyterLab in that folder."""
    settings = folder / "settings"
    settings.mkdir()
    (settings / "overrides.json").write_text('{"@jupyterlab/apputils-extension:notification": {"fetchNews": "false"}}')
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={port}",
        f"--IdentityProvider.token={TOKEN}", "--LabApp.expose_app_in_browser=True",
        f"--LabApp.app_settings_dir={settings}",
        f"--ServerApp.root_dir={folder}",
    ]  # fmt: skip
    with open(folder / "server.log", "w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder)
    address = f"http://127.0.0.1:{port}"
    for _ in range(240):
        with contextlib.suppress(OSError):
            urllib.request.urlopen(f"{address}/api/status?token={TOKEN}", timeout=2)
            break
        if process.poll() is not None:
            pytest.fail(f"JupyterLab ended at once: {(folder / 'server.log').read_text()[-1000:]}")
        time.sleep(0.25)
    yield address
    process.terminate()
    process.wait(timeout=20)


@pytest.fixture(scope="session")
def lab(browser, server):
    """JupyterLab's page with all widgets, run in its own kernel; what its console said is in `page.errors`."""
    page = watched(browser.new_page(viewport={"width": 1200, "height": 1000}))
    page.goto(f"{server}/lab/tree/widgets.ipynb?token={TOKEN}&reset")
    page.wait_for_function(
        "window.jupyterapp && window.jupyterapp.shell.currentWidget?.context?.isReady", timeout=60_000
    )
    page.evaluate("window.jupyterapp.shell.currentWidget.sessionContext.ready")
    page.evaluate("window.jupyterapp.commands.execute('application:toggle-left-area')")
    page.evaluate("window.jupyterapp.commands.execute('notebook:run-all-cells')")
    from maskrcnn_edu.widgets import __all__ as names

    page.wait_for_function(f"document.querySelectorAll('.mrw').length === {len(names)}", timeout=120_000)
    yield page
    page.close()


def watched(page):
    """The page, with `errors`: what its console and its exceptions said, but for resources that it could not load."""
    page.errors = []
    page.on("pageerror", lambda error: page.errors.append(str(error)))
    page.on(
        "console",
        lambda message: (
            page.errors.append(message.text)
            if message.type == "error" and "Failed to load resource" not in message.text
            else None
        ),
    )
    return page
