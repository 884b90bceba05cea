"""What a host says of itself, from the files and programs that it has."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import host_report
import pytest

UPSTREAM = """\
# Written by the nginx_certbot role
server 10.0.0.2:9000 max_fails=0;  # api1:9000
server 10.0.0.3:9000 max_fails=0 down;  # api2:9000
"""
METRICS = """\
vllm:num_requests_running{engine="0",model_name="m"} 3.0
vllm:num_requests_running{engine="1",model_name="m"} 1.0
vllm:num_requests_waiting{engine="0",model_name="m"} 0.0
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.25
vllm:kv_cache_usage_perc{engine="1",model_name="m"} 0.5
"""
READY = {"status": "ready", "in_flight": 4, "engines": []}


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The root of a host with one engine, one proxy worker and nginx, whose programs answer from a table."""
    files = {
        "run/vllm-qwen/probe.json": json.dumps({"url": "http://10.0.0.5:8000", "model": "qwen3-8b"}),
        "run/vllm-qwen/fingerprint": "ENGINE=1\n",
        "opt/vllm/releases/r1/engines/qwen.fingerprint": "ENGINE=1\n",
        "opt/vllm/venvs/0.33.0-abc/pyvenv.cfg": "",
        "opt/vllm/starts/qwen": "84",
        "run/proxy-9000/fingerprint": "PROXY_RELEASE=1.0-a\nPROXY_ADDRESS=10.0.0.2\n",
        "opt/proxy/releases/1.1-b/release.env": "PROXY_RELEASE=1.1-b\nPROXY_ADDRESS=10.0.0.2\n",
        "etc/proxy/drained/engine1:qwen": "new disk; by alice@ops1; since 2026-11-26T10:00:00Z\n",
        "run/vllm/draining.json": '{"reason": "spot"}',
        "etc/nginx/ec2-inference/upstream.conf": UPSTREAM,
        "etc/nginx/ec2-inference/tls.conf": f"ssl_certificate {tmp_path}/fullchain.pem;\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    for home, release in (("vllm", "r1"), ("proxy", "1.1-b")):
        (tmp_path / f"opt/{home}/current").symlink_to(tmp_path / f"opt/{home}/releases/{release}")
    (tmp_path / "opt/vllm/releases/r1/venv").symlink_to(tmp_path / "opt/vllm/venvs/0.33.0-abc")

    def output(program: str, *options: str) -> str | None:
        if program == "systemctl" and options[0] == "list-units":
            listed = {"vllm@*.service": "vllm@qwen.service loaded", "proxy@*.service": "proxy@9000.service loaded"}
            return listed.get(options[-1], "")
        if program == "systemctl":
            return "ActiveState=active\nSubState=running\nNRestarts=2\nStatusText=\nActiveEnterTimestampMonotonic=1000000\n"
        if program == "openssl":
            return "issuer=CN = Test CA\nnotAfter=Jan  1 00:00:00 2027 GMT\nX509v3 Subject Alternative Name:\n    DNS:llm.example.com\n"
        return None

    monkeypatch.setattr(host_report, "ROOT", tmp_path)
    monkeypatch.setattr(host_report, "output", output)
    answers = {"http://10.0.0.5:8000/metrics": METRICS, "http://10.0.0.2:9000/health/ready": json.dumps(READY)}
    monkeypatch.setattr(host_report, "get", answers.get)
    return tmp_path


def test_an_engine_with_its_release_and_its_load(host: Path) -> None:
    engine: dict[str, Any] = host_report.report()["engines"][0]
    told = {
        field: engine[field]
        for field in ("name", "state", "restarts", "model", "release", "environment", "last_start_s")
    }
    assert told == {
        "name": "qwen",
        "state": "active",
        "restarts": 2,
        "model": "qwen3-8b",
        "release": "r1",
        "environment": "0.33.0-abc",
        "last_start_s": 84,
    }
    assert engine["runs_current_release"]
    assert (engine["running"], engine["waiting"], engine["kv_cache_share"]) == (4, 0, 0.5)


def test_a_worker_that_still_runs_the_release_before(host: Path) -> None:
    worker = host_report.report()["workers"][0]
    assert (worker["port"], worker["release"], worker["ready"]) == (9000, "1.1-b", READY)
    assert not worker["runs_current_release"]


def test_nginx_with_its_upstream_and_its_certificate(host: Path) -> None:
    web = host_report.report()["web"]
    assert web["upstream"] == [{"id": "api1:9000", "down": False}, {"id": "api2:9000", "down": True}]
    certificate = web["certificates"][0]
    assert (certificate["names"], certificate["issuer"]) == (["llm.example.com"], "CN = Test CA")
    assert certificate["ends_at_s"] == 1798761600


def test_the_markers_of_drained_instances(host: Path) -> None:
    marker = {
        "tier": "proxy",
        "instance": "engine1:qwen",
        "text": "new disk; by alice@ops1; since 2026-11-26T10:00:00Z",
    }
    assert host_report.report()["drained"] == [marker]


def test_a_host_without_any_tier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_report, "ROOT", tmp_path)
    monkeypatch.setattr(host_report, "output", lambda *_: None)
    report = json.loads(json.dumps(host_report.report()))
    assert (report["engines"], report["workers"], report["web"], report["gpus"], report["drained"]) == (
        [],
        [],
        None,
        None,
        [],
    )
    assert report["system"]["cores"] >= 1


def test_a_file_of_an_engine_that_is_damaged(host: Path) -> None:
    (host / "run/vllm-qwen/probe.json").write_text('{"url": "http')
    engine = host_report.report()["engines"][0]
    assert (engine["url"], engine["answers"], engine["running"]) == (None, False, None)


def test_a_second_engine_is_compared_with_the_release_that_it_runs(host: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (host / "opt/vllm/releases/r2/engines").mkdir(parents=True)
    (host / "opt/vllm/releases/r2/engines/qwen.beside.fingerprint").write_text("ENGINE=2\n")
    (host / "opt/vllm/beside").symlink_to("releases/r2")
    (host / "run/vllm-qwen.beside").mkdir()
    (host / "run/vllm-qwen.beside/fingerprint").write_text("ENGINE=2\n")
    monkeypatch.setattr(host_report, "units", lambda prefix: ["qwen.beside"] if prefix == "vllm" else [])
    (engine,) = host_report.report()["engines"]
    assert (engine["release"], engine["runs_current_release"]) == ("r2", True)
