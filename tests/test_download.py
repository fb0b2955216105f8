"""Downloads that break off and go on, archives that want to leave their folder, and COCO from a server of our own."""

import http.server
import io
import json
import re
import stat
import threading
import zipfile

import numpy as np
import pytest
from PIL import Image

from maskrcnn_edu import download as module
from maskrcnn_edu.cli import main
from maskrcnn_edu.datasets import CocoDataset, coco_download
from maskrcnn_edu.download import download, unpack
from maskrcnn_edu.errors import InputError


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves parts of files, and hangs up after `server.most` bytes."""

    def do_GET(self):
        content, asked = self.server.files.get(self.path), self.headers.get("Range")
        self.server.asked.append((self.path, asked))
        if content is None:
            return self.send_error(404)
        start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) if asked and self.server.parts else 0
        if start >= len(content) > 0:
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(content)}")
            self.send_header("Content-Length", "0")
            return self.end_headers()
        self.send_response(206 if asked and self.server.parts else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        self.wfile.write(content[start : start + self.server.most])

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(module, "PATIENCE", 5)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.files, server.asked, server.most, server.parts = {}, [], 10**9, True
    server.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


CONTENT = np.random.default_rng(0).bytes(5000)


@pytest.mark.parametrize("parts", [True, False])
def test_a_download_that_broke_off_goes_on(server, tmp_path, parts):
    server.files["/x"], server.most, server.parts = CONTENT, 2000, parts
    with pytest.raises((OSError, ValueError)):
        download(f"{server.url}/x", tmp_path / "x")
    assert [path.name for path in tmp_path.iterdir()] == [".x.part"]
    server.most, seen = 10**9, []
    download(f"{server.url}/x", tmp_path / "x", progress=lambda *state: seen.append(state))
    assert (tmp_path / "x").read_bytes() == CONTENT and [path.name for path in tmp_path.iterdir()] == ["x"]
    assert server.asked[-1] == ("/x", "bytes=2000-") and seen[-1] == (5000, 5000)


@pytest.mark.parametrize("left", [CONTENT, CONTENT + b"more"])
def test_a_whole_part_is_taken_and_one_that_is_too_long_is_not(server, tmp_path, left):
    server.files["/x"] = CONTENT
    (tmp_path / ".x.part").write_bytes(left)
    download(f"{server.url}/x", tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == CONTENT


def test_a_file_with_a_flaw_is_not_kept(server, tmp_path):
    server.files["/x"] = CONTENT
    with pytest.raises(ValueError, match="not the published file: too dull"):
        download(f"{server.url}/x", tmp_path / "x", flaw=lambda path: "too dull")
    assert list(tmp_path.iterdir()) == []


def test_space_is_looked_at_first(server, tmp_path, monkeypatch):
    server.files["/x"] = CONTENT
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 100}))
    with pytest.raises(ValueError, match="GB free"):
        download(f"{server.url}/x", tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


def zipped(files, link=None):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
        if link:
            member = zipfile.ZipInfo(link)
            member.external_attr = (stat.S_IFLNK | 0o777) << 16
            archive.writestr(member, "../outside")
    return buffer.getvalue()


def test_unpacking_adds_what_is_not_there(tmp_path):
    archive = tmp_path / "a.zip"
    archive.write_bytes(zipped({"folder/new.txt": "new", "folder/old.txt": "new", "folder/deep/x.txt": "x"}))
    target = tmp_path / "target"
    (target / "folder").mkdir(parents=True)
    (target / "folder" / "old.txt").write_text("old")
    unpack(archive, target)
    found = {path.name: path.read_text() for path in target.rglob("*.txt")}
    assert found == {"new.txt": "new", "old.txt": "old", "x.txt": "x"}
    assert [path.name for path in target.iterdir()] == ["folder"]


@pytest.mark.parametrize(
    "content, words",
    [
        (zipped({"good.txt": "1", "../bad.txt": "2"}), "'../bad.txt' leaves"),
        (zipped({"good.txt": "1", "a/../../bad.txt": "2"}), "leaves"),
        (zipped({"good.txt": "1", "/bad.txt": "2"}), "leaves"),
        (zipped({"good.txt": "1", "..\\bad.txt": "2"}), "leaves"),
        (zipped({"good.txt": "1", "C:bad.txt": "2"}), "leaves"),
        (zipped({"good.txt": "1"}, link="folder"), "'folder' is a link"),
        (b"no zip at all", "cannot be unpacked"),
        (zipped({"good.txt": "1" * 1000}).replace(b"1" * 100, b"2" * 100), "CRC"),
        (zipped({"good.txt": "1" * 1000})[:-30], "cannot be unpacked"),
    ],
)
def test_bad_archives_leave_nothing(tmp_path, content, words):
    archive, target = tmp_path / "a.zip", tmp_path / "deep" / "target"
    target.mkdir(parents=True)
    archive.write_bytes(content)
    with pytest.raises(InputError, match=re.escape(words)):
        unpack(archive, target)
    assert list(target.iterdir()) == [] and sorted(p.name for p in tmp_path.rglob("*")) == ["a.zip", "deep", "target"]


def picture():
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((10, 8, 3), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def annotations(name):
    return json.dumps({
        "images": [{"id": 7, "file_name": name, "height": 10, "width": 8}],
        "categories": [{"id": 5, "name": "airplane", "keypoints": ["nose"], "skeleton": []}],
        "annotations": [{"id": 1, "image_id": 7, "category_id": 5, "bbox": [2, 1, 4, 4], "area": 16, "iscrowd": 0,
                         "segmentation": [[2, 1, 6, 1, 6, 5, 2, 5]], "keypoints": [3, 3, 2], "num_keypoints": 1}],
    })  # fmt: skip


@pytest.fixture
def coco(server, monkeypatch):
    """COCO's archives with a picture each, on the local server."""
    monkeypatch.setattr(coco_download, "COCO", f"{server.url}/")
    for year in ("2014", "2017"):
        names = [f"annotations/{kind}_{part}{year}.json" for kind in ("instances", "person_keypoints")
                 for part in ("train", "val")]  # fmt: skip
        server.files[f"/annotations/annotations_trainval{year}.zip"] = zipped({n: annotations("a.png") for n in names})
        for part in ("train", "val"):
            server.files[f"/zips/{part}{year}.zip"] = zipped({f"{part}{year}/a.png": picture()})
    for split in coco_download.MINIVAL:
        server.files[f"/{split}.json.zip"] = zipped({f"instances_{split}.json": annotations("a.png")})
        monkeypatch.setitem(coco_download.MINIVAL, split, f"{server.url}/{split}.json.zip")
    return server


