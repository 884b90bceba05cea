"""The vLLM role's model fetcher against a real S3 API (moto's server) and a small hub, both on loopback."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import boto3
import fetch_model
import pytest
from moto.server import ThreadedMotoServer

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILES = {"config.json": b"{}", "model.safetensors": b"weights" * 1000, "tokenizer/vocab.json": b"{}"}


@pytest.fixture(scope="module")
def api() -> Iterator[str]:
    """The URL of an S3 API."""
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    yield f"http://127.0.0.1:{port}"
    server.stop()


@pytest.fixture
def s3(api: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[boto3.session.Session]:
    """A bucket `models` with a model under `tiny/`; the fetcher meets it by environment, as it would on a host."""
    urllib.request.urlopen(urllib.request.Request(f"{api}/moto-api/reset", method="POST"), timeout=60).close()
    settings = {
        "ENDPOINT_URL": api,
        "ACCESS_KEY_ID": "x",
        "SECRET_ACCESS_KEY": "x",
        "DEFAULT_REGION": "us-east-1",
    }
    for name, value in settings.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    client = boto3.client("s3")
    client.create_bucket(Bucket="models")
    for name, body in FILES.items():
        client.put_object(Bucket="models", Key=f"tiny/{name}", Body=body)
    yield client
    client.close()


class Hub:
    """As much of a Hugging Face hub as a download of pinned files needs; remembers what was asked."""

    def __init__(self) -> None:
        self.files = {**FILES, "pytorch_model.bin": b"the same once more", "original/consolidated.00.pth": b"and more"}
        self.asked: list[str] = []
        self.broken: set[str] = set()
        self.ranges: list[tuple[str, str | None]] = []
        self.knows_ranges = True
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self.do_GET()

            def do_GET(self) -> None:
                path = self.path.split("?")[0]
                if self.command == "GET":
                    hub.asked.append(path)
                if path.startswith("/api/models/org/gone/"):
                    self.reply(404, b'{"error": "not found"}', {"X-Error-Code": "RepoNotFound"})
                elif path.startswith("/api/models/org/gated/"):
                    self.reply(403, b'{"error": "gated"}', {"X-Error-Code": "GatedRepo"})
                elif path == f"/api/models/org/tiny/revision/{COMMIT}":
                    sized = "blobs=true" in self.path.lower()
                    siblings = [{"rfilename": n} | ({"size": len(b)} if sized else {}) for n, b in hub.files.items()]
                    told = {"id": "org/tiny", "sha": COMMIT, "siblings": siblings}
                    self.reply(200, json.dumps(told).encode())
                elif path == f"/api/models/org/tiny/tree/{COMMIT}":
                    told = [{"type": "file", "path": n, "size": len(b), "oid": "0" * 40} for n, b in hub.files.items()]
                    self.reply(200, json.dumps(told).encode())
                elif path.startswith("/api/models/"):
                    self.reply(404, b'{"error": "not found"}', {"X-Error-Code": "RevisionNotFound"})
                else:
                    name = path.removeprefix(f"/org/tiny/resolve/{COMMIT}/")
                    if self.command == "GET" and name in hub.broken:
                        return self.reply(403, b"")
                    body = hub.files[name]
                    digest = hashlib.sha256 if name.endswith(".safetensors") else hashlib.sha1
                    headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{digest(body).hexdigest()}"'}
                    wanted = self.headers["Range"] if hub.knows_ranges else None
                    if self.command == "GET":
                        hub.ranges.append((name, self.headers["Range"]))
                    if wanted is None:
                        return self.reply(200, body, headers)
                    begin = int(wanted.removeprefix("bytes=").removesuffix("-"))
                    headers["Content-Range"] = f"bytes {begin}-{len(body) - 1}/{len(body)}"
                    self.reply(206, body[begin:], headers)

            def reply(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
                self.send_response(status)
                for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def downloads(self) -> list[str]:
        return [path.split(f"{COMMIT}/", 1)[1] for path in self.asked if "/resolve/" in path]

    def fetch(self, *arguments: object) -> tuple[int, dict[str, object], str]:
        """In a process of its own, because the hub's client reads its settings when it is imported."""
        command = [sys.executable, fetch_model.__file__, *map(str, arguments)]
        environment = {**os.environ, "HF_ENDPOINT": self.url, "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        return done.returncode, json.loads(done.stdout) if done.stdout else {}, done.stderr


@pytest.fixture
def hub() -> Iterator[Hub]:
    hub = Hub()
    thread = threading.Thread(target=hub.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield hub
    hub.server.shutdown()
    hub.server.server_close()
    thread.join()


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, dict[str, object], str]:
    status = fetch_model.main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return status, json.loads(out) if out else {}, err


def contents(directory: object) -> dict[str, bytes]:
    root = Path(str(directory))
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_s3_model_arrives_whole_and_only_once(s3, tmp_path, capsys) -> None:
    status, first, _ = run(capsys, "--models-dir", tmp_path, "s3://models/tiny")
    assert (status, first["changed"]) == (0, True)
    assert contents(first["path"]) == FILES
    assert Path(str(first["path"])).name.startswith("models--tiny@")
    status, second, _ = run(capsys, "--models-dir", tmp_path, "s3://models/tiny/")
    assert (status, second) == (0, {"path": first["path"], "changed": False})


def test_s3_model_that_changed_is_another_model(s3, tmp_path, capsys) -> None:
    _, first, _ = run(capsys, "--models-dir", tmp_path, "s3://models/tiny")
    s3.put_object(Bucket="models", Key="tiny/model.safetensors", Body=b"other")
    _, second, _ = run(capsys, "--models-dir", tmp_path, "s3://models/tiny")
    assert second["changed"]
    assert second["path"] != first["path"]
    assert contents(first["path"]) == FILES


def test_interrupted_s3_download_goes_on(s3, tmp_path, capsys) -> None:
    _, where, _ = run(capsys, "--check", "--models-dir", tmp_path, "s3://models/tiny")
    assert where["changed"]
    part = Path(f"{where['path']}.part")
    part.mkdir()
    # Same size: taken as whole. Another size: fetched again.
    (part / "model.safetensors").write_bytes(b"W" * len(FILES["model.safetensors"]))
    (part / "config.json").write_bytes(b"{")
    status, done, _ = run(capsys, "--models-dir", tmp_path, "s3://models/tiny")
    assert status == 0
    assert contents(done["path"]) == {**FILES, "model.safetensors": b"W" * len(FILES["model.safetensors"])}
    assert not part.exists()


def test_interrupted_s3_download_asks_for_the_missing_bytes_only(s3, tmp_path, capsys, monkeypatch) -> None:
    _, where, _ = run(capsys, "--check", "--models-dir", tmp_path, "s3://models/tiny")
    part = Path(f"{where['path']}.part")
    part.mkdir()
    # Not what the object begins with, so that it shows whether it was fetched again.
    (part / "model.safetensors.incomplete").write_bytes(b"W" * 3000)
    status, done, _ = run(capsys, "--models-dir", tmp_path, "s3://models/tiny")
    assert status == 0
    assert contents(done["path"]) == {**FILES, "model.safetensors": b"W" * 3000 + FILES["model.safetensors"][3000:]}


def test_check_downloads_nothing(s3, tmp_path, capsys) -> None:
    status, told, _ = run(capsys, "--check", "--models-dir", tmp_path / "models", "s3://models/tiny")
    assert (status, told["changed"]) == (0, True)
    assert list(tmp_path.iterdir()) == []


def test_check_tells_the_bytes_that_are_missing_from_s3(s3, tmp_path, capsys) -> None:
    whole = sum(map(len, FILES.values()))
    _, told, _ = run(capsys, "--check", "--models-dir", tmp_path / "models", "s3://models/tiny")
    assert told["missing_bytes"] == whole
    assert 0 < int(str(told["free_bytes"])) <= shutil.disk_usage(tmp_path).total
    part = Path(f"{told['path']}.part")
    part.mkdir(parents=True)
    (part / "config.json").write_bytes(FILES["config.json"])
    (part / "model.safetensors.incomplete").write_bytes(b"W" * 3000)
    _, told, _ = run(capsys, "--check", "--models-dir", tmp_path / "models", "s3://models/tiny")
    assert told["missing_bytes"] == whole - len(FILES["config.json"]) - 3000
    run(capsys, "--models-dir", tmp_path / "models", "s3://models/tiny")
    _, told, _ = run(capsys, "--check", "--models-dir", tmp_path / "models", "s3://models/tiny")
    assert (told["changed"], told["missing_bytes"]) == (False, 0)


def test_a_list_of_models_is_fetched_as_far_as_it_can_be(s3, tmp_path, capsys) -> None:
    s3.put_object(Bucket="models", Key="other/config.json", Body=b"{}")
    listed = tmp_path / "models.json"
    listed.write_text(json.dumps([["s3://models/tiny", ""], ["s3://models/nothing", ""], ["s3://models/other", ""]]))
    assert fetch_model.main(["--models-dir", f"{tmp_path}/models", "--list", str(listed)]) == 1
    told = capsys.readouterr()
    assert "s3://models/nothing: holds no object" in told.err
    paths = [Path(json.loads(line)["path"]) for line in told.out.splitlines()]
    assert [contents(path) for path in paths] == [FILES, {"config.json": b"{}"}]


def test_a_download_tells_its_seconds(s3, tmp_path, capsys) -> None:
    _, done, _ = run(capsys, "--models-dir", tmp_path, "s3://models/tiny")
    assert float(str(done["seconds"])) >= 0


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("s3://models/nothing", "holds no object"),
        ("s3://no-such-bucket/x", "cannot be listed"),
        ("s3://models/odd", "would leave"),
    ],
)
def test_s3_problems_are_told(s3, tmp_path, capsys, address, message) -> None:
    s3.put_object(Bucket="models", Key="odd/../../escape", Body=b"x")
    status, told, err = run(capsys, "--models-dir", tmp_path, address)
    assert (status, told) == (1, {})
    assert err.startswith("cannot fetch the model: s3://")
    assert message in err


