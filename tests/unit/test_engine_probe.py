"""The vLLM role's watcher against a small HTTP server that behaves as an engine would."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import engine_probe
import pytest


class FakeEngine:
    """Metrics, health and one answer; `running` counts down as it is asked, so waiting ends."""

    def __init__(self) -> None:
        self.running, self.tokens, self.health, self.status = 0, 0, 200, 200
        self.answer: dict[str, object] = {"usage": {"completion_tokens": 1}}
        self.asked: list[dict[str, object]] = []
        self.statuses: dict[str, int] = {}
        engine = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if self.path == "/health":
                    return self.reply(engine.health, "")
                labels = 'engine="0",model_name="m"'
                self.reply(
                    200,
                    f"# HELP vllm:num_requests_running Number of requests\n"
                    f"vllm:num_requests_running{{{labels}}} {engine.running}.0\n"
                    f"vllm:num_requests_waiting{{{labels}}} 0.0\n"
                    f"vllm:iteration_tokens_total_sum{{{labels}}} {engine.tokens}.0\n",
                )
                engine.running = max(0, engine.running - 1)
                engine.tokens += engine.busy

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"]))) if engine.json else {}
                engine.asked.append(body)
                statuses = [status for option, status in engine.statuses.items() if option in body]
                self.reply(statuses[0] if statuses else engine.status, json.dumps(engine.answer))

            def reply(self, status: int, body: str) -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body.encode())

            def log_message(self, *_: object) -> None:
                pass

        self.busy, self.json = 0, True
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeEngine]:
    monkeypatch.setattr(engine_probe, "PAUSE_S", 0.01)
    monkeypatch.setattr(engine_probe, "unit_state", lambda unit: {"ActiveState": "active", "NRestarts": "0"})
    monkeypatch.setattr(engine_probe, "journal", lambda unit: "its journal")
    monkeypatch.setattr(
        engine_probe, "read_journal", lambda unit: "INFO 11-26 17:00:00 [x.py:1] Loading weights took 2.04 seconds"
    )
    monkeypatch.setattr(engine_probe, "STARTS", tmp_path)
    engine = FakeEngine()
    thread = threading.Thread(target=engine.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield engine
    engine.server.shutdown()
    engine.server.server_close()
    thread.join()


def engine(fake: FakeEngine, probe: str = "completions", start_timeout_s: float = 600) -> engine_probe.Engine:
    return engine_probe.Engine("x", fake.url, "m", probe, "f1", start_timeout_s)


def test_idle_waits_for_the_last_request(fake) -> None:
    fake.running = 3
    assert engine_probe.wait_idle(engine(fake), 10) == 0


def test_idle_says_what_is_left_when_the_time_is_over(fake) -> None:
    fake.running = 1000
    assert engine_probe.wait_idle(engine(fake), 0) == 1000


def test_idle_has_nothing_to_wait_for_where_nothing_answers(fake) -> None:
    gone = engine_probe.Engine(name="x", url="http://127.0.0.1:9", model="m", probe="completions", fingerprint="")
    assert engine_probe.wait_idle(gone, 10) == 0


@pytest.mark.parametrize(
    ("probe", "answer"),
    [
        ("completions", {"usage": {"completion_tokens": 1}}),
        ("embeddings", {"data": [{"embedding": [0.1]}]}),
        ("pooling", {"data": [{"data": [0.1]}]}),
        ("classify", {"data": [{"probs": [0.4, 0.6]}]}),
        ("rerank", {"results": [{"index": 0, "relevance_score": 0.9}]}),
        ("transcriptions", {"text": ""}),
    ],
)
def test_a_result_proves_it(fake, probe, answer) -> None:
    fake.answer, fake.json = answer, probe != "transcriptions"
    engine_probe.prove(engine(fake, probe))


WAYS = ("logprobs", "prompt_logprobs", "n", "presence_penalty", "response_format", "tools")


def test_every_way_of_sampling_is_taken(fake) -> None:
    engine_probe.sample(engine(fake))
    for option in WAYS:
        assert any(option in body for body in fake.asked), option


def test_a_way_that_the_model_refuses_proves_as_well(fake) -> None:
    fake.statuses = dict.fromkeys(WAYS, 400)
    engine_probe.sample(engine(fake))


@pytest.mark.parametrize("option", WAYS)
def test_a_way_that_breaks_the_engine_proves_nothing(fake, option) -> None:
    fake.statuses = {option: 500}
    with pytest.raises(engine_probe.ProbeError, match=r"(?s)generates, but a request with .* fails.*its journal"):
        engine_probe.sample(engine(fake))


def test_engines_that_make_no_text_have_no_ways_of_sampling(fake) -> None:
    engine_probe.sample(engine(fake, "embeddings"))
    assert fake.asked == []


def test_an_answer_without_a_result_proves_nothing(fake) -> None:
    fake.answer = {"usage": {"completion_tokens": 0}}
    with pytest.raises(engine_probe.ProbeError, match="without a result"):
        engine_probe.prove(engine(fake))


def test_a_refusal_is_told_with_its_words(fake) -> None:
    fake.status, fake.answer = 404, {"error": {"message": "no such model"}}
    with pytest.raises(engine_probe.ProbeError, match=r"(?s)no such model.*its journal"):
        engine_probe.prove(engine(fake))


def test_an_overloaded_engine_that_goes_on_generating_is_well(fake) -> None:
    fake.status, fake.busy = 503, 50
    engine_probe.prove(engine(fake))


def test_a_crash_ends_the_wait(fake, monkeypatch) -> None:
    fake.health = 503
    states = iter([{"ActiveState": "active", "NRestarts": "0"}, {"ActiveState": "activating", "NRestarts": "1"}])
    monkeypatch.setattr(engine_probe, "unit_state", lambda unit: next(states))
    with pytest.raises(engine_probe.ProbeError, match=r"(?s)ended while starting.*its journal"):
        engine_probe.prove(engine(fake))


@pytest.mark.parametrize(
    ("words", "state", "said"),
    [
        (
            "vllm@a.service: Main process exited, code=exited, status=1/FAILURE",
            {"Result": "success"},
            "status 1/FAILURE",
        ),
        (
            "code=killed, status=9/KILL\nMain process exited, code=killed, status=9/KILL",
            {},
            "code killed, status 9/KILL",
        ),
        ("", {"Result": "timeout", "ExecMainStatus": "0"}, "result timeout"),
        ("vllm@a.service: Deactivated successfully.", {"Result": "success"}, "by itself, with exit status 0"),
    ],
)
def test_how_an_engine_ended_is_what_its_journal_says(words, state, said) -> None:
    assert said in engine_probe.how_it_ended(words, state)


def test_an_earlier_crash_is_forgiven(fake, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(engine_probe, "RUN", tmp_path)
    monkeypatch.setattr(engine_probe, "unit_state", lambda unit: {"ActiveState": "active", "NRestarts": "4"})
    (tmp_path / "vllm-x").mkdir()
    (tmp_path / "vllm-x" / "fingerprint").write_text("f1\n")
    engine_probe.check_current(engine(fake))
    (tmp_path / "vllm-x" / "fingerprint").write_text("f2\n")
    with pytest.raises(engine_probe.ProbeError, match="other settings"):
        engine_probe.check_current(engine(fake))


def test_unhealthy_is_told_when_the_time_is_over(fake) -> None:
    fake.health = 503
    with pytest.raises(engine_probe.ProbeError, match="still fails after 0 s"):
        engine_probe.prove(engine(fake, start_timeout_s=0))


@pytest.fixture
def still_clock(monkeypatch) -> None:
    """A clock that stands still, three seconds after the engine's process began."""
    monkeypatch.setattr(engine_probe, "time", SimpleNamespace(monotonic=lambda: 5.0, sleep=time.sleep))
    monkeypatch.setattr(engine_probe, "process_began_s", lambda unit: 2.0)


