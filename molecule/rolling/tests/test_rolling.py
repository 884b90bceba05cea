"""Each tier is changed under load: no request fails, no stream ends early, and a bad release reaches one host only."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest
from helpers.load import Load
from helpers.stack import MODEL, PROJECT, engine_url, metadata, openai_client, playbook, scaling_calls, ssh

testinfra_hosts = ["ssh://web1"]
ENGINES, PROXIES = ("engine1", "engine2"), ("api1", "api2")
HOSTS = ("web1", *PROXIES, *ENGINES)
# The setting and the adapter that the first roll brings to the engines; later rolls of engines keep the setting.
SETTING = {"max-num-seqs": 48}
SQL = [{"name": "sql", "model": "/srv/adapters/sql"}]
# Between an engine's drain and its return, with two proxy hosts.
MOST_TASKS_WHILE_OUT = 20
LOCK = "/run/ec2-inference-stack.lock"
# Because CI would not end in its time with them (tools/run_checks.py). The scenarios vllm and nginx_certbot have bad engines, adapters and nginx's
# settings in `make test`, without the other tiers, and the test of a person's drain also changes a setting of the proxies.
long_form = pytest.mark.skipif("ROLLING_LONG" not in os.environ, reason="only in make test-long")
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


def seen(engine: str) -> dict[str, str]:
    """The state in which each worker of each proxy host sees an engine."""
    ask = "for a in $(ss -Hltn | awk '{print $4}' | grep -E ':900[0-9]$'); do echo $a $(curl -s http://$a/health/ready); done"
    found = {}
    for host in PROXIES:
        for line in ssh(host, ask).splitlines():
            address, _, view = line.partition(" ")
            (found[address],) = [one["state"] for one in json.loads(view)["engines"] if one["id"] == engine]
    assert len(found) >= len(PROXIES), found
    return found


def await_that(what: Callable[[], bool], say: Callable[[], object]) -> None:
    """Wait until it is so. `say` is shown if it never is."""
    end = time.monotonic() + 180
    while not what():
        assert time.monotonic() < end, say()


def await_state(engine: str, state: str) -> None:
    """Wait until every worker of every proxy host sees the engine in this state."""
    journal = "journalctl -u vllm-notices --no-pager -n 20"
    await_that(
        lambda: set(seen(engine).values()) == {state}, lambda: (seen(engine), ssh(engine.partition(":")[0], journal))
    )


def in_utc(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + seconds))


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


# It fails after `check-config`, which refuses a release that cannot be imported before anything is drained.
BROKEN = ("worker.py", "    state = State(", '    raise RuntimeError("this release was made to fail")\n')


def release(tmp_path: Path, version: str, *, fault: tuple[str, str, str] | None = None) -> Path:
    """A copy of the proxy with another version, and perhaps a fault: a file, the words before which something is written, and that."""
    target = tmp_path / f"proxy_app-{version}"
    shutil.copytree(PROJECT / "proxy_app", target, ignore=shutil.ignore_patterns("__pycache__", ".*_cache", "tests"))
    package = target / "src" / "inference_proxy"
    init = package / "__init__.py"
    text = init.read_text()
    lines = [f'__version__ = "{version}"' if line.startswith("__version__") else line for line in text.splitlines()]
    assert "\n".join(lines) != text.rstrip("\n")
    init.write_text("\n".join(lines) + "\n")
    if fault:
        name, words, added = fault
        head, found, body = (package / name).read_text().partition(words)
        assert found, f"{name} has changed: break it elsewhere"
        (package / name).write_text(f"{head}{added}{found}{body}")
    return target


def roll_engines(*, check: bool = True, **variables: object) -> subprocess.CompletedProcess[str]:
    return playbook("vllm", "-e", json.dumps(variables), check=check)


def table(output: str) -> dict[str, str]:
    """The lines of the last table of hosts, by the host."""
    *_, head, lines = re.split(r"(out of service +runs\n)", output)
    assert head, output[-6000:]
    # An empty line ends it; Ansible's own recap has a line for each host, too.
    found = (line.split(maxsplit=1) for line in lines.partition("\n\n")[0].splitlines())
    return {words[0]: " ".join(words[1].split()) for words in found if len(words) == 2 and words[0] in HOSTS}


def tasks_while_out(output: str) -> list[list[str]]:
    """By the engine, the tasks that a roll ran while the engine was out of service."""
    found: list[list[str]] = []
    is_out = False
    for name, result in re.findall(r"^TASK \[(.*)\] \*+\n((?:.+\n)*)", output, re.MULTILINE):
        if name.endswith("Note since when the engine is out"):
            is_out = True
            found.append([])
        elif is_out and re.search("^(ok|changed): ", result, re.MULTILINE):
            found[-1].append(name)
        if name.endswith("Note until when the engine was out"):
            is_out = False
    return found


def wait_for_lock(host: str) -> dict:
    """The lock on a host, as soon as a run has taken it."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        if text := ssh(host, f"cat {LOCK} 2>/dev/null || true"):
            return json.loads(text)
        time.sleep(0.2)
    raise AssertionError(f"no run took the lock on {host} within 300 s")


