"""One engine over two hosts: its ranks start, fail and roll together, and come back without a person."""

from __future__ import annotations

import json
import subprocess
import time

import pytest
from helpers.stack import CLIENT, PROJECT, playbook, ssh

testinfra_hosts = ["ssh://engine2"]
HEAD, WORKER = "engine2", "engine1"
HOSTS = (HEAD, WORKER)
SERVES_AGAIN_S = 240
VARS = f"@{PROJECT}/molecule/cluster/vars.yml"
RUN = "systemctl show --property InvocationID --value vllm@big"
BODY = '{"model": "tiny", "prompt": "Hi", "max_tokens": 1}'


def journals() -> str:
    return "\n".join(
        f"--- {host}\n"
        + ssh(
            host, "journalctl --unit vllm@big --unit vllm-watchdog --no-pager --lines 60; systemctl status vllm@big; :"
        )
        for host in HOSTS
    )


def runs() -> dict[str, str]:
    """The unit's run on each host; none of a host that boots."""
    command = ["ssh", "-F", str(CLIENT / "ssh_config"), "-o", "ConnectTimeout=5"]
    return {
        host: subprocess.run(
            [*command, host, RUN], capture_output=True, text=True, timeout=60, check=False
        ).stdout.strip()
        for host in HOSTS
    }


def pid_of_worker(host: str) -> str:
    group = ssh(host, "systemctl show --property ControlGroup --value vllm@big").strip()
    command = f"for pid in $(cat /sys/fs/cgroup{group}/cgroup.procs); do grep -qa VLLM::Worker /proc/$pid/cmdline && echo $pid; done; :"
    return ssh(host, command).split()[0]


def generates() -> bool:
    """Whether the head generates a token now."""
    url = "http://$(hostname -I | cut -d' ' -f1):8100/v1/completions"
    answer = ssh(HEAD, f"curl --silent --max-time 30 --json '{BODY}' {url} || :")
    return '"text"' in answer


def wait_until_it_serves(before: dict[str, str]) -> None:
    """Wait until the engine generates and no rank is in the run that it was in before."""
    end = time.monotonic() + SERVES_AGAIN_S
    while not (all(run not in ("", before[host]) for host, run in runs().items()) and generates()):
        assert time.monotonic() < end, journals()
        time.sleep(1)


def restarts() -> dict[str, str]:
    return {host: ssh(host, "systemctl show --property NRestarts --value vllm@big").strip() for host in HOSTS}


def seen_by_the_proxy() -> dict[str, str]:
    address = ssh("api1", "hostname -I").split()[0]
    ready = json.loads(ssh("api1", f"curl --silent http://{address}:9000/health/ready"))
    return {engine["id"]: engine["state"] for engine in ready["engines"]}


def test_the_proxy_sees_one_engine_which_is_the_head_s() -> None:
    assert generates(), journals()
    assert seen_by_the_proxy() == {f"{HEAD}:big": "serving"}
    for host, rank in ((HEAD, 0), (WORKER, 1)):
        status = ssh(host, "systemctl show --property StatusText --value vllm@big")
        assert f"all 2 ranks are here; rank {rank} starts" in status


@pytest.mark.parametrize(("signal", "host"), [("KILL", HEAD), ("STOP", WORKER)])
def test_it_serves_again(signal: str, host: str) -> None:
    before = runs()
    ssh(host, f"kill -s {signal} {pid_of_worker(host)}")
    wait_until_it_serves(before)
    if signal == "STOP":
        said = ssh(HEAD, "journalctl --unit vllm-watchdog --no-pager") + ssh(
            WORKER, "journalctl --unit vllm-watchdog --no-pager"
        )
        assert "vllm@big.service hangs" in said


def test_a_drain_of_either_host_drains_the_engine() -> None:
    playbook("drain", "-e", VARS, "--limit", WORKER, "-e", '{"drain_reason": "test", "drain_last": true}')
    assert seen_by_the_proxy() == {f"{HEAD}:big": "drained"}
    playbook("undrain", "-e", VARS, "--limit", WORKER)
    assert seen_by_the_proxy() == {f"{HEAD}:big": "serving"}


def test_a_setting_with_which_it_does_not_start_is_rolled_back_on_both_hosts() -> None:
    releases = {host: ssh(host, "readlink /opt/vllm/current") for host in HOSTS}
    failed = playbook("vllm", "-e", VARS, "-e", '{"lab_engine_extra": {"tensor-parallel-size": 14}}', check=False)
    assert failed.returncode != 0
    assert "must be divisible by tensor parallel size" in failed.stdout, failed.stdout[-5000:]
    assert {host: ssh(host, "readlink /opt/vllm/current") for host in HOSTS} == releases, failed.stdout[-5000:]
    assert generates(), journals()
    assert seen_by_the_proxy() == {f"{HEAD}:big": "serving"}


ON_RAY = '{"lab_cluster_backend": "ray"}'


def ray(command: str, **environment: str) -> str:
    """What Ray's program says on the head, as an operator would ask it."""
    environment = {"RAY_AUTH_TOKEN_PATH": "/etc/vllm/cluster_token"} | environment
    changed = " ".join(f"{name}={value}" for name, value in environment.items())
    program = "/opt/vllm/current/venv/ray-*/bin/ray"
    return ssh(HEAD, f"set -a; . /opt/vllm/current/engines/big.env; {changed} {program} {command} 2>&1; :")


def test_it_changes_to_ray_whose_nodes_have_to_prove_themselves() -> None:
    before = runs()
    refused = playbook("vllm", "-e", VARS, "-e", ON_RAY, "--limit", WORKER, check=False)
    assert refused.returncode != 0
    assert "leaves out engine2 of cluster big" in refused.stdout
    playbook("vllm", "-e", VARS, "-e", ON_RAY)
    after = runs()
    assert {host for host in HOSTS if before[host] != after[host]} == set(HOSTS)
    assert generates(), journals()
    assert seen_by_the_proxy() == {f"{HEAD}:big": "serving"}
    status = ray("status")
    assert status.count(" 1 node_") == 2, status
    assert "2.0/2.0 GPU" in status, status
    assert "InvalidAuthToken" in ray("status", RAY_AUTH_TOKEN_PATH="/etc/machine-id")
    assert "InvalidAuthToken" in ray("status", RAY_AUTH_MODE="disabled")
    token = ssh(HEAD, "cat /etc/vllm/cluster_token").strip()
    for host in HOSTS:
        # `tr`, because these files have no lines.
        told = ssh(
            host,
            "cat /proc/[0-9]*/cmdline /proc/[0-9]*/environ 2>/dev/null | tr '\\0' '\\n'; journalctl --no-pager --boot",
        )
        assert token not in told, "the token is in a command, an environment or the journal"


def test_the_loss_of_a_node_of_ray_is_mended() -> None:
    before = runs()
    ssh(WORKER, "kill -s KILL $(pidof raylet)")
    wait_until_it_serves(before)
    status = ray("status")
    assert status.count(" 1 node_") == 2, status
