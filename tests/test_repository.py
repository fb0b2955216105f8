"""The tree itself: nothing of one machine in it, nothing too large, and its statements agree."""

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
KEPT = {".ci", ".github", ".gitignore", ".gitattributes", ".pre-commit-config.yaml"}
BUILT = {"__pycache__", "build", "dist"}
BINARY = {".keras", ".h5", ".npz", ".npy", ".png", ".jpg", ".jpeg", ".gif", ".ico", ".woff2", ".mp4"}

# Square brackets keep a pattern from finding itself.
MACHINE = re.compile(r"(?<![\w.$}~*-])/(?:wor[k]|hom[e]|roo[t]|tm[p]|User[s])/\w|\b[A-Z]:\\User[s]\\")
REGISTRY = re.compile(
    r"\bpyp[i]\b|pythonhosted\.or[g]|index[-_]ur[l]|find[-_]link[s]|conda[-]forge|anaconda\.or[g]"
    r"|registry\.npmj[s]|artifactor[y]|devp[i]\b|trusted[-_]hos[t]",
    re.IGNORECASE,
)


def listed():
    """The files that git tracks; all files of a tree without git, such as an unpacked archive."""
    if (ROOT / ".git").exists() and shutil.which("git"):
        said = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True).stdout
        found = [ROOT / name for name in said.split("\0") if name]
        if found:
            return [path for path in found if path.is_file()]
    return [path for path in sorted(ROOT.rglob("*")) if path.is_file() and not ours_to_skip(path.relative_to(ROOT))]


def ours_to_skip(path):
    top = path.parts[0]
    return (top.startswith(".") and top not in KEPT) or any(
        part in BUILT or part.endswith((".egg-info", ".pyc")) for part in path.parts
    )


def lines(pattern):
    """Where pattern occurs in text files, as "file:line: text"; lines with embedded pictures are left out."""
    for path in listed():
        if path.suffix.lower() in BINARY:
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        for number, line in enumerate(text.splitlines(), 1):
            if len(line) < 5000 and pattern.search(line):
                yield f"{path.relative_to(ROOT)}:{number}: {line.strip()[:120]}"


def test_patterns_find_what_they_should():
    for bad in ("open('/" + "tmp/x')", "cd /" + "work/main", "/" + "home/me/x", "C:\\" + "Users\\me"):
        assert MACHINE.search(bad), bad
    for good in ("../" + "work/x", "$HOME/" + "tmp/x", "https://example.org/" + "home/x", "a/" + "tmp/b"):
        assert not MACHINE.search(good), good
    for bad in ("https://pyp" + "i.org/simple", "--index" + "-url x", "files.pythonhosted" + ".org"):
        assert REGISTRY.search(bad), bad


def test_no_absolute_path_of_a_machine():
    assert not list(lines(MACHINE))


def test_no_name_or_address_of_a_package_registry():
    assert not list(lines(REGISTRY))


def test_no_lock_file():
    names = {"package-lock.json", "pnpm-lock.yaml", "npm-shrinkwrap.json"}
    assert not [path for path in listed() if path.suffix == ".lock" or path.name in names]


def test_no_file_over_10_mib():
    assert not [str(path.relative_to(ROOT)) for path in listed() if path.stat().st_size > 10 * 2**20]


def test_one_version():
    code = re.search(r'^__version__ = "(.+)"$', (ROOT / "maskrcnn_edu/__init__.py").read_text(), re.MULTILINE)[1]
    cited = re.search(r"^version: (\S+)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)[1]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert cited == code
    assert "version" in project["project"]["dynamic"]
    assert project["tool"]["hatch"]["version"]["path"] == "maskrcnn_edu/__init__.py"
    assert f"[{code}]" in (ROOT / "CHANGELOG.md").read_text()


@pytest.mark.skipif(not shutil.which("bash"), reason="needs bash")
def test_readme_states_the_two_lines_that_ci_runs():
    said = subprocess.run(["bash", ".ci/run", "--show"], cwd=ROOT, capture_output=True, text=True)
    assert said.returncode == 0, said.stderr
    test, demo = said.stdout.splitlines()
    blocks = re.findall(r"^```bash\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    stated = [line for block in blocks for line in block.splitlines()]
    assert test in stated and demo in stated
    assert "-m pytest" in test
    assert demo.endswith("maskrcnn-edu demo")
