"""What a host reaches, and what its logs say, without secrets."""

from __future__ import annotations

import json
import socket
import subprocess
from pathlib import Path
from typing import Any

import look_around
import pytest

SECRETS = {
    "etc/proxy/store_password": "correct-horse-battery\n",
    "etc/vllm/fetch.env": 'HF_TOKEN="hub-secret-1"\nHF_ENDPOINT=https://hub.example.com\n',
    "opt/vllm/current/engines/qwen.env": "AWS_SECRET_ACCESS_KEY=aws-secret-2\nVLLM_LOGGING_LEVEL=INFO\n",
}
LINES = [
    "2026-11-27T03:00:00 INFO hub-secret-1 and aws-secret-2 from https://hub.example.com, level INFO",
    "2026-11-27T03:00:01 ERROR Authorization: Bearer abc.def-1234567890",
    '2026-11-27T03:00:02 {"event":"request","prompt":"my \\"words\\"","completion":"yours","status":200}',
    '2026-11-27T03:00:03 {"level":"error","message":"redis://user:hunter22@10.0.0.2/0, correct-horse-battery"}',
    "2026-11-27T03:00:04 systemd[1]: vllm@qwen.service: Failed with result 'exit-code'.",
    "2026-11-27T03:00:05 ERROR api_key=zyxwvutsrq AKIAABCDEFGHIJKLMNOP hf_abcdefghijklmnopqrst",
]


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The root of a host with secrets, whose engines' journal is LINES."""
    for name, text in SECRETS.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)

    def run(argv: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(argv, 0, "\n".join(LINES) if "--unit=vllm@*" in argv else "", "")

    monkeypatch.setattr(look_around, "ROOT", tmp_path)
    monkeypatch.setattr(look_around.subprocess, "run", run)
    return tmp_path


def told(capsys: pytest.CaptureFixture[str], **options: Any) -> dict[str, Any]:
    look_around.main({"reach": {}, "closed": {}, "hours": 1, "bundle": False, **options})
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_no_secret_is_printed(host: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = told(capsys, bundle=True)["logs"]["vllm.log"]
    for secret in (
        "hub-secret-1", "aws-secret-2", "abc.def", "words", "yours", "hunter22", "correct-horse", "zyxwvuts", "AKIAAB", "hf_abc",
    ):  # fmt: skip
        assert secret not in text
    # What helps stays.
    for plain in (
        "https://hub.example.com",
        "level INFO",
        '"status":200',
        "10.0.0.2/0",
        "Authorization: ***",
        "api_key=***",
    ):
        assert plain in text


def test_the_last_errors_of_a_log(host: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (host / "var/log/nginx").mkdir(parents=True)
    (host / "var/log/nginx/error.log").write_text("2026/11/27 [notice] a\n2026/11/27 [crit] b\n")
    found = told(capsys)
    assert {name: its["count"] for name, its in found["errors"].items()} == {"vllm.log": 4, "nginx-error.log": 1}
    assert [line[:24] for line in found["errors"]["vllm.log"]["last"]] == [
        line[:24] for line in (LINES[3], LINES[4], LINES[5])
    ]
    assert "logs" not in found


def test_ways_and_open_ports(host: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # nobody listens there
        open_place, closed_place = (["127.0.0.1", one.getsockname()[1]] for one in (server, unused))
        places = {"here": open_place, "there": closed_place}
        found = told(capsys, reach=places, closed=places)
    assert found["ways"]["here"] < 2000
    assert found["ways"]["there"] == "Connection refused"
    assert found["open"] == ["here"]
