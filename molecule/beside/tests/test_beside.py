"""The only engine of its model is replaced under load, and no request gets a 503: a second engine serves beside it meanwhile."""

from __future__ import annotations

import json
import re
import time
from typing import Any

import pytest
from helpers.load import Load
from helpers.stack import MODEL, interrupted_playbook, playbook, reboot, ssh

testinfra_hosts = ["ssh://all1"]
PORT, BESIDE_PORT = 8000, 8100
# For one answer at a time; the engine is the load's alone.
WAIT_S = 600


def engines(beside_port: int | None = BESIDE_PORT, **args: Any) -> tuple[str, str]:
    """The options of a playbook that give the host its one engine, with these options of `vllm serve`."""
    # Those of lab/group_vars/vllm/engines.yml.
    own = {"dtype": "float32", "max-model-len": 2048, "enforce-eager": True, "distributed-executor-backend": "uni"}
    engine = {
        "name": "tiny",
        "model": f"/srv/models/{MODEL}",
        "port": PORT,
        "args": {**own, **{name.replace("_", "-"): value for name, value in args.items()}},
        "environment": "{{ lab_engine_environment }}",
    }
    if beside_port:
        engine["beside_port"] = beside_port
    return "-e", json.dumps({"vllm_engines": [engine]})


def run_of(unit: str) -> str:
    return ssh("all1", f"systemctl show --property InvocationID --value {unit}").strip()


def starts_of(unit: str) -> int:
    return int(ssh("all1", f"journalctl --unit {unit} --output cat | grep -c '^Started' || :"))


def wait_until_the_second_serves() -> None:
    deadline = time.monotonic() + WAIT_S
    while True:
        try:
            states = seen_by_proxies()
        except (AssertionError, ValueError):
            states = {}  # the tiers start one after the other
        if states.get("all1:tiny.beside") == "serving":
            break
        assert time.monotonic() < deadline, states
        time.sleep(1)
    assert states["all1:tiny"] == "drained"


def seen_by_proxies() -> dict[str, str]:
    """The states in which a proxy worker sees the engines."""
    address = ssh("all1", "ss -Hltn 'sport = :9000' | awk '{print $4}'").strip()
    ready = json.loads(ssh("all1", f"curl -s http://{address}/health/ready"))
    return {engine["id"]: engine["state"] for engine in ready["engines"]}


def assert_only_the_engine_is_left() -> None:
    units = ssh("all1", "systemctl list-units --all --plain --no-legend --full 'vllm@*' | cut -d' ' -f1").split()
    assert units == ["vllm@tiny.service"]
    assert seen_by_proxies() == {"all1:tiny": "serving", "all1:tiny.beside": "absent"}
    assert ssh("all1", "ls /etc/proxy/drained").split() == []


@pytest.fixture(scope="module", autouse=True)
def engine_has_a_beside_port() -> None:
    """The port alone restarts nothing. Proxies learn of it with their own playbook."""
    before = run_of("vllm@tiny")
    playbook("vllm", *engines())
    playbook("proxy", *engines())
    assert run_of("vllm@tiny") == before
    assert_only_the_engine_is_left()


def test_an_engine_that_cannot_start_stops_nothing() -> None:
    before = run_of("vllm@tiny")
    with Load(calls=2) as load:
        done = playbook("vllm", *engines(max_num_seqs=48, tensor_parallel_size=7), check=False)
    load.assert_unharmed()
    said = " ".join(done.stdout.split())
    assert done.returncode != 0
    assert "tiny was not restarted, because no second engine serves beside it" in said, done.stdout[-8000:]
    assert "must be divisible by tensor parallel size" in said, done.stdout[-8000:]
    assert run_of("vllm@tiny") == before
    assert_only_the_engine_is_left()


def test_an_interrupted_roll_keeps_serving_and_the_next_one_ends_it() -> None:
    before = run_of("vllm@tiny")
    with Load(calls=2) as load:
        with interrupted_playbook("vllm", *engines(max_num_seqs=40)) as said:
            deadline = time.monotonic() + WAIT_S
            # The engine itself has been stopped, and starts.
            while run_of("vllm@tiny") == before:
                assert time.monotonic() < deadline, said()[-8000:]
                time.sleep(0.5)
        assert seen_by_proxies()["all1:tiny.beside"] == "serving"
        status = " ".join(playbook("status").stdout.split())
        assert "engine all1:tiny.beside serves while tiny is replaced: if no roll runs, one was interrupted" in status
    load.assert_unharmed()

    # Nobody puts the engine back, so the second one has to survive what the engine survives.
    reboot("all1")
    wait_until_the_second_serves()
    ssh("all1", "systemctl kill --signal=KILL vllm@tiny.beside")
    wait_until_the_second_serves()
    starts = starts_of("vllm@tiny.beside")

    with Load(calls=2) as load:
        playbook("vllm", *engines(max_num_seqs=40))
    load.assert_unharmed()
    assert starts_of("vllm@tiny.beside") == starts, "the roll did not use the one that served"
    assert "max-num-seqs: 40" in ssh("all1", "cat /opt/vllm/current/engines/tiny.yml")
    assert_only_the_engine_is_left()
    attention = playbook("status").stdout.partition("needs attention")[2].partition("PLAY RECAP")[0]
    assert set(re.findall(r"- (.+)", attention)) <= {"all1: no time server sets its clock"}, attention
