"""What the logs of a host have of one request."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import find_request
import pytest

ID = "0d6e.1c-a"
NGINX = {
    "time": "2026-11-27T03:00:02+00:00",
    "ended_s": 1795748402.25,
    "request_id": ID,
    "client": "203.0.113.7",
    "method": "POST",
    "path": "/v1/chat/completions",
    "protocol": "HTTP/2.0",
    "status": 200,
    "complete": True,
    "rate_limit": "PASSED",
    "connection_limit": "",
    "sent_bytes": 812,
    "seconds": 2.25,
    "upstream": "10.0.0.2:9000",
    "upstream_status": "200",
    "upstream_connect_seconds": "0.001",
}
PROXY = {
    "time": "2026-11-27T03:00:02.249+00:00",
    "event": "request",
    "request_id": ID,
    "key": "team-a",
    "method": "POST",
    "path": "/v1/chat/completions",
    "model": "qwen3-8b",
    "engine": "engine1:qwen",
    "status": 200,
    "queue_ms": 0.0,
    "ttft_ms": 120.5,
    "duration_ms": 2248.0,
    "outcome": "ok",
    "retries": 1,
    "prompt_tokens": 12,
    "completion_tokens": 40,
    "prompt": "a secret",
}


def journal_of(monkeypatch: pytest.MonkeyPatch, **messages: list[Any]) -> None:
    """Let journalctl print these messages of proxy and vllm, one second apart from 03:00:00 on."""

    def run(argv: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        unit = next(option for option in argv if option.startswith("--unit="))
        tier = unit.removeprefix("--unit=").partition("@")[0]
        entries = [
            {
                "MESSAGE": message,
                "__REALTIME_TIMESTAMP": str(1795748400_000000 + number * 1_000_000),
                "_SYSTEMD_UNIT": f"{tier}@one.service",
            }
            for number, message in enumerate(messages.get(tier, []))
        ]
        return subprocess.CompletedProcess(argv, 0 if entries else 1, "\n".join(map(json.dumps, entries)), "")

    monkeypatch.setattr(find_request.subprocess, "run", run)


def said(capsys: pytest.CaptureFixture[str]) -> tuple[dict[str, Any], list[str]]:
    report = json.loads(capsys.readouterr().out)
    return report, [event["what"] for event in report["events"]]


def test_a_request_on_a_host_with_all_tiers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "access.log"
    log.write_text(json.dumps(NGINX) + "\n" + json.dumps({**NGINX, "request_id": f"{ID}2"}) + "\n{broken " + ID + "\n")
    engine = [
        f"INFO 11-27 03:00:00 [x.py:1] request {ID}: POST /v1/chat/completions",
        f"request {ID}2: 200 after 1.000 s",
    ]
    # The journal has a message with control characters as numbers.
    engine.append([*f"request {ID}: 200 after 2.000 s".encode()])  # type: ignore[arg-type]
    journal_of(
        monkeypatch, proxy=[json.dumps(PROXY), json.dumps({"message": f"request {ID}: engine lost"})], vllm=engine
    )
    find_request.main(ID, 24, str(log))
    report, lines = said(capsys)
    assert lines == [
        "POST /v1/chat/completions from 203.0.113.7, HTTP/2.0",
        "engine one: POST /v1/chat/completions",
        "to 10.0.0.2:9000, which answered 200",
        "worker one: POST /v1/chat/completions, key team-a, model qwen3-8b",
        "worker one: first part of the answer",
        "worker one: request 0d6e.1c-a: engine lost",
        "engine one: 200 after 2.000 s",
        "worker one: 200, ok after 2.248 s; engine engine1:qwen, tried again 1 times, 12 + 40 tokens",
        "200 after 2.250 s, 812 bytes sent",
    ]
    assert report["looked"] == [str(log), "the journal of proxy@*", "the journal of vllm@*"]
    assert not report["more"]


def test_rotated_logs_are_searched_and_old_ones_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    journal_of(monkeypatch)
    with gzip.open(tmp_path / "access.log-20261126-1.gz", "wt") as log:
        log.write(json.dumps({**NGINX, "complete": False, "rate_limit": "REJECTED", "upstream": ""}) + "\n")
    old = tmp_path / "access.log-20261001-1"
    old.write_text(json.dumps(NGINX) + "\n")
    os.utime(old, (0, 0))
    (tmp_path / "access.log-cut.gz").write_bytes(b"\x1f\x8b no gzip")
    find_request.main(ID, 24, str(tmp_path / "access.log"))
    report, lines = said(capsys)
    assert lines == [
        "POST /v1/chat/completions from 203.0.113.7, HTTP/2.0",
        "200 after 2.250 s, broken off, 812 bytes sent, limit: REJECTED",
    ]
    assert str(old) not in report["looked"]


def test_an_id_of_very_many_requests_is_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    journal_of(monkeypatch)
    log = tmp_path / "access.log"
    log.write_text((json.dumps(NGINX) + "\n") * 300)
    find_request.main(ID, 24, str(log))
    report, lines = said(capsys)
    assert (len(lines), report["more"]) == (200, True)
