"""Each tier is changed under load: no request fails, no stream ends early, and a bad release reaches one host only."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from helpers.load import Load
from helpers.stack import PROJECT, openai_client, playbook, ssh

testinfra_hosts = ["ssh://web1"]
ENGINES, PROXIES = ("engine1", "engine2"), ("api1", "api2")
HOSTS = ("web1", *PROXIES, *ENGINES)
LOCK = "/run/ec2-inference-stack.lock"
# What a roll writes into its markers: who runs it, in which play, since when.
MARKER = r"rolling update; by \S+@\S+ \(Roll the API tier, one host at a time\); since \d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ"


@pytest.fixture
def load() -> Iterator[Load]:
    with Load() as running:
        yield running
    running.assert_unharmed()


def main_pids(host: str, pattern: str) -> dict[str, str]:
    """The running units of a host that match `pattern`, with their main process."""
    units = ssh(host, f"systemctl list-units --plain --no-legend --state=active '{pattern}' | cut -d' ' -f1").split()
    return {unit: ssh(host, f"systemctl show -p MainPID --value {unit}").strip() for unit in units}


def ready(host: str, port: int) -> dict:
    """What a proxy worker reports of itself."""
    address = ssh(host, f"ss -Hltn 'sport = :{port}' | awk '{{print $4}}'").strip()
    return json.loads(ssh(host, f"curl -s http://{address}/health/ready"))


def upstream(host: str) -> dict[str, bool]:
    """The proxy workers in nginx's upstream, and whether each is marked down."""
    lines = ssh("web1", "cat /etc/nginx/ec2-inference/upstream.conf").splitlines()
    found = {}
    for line in lines:
        if "server " in line and "#" in line:
            name = line.split("#")[1].split()[0]
            if name.startswith(f"{host}:"):
                found[name] = " down" in line.split("#")[0]
    assert found, lines
    return found


def release(tmp_path: Path, version: str, *, broken: bool = False) -> Path:
    """A copy of the proxy with another version. A broken one fails at its start."""
    target = tmp_path / f"proxy_app-{version}"
    shutil.copytree(PROJECT / "proxy_app", target, ignore=shutil.ignore_patterns("__pycache__", ".*_cache", "tests"))
    init = target / "src" / "inference_proxy" / "__init__.py"
    text = init.read_text()
    lines = [f'__version__ = "{version}"' if line.startswith("__version__") else line for line in text.splitlines()]
    assert "\n".join(lines) != text.rstrip("\n")
    init.write_text("\n".join(lines) + "\n")
    if broken:
        # It fails after `check-config`, which refuses a release that cannot be imported before anything is drained.
        server = target / "src" / "inference_proxy" / "worker.py"
        head, sign, body = server.read_text().partition("    state = State(")
        assert sign, "make_server has changed: break it elsewhere"
        server.write_text(f'{head}    raise RuntimeError("this release was made to fail")\n{sign}{body}')
    return target


def table(output: str) -> dict[str, str]:
    """The lines of the last table of hosts, by the host."""
    _, head, lines = output.rpartition("out of service  runs")
    assert head, output[-6000:]
    found = (line.strip().lstrip("- ").split(maxsplit=1) for line in lines.splitlines())
    return {words[0]: " ".join(words[1].split()) for words in found if len(words) == 2 and words[0] in HOSTS}