def test_download_without_a_model_in_it_is_refused(s3, tmp_path, capsys) -> None:
    s3.put_object(Bucket="models", Key="notes/readme.txt", Body=b"x")
    status, _, err = run(capsys, "--models-dir", tmp_path, "s3://models/notes")
    assert status == 1
    assert "no config.json" in err


def test_hub_model_arrives_without_other_formats_and_only_once(hub, tmp_path) -> None:
    status, first, err = hub.fetch("--models-dir", tmp_path, "--revision", COMMIT, "org/tiny")
    assert status == 0, err
    assert Path(str(first["path"])).name == f"org--tiny@{COMMIT}"
    assert contents(first["path"]) == FILES
    hub.asked.clear()
    status, second, _ = hub.fetch("--models-dir", tmp_path, "--revision", COMMIT, "org/tiny")
    assert (status, second) == (0, {"path": first["path"], "changed": False})
    assert hub.asked == []


def test_interrupted_hub_download_goes_on(hub, tmp_path) -> None:
    hub.broken.add("tokenizer/vocab.json")
    status, _, err = hub.fetch("--models-dir", tmp_path, "--revision", COMMIT, "org/tiny")
    assert status == 1, err
    assert [path.name for path in tmp_path.iterdir() if not path.name.startswith(".")] == [f"org--tiny@{COMMIT}.part"]
    hub.broken.clear()
    hub.asked.clear()
    status, done, err = hub.fetch("--models-dir", tmp_path, "--revision", COMMIT, "org/tiny")
    assert status == 0, err
    assert contents(done["path"]) == FILES
    assert hub.downloads() == ["tokenizer/vocab.json"]