@pytest.mark.usefixtures("still_clock")
def test_command_reads_the_release(fake, tmp_path, capsys) -> None:
    engines = tmp_path / "engines"
    engines.mkdir()
    (engines / "x.probe.json").write_text(json.dumps({"url": fake.url, "model": "m", "probe": "completions"}))
    (engines / "x.fingerprint").write_text("f1\n")
    assert engine_probe.main(["prove", "x", "--release", str(tmp_path)]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "told": "started in 3 s (weights 2.0 s) and was proven in 0 s",
        "start_s": 3.0,
        "proof_s": 0.0,
        "remarks": [],
    }
    assert (tmp_path / "x").read_text() == "3\n"
    assert engine_probe.main(["idle", "unknown", "--release", str(tmp_path), "--timeout", "10"]) == 0
    assert engine_probe.main(["current", "unknown", "--release", str(tmp_path), "--timeout", "10"]) == 1
    assert "does not know engine unknown" in capsys.readouterr().out


KV = (
    "Starting vllm@x.service - vLLM engine x...\n"
    "(Worker_TP0 pid=13) INFO 11-26 17:40:41 [gpu_worker.py:440] Available KV cache memory: 8.01 GiB\n"
    "(Worker_TP1 pid=14) INFO 11-26 17:40:41 [gpu_worker.py:440] Available KV cache memory: 8.11 GiB\n"
    "(EngineCore pid=12) INFO 11-26 17:40:42 [kv_cache_utils.py:2328] GPU KV cache size: 90,000 tokens, Maximum concurrency for "
    "8,192 tokens per request: 10.99x\n"
)