def wait_for_lock(host: str) -> dict:
    """The lock on a host, as soon as a run has taken it."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if text := ssh(host, f"cat {LOCK} 2>/dev/null || true"):
            return json.loads(text)
        time.sleep(0.2)
    raise AssertionError(f"no run took the lock on {host} within 120 s")


def test_an_engine_setting_rolls_through_the_engines(load: Load) -> None:
    before = {host: main_pids(host, "vllm@*") for host in ENGINES}
    proxies = {host: main_pids(host, "proxy@*") for host in PROXIES}
    web = main_pids("web1", "nginx.service")

    done = playbook("vllm", "-e", '{"lab_engine_extra": {"max-num-seqs": 48}}')

    shown = table(done.stdout)
    assert set(shown) == set(ENGINES), done.stdout[-6000:]
    assert all(re.fullmatch(r"yes tiny \d+ s \S+ -> \S+", line) for line in shown.values()), shown
    for host in ENGINES:
        after = main_pids(host, "vllm@*")
        assert set(after) == set(before[host])
        assert after != before[host], f"{host}: the engine was not restarted"
        assert "max-num-seqs: 48" in ssh(host, "cat /opt/vllm/current/engines/tiny.yml")
    assert {host: main_pids(host, "proxy@*") for host in PROXIES} == proxies
    assert main_pids("web1", "nginx.service") == web
    for host in PROXIES:
        assert {engine["state"] for engine in ready(host, 9000)["engines"]} == {"serving"}


def test_one_engine_host_returns_to_the_release_before(load: Load) -> None:
    before = {host: main_pids(host, "vllm@*") for host in ENGINES}
    first = playbook("rollback", "-e", "tier=engine", "--limit", "engine1")
    assert set(table(first.stdout)) == {"engine1"}, first.stdout[-6000:]
    assert "max-num-seqs: 48" not in ssh("engine1", "cat /opt/vllm/current/engines/tiny.yml")
    after = main_pids("engine1", "vllm@*")
    assert after != before["engine1"]
    second = " ".join(playbook("rollback", "-e", "tier=engine", "--limit", "engine1").stdout.split())
    assert "engine1: nothing to return to: it runs" in second, second[-6000:]
    assert main_pids("engine1", "vllm@*") == after
    assert main_pids("engine2", "vllm@*") == before["engine2"]
    for host in PROXIES:
        assert {engine["state"] for engine in ready(host, 9000)["engines"]} == {"serving"}


def test_a_proxy_setting_is_taken_up_without_a_restart(load: Load) -> None:
    before = {host: main_pids(host, "proxy@*") for host in PROXIES}
    playbook("proxy", "-e", '{"proxy_timeouts": {"connect_s": 4}}')
    assert {host: main_pids(host, "proxy@*") for host in PROXIES} == before
    for host in PROXIES:
        assert '"connect_s": 4' in ssh(host, "cat /etc/proxy/config.yml")
        assert ready(host, 9000)["config_error"] is None


def test_an_nginx_setting_is_taken_up_by_a_reload(load: Load) -> None:
    before = main_pids("web1", "nginx.service")
    playbook("nginx", "-e", '{"nginx_certbot_short_timeout_s": 75}')
    assert main_pids("web1", "nginx.service") == before
    assert "75s" in ssh("web1", "nginx -T 2>/dev/null")


def test_a_second_proxy_release_rolls_through_the_proxies(load: Load, tmp_path: Path) -> None:
    engines = {host: main_pids(host, "vllm@*") for host in ENGINES}
    before = {host: main_pids(host, "proxy@*") for host in PROXIES}
    with ThreadPoolExecutor() as others:
        roll = others.submit(playbook, "proxy", "-e", f"proxy_source_dir={release(tmp_path, '0.2.0')}")
        holder = wait_for_lock("api1")
        refused = playbook("nginx", check=False)
        assert roll.result().returncode == 0
    said = " ".join(refused.stdout.split())
    assert refused.returncode != 0, said
    assert (
        f"Another run changes this stack, so this one changed nothing: {holder['who']} runs playbooks/proxy.yml" in said
    ), said
    assert "changed=1" not in said
    for host in PROXIES:
        after = main_pids(host, "proxy@*")
        assert set(after) == set(before[host])
        assert not set(after.values()) & set(before[host].values())
        assert ready(host, 9000)["version"] == "0.2.0"
        assert not any(upstream(host).values())
    assert {host: main_pids(host, "vllm@*") for host in ENGINES} == engines


def test_the_proxies_return_to_the_release_before_after_a_lost_run(load: Load) -> None:
    before = {host: main_pids(host, "proxy@*") for host in PROXIES}
    lost = {"id": "lost", "who": "AWX job 17", "runs": "playbooks/proxy.yml", "since": "2026-11-27T03:00:00Z"}
    ssh("api1", f"echo '{json.dumps(lost)}' > {LOCK}")
    refused = playbook("rollback", "-e", "tier=proxy", check=False)
    said = " ".join(refused.stdout.split())
    assert refused.returncode != 0, said
    assert "AWX job 17 runs playbooks/proxy.yml, since 2026-11-27T03:00:00Z" in said, said
    assert {host: main_pids(host, "proxy@*") for host in PROXIES} == before

    done = playbook("rollback", "-e", "tier=proxy", "-e", '{"stack_break_lock": "AWX job 17"}')
    for host in PROXIES:
        assert re.fullmatch(r"yes 9000 \d+ s.* 0\.2\.0-\S+ -> \S+", table(done.stdout)[host]), done.stdout[-6000:]
        assert not set(main_pids(host, "proxy@*").values()) & set(before[host].values())
        assert ready(host, 9000)["version"] != "0.2.0"
        assert not any(upstream(host).values())
        assert ssh(host, f"cat {LOCK} 2>/dev/null || true") == ""


def test_an_operator_drains_hosts_and_puts_them_back(load: Load) -> None:
    engines = {host: main_pids(host, "vllm@*") for host in ENGINES}
    done = playbook("drain", "--limit", "engine1,api2", "-e", '{"drain_reason": "new disk"}')
    marker = ssh("api1", "cat /etc/proxy/drained/engine1:tiny").strip()
    assert re.fullmatch(r"new disk; by \S+@\S+ \(Take the engines out of every proxy\); since \S+Z", marker), (
        done.stdout[-6000:]
    )
    for host in PROXIES:
        assert {engine["id"]: engine["state"] for engine in ready(host, 9000)["engines"]}["engine1:tiny"] == "drained"
    assert all(upstream("api2").values())

    refused = " ".join(
        playbook("drain", "--limit", "engine2", "-e", '{"drain_reason": "new disk"}', check=False).stdout.split()
    )
    assert (
        "no other engine serves tiny-qwen3, as api1, api2 sees it: to drain nevertheless, add -e drain_last=true"
        in refused
    )
    shown = " ".join(playbook("diagnose").stdout.split())
    assert re.search(r"engine1:tiny is drained on api1, api2 for \d+ min: new disk; by \S+@\S+", shown), shown[-6000:]
    assert re.search(r"api1 to engine2:tiny: [\d.]+ ms", shown), shown[-6000:]

    # A roll does its work on drained hosts, and leaves them drained.
    playbook("proxy", "-e", '{"proxy_timeouts": {"connect_s": 6}}')
    assert ssh("api1", "cat /etc/proxy/drained/engine1:tiny").strip() == marker
    assert all(upstream("api2").values())

    playbook("undrain", "--limit", "engine1,api2")
    for host in PROXIES:
        assert {engine["state"] for engine in ready(host, 9000)["engines"]} == {"serving"}
        assert not any(upstream(host).values())
    # In the lab no time server sets the hosts' clocks.
    attention = playbook("status").stdout.partition("needs attention")[2].partition("PLAY RECAP")[0]
    assert set(re.findall(r"- (.+)", attention)) <= {f"{host}: no time server sets its clock" for host in HOSTS}, (
        attention
    )
    assert {host: main_pids(host, "vllm@*") for host in ENGINES} == engines


def test_one_worker_is_restarted_as_a_roll_does_it(load: Load) -> None:
    engines = {host: main_pids(host, "vllm@*") for host in ENGINES}
    before = main_pids("api1", "proxy@*")
    restarted, *others = sorted(before)
    port = restarted.removeprefix("proxy@").removesuffix(".service")
    playbook("restart", "--limit", "api1", "-e", f"restart_instances=api1:{port}")
    after = main_pids("api1", "proxy@*")
    assert after[restarted] != before[restarted]
    assert [after[other] for other in others] == [before[other] for other in others]
    assert not any(upstream("api1").values())
    assert {host: main_pids(host, "vllm@*") for host in ENGINES} == engines


def test_a_bad_release_is_rolled_back_and_goes_no_further(load: Load, tmp_path: Path) -> None:
    untouched = main_pids("api2", "proxy@*")
    version = ready("api1", 9000)["version"]

    done = playbook(
        "proxy",
        "-e",
        f"proxy_source_dir={release(tmp_path, '0.3.0', broken=True)}",
        check=False,
    )

    assert done.returncode != 0
    assert "this release was made to fail" in done.stdout, done.stdout[-6000:]
    assert "api1 did not become healthy and was rolled back" in done.stdout, done.stdout[-6000:]
    assert ready("api1", 9000)["version"] == version
    assert all(upstream("api1").values()), "the host that failed must stay out of nginx's rotation"
    for marker in ssh("web1", "cat /etc/nginx/ec2-inference/drained/api1:*").splitlines():
        assert re.fullmatch(MARKER, marker), marker
    assert main_pids("api2", "proxy@*") == untouched
    assert not any(upstream("api2").values())


def test_the_next_good_run_puts_the_host_back(load: Load) -> None:
    done = playbook("proxy")
    said = " ".join(done.stdout.split())
    for worker in upstream("api1"):
        assert re.search(rf"{worker} is put back, after \d+ h \d+ min: {MARKER}", said), done.stdout[-6000:]
    for host in PROXIES:
        assert not any(upstream(host).values())
        assert ready(host, 9000)["version"] not in ("0.2.0", "0.3.0")
    with openai_client() as client:
        assert client.models.list().data
