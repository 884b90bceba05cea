"""Three hosts, one per tier: the service as a client sees it, preflight, and site.yml as AWX runs it."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import ansible_runner
import pytest
import yaml
from helpers.service import ServiceTests
from helpers.stack import CLIENT, MODEL, PROJECT, SETTINGS, openai_client, playbook, ssh

testinfra_hosts = ["ssh://web1"]


class TestService(ServiceTests):
    engine_host = "engine1"


def test_preflight_reports_every_problem_at_once_and_changes_nothing(tmp_path: Path) -> None:
    bad = {
        "vllm.yml": {
            "vllm_engines": [
                {"name": "one", "model": "/srv/models/tiny-qwen3", "served_model_name": "tiny-qwen3", "port": 8000},
                {"name": "two", "model": "/srv/models/not-there", "served_model_name": "other", "port": 8000},
            ],
            "vllm_engine": [],
        },
        "proxy.yml": {
            "proxy_keys": [
                {"name": "short", "key": "sk-123"},
                {"name": "picky", "key": "x" * 40, "models": ["tiny-qewn3"]},
            ]
        },
        "nginx.yml": {"nginx_certbot_domains": ["nowhere.invalid"]},
    }
    inventory = tmp_path / "inventory"
    (inventory / "group_vars").mkdir(parents=True)
    (inventory / "hosts.yml").write_text("all: {}\n")
    for name, variables in bad.items():
        (inventory / "group_vars" / name).write_text(yaml.safe_dump(variables))

    done = playbook("site", "-i", str(inventory), check=False)

    assert done.returncode != 0
    for expected in (
        "port 8000 is used by engine one and engine two",
        "unknown variable vllm_engine (set for engine1): did you mean vllm_engines?",
        "key 'short' has 6 characters",
        "allows model 'tiny-qewn3', which no engine serves: did you mean 'tiny-qwen3'?",
        "domain nowhere.invalid does not resolve",
        "/srv/models/not-there",
    ):
        assert expected in done.stdout, f"not reported: {expected}\n{done.stdout[-4000:]}"
    assert "changed=0" in done.stdout
    assert "changed=1" not in done.stdout


def test_an_empty_group_is_reported(tmp_path: Path) -> None:
    (tmp_path / "hosts.yml").write_text(
        "all: {hosts: {lonely: {stack_address: 127.0.0.1}}, children: {vllm: {hosts: {lonely: {}}}}}\n"
    )
    done = subprocess.run(
        ["ansible-playbook", "-i", str(tmp_path / "hosts.yml"), "playbooks/check_inventory.yml"],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode != 0
    assert "group proxy has no host" in done.stdout
    assert "group nginx has no host" in done.stdout


def test_site_runs_under_ansible_runner_as_awx_runs_it(tmp_path: Path) -> None:
    # AWX: a checkout in project/, the SCM inventory named by its path, credentials and settings in env/.
    files = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=PROJECT,
        capture_output=True,
        check=True,
    ).stdout.decode()
    for name in filter(None, files.split("\0")):
        source, target = PROJECT / name, tmp_path / "project" / name
        if source.is_symlink() or source.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.is_symlink():
                target.symlink_to(source.readlink())
            else:
                target.write_bytes(source.read_bytes())
                target.chmod(source.stat().st_mode)
    (tmp_path / "inventory").mkdir()
    (tmp_path / "env").mkdir()
    (tmp_path / "env" / "settings").write_text("{}\n")

    run = ansible_runner.run(
        private_data_dir=str(tmp_path),
        playbook="site.yml",
        inventory=[str(tmp_path / "project" / "inventory" / "aws_ec2.yml"), str(CLIENT / "inventory")],
        quiet=True,
    )

    with run.stdout as output:
        log = output.read()
    assert run.status == "successful", log[-6000:]
    assert sum(run.stats["changed"].values()) == 0, log[-6000:]


def test_one_id_leads_through_all_tiers_and_no_log_has_the_clients_words() -> None:
    words = "zebrafish"
    schema = {"type": "object", "properties": {words: {"type": "boolean"}}, "required": [words]}
    with openai_client() as client:
        answer = client.chat.completions.with_raw_response.create(
            model=MODEL,
            messages=[{"role": "user", "content": f"Say {words}."}],
            stop=[words],
            max_tokens=4,
            extra_body={"structured_outputs": {"json": schema}},
        )
    request_id = answer.headers["x-request-id"]
    logs = {
        "web1": f"grep {request_id} /var/log/nginx/access.log",
        "api1": f"journalctl --no-pager --output cat --unit 'proxy@*' --grep {request_id}",
        "engine1": f"journalctl --no-pager --output cat --unit 'vllm@*' --grep {request_id}",
    }
    lines = {host: ssh(host, command).splitlines() for host, command in logs.items()}
    assert {host: len(found) for host, found in lines.items()} == {"web1": 1, "api1": 1, "engine1": 2}, lines
    assert f"request {request_id}: POST /v1/chat/completions" in lines["engine1"][0]
    assert f"request {request_id}: 200 after" in lines["engine1"][1]
    trace = playbook("trace", "-e", f"request_id={request_id}").stdout
    way = re.findall(r" (web1|api1|engine1) +(nginx|proxy|vllm) +(.*)", trace)
    # The clocks of all hosts are one here, so the tiers begin in the request's order. They may end in any: each writes its last line after it
    # has sent the end, which the tier in front can have passed on by then.
    tiers = [f"{host} {tier}" for host, tier, _ in way]
    assert list(dict.fromkeys(tiers)) == ["web1 nginx", "api1 proxy", "engine1 vllm"], trace
    assert {tier for tier, (*_, what) in zip(tiers, way, strict=True) if re.search(r"(^|: )200\b", what)} == set(
        tiers
    ), trace
    assert any("POST /v1/chat/completions, key" in what for _, _, what in way), trace
    for host in logs:
        # sudo logs the command: written this way, the pattern does not match itself.
        assert (
            ssh(
                host,
                "{ journalctl --no-pager; cat /var/log/nginx/*.log; } 2>/dev/null | grep -c 'zebra[f]ish' || true",
            )
            == "0\n"
        )


@pytest.mark.parametrize(("host", "unit"), [("api1", "proxy@9000"), ("engine1", "vllm@tiny")])
def test_our_units_are_hardened(host: str, unit: str) -> None:
    line = ssh(host, f"systemd-analyze security --no-pager {unit}.service | tail -n 1")
    exposure = float(line.split(":")[1].split()[0])
    assert exposure <= 3.0, line


@pytest.mark.parametrize("host", ["web1", "api1", "engine1"])
def test_no_key_lies_in_clear_on_any_host(host: str) -> None:
    # Written in two parts, so that the search does not find its own command line in a log.
    needle = SETTINGS["OPENAI_API_KEY"]
    half = len(needle) // 2
    pattern = f"{needle[:half]}''{needle[half:]}"
    assert ssh(host, f"grep -rl -- {pattern} /etc /opt/proxy /var/log /run/systemd /tmp 2>/dev/null || true") == ""
