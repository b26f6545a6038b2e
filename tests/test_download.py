"""Downloads from a local server that drops connections, cuts answers short, answers 404 and 503."""

from __future__ import annotations

import hashlib
import http.server
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from data import download
from data.download import BOXES, CLASS_DESCRIPTIONS, MISSING, SUMS, WEIGHTS, download_all
from data.open_images import LABEL_IDS
from tests.conftest import prep
from utils.cli import DataError, UsageError
from utils.files import file_digest, locked


@pytest.fixture(autouse=True)
def fast(monkeypatch):
    monkeypatch.setattr(download, "TRIES", 30)
    monkeypatch.setattr(download, "WAIT", 0.0005)
    monkeypatch.setattr(download, "_LONGEST_WAIT", 0.01)
    monkeypatch.setattr(download, "_TIMEOUT", 5)


class Server:
    """A loopback server of ``files``; ``faults`` says by chance how an answer goes wrong."""

    def __init__(self, faults: tuple[str, ...] = (), seed: int = 0, delay: float = 0.0) -> None:
        self.files: dict[str, bytes] = {}
        self.requests: Counter[str] = Counter()
        self.ranges: list[str] = []
        self.faults, self.delay, self.random = faults, delay, random.Random(seed)
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                outer.answer(self)

            def log_message(self, *_: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self) -> Server:
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def answer(self, request: http.server.BaseHTTPRequestHandler) -> None:
        name = request.path.lstrip("/")
        self.requests[name] += 1
        time.sleep(self.delay)
        request.close_connection = True
        content = self.files.get(name)
        fault = self.random.choice(self.faults) if self.faults else ""
        if content is None or fault in ("404", "503", "400"):
            request.send_response(404 if content is None else int(fault))
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        if fault == "drop":
            return
        if fault == "odd":
            request.wfile.write(b"\x1b[2JHTTP 200\r\n\r\n")
            return
        if fault == "endless":  # until the connection ends, as without Content-Length
            request.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n" + 2 * content)
            return
        tag, first = f'"{hashlib.md5(content).hexdigest()}"', 0
        wanted = request.headers.get("Range")
        if wanted and request.headers.get("If-Range") == tag:
            first = int(wanted.removeprefix("bytes=").rstrip("-"))
            self.ranges.append(name)
            request.send_response(206)
            request.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
        else:
            request.send_response(200)
        request.send_header("ETag", tag)
        request.send_header("Content-Length", str(len(content) - first))
        request.end_headers()
        rest = content[first:]
        request.wfile.write(rest[: self.random.randrange(len(rest))] if fault == "cut" else rest)


def picture(i: int, size: int = 5000) -> bytes:
    """Begins as a JPEG file does."""
    return b"\xff\xd8\xff" + random.Random(i).randbytes(size + i - 3)


def check_sums(folder: Path) -> int:
    """What ``sha256sum -c``, which a user would start, ends with."""
    return subprocess.run(
        ["sha256sum", "--check", "--strict", "--quiet", SUMS], cwd=folder, check=False
    ).returncode


def test_nothing_to_download(tmp_path):
    assert download_all({}, tmp_path / "out").fetched == 0
    assert (tmp_path / "out" / MISSING).read_text() == ""


def test_faults_are_retried_and_a_second_run_fetches_nothing(tmp_path):
    with Server(("", "drop", "cut", "503")) as server:
        server.files = {f"{i}.jpg": picture(i) for i in range(30)}
        urls = {f"images/{name}": f"{server.url}/{name}" for name in [*server.files, "none.jpg"]}
        summary = download_all(urls, tmp_path)
        assert (summary.fetched, summary.there, summary.failed) == (30, 0, {})
        assert list(summary.missing) == ["images/none.jpg"]
        assert (tmp_path / MISSING).read_text() == f"images/none.jpg\t404 {server.url}/none.jpg\n"
        for name, content in server.files.items():
            assert (tmp_path / "images" / name).read_bytes() == content
        sums = (tmp_path / SUMS).read_text().splitlines()
        assert f"{hashlib.sha256(picture(3)).hexdigest()}  images/3.jpg" in sums and len(sums) == 30
        assert not list(tmp_path.rglob("*.part*"))

        (tmp_path / "images" / "7.jpg").write_bytes(b"")
        (tmp_path / "images" / "8.jpg").unlink()
        (tmp_path / SUMS).write_text("\n".join([*sums[:20], "a line that a kill cut of"]))
        assert check_sums(tmp_path) != 0
        summary = download_all(urls, tmp_path)
        assert (summary.fetched, summary.there) == (2, 28)
    assert check_sums(tmp_path) == 0 and len((tmp_path / SUMS).read_text().splitlines()) == 30
    (tmp_path / "images" / "9.jpg").write_bytes(picture(9)[::-1])
    assert check_sums(tmp_path) != 0