def test_an_engine_setting_rolls_through_the_engines(load: Load) -> None:
    before = {host: main_pids(host, "vllm@*") for host in ENGINES}
    proxies = {host: main_pids(host, "proxy@*") for host in PROXIES}
    web = main_pids("web1", "nginx.service")

    done = roll_engines(lab_engine_extra=SETTING, lab_engine_adapters=SQL)

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
    for host in ENGINES:
        report = rf"{host}: tiny: out of service for (\d+) s, of which its start (\d+) s and its proof (\d+) s"
        (told,) = re.findall(report, " ".join(done.stdout.split()))
        total_s, start_s, proof_s = map(int, told)
        assert total_s >= start_s + proof_s
    # How long the roll's own tasks take depends on the machine; docs/performance.md has the seconds. Their number does not.
    windows = tasks_while_out(done.stdout)
    assert len(windows) == len(ENGINES)
    assert all(len(tasks) <= MOST_TASKS_WHILE_OUT for tasks in windows), windows


@long_form
def test_a_bad_engine_release_is_rolled_back_and_goes_no_further(load: Load) -> None:
    before = {host: main_pids(host, "vllm@*") for host in ENGINES}
    options = ssh("engine1", "cat /opt/vllm/current/engines/tiny.yml")

    # vLLM takes the option, and fails with it at its start.
    done = roll_engines(lab_engine_extra=SETTING | {"tensor-parallel-size": 7}, lab_engine_adapters=SQL, check=False)

    assert done.returncode != 0
    said = " ".join(done.stdout.split())
    assert "must be divisible by tensor parallel size" in said, done.stdout[-6000:]
    assert "engine1 did not become healthy and was rolled back; the hosts after it were not touched" in said
    assert ssh("engine1", "cat /opt/vllm/current/engines/tiny.yml") == options
    assert main_pids("engine1", "vllm@*").keys() == before["engine1"].keys()
    assert main_pids("engine2", "vllm@*") == before["engine2"]
    for host in PROXIES:
        states = {engine["id"]: engine["state"] for engine in ready(host, 9000)["engines"]}
        assert set(states.values()) == {"serving"}, f"{host}: {states}"


@long_form
def test_a_proxy_setting_is_taken_up_without_a_restart(load: Load) -> None:
    before = {host: main_pids(host, "proxy@*") for host in PROXIES}
    playbook("proxy", "-e", json.dumps({"proxy_timeouts": {"connect_s": 4}, "lab_engine_adapters": SQL}))
    assert {host: main_pids(host, "proxy@*") for host in PROXIES} == before
    for host in PROXIES:
        assert '"connect_s": 4' in ssh(host, "cat /etc/proxy/config.yml")
        assert ready(host, 9000)["config_error"] is None


