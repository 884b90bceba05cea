"""If any process of an engine is killed or frozen, the engine serves again within three minutes by itself."""

from __future__ import annotations

import pytest
from test_vllm import ENGINES, MODELS

testinfra_hosts = ["ssh://engine1"]

SERVES_AGAIN_S = 360
# Patterns, because NUL separates the words of /proc/PID/cmdline.
PROCESSES = {"server": "vllm.serve", "core": "VLLM::EngineCore", "worker": "VLLM::Worker"}


def run_of(host, engine):
    return host.check_output(f"systemctl show --property InvocationID --value vllm@{engine}")


def pid_of(host, engine, process):
    group = host.check_output(f"systemctl show --property ControlGroup --value vllm@{engine}")
    command = f"for pid in $(cat /sys/fs/cgroup{group}/cgroup.procs); do grep -qa '{PROCESSES[process]}' /proc/$pid/cmdline && echo $pid; done; :"
    return host.check_output(command).split()[0]


def generate(host, engine, *options):
    """Have the engine generate a token. Returns curl's result."""
    address = host.interface("host0").addresses[0]
    body = f'{{"model": "{MODELS[engine]}", "prompt": "Hi", "max_tokens": 1}}'
    url = f"http://{address}:{ENGINES[engine]}/v1/completions"
    return host.run(f"curl --silent --show-error --fail {' '.join(options)} --json '{body}' {url}")


def wait_for_next_run(host, engine, before):
    """Wait until the engine generates in another run than `before`.

    A frozen process is continued to write its stacks, and may answer once more before it is killed. So the run is waited for first.
    """
    show = f"systemctl show --property InvocationID --value vllm@{engine}"
    host.run(f"timeout {SERVES_AGAIN_S} sh -c 'until [ \"$({show})\" != {before} ]; do sleep 0.5; done'")
    answered = generate(
        host,
        engine,
        "--retry 1000 --retry-all-errors --retry-delay 1",
        f"--max-time 120 --retry-max-time {SERVES_AGAIN_S}",
    )
    journal = f"journalctl --unit vllm@{engine} --unit vllm-watchdog --no-pager --lines 60"
    assert answered.succeeded, answered.stderr[-500:] + host.check_output(journal)
    assert run_of(host, engine) != before, host.check_output(journal)


@pytest.mark.parametrize(
    ("engine", "process"), [("local", "server"), ("local", "core"), ("bucket", "worker")], ids=PROCESSES
)
@pytest.mark.parametrize("signal", ["KILL", "STOP"])
def test_it_serves_again(host, engine, process, signal):
    assert generate(host, engine, "--max-time 60").succeeded
    before = run_of(host, engine)
    host.check_output(f"kill -s {signal} {pid_of(host, engine, process)}")
    wait_for_next_run(host, engine, before)
    if signal == "STOP":
        assert f"vllm@{engine}.service hangs" in host.check_output("journalctl --unit vllm-watchdog --no-pager")
        # Server and core wrote their stacks, whichever process was frozen.
        journal = host.check_output(f"journalctl --no-pager _SYSTEMD_INVOCATION_ID={before}")
        assert "entrypoints/cli/serve.py" in journal, journal[-3000:]
        assert "in run_engine_core" in journal, journal[-3000:]
    orphans = "for pid in $(pgrep -u vllm); do grep -q '/vllm[@-]' /proc/$pid/cgroup || ps --no-headers -o pid,args $pid; done; :"
    assert host.check_output(orphans) == ""


def test_crashes_are_told(host):
    assert "in a row" in host.check_output("systemctl status vllm@local --no-pager --lines 0")


def test_the_third_crash_in_a_row_removed_a_compile_cache_that_might_be_damaged(host):
    journal = host.check_output("journalctl --unit vllm@local --no-pager --grep 'removing its compile cache'")
    assert "/var/lib/vllm/cache/local-" in journal


def test_long_work_is_not_taken_for_a_hang(host):
    before = run_of(host, "local")
    address = host.interface("host0").addresses[0]
    body = '{"model": "tiny-local", "prompt": "Hi", "max_tokens": 1000, "ignore_eos": true}'
    # More requests than the engine runs at once, for longer than the watchdog waits (vllm_watchdog_timeout_s in vars/main.yml).
    host.check_output(
        f"end=$(($(date +%s) + 45)); for n in 1 2 3 4 5 6 7 8 9 10 11 12; do (while [ $(date +%s) -lt $end ]; do "
        f"curl --silent --fail --output /dev/null --json '{body}' http://{address}:{ENGINES['local']}/v1/completions || exit; done) & done; wait"
    )
    assert run_of(host, "local") == before


def test_what_an_operator_stops_stays_stopped(host):
    before = run_of(host, "bucket")
    host.check_output("systemctl stop vllm@bucket")
    # A unit that waits for its restart would be "auto-restart".
    assert host.check_output("systemctl show vllm@bucket --property SubState --value") == "dead"
    host.check_output("systemctl start vllm@bucket")
    wait_for_next_run(host, "bucket", before)