def test_a_large_part_is_continued_unless_the_file_changed(tmp_path):
    with Server() as server:
        for name, changed in (("same", False), ("changed", True)):
            server.files[name] = picture(1, 3 << 20)
            (tmp_path / f"{name}.part").write_bytes(picture(1, 3 << 20)[: 2 << 20])
            (tmp_path / f"{name}.part.tag").write_text(f'"{hashlib.md5(server.files[name]).hexdigest()}"')
            if changed:
                server.files[name] = picture(2, 3 << 20)
            (tmp_path / f"{name}2.part").write_bytes(b"of unknown origin")
            server.files[f"{name}2"] = picture(3)
        urls = {name: f"{server.url}/{name}" for name in server.files}
        assert download_all(urls, tmp_path).fetched == 4
        for name, content in server.files.items():
            assert (tmp_path / name).read_bytes() == content
        assert server.ranges == ["same"]


def test_what_never_comes_is_reported_and_the_rest_is_kept(tmp_path):
    with Server(("503",)) as server:
        server.files = {"a": b"a"}
        summary = download_all({"a": f"{server.url}/a"}, tmp_path)
        assert "503" in summary.failed["a"]
        assert server.requests["a"] == download.TRIES
    summary = download_all({"a": f"{server.url}/a"}, tmp_path)
    assert "refused" in summary.failed["a"]
    with Server(("400",)) as server, pytest.raises(DataError, match="answers 400"):
        server.files = {"a": b"a"}
        download_all({"a": f"{server.url}/a"}, tmp_path)
    with pytest.raises(DataError, match="not an address"):
        download_all({"a": "nowhere"}, tmp_path)


PAGE = b"<!DOCTYPE html><title>Log in \x1b[2J</title>"


@pytest.mark.parametrize("name", ["a.jpg", "a.csv"])
def test_a_page_in_the_place_of_a_file_is_refused(tmp_path, name):
    with Server() as server:
        server.files = {name: PAGE}
        summary = download_all({name: f"{server.url}/{name}"}, tmp_path)
    assert "found b'<!DOCTYPE html>" in summary.failed[name]
    assert not (tmp_path / name).exists()


def test_a_file_without_end_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(download, "_MOST_IMAGE_BYTES", 100_000)
    with Server(("endless",)) as server:
        server.files = {"a.jpg": picture(0, 80_000)}
        summary = download_all({"a.jpg": f"{server.url}/a.jpg"}, tmp_path)
    assert "more bytes came than" in summary.failed["a.jpg"]


def test_what_a_server_says_cannot_move_the_cursor(tmp_path):
    with Server(("odd",)) as server:
        server.files = {"a": b"a"}
        summary = download_all({"a": f"{server.url}/a"}, tmp_path)
    assert summary.failed["a"].isprintable() and "x1b" in summary.failed["a"]


@pytest.mark.parametrize("address", ["file:///etc/hosts", "ftp://127.0.0.1/a", "http://", "nowhere"])
def test_only_web_addresses_are_asked(tmp_path, address):
    with pytest.raises(DataError, match="not an address"):
        download_all({"a": address}, tmp_path)


def test_a_full_disk_ends_the_run(tmp_path, monkeypatch):
    def full(*_: object, **__: object):
        raise OSError(28, "No space left on device")

    with Server() as server:
        server.files = {"a": b"a"}
        monkeypatch.setattr(Path, "replace", full)
        with pytest.raises(OSError, match="No space"):
            download_all({"a": f"{server.url}/a"}, tmp_path)
    assert not (tmp_path / "a").exists()


def open_images(server: Server, images: int = 40) -> None:
    header = "ImageID,LabelName,XMin,XMax,YMin,YMax,IsGroupOf,IsDepiction,IsInside"
    rows = [f"{i:016x},{'/m/01bl7v' if i % 2 else '/m/0dzct'},0,1,0,1,0,0,0" for i in range(images)]
    names = [f"{mid},{name}" for table in LABEL_IDS.values() for name, mid in table.items()]
    server.files[CLASS_DESCRIPTIONS] = "\n".join(["LabelName,DisplayName", *names, ""]).encode()
    server.files[BOXES["validation"]] = "\n".join([header, *rows, ""]).encode()
    server.files |= {f"validation/{i:016x}.jpg": picture(i) for i in range(images - 1)}