def test_check_tells_the_bytes_that_are_missing_from_a_hub(hub, tmp_path) -> None:
    """Without the copies in other formats, which are not fetched. A model that is there needs no hub."""
    status, told, err = hub.fetch("--check", "--models-dir", tmp_path, "--revision", COMMIT, "org/tiny")
    assert status == 0, err
    assert told["missing_bytes"] == sum(map(len, FILES.values()))
    assert list(tmp_path.iterdir()) == []
    hub.fetch("--models-dir", tmp_path, "--revision", COMMIT, "org/tiny")
    hub.asked.clear()
    _, told, _ = hub.fetch("--check", "--models-dir", tmp_path, "--revision", COMMIT, "org/tiny")
    assert (told["changed"], told["missing_bytes"], hub.asked) == (False, 0, [])


WEIGHTS = "model.safetensors"


@pytest.fixture
def half(hub, tmp_path) -> Path:
    """A download that broke off in the middle of the weights."""
    part = tmp_path / f"org--tiny@{COMMIT}.part"
    part.mkdir()
    (part / "config.json").write_bytes(FILES["config.json"])
    (part / f"{WEIGHTS}.incomplete").write_bytes(FILES[WEIGHTS][:3000])
    return part


def test_interrupted_hub_download_asks_for_the_missing_bytes_only(hub, tmp_path, half) -> None:
    status, done, err = hub.fetch("--models-dir", tmp_path, "--revision", COMMIT, "org/tiny")
    assert status == 0, err
    assert contents(done["path"]) == FILES
    assert sorted(hub.ranges) == [(WEIGHTS, "bytes=3000-"), ("tokenizer/vocab.json", None)]