@pytest.mark.parametrize(
    ("planned", "said"),
    [
        (100_000, "its KV cache keeps 90,000 tokens, 10% fewer than the 100,000 planned"),
        (80_000, "its KV cache keeps 90,000 tokens, 12% more than the 80,000 planned"),
        (94_000, None),
        (86_000, None),
        (None, None),
    ],
)
def test_a_kv_cache_that_is_not_as_planned_is_reported_with_what_to_do(planned, said) -> None:
    planned_engine = engine_probe.Engine("x", "http://x", "m", "completions", "f1", planned_kv_tokens=planned)
    lines = engine_probe.told_plan(planned_engine, KV)
    assert len(lines) == (said is not None)
    for line in lines:
        assert line.startswith(said)
        # 8 GiB: a hundredth less than what the smaller GPU logged.
        assert f"set kv-cache-memory-bytes in its args: {8 * 2**30}, as it was logged" in line


def test_a_start_that_logs_no_kv_cache_is_compared_with_nothing() -> None:
    planned_engine = engine_probe.Engine("x", "http://x", "m", "completions", "f1", planned_kv_tokens=1000)
    assert engine_probe.told_plan(planned_engine, "INFO 11-26 17:40:41 [x.py:1] all is well") == []


@pytest.mark.usefixtures("still_clock")
def test_the_report_of_a_start_has_a_remark_if_the_plan_was_wrong(fake, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(engine_probe, "read_journal", lambda unit: KV)
    (tmp_path / "engines").mkdir()
    told = {"url": fake.url, "model": "m", "probe": "completions", "planned_kv_tokens": 100_000}
    (tmp_path / "engines" / "x.probe.json").write_text(json.dumps(told))
    (tmp_path / "engines" / "x.fingerprint").write_text("f1\n")
    assert engine_probe.main(["prove", "x", "--release", str(tmp_path)]) == 0
    (remark,) = json.loads(capsys.readouterr().out)["remarks"]
    assert remark.startswith("its KV cache keeps 90,000 tokens")


def test_a_rank_that_waits_too_long_for_the_others_is_no_proof(fake, monkeypatch) -> None:
    state = {"ActiveState": "activating", "NRestarts": "0", "StatusText": "waits for rank 1 (10.0.0.2)"}
    monkeypatch.setattr(engine_probe, "unit_state", lambda unit: state)
    monkeypatch.setattr(engine_probe, "BEGIN_S", 0.0)
    with pytest.raises(engine_probe.ProbeError, match=r"has not begun after 0 s: waits for rank 1 \(10\.0\.0\.2\)"):
        engine_probe.prove(engine(fake))
