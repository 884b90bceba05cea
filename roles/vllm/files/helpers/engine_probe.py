#!/usr/bin/env python3
"""Check an engine on its own host: whether it runs as wanted, is idle, and generates.

    engine_probe.py current NAME --release /opt/vllm/releases/X               exit 0 when it runs that release and generates
    engine_probe.py idle    NAME --release /opt/vllm/current --timeout 900    waits for its requests to end
    engine_probe.py prove   NAME --release /opt/vllm/current                  waits until it has generated in every way, and prints its times as JSON

A release has ``engines/NAME.fingerprint`` and ``engines/NAME.probe.json`` (the other fields of Engine). Times are in seconds.
Exit status 1 with a message if it does not.

Standard library only: it runs with the host's own Python (3.9 or newer), whatever state the engine's venv is in.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import io
import json
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
import wave
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Tuple

import engine_journal

# Gauges of the requests that an engine has not finished, and counters that rise while it works on them.
UNFINISHED = re.compile(r"^vllm:num_requests_(?:running|waiting)(?:\{.*\})? (\S+)$", re.MULTILINE)
TOKENS = re.compile(r"^vllm:iteration_tokens_total_sum(?:\{.*\})? (\S+)$", re.MULTILINE)
# The request of each probe, to which the model is added. Transcriptions get a form with silence.
REQUESTS: Dict[str, Dict[str, Any]] = {
    "completions": {"prompt": "Hello", "max_tokens": 1, "temperature": 0},
    "embeddings": {"input": "Hello"},
    "pooling": {"input": "Hello"},
    "classify": {"input": "Hello"},
    "rerank": {"query": "Hello", "documents": ["Hello"]},
}
# Further features of text generation. Each runs different code in the engine, and some of it is compiled at the first such request.
TEXT = {"prompt": "Hello", "max_tokens": 4}
SCHEMA = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"], "additionalProperties": False}
FUNCTION = {"type": "function", "function": {"name": "look", "parameters": SCHEMA}}
SAMPLING: Dict[str, Tuple[str, Dict[str, Any]]] = {
    "log probabilities": ("/v1/completions", {**TEXT, "logprobs": 2}),
    "log probabilities of the prompt": ("/v1/completions", {**TEXT, "prompt_logprobs": 1}),
    "several choices": ("/v1/completions", {**TEXT, "n": 2, "temperature": 1.0, "top_p": 0.9, "top_k": 8, "seed": 1}),
    "penalties": (
        "/v1/completions",
        {**TEXT, "presence_penalty": 0.5, "frequency_penalty": 0.5, "repetition_penalty": 1.1, "logit_bias": {"1": -1}},
    ),
    "structured output": (
        "/v1/completions",
        {**TEXT, "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}}},
    ),
    "tools": (
        "/v1/chat/completions",
        {
            "messages": [{"role": "user", "content": "Hello"}],
            "max_tokens": 4,
            "tools": [FUNCTION],
            "tool_choice": {"type": "function", "function": {"name": "look"}},
        },
    ),
}
UNVERSIONED = ("pooling", "classify")
BOUNDARY = "engine-probe"
ANSWER_S = 120.0  # a few tokens, for which something may have to be compiled first
PAUSE_S = 0.5
# Time for the unit to begin its engine. Ranks of an engine over several hosts wait there for each other.
BEGIN_S = 120.0
JOURNAL_LINES = 40
# How many lines of the journal are searched for the engine's own error, and for the phases of its start.
SEARCHED_LINES = 3000
RUN = Path("/run")
# How far the size of a KV cache may be from its plan before it is reported.
PLAN_OFF = 0.05
# The seconds of each engine's last start, one file each.
STARTS = Path("/opt/vllm/starts")


class ProbeError(Exception):
    """The engine is not as it should be; the text says how."""


@dataclass(frozen=True)
class Engine:
    """An engine as a release describes it."""

    name: str
    url: str
    model: str
    probe: str
    fingerprint: str
    # Absent from releases of earlier versions of this role.
    start_timeout_s: float = 1800
    # Indexes; None stands for all GPUs of the host.
    gpus: Optional[List[int]] = None
    # Directories of its LoRA adapters by their names; None if they are not changed while it runs.
    adapters: Optional[Dict[str, str]] = None
    # What the planner says its KV cache keeps; None without a plan.
    planned_kv_tokens: Optional[int] = None
    # The share of its GPUs' memory that has to be free when it starts; known of second engines only (NAME.beside).
    gpu_share: Optional[float] = None

    @classmethod
    def read(cls, name: str, release: Path) -> "Engine":
        """Raises OSError when the release has no such engine."""
        directory = release / "engines"
        told = json.loads((directory / f"{name}.probe.json").read_text())
        return cls(name=name, fingerprint=(directory / f"{name}.fingerprint").read_text().strip(), **told)

    @property
    def unit(self) -> str:
        return f"vllm@{self.name}.service"


def request(url: str, body: Optional[bytes] = None, timeout: float = 5.0, kind: str = "application/json") -> str:
    """Body of the answer; OSError (which covers urllib's errors and timeouts) when there is none, or it is an error."""
    call = urllib.request.Request(url, body, {"Content-Type": kind})
    # The host's own address: never through a proxy that the environment names.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(call, timeout=timeout) as answer:
        return str(answer.read().decode(errors="replace"))


def question(engine: Engine) -> Tuple[str, bytes, str]:
    """Path, body and content type of the request that proves the engine."""
    if engine.probe != "transcriptions":
        body = {"model": engine.model, **REQUESTS[engine.probe]}
        version = "" if engine.probe in UNVERSIONED else "/v1"
        return f"{version}/{engine.probe}", json.dumps(body).encode(), "application/json"
    sound = io.BytesIO()
    with wave.open(sound, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes(bytes(2 * 1600))
    field = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="'
    begin = f'{field}model"\r\n\r\n{engine.model}\r\n{field}file"; filename="silence.wav"\r\nContent-Type: audio/wav\r\n\r\n'
    form = begin.encode() + sound.getvalue() + f"\r\n--{BOUNDARY}--\r\n".encode()
    return "/v1/audio/transcriptions", form, f"multipart/form-data; boundary={BOUNDARY}"


def made(engine: Engine, answer: Dict[str, Any]) -> bool:
    """Whether the response has the expected content. The transcribed audio is silence, so any text will do."""
    if engine.probe == "transcriptions":
        return isinstance(answer.get("text"), str)
    if engine.probe == "completions":
        return bool((answer.get("usage") or {}).get("completion_tokens"))
    return bool(answer.get("results" if engine.probe == "rerank" else "data"))


def total(pattern: "re.Pattern[str]", metrics: str) -> float:
    return sum(float(value) for value in pattern.findall(metrics))


def wait_idle(engine: Engine, timeout: float) -> int:
    """Wait until no request is running or waiting; return how many are left at the timeout.

    An engine that does not answer has no requests to wait for.
    """
    end = time.monotonic() + timeout
    while True:
        try:
            left = round(total(UNFINISHED, request(f"{engine.url}/metrics")))
        except OSError:
            return 0
        if left == 0 or time.monotonic() >= end:
            return left
        time.sleep(PAUSE_S)


def unit_state(unit: str, names: str = "ActiveState,Result,NRestarts,ExecMainStatus,StatusText") -> Dict[str, str]:
    """The unit's state, from systemd."""
    shown = subprocess.run(
        ["systemctl", "show", unit, "--property", names], stdout=subprocess.PIPE, text=True, check=True
    )
    return dict(line.split("=", 1) for line in shown.stdout.splitlines() if "=" in line)


def how_it_ended(words: str, state: Dict[str, str]) -> str:
    """How the last run ended, from the journal. The unit's own state is no help: while systemd restarts it, it is
    already that of the next run, "success" and 0."""
    ends = re.findall(r"Main process exited, code=(\w+), status=(\S+)", words)
    if ends:
        return "code {}, status {}".format(*ends[-1])
    if state.get("Result") not in (None, "", "success"):
        return f"result {state['Result']}, exit status {state.get('ExecMainStatus')}"
    return "by itself, with exit status 0"


def read_journal(unit: str) -> str:
    command = ["journalctl", "--unit", unit, "--lines", str(SEARCHED_LINES), "--no-pager", "--output", "cat"]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False).stdout.strip()


def journal(unit: str) -> str:
    """The engine's own error, if it logged one, and the end of its journal."""
    text = read_journal(unit)
    error = engine_journal.last_error(text)
    end = "\n".join(text.splitlines()[-JOURNAL_LINES:])
    return (f"its own error: {error}\n" if error else "") + f"The last {JOURNAL_LINES} lines of its journal:\n{end}"


def crashes(state: Dict[str, str]) -> int:
    """How often systemd restarted the unit by itself since it was last started by hand."""
    return int(state.get("NRestarts") or 0)


def prove(engine: Engine, crashes_before: int = 0) -> None:
    """Wait until the engine is healthy, then until it has generated."""
    wait_healthy(engine, crashes_before)
    generate(engine)


def wait_healthy(engine: Engine, crashes_before: int = 0) -> None:
    """Loading may take minutes; a crash ends the wait."""
    end, begin_end = time.monotonic() + engine.start_timeout_s, time.monotonic() + BEGIN_S
    while True:
        state = unit_state(engine.unit)
        if state.get("ActiveState") == "activating" and time.monotonic() >= begin_end:
            raise ProbeError(
                f"{engine.unit} has not begun after {BEGIN_S:.0f} s: {state.get('StatusText')}; {journal(engine.unit)}"
            )
        if state.get("ActiveState") in ("failed", "inactive") or crashes(state) > crashes_before:
            words = journal(engine.unit)
            raise ProbeError(f"{engine.unit} ended while starting ({how_it_ended(words, state)}); {words}")
        try:
            request(f"{engine.url}/health")
            break
        except OSError as error:
            if time.monotonic() >= end:
                raise ProbeError(
                    f"{engine.unit} runs, but {engine.url}/health still fails after {engine.start_timeout_s:.0f} s: {error}; {journal(engine.unit)}"
                ) from error
        time.sleep(PAUSE_S)


def process_began_s(unit: str) -> float:
    """When the unit's main process was started, by the monotonic clock."""
    return int(unit_state(unit, "ExecMainStartTimestampMonotonic")["ExecMainStartTimestampMonotonic"]) / 1e6


@contextlib.contextmanager
def trying_features(name: str) -> Iterator[None]:
    """Hold the lock by which the watchdog knows that features are tried. It is released however this process ends."""
    with feature_lock(name).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def features_are_tried(name: str) -> bool:
    """Whether a process holds that lock."""
    try:
        with feature_lock(name).open() as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        pass  # nothing was ever tried
    return False


def feature_lock(name: str) -> Path:
    # Not in the engine's own directory, whose owner could make it a link.
    return RUN / f"engine-features-{name}.lock"


def sample(engine: Engine) -> None:
    """Try the sampling features that clients can use. A refusal (4xx) is fine too: not every model supports them all."""
    if engine.probe != "completions":
        return
    for name, (path, options) in SAMPLING.items():
        body = json.dumps({"model": engine.model, **options}).encode()
        before = tokens(engine)
        try:
            request(engine.url + path, body, timeout=ANSWER_S)
        except OSError as error:
            refused = isinstance(error, urllib.error.HTTPError) and error.code < 500
            if refused or tokens(engine) > before:
                continue
            raise ProbeError(
                f"{engine.unit} generates, but a request with {name} fails at {path}: {error}\n{journal(engine.unit)}"
            ) from error
    # An engine that such a request has killed no longer answers.
    generate(engine)


def generate(engine: Engine) -> None:
    """Request one token of the engine. If that fails, but a busy engine generates tokens for clients meanwhile, that is proof, too."""
    path, body, kind = question(engine)
    url = engine.url + path
    before = tokens(engine)
    try:
        answer = json.loads(request(url, body, timeout=ANSWER_S, kind=kind))
    except (OSError, ValueError) as error:
        if tokens(engine) > before:
            return
        detail = error.read().decode(errors="replace")[:500] if isinstance(error, urllib.error.HTTPError) else ""
        raise ProbeError(
            f"{engine.unit} is healthy, but {url} fails for model {engine.model!r}: {error} {detail}\n{journal(engine.unit)}"
        ) from error
    if not made(engine, answer):
        raise ProbeError(f"{engine.unit} answered {url} without a result: {json.dumps(answer)[:500]}")


def tokens(engine: Engine) -> float:
    try:
        return total(TOKENS, request(f"{engine.url}/metrics"))
    except OSError:
        return 0.0


def check_current(engine: Engine) -> None:
    """Raise ProbeError unless the engine runs as the release says, and generates. Waits for one that is still loading."""
    state = unit_state(engine.unit)
    if state.get("ActiveState") != "active":
        raise ProbeError(f"{engine.unit} is {state.get('ActiveState')}")
    try:
        runs = (RUN / f"vllm-{engine.name}" / "fingerprint").read_text().strip()
    except OSError:
        runs = "unknown"
    if runs != engine.fingerprint:
        raise ProbeError(f"{engine.unit} runs with other settings")
    prove(engine, crashes(state))


def told_plan(engine: Engine, words: str) -> List[str]:
    """One line if the KV cache, by the engine's journal, is another than planned; none if it is as planned, or nothing is known."""
    found = engine_journal.kv_cache(words)
    if not (engine.planned_kv_tokens and found):
        return []
    tokens, gib = found
    off = tokens / engine.planned_kv_tokens - 1
    if abs(off) <= PLAN_OFF:
        return []
    # The log rounds to hundredths; not more than there is.
    measured = "" if gib is None else f": {int((gib - 0.01) * 2**30)}, as it was logged"
    return [
        f"its KV cache keeps {tokens:,} tokens, {abs(off):.0%} {'more' if off > 0 else 'fewer'} than the {engine.planned_kv_tokens:,} planned. "
        f"To plan with what was measured, set kv-cache-memory-bytes in its args{measured}. "
        "If the plan did not call itself an estimate, please report this line with the model and the GPU"
    ]


def told_start(engine: Engine, start_s: float, proof_s: float, words: str) -> Dict[str, Any]:
    """How long the start took, its phases by the engine's journal, and its proof. The time is kept for the next drain of the engine."""
    parts = [f"{name} {seconds:.1f} s" for name, seconds in engine_journal.phases_s(words).items()]
    with contextlib.suppress(OSError):
        STARTS.mkdir(exist_ok=True)
        (STARTS / engine.name).write_text(f"{start_s + proof_s:.0f}\n")
    phases = f" ({', '.join(parts)})" if parts else ""
    return {
        "told": f"started in {start_s:.0f} s{phases} and was proven in {proof_s:.0f} s",
        "start_s": round(start_s, 1),
        "proof_s": round(proof_s, 1),
        "remarks": told_plan(engine, words),
    }


def main(arguments: Optional[List[str]] = None) -> int:
    parser = argparse.ArgumentParser(description="Look at an engine on its own host.")
    parser.add_argument("what", choices=("current", "idle", "prove"))
    parser.add_argument("name", help="the engine's")
    parser.add_argument(
        "--release", type=Path, required=True, help="directory of the release that describes the engine"
    )
    parser.add_argument("--fingerprint", help="the wanted one, if it is not the release's")
    parser.add_argument("--timeout", type=float, default=900, help="seconds that `idle` waits")
    options = parser.parse_args(arguments)
    try:
        engine = Engine.read(options.name, options.release)
        if options.fingerprint:
            engine = replace(engine, fingerprint=options.fingerprint)
    except OSError as error:
        # The engine does not run, so there is nothing to wait for.
        print(f"release {options.release} does not know engine {options.name}: {error}")
        return 0 if options.what == "idle" else 1
    begin = time.monotonic()
    try:
        if options.what == "idle":
            left = wait_idle(engine, options.timeout)
            waited_s = time.monotonic() - begin
            print(f"{left} requests are left after {waited_s:.1f} s" if left else f"idle after {waited_s:.1f} s")
            return 0
        if options.what == "current":
            check_current(engine)
        else:
            wait_healthy(engine)
            healthy_s = time.monotonic()
            generate(engine)
            with trying_features(engine.name):
                sample(engine)
            proof_s = time.monotonic() - healthy_s
            start_s = healthy_s - process_began_s(engine.unit)
            print(json.dumps(told_start(engine, start_s, proof_s, read_journal(engine.unit))))
            return 0
    except ProbeError as error:
        print(error)
        return 1
    print("runs as wanted")
    return 0


if __name__ == "__main__":
    sys.exit(main())