@pytest.mark.parametrize("split", coco_download.SPLITS)
def test_every_split_is_fetched_once(coco, tmp_path, split):
    coco_download.fetch(tmp_path / "coco", split)
    dataset = CocoDataset(tmp_path / "coco", split)
    assert dataset.image(0).shape == (10, 8, 3) and len(coco.asked) == 2
    assert {path.name for path in (tmp_path / "coco").iterdir()} == {"annotations", dataset.folder.name}
    coco_download.fetch(tmp_path / "coco", split)
    assert len(coco.asked) == 2
    if "2017" in split:
        coco_download.fetch(tmp_path / "coco", split, keypoints=True)
        assert CocoDataset(tmp_path / "coco", split, keypoints=True).keypoint_names == ["nose"] and len(coco.asked) == 2


def test_a_broken_download_of_coco_says_where_to_go_on(coco, tmp_path):
    coco.most = 100
    with pytest.raises(InputError, match="annotations_trainval2017.zip could not be fetched .*try again") as failure:
        coco_download.fetch(tmp_path, "val2017")
    assert str(tmp_path / "annotations_trainval2017.zip") in str(failure.value) and "\n" not in str(failure.value)
    coco.most = 10**9
    coco_download.fetch(tmp_path, "val2017")
    assert coco.asked[1][1] == "bytes=100-" and len(CocoDataset(tmp_path)) == 1


def test_on_the_command_line(coco, tmp_path, capsys):
    options = ["train", "coco", "--dataset", str(tmp_path), "--download", "--year", "2014", "--preset", "tiny"]
    options += ["--logs", str(tmp_path / "logs"), "--steps", "2", "--set", "batch_size=2", "--workers", "1"]
    assert main(options) == 0
    printed = capsys.readouterr().out
    assert "train2014.zip" in printed and "on 2 images of 1 classes" in printed  # train2014 and valminusminival2014
    assert main(["check-dataset", str(tmp_path), "--year", "2014"]) == 1
    assert "instances_minival2014.json: there is no such" in capsys.readouterr().out
    assert main(["check-dataset", str(tmp_path), "--split", "train2014"]) == 0
    assert main(["evaluate", "coco", "--dataset", str(tmp_path), "--download", "--split", "x", "--model", "last"]) == 2
    assert "'x' cannot be downloaded; choose one of train2014" in capsys.readouterr().err