def test_killed_at_any_moment_and_started_again(tmp_path):
    """Kill -9 after a random while, twice; the third run ends complete and correct."""
    command = [
        sys.executable,
        "prep_data.py",
        "download",
        "--split",
        "validation",
        "--save_folder",
        str(tmp_path),
    ]
    with Server(("", "", "drop", "cut", "503"), delay=0.05) as server:
        open_images(server)
        command += ["--base_url", server.url, "--num_workers", "2"]
        root = Path(__file__).resolve().parent.parent
        for kill in range(2):
            run = subprocess.Popen(command, cwd=root, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            deadline = time.monotonic() + 30
            wanted = 2 + 12 * kill  # requests seen, so that the kill falls into the work
            while (
                sum(server.requests.values()) < wanted and run.poll() is None and time.monotonic() < deadline
            ):
                time.sleep(0.01)
            run.kill()
            run.wait()
        server.delay = 0
        assert prep(*command[2:]) == 0
        folder = tmp_path / "validation"
        assert sorted(p.name for p in (folder / "images").glob("*.jpg")) == [
            f"{i:016x}.jpg" for i in range(39)
        ]
        for i in range(39):
            assert (folder / "images" / f"{i:016x}.jpg").read_bytes() == picture(i)
        assert (folder / MISSING).read_text().startswith("images/0000000000000027.jpg\t404")
        assert check_sums(folder) == 0
        assert not list(folder.rglob("*.part"))


def test_classes_and_limit(tmp_path, capsys):
    with Server() as server:
        open_images(server)
        arguments = ["download", "--split", "validation", "--base_url", server.url + "/", "--save_folder"]
        assert prep(*arguments, tmp_path / "b", "--classes", "person", "--limit", "3") == 0
        found = sorted(p.stem for p in (tmp_path / "b" / "validation" / "images").iterdir())
        assert found == [f"{i:016x}" for i in (1, 3, 5)]
        names = sorted(p.name for p in (tmp_path / "b" / "validation").iterdir())
        assert names == sorted(["boxes.csv", "class-descriptions.csv", "images", MISSING, SUMS])
        with locked(tmp_path / "b" / "validation"), pytest.raises(DataError, match="another run"):
            prep(*arguments, tmp_path / "b")
        boxes = server.files[BOXES["validation"]]
        server.files[BOXES["validation"]] = boxes.replace(f"{1:016x}".encode(), b"a?b")
        with pytest.raises(DataError, match=r"'a\?b' is not an image id"):
            prep(*arguments, tmp_path / "c")
        del server.files[BOXES["validation"]]
        with pytest.raises(DataError, match="the server does not have it; check --base_url"):
            prep(*arguments, tmp_path / "d")


# Published weights


@pytest.fixture
def published(monkeypatch) -> dict[str, bytes]:
    """Small files in the place of the published ones."""
    files = {name: random.Random(name).randbytes(3000) for name in ("a.tar", "b.pth")}
    sums = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    monkeypatch.setattr(download, "WEIGHTS", sums)
    return files


def test_weights_are_downloaded_once(tmp_path, published, capsys):
    with Server(("", "drop", "cut", "503")) as server:
        server.files = dict(published)
        arguments = ["download", "--weights", "--save_folder", str(tmp_path), "--base_url", server.url]
        assert prep(*arguments) == 0
        asked = server.requests.total()
        assert prep(*arguments) == 0
        assert server.requests.total() == asked
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == published
    assert capsys.readouterr().out.count("there already, SHA-256 as published") == 2


def test_weights_of_another_content_are_refused(tmp_path, published):
    with Server() as server:
        arguments = ["download", "--weights", "--save_folder", str(tmp_path), "--base_url", server.url]
        server.files = published | {"b.pth": b"<html>not found</html>"}
        with pytest.raises(
            DataError, match=r"/b\.pth: SHA-256 \w+, expected \w+; it is not the published file"
        ):
            prep(*arguments)
        assert [path.name for path in tmp_path.iterdir()] == ["a.tar"]
        del server.files["b.pth"]
        with pytest.raises(DataError, match=r"/b\.pth: 404 .*put the file there yourself: .*b\.pth"):
            prep(*arguments)
        (tmp_path / "a.tar").write_bytes(b"mine")
        with pytest.raises(DataError, match=r"a\.tar, which is there already: SHA-256"):
            prep(*arguments)
    assert (tmp_path / "a.tar").read_bytes() == b"mine"


def test_the_published_sums(reference):
    for name, published_sum in WEIGHTS.items():
        assert file_digest(reference / "weights" / name) == published_sum


def test_neither_a_part_nor_weights(tmp_path):
    with pytest.raises(UsageError, match="expected --split and --save_folder, or --weights"):
        prep("download", "--save_folder", tmp_path)
