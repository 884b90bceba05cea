"""Adapters of a running engine, against a small server that has vLLM's endpoints for them."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import engine_adapters
import pytest


class Vllm:
    """Adapters by their names.

    `broken` are directories that it refuses, `forgets` makes it accept an adapter and not have it, `old` is one that renames none.
    """

    def __init__(self, **adapters: str) -> None:
        self.adapters, self.broken, self.forgets, self.old = adapters, set[str](), False, False
        self.calls: list[str] = []
        engine = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                cards: list[dict[str, Any]] = [{"id": "m", "root": "/srv/m", "parent": None}]
                cards += [{"id": name, "root": root, "parent": "m"} for name, root in engine.adapters.items()]
                self.reply(200, {"data": cards})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                self.reply(*engine.change(self.path, **body))

            def reply(self, status: int, body: Any) -> None:
                content = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def change(self, path: str, lora_name: str, lora_path: str = "", new_name: str = "") -> tuple[int, Any]:
        self.calls.append(f"{path.split('_')[0].rpartition('/')[2]} {lora_name} {lora_path}{new_name}".rstrip())
        if path == "/stack/rename_lora_adapter":
            if self.old:
                return 404, {"detail": "Not Found"}
            self.adapters[new_name] = self.adapters.pop(lora_name)
            return 200, ""
        if path == "/v1/unload_lora_adapter":
            return (200, "") if self.adapters.pop(lora_name, None) else (404, {"error": {"message": "cannot be found"}})
        if lora_name in self.adapters or lora_path in self.broken:
            return 400, {"error": {"message": f"no good adapter in {lora_path}"}}
        if not self.forgets:
            self.adapters[lora_name] = lora_path
        return 200, ""


@pytest.fixture
def vllm() -> Iterator[Vllm]:
    engine = Vllm(sql="/srv/sql@1", law="/srv/law@1")
    thread = threading.Thread(target=engine.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield engine
    engine.server.shutdown()
    engine.server.server_close()
    thread.join()


def run(vllm: Vllm, tmp_path: Path, wanted: dict[str, str] | None, *options: str) -> int:
    (tmp_path / "engines").mkdir(exist_ok=True)
    told = {"url": vllm.url, "model": "m", "probe": "completions", "adapters": wanted}
    (tmp_path / "engines" / "x.probe.json").write_text(json.dumps(told))
    (tmp_path / "engines" / "x.fingerprint").write_text("f1\n")
    return engine_adapters.main(["x", "--release", str(tmp_path), *options])


WANTED = {"law": "/srv/law@2", "new": "/srv/new@1"}
STEPS = {"load": ["new"], "unload": ["sql"], "replace": ["law"]}


def test_a_running_engine_gets_what_it_should_have(vllm: Vllm, tmp_path: Path, capsys: Any) -> None:
    assert run(vllm, tmp_path, WANTED) == 0
    assert json.loads(capsys.readouterr().out) == STEPS
    assert vllm.adapters == WANTED
    assert vllm.calls == [
        "unload sql",
        "load law@next /srv/law@2",
        "rename law@next law",
        "load new /srv/new@1",
    ]


def test_a_second_run_changes_nothing(vllm: Vllm, tmp_path: Path, capsys: Any) -> None:
    assert run(vllm, tmp_path, dict(vllm.adapters)) == 0
    assert json.loads(capsys.readouterr().out) == {"load": [], "unload": [], "replace": []}
    assert vllm.calls == []


def test_a_dry_run_says_the_same_and_changes_nothing(vllm: Vllm, tmp_path: Path, capsys: Any) -> None:
    assert run(vllm, tmp_path, None, "--dry-run", "--adapters", json.dumps(WANTED)) == 0
    assert json.loads(capsys.readouterr().out) == STEPS
    assert vllm.calls == []


def test_an_engine_whose_adapters_are_not_changed_while_it_runs_is_not_asked(vllm: Vllm, tmp_path: Path) -> None:
    vllm.server.shutdown()
    assert run(vllm, tmp_path, None) == 0


def test_an_adapter_that_cannot_be_loaded_is_reported_in_vllm_s_words(vllm: Vllm, tmp_path: Path, capsys: Any) -> None:
    vllm.broken = {"/srv/new@1"}
    assert run(vllm, tmp_path, WANTED) == 1
    said = capsys.readouterr().out
    assert "vllm@x.service refuses /v1/load_lora_adapter for adapter new in /srv/new@1" in said
    assert "no good adapter in /srv/new@1" in said


def test_an_adapter_that_cannot_be_replaced_stays_as_it_was(vllm: Vllm, tmp_path: Path, capsys: Any) -> None:
    vllm.broken = {"/srv/law@2"}
    assert run(vllm, tmp_path, {"sql": "/srv/sql@1", "law": "/srv/law@2"}) == 1
    assert "refuses /v1/load_lora_adapter for adapter law in /srv/law@2" in capsys.readouterr().out
    assert vllm.adapters == {"sql": "/srv/sql@1", "law": "/srv/law@1"}
    vllm.broken, vllm.old = set(), True
    assert run(vllm, tmp_path, {"sql": "/srv/sql@1", "law": "/srv/law@2"}) == 1
    assert vllm.adapters == {"sql": "/srv/sql@1", "law": "/srv/law@1"}


def test_what_an_interrupted_replacement_left_is_removed(vllm: Vllm, tmp_path: Path) -> None:
    vllm.adapters["law@next"] = "/srv/law@2"
    assert run(vllm, tmp_path, WANTED) == 0
    assert vllm.adapters == WANTED


def test_an_adapter_that_was_accepted_and_is_not_there_is_reported(vllm: Vllm, tmp_path: Path, capsys: Any) -> None:
    vllm.forgets = True
    assert run(vllm, tmp_path, {**vllm.adapters, "new": "/srv/new@1"}) == 1
    assert '/v1/models lacks it: {"load": ["new"]' in capsys.readouterr().out


def test_an_interrupted_change_is_completed_by_the_next_run(vllm: Vllm, tmp_path: Path) -> None:
    del vllm.adapters["law"]
    assert run(vllm, tmp_path, WANTED) == 0
    assert vllm.adapters == WANTED


def test_an_engine_that_does_not_answer_is_reported(vllm: Vllm, tmp_path: Path, capsys: Any) -> None:
    vllm.url = "http://127.0.0.1:9"
    assert run(vllm, tmp_path, WANTED) == 1
    assert "does not say which adapters it has" in capsys.readouterr().out