def test_a_hub_without_ranges_is_taken_from_the_beginning(hub, tmp_path, half) -> None:
    hub.knows_ranges = False
    status, done, err = hub.fetch("--models-dir", tmp_path, "--revision", COMMIT, "org/tiny")
    assert status == 0, err
    assert contents(done["path"]) == FILES


@pytest.mark.parametrize("left", [b"X" * 3000, b"X" * len(FILES[WEIGHTS]), b"X" * 10_000])
def test_bytes_that_do_not_fit_are_fetched_anew(hub, tmp_path, half, left) -> None:
    (half / f"{WEIGHTS}.incomplete").write_bytes(left)
    status, done, err = hub.fetch("--models-dir", tmp_path, "--revision", COMMIT, "org/tiny")
    assert status == 0, err
    assert contents(done["path"]) == FILES
    assert (WEIGHTS, None) in hub.ranges


def test_content_that_stays_wrong_is_no_model(hub, tmp_path, half) -> None:
    def wrong(part, have_bytes) -> None:
        part.write(b"wrong"[have_bytes:])

    with pytest.raises(fetch_model.FetchError, match="its content is not what its origin says"):
        fetch_model.complete(tmp_path / "x", 5, hashlib.sha256(b"right").hexdigest(), wrong)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("model", "revision", "message"),
    [
        ("org/tiny", "main", "must be the 40 digits"),
        ("org/tiny", "f" * 40, "has no revision"),
        ("org/gone", COMMIT, "no such model"),
        ("org/gated", COMMIT, "accept them on the hub"),
    ],
)
def test_hub_problems_are_told(hub, tmp_path, model, revision, message) -> None:
    status, _, err = hub.fetch("--models-dir", tmp_path, "--revision", revision, model)
    assert status == 1
    assert message in err


def test_hub_that_is_not_there_is_told(hub, tmp_path) -> None:
    hub.url = "http://127.0.0.1:9"
    status, _, err = hub.fetch("--models-dir", tmp_path, "--revision", COMMIT, "org/tiny")
    assert status == 1
    assert "http://127.0.0.1:9 cannot be reached" in err


def test_two_fetches_of_one_model_do_not_meet(tmp_path) -> None:
    started, go_on = threading.Event(), threading.Event()
    downloads = []

    def download(directory: Path) -> None:
        downloads.append(directory)
        started.set()
        go_on.wait(10)
        (directory / "config.json").write_text("{}")

    model = fetch_model.Model("x@1", download, dict)
    results = []
    threads = [threading.Thread(target=lambda: results.append(fetch_model.fetch(model, tmp_path))) for _ in range(2)]
    threads[0].start()
    assert started.wait(10)
    threads[1].start()
    go_on.set()
    for thread in threads:
        thread.join(10)
    assert sorted(changed for _, changed in results) == [False, True]
    assert len(downloads) == 1