@long_form
def test_a_replaced_adapter_is_known_all_the_time() -> None:
    pids = {host: main_pids(host, "vllm@*") for host in ENGINES}
    over, answers = threading.Event(), []

    def ask() -> None:
        """As a request that no proxy knows of any more."""
        body = {"model": "sql", "prompt": "Hi", "max_tokens": 1}
        with httpx2.Client(timeout=120) as client:
            while not over.wait(0.1):
                answers.append(client.post(f"http://{engine_url('engine1')}/v1/completions", json=body).status_code)

    asker = threading.Thread(target=ask, daemon=True)
    with Load(model="sql") as load:
        asker.start()
        roll_engines(lab_engine_extra=SETTING, lab_engine_adapters=[{"name": "sql", "model": "/srv/adapters/sql-2"}])
        over.set()
        asker.join(timeout=180)
    load.assert_unharmed()
    assert set(answers) == {200}, answers
    assert {host: main_pids(host, "vllm@*") for host in ENGINES} == pids
    for host in ENGINES:
        models = json.loads(ssh(host, f"curl -s http://{engine_url(host)}/v1/models"))["data"]
        assert {model["id"]: model["root"] for model in models if model["parent"]} == {"sql": "/srv/adapters/sql-2"}


@long_form
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


@long_form
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
        assert re.fullmatch(r"yes 900\d \d+ s.* 0\.2\.0-\S+ -> \S+", table(done.stdout)[host]), done.stdout[-6000:]
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
    metadata("engine1", "spot/instance-action", {"action": "terminate", "time": in_utc(120)})
    await_that(
        lambda: "spot" in ssh("engine1", "cat /run/vllm/draining.json || true"),
        lambda: ssh("engine1", "ls -l /run/vllm"),
    )
    shown = " ".join(playbook("diagnose").stdout.split())
    metadata("engine1", "spot/instance-action")
    assert re.search(r"engine1 will end, at \S+Z at the latest: spot interruption \(terminate\)", shown), shown[-6000:]
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


def test_a_host_that_aws_takes_away_is_drained_and_one_that_stays_comes_back(load: Load) -> None:
    engines = main_pids("engine1", "vllm@*")
    metadata("engine1", "spot/instance-action", {"action": "terminate", "time": in_utc(120)})
    await_state("engine1:tiny", "draining")
    metadata("engine1", "spot/instance-action")
    await_state("engine1:tiny", "serving")

    before = len(scaling_calls())
    metadata("engine1", "autoscaling/target-lifecycle-state", "Terminated")
    await_state("engine1:tiny", "draining")
    await_that(
        lambda: "CompleteLifecycleAction" in [call["Action"] for call in scaling_calls()[before:]],
        lambda: ssh("engine1", "journalctl -u vllm-notices --no-pager -n 20"),
    )
    completed = scaling_calls()[-1]
    assert (completed["LifecycleHookName"], completed["LifecycleActionResult"]) == ("vllm-drain", "CONTINUE")
    metadata("engine1", "autoscaling/target-lifecycle-state", "InService")
    await_state("engine1:tiny", "serving")
    assert main_pids("engine1", "vllm@*") == engines


def test_a_host_that_is_lost_without_notice_is_noticed_by_every_proxy() -> None:
    address = ssh("engine2", "hostname -I").split()[0]
    try:
        for host in PROXIES:
            # What they send to the host gets lost, as if it were gone.
            ssh(host, f"ip neigh replace {address} lladdr 02:00:00:00:00:01 dev host0 nud permanent")
        await_state("engine2:tiny", "down")
        with openai_client() as client:
            assert client.completions.create(model=MODEL, prompt="hello", max_tokens=4).choices
    finally:
        for host in PROXIES:
            ssh(host, f"ip neigh del {address} dev host0")
    await_state("engine2:tiny", "serving")


@long_form
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
        f"proxy_source_dir={release(tmp_path, '0.3.0', fault=BROKEN)}",
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
