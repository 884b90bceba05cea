"""Runs with wrong options or variables stop before anything changes, and say why."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.parsing.vault import VaultLib, VaultSecret
from helpers.module_python import module_python

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = Path(sys.executable).parent
ENGINE = {"name": "one", "model": "/nowhere", "served_model_name": "m", "port": 8000}


@pytest.fixture
def inventory(tmp_path: Path) -> Path:
    """Four hosts, all of them this machine, whose engines have a model that is not there."""
    hosts: dict[str, Any] = {
        f"engine{number}": {"stack_address": f"127.0.0.{number}", "vllm_engines": [ENGINE]} for number in (1, 2)
    }
    hosts |= {
        "api1": {
            "stack_address": "127.0.0.3",
            "proxy_keys": [{"name": "a", "key": "0123456789abcdef" * 2}],
            "proxy_workers": 1,
        },
        "web1": {"stack_address": "127.0.0.4", "nginx_certbot_public_addresses": ["127.0.0.1", "::1"]},
    }
    hosts["bastion"] = {}
    groups = {"vllm": ["engine1", "engine2"], "proxy": ["api1"], "nginx": ["web1"]}
    whole = {
        "vars": {
            "ansible_connection": "local",
            "ansible_become": False,
            "ansible_python_interpreter": module_python(tmp_path),
            "stack_domain": "localhost",
        },
        "hosts": hosts,
        "children": {group: {"hosts": {name: {} for name in names}} for group, names in groups.items()},
    }
    path = tmp_path / "hosts.yml"
    path.write_text(yaml.safe_dump({"all": whole}))
    return path


def command(*words: str | Path, directory: Path = ROOT, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run one of Ansible's programs in a directory, the repository or another one; it reads the ansible.cfg there."""
    program, *arguments = words
    environment = {name: value for name, value in os.environ.items() if name != "ANSIBLE_CONFIG"}
    return subprocess.run(
        [PROGRAMS / program, *arguments],
        cwd=directory,
        env=environment | {"ANSIBLE_NOCOLOR": "1"} | settings,
        capture_output=True,
        text=True,
        timeout=300,
    )


def run(inventory: Path, playbook: str, *options: str) -> tuple[int, str]:
    """Exit status and output, on one line, since messages are wrapped."""
    # Without the inventory plugin for EC2, which takes a quarter of the start, for AWS's libraries.
    settings = {} if inventory.suffix != ".yml" else {"ANSIBLE_INVENTORY_ENABLED": "ansible.builtin.yaml"}
    done = command("ansible-playbook", "-i", inventory, ROOT / playbook, *options, **settings)
    return done.returncode, " ".join((done.stdout + done.stderr).split())


def as_awx_writes_it(inventory: Path) -> Path:
    """The inventory as AWX gives it to a job: imported without a vault password, and printed by an executable script."""
    listed = command("ansible-inventory", "-i", inventory, "--list", "--export", "--playbook-dir", inventory.parent)
    assert listed.returncode == 0, listed.stderr
    whole = json.loads(listed.stdout)
    for variables in whole["_meta"]["hostvars"].values():
        variables |= {"remote_tower_enabled": "true", "remote_tower_id": 5}
    script = inventory.parent / "job" / "hosts"
    script.parent.mkdir()
    script.write_text(f"#! {sys.executable}\n# -*- coding: utf-8 -*-\nprint({json.dumps(whole)!r})\n")
    script.chmod(0o700)
    return script


def test_an_inventory_of_awx_is_read_with_values_that_are_encrypted_one_by_one(inventory: Path) -> None:
    """As docs/awx.md says: the import has no vault password, but passes such values on as they are."""
    (inventory.parent / "password").write_text("right")
    whole = yaml.safe_load(inventory.read_text())
    del whole["all"]["hosts"]["api1"]["proxy_keys"]
    inventory.write_text(yaml.safe_dump(whole))
    secret = VaultLib([("default", VaultSecret(b"right"))]).encrypt("0123456789abcdef" * 2).decode()
    value = "!vault |\n" + textwrap.indent(secret, " " * 6)
    variables = inventory.parent / "group_vars" / "proxy"
    variables.mkdir(parents=True)
    (variables / "main.yml").write_text('proxy_keys: "{{ vault_proxy_keys }}"\n')
    (variables / "vault.yml").write_text(f"vault_proxy_keys:\n  - name: alice\n    key: {value}\n")
    script = as_awx_writes_it(inventory)
    assert "0123456789abcdef" not in script.read_text()
    password = ["--vault-password-file", str(inventory.parent / "password")]
    status, output = run(script, "playbooks/check_inventory.yml", *password)
    assert status == 0, output
    assert "WARNING" not in output


def test_an_import_of_awx_that_meets_an_encrypted_file_says_what_to_do(inventory: Path) -> None:
    """AWX gives an inventory source no vault password."""
    (inventory.parent / "group_vars").mkdir()
    (inventory.parent / "group_vars" / "proxy.yml").write_text("$ANSIBLE_VAULT;1.1;AES256\n6162\n")
    listed = command("ansible-inventory", "-i", inventory, "--list", "--export")
    assert listed.returncode != 0
    assert "an inventory source of AWX takes none, so encrypt" in " ".join(listed.stderr.split())


@pytest.mark.parametrize(
    ("playbook", "options", "said"),
    [
        ("site.yml", ["--limit", "engine1"], "engine one: model /nowhere has no config.json"),
        ("playbooks/vllm.yml", ["--limit", "vllm:!engine2"], "engine one: model /nowhere has no config.json"),
        ("playbooks/proxy.yml", ["--limit", "engine1"], "leaves no host of the group proxy"),
        ("playbooks/vllm.yml", ["--tags", "vllm_service"], "--tags vllm_service cannot be used here"),
        ("site.yml", ["--tags", "proxy_servcie"], "--tags proxy_servcie cannot be used here"),
        ("playbooks/nginx.yml", ["--skip-tags", "nginx_certbot_install"], "--skip-tags nginx_certbot_install cannot"),
        ("site.yml", ["--skip-tags", "always"], "The checks were skipped"),
        ("playbooks/preflight.yml", ["--skip-tags", "always"], "The checks were skipped"),
        (
            "playbooks/nginx.yml",
            ["--start-at-task", "nginx_certbot : Look for a proven configuration"],
            "The checks were skipped",
        ),
        ("playbooks/check_inventory.yml", ["--limit", "all:!enigne2"], "did you mean engine2?"),
        ("site.yml", ["--limit", "bastion"], "leaves no host of the group vllm or proxy or nginx"),
        (
            "playbooks/check_inventory.yml",
            ["-e", "stack_preflight_collect=true"],
            "unknown variable stack_preflight_collect",
        ),
        ("playbooks/proxy.yml", ["-e", '{"proxy_keys": [{"name": "a", "limit": 1}]}'], "did you mean limits?"),
        (
            "playbooks/vllm.yml",
            ["--limit", "engine1", "-e", '{"proxy_queue": {"max_wait": 1}}'],
            "did you mean max_wait_s?",
        ),
    ],
)
def test_a_run_stops_before_it_changes_anything(inventory: Path, playbook: str, options: list[str], said: str) -> None:
    status, output = run(inventory, playbook, *options)
    assert status != 0, output
    assert said in output
    assert "changed=1" not in output


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "An image is made of one host: name it with --limit. The limit leaves engine1, engine2"),
        (["--limit", "engine1"], "host engine1 has no instance id in the inventory"),
        (["--limit", "engine1", "-e", "aws_instance_id=i-1 bake_name=x"], "unknown variable bake_name"),
        (["--limit", "engine1", "-e", "vllm_modles_dir=/x"], "did you mean vllm_models_dir?"),
        (["--limit", "engine1", "--start-at-task", "Look for an image of this name"], "The checks were skipped"),
    ],
)
def test_an_image_is_not_made_of_what_cannot_be_one(inventory: Path, options: list[str], said: str) -> None:
    status, output = run(inventory, "playbooks/bake.yml", *options)
    assert status != 0, output
    assert said in output
    assert "changed=1" not in output


@pytest.mark.parametrize(
    ("playbook", "options", "said"),
    [
        ("drain", [], "the hosts are not named: add --limit"),
        ("drain", ["--limit", "engine1", "-e", "drain_reason=a;b"], "without a semicolon"),
        ("drain", ["--limit", "engine1", "-e", '{"drain_reason": "rolling update"}'], "the reason belongs to rolls"),
        ("drain", ["--limit", "engine1", "--start-at-task", "Drain the engine"], "The checks were skipped"),
        ("restart", ["--limit", "engine1", "--start-at-task", "Forget what they run"], "The checks were skipped"),
        ("undrain", ["--limit", "api1"], "api1 has no engine that a proxy knows and no proxy worker that nginx knows"),
    ],
)
def test_nothing_is_drained_by_a_slip(inventory: Path, playbook: str, options: list[str], said: str) -> None:
    status, output = run(inventory, f"playbooks/{playbook}.yml", *options)
    assert status != 0, output
    assert said in output
    assert "changed=1" not in output


@pytest.mark.parametrize(
    ("options", "hosts"), [([], {"api1", "engine1", "engine2", "web1"}), (["--limit", "api1"], {"api1"})]
)
def test_the_status_of_hosts_that_run_nothing_yet(inventory: Path, options: list[str], hosts: set[str]) -> None:
    status_file = inventory.parent / "status.json"
    status, output = run(inventory, "playbooks/status.yml", "-e", f"status_file={status_file}", *options)
    assert status == 0, output
    assert set(json.loads(status_file.read_text())) == hosts
    assert ("engine engine2:one is in vllm_engines and not on the host" in output) == ("engine2" in hosts)


def test_the_diagnosis_of_hosts_that_run_nothing_yet(inventory: Path) -> None:
    told, logs = inventory.parent / "diagnosis.json", inventory.parent / "logs"
    status, output = run(
        inventory, "playbooks/diagnose.yml", "-e", f"diagnose_file={told}", "-e", f"diagnose_bundle={logs}"
    )
    assert status == 0, output
    assert "engine engine2:one is in vllm_engines and not on the host" in output
    assert set(json.loads(told.read_text())["reports"]) == {"api1", "engine1", "engine2", "web1"}
    assert (told.stat().st_mode & 0o777, logs.stat().st_mode & 0o777) == (0o600, 0o700)


def test_a_diagnosis_of_no_hours(inventory: Path) -> None:
    status, output = run(inventory, "playbooks/diagnose.yml", "-e", "diagnose_hours=0")
    assert status != 0, output
    assert "diagnose_hours is 0: write a whole number of hours" in " ".join(output.split())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "Say which request: -e request_id="),
        (["-e", '{"request_id": "a; reboot"}'], "Say which request: -e request_id="),
        (["-e", "request_id=a", "-e", "trace_hours=-1"], "trace_hours is -1: write a whole number"),
    ],
)
def test_a_request_that_cannot_be_traced(inventory: Path, options: list[str], said: str) -> None:
    status, output = run(inventory, "playbooks/trace.yml", *options)
    assert status != 0, output
    assert said in " ".join(output.split())


def test_the_trace_of_an_unknown_request_says_where_it_looked(inventory: Path) -> None:
    status, output = run(inventory, "playbooks/trace.yml", "-e", "request_id=no-such-request")
    assert status == 0, output
    assert "No host has a line of request no-such-request in the last 24 hours. Searched:" in output
    assert "web1: " in output


def test_an_image_has_no_other_tier_s_secrets(inventory: Path) -> None:
    whole = yaml.safe_load(inventory.read_text())
    whole["all"]["children"]["proxy"]["hosts"]["engine1"] = {}
    whole["all"]["hosts"]["engine1"] |= {"aws_instance_id": "i-1", "proxy_workers": 1}
    inventory.write_text(yaml.safe_dump(whole))
    status, output = run(inventory, "playbooks/bake.yml", "--limit", "engine1")
    assert status != 0
    assert "host engine1 is also in proxy: its keys and certificates would be in the image" in output


@pytest.mark.parametrize("playbook", ["roll", "drivers", "bake"])
def test_no_part_of_a_roll_can_be_begun_without_the_check(playbook: str) -> None:
    """With --start-at-task a run may begin in the middle; what a task inherits is asked all the same."""
    path = ROOT / "playbooks" / f"{playbook}.yml"
    check, *plays = yaml.safe_load(path.read_text())
    assert (path.parent / check["ansible.builtin.import_playbook"]).resolve() == ROOT / "playbooks/check_inventory.yml"
    tasks = [task for play in plays for task in play["tasks"] if "ansible.builtin.assert" not in task]
    assert tasks
    assert [
        task["name"] for task in tasks if "__stack_inventory_checked | mandatory(" not in task.get("when", "")
    ] == []


def test_the_rolling_update_by_itself_says_which_playbook_to_run(inventory: Path) -> None:
    status, output = run(inventory, "playbooks/roll.yml")
    assert status != 0
    assert "Run the playbook of a tier (vllm.yml, proxy.yml or nginx.yml) instead" in output


@pytest.mark.parametrize(
    ("group", "role"),
    [("vllm", "vllm"), ("proxy", "proxy"), ("nginx", "nginx_certbot")],
    ids=["vllm", "proxy", "nginx"],
)
def test_a_tier_s_playbook_is_the_rolling_update_with_its_own_data(group: str, role: str) -> None:
    (play,) = yaml.safe_load((ROOT / "playbooks" / f"{group}.yml").read_text())
    assert play["ansible.builtin.import_playbook"] == "roll.yml"
    assert set(play["vars"]) == {"__stack_tier", "__stack_group", "__stack_role", "__stack_after_rollback"}
    assert (play["vars"]["__stack_group"], play["vars"]["__stack_role"]) == (group, role)


def test_a_task_file_that_notifies_handlers_runs_them_itself() -> None:
    """Handlers at the end of a play would run after the rescue, so that their failure would roll nothing back."""
    files = [path for path in (ROOT / "roles").glob("*/tasks/**/*.yml") if "notify:" in path.read_text()]
    assert files
    assert [str(path) for path in files if "flush_handlers" not in path.read_text()] == []


def test_a_host_that_cannot_be_looked_at_is_a_line_of_the_report(inventory: Path) -> None:
    """So is a check that breaks: neither is taken for a host in order."""
    whole = yaml.safe_load(inventory.read_text())
    away = {"ansible_connection": "ssh", "ansible_host": "127.0.0.1", "ansible_port": 1}
    whole["all"]["hosts"]["api1"] |= away
    whole["all"]["hosts"]["engine2"]["vllm_install_disk_gb"] = "{{ nowhere }}"
    whole["all"]["hosts"]["web1"]["nginx_certbot_deny_cidrs"] = "{{ nowhere }}"
    whole["all"]["hosts"]["engine3"] = {"stack_address": "127.0.0.5", "vllm_engines": [ENGINE]}
    whole["all"]["hosts"]["engine3"]["ansible_python_interpreter"] = "/nowhere/python"
    whole["all"]["children"]["vllm"]["hosts"]["engine3"] = {}
    whole["all"]["hosts"]["localhost"] = away
    whole["all"]["children"]["nginx"]["hosts"]["localhost"] = {}
    inventory.write_text(yaml.safe_dump(whole))
    status, output = run(inventory, "playbooks/preflight.yml")
    assert status != 0
    for host in ("api1", "localhost"):
        assert f"host {host} cannot be reached: " in output
    assert "host engine3: its facts cannot be gathered: " in output
    assert "/nowhere/python: not found" in output, "the reason in the module's own result"
    assert 'host engine2: "Collect the problems" failed' in output
    assert 'host web1: "Collect the problems" failed' in output
    assert "engine one: model /nowhere has no config.json" in output, "of engine1"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\nb:\n  - x\n c: [\n", "all.yml, line 4, column 2 is not valid YAML"),
        ("$ANSIBLE_VAULT;1.1;AES256\n6162\n", "all.yml is encrypted, and no vault password was given"),
        ("x: {{ a }}\n", "all.yml"),
    ],
)
def test_a_file_of_variables_that_cannot_be_read_is_named(inventory: Path, text: str, said: str) -> None:
    (inventory.parent / "group_vars").mkdir()
    (inventory.parent / "group_vars" / "all.yml").write_text(text)
    status, output = run(inventory, "playbooks/check_inventory.yml")
    assert status != 0
    assert said in output


def tasks_after_the_check() -> list[str]:
    """The names of the tasks that judge what the check found, and of the one that looks at hosts."""
    (check, *_), (_, look, *_) = (
        yaml.safe_load((ROOT / "playbooks" / name).read_text()) for name in ("check_inventory.yml", "preflight.yml")
    )
    return [task["name"] for task in [*check["tasks"][1:], look["tasks"][0]]]


@pytest.mark.parametrize("task", tasks_after_the_check())
def test_a_run_that_begins_among_the_checks_says_that_they_were_skipped(inventory: Path, task: str) -> None:
    status, output = run(inventory, "site.yml", "--limit", "engine1", "--start-at-task", task)
    assert status != 0, output
    assert "The checks were skipped" in output
    assert "is undefined" not in output
    assert "changed=1" not in output


def test_a_good_inventory_passes_with_and_without_a_limit(inventory: Path) -> None:
    for options in ([], ["--limit", "engine1"]):
        status, output = run(inventory, "playbooks/check_inventory.yml", *options)
        assert status == 0, output


def test_a_run_from_another_directory_finds_roles_and_checks(inventory: Path) -> None:
    """There, and in a checkout that everyone may write, the repository's ansible.cfg is not in force."""
    options = ["--limit", "engine1"]
    done = command("ansible-playbook", "-i", inventory, ROOT / "site.yml", *options, directory=inventory.parent)
    assert "engine one: model /nowhere has no config.json" in " ".join((done.stdout + done.stderr).split())


def test_a_doubled_key_in_a_file_of_variables_stops_the_run_without_being_shown(inventory: Path) -> None:
    (inventory.parent / "group_vars").mkdir()
    doubled = "proxy_keys:\n  - name: a\n    key: s3cret-one\n    key: s3cret-two\n"
    (inventory.parent / "group_vars" / "proxy.yml").write_text(doubled)
    status, output = run(inventory, "playbooks/check_inventory.yml")
    assert status != 0
    assert "proxy.yml" in output
    assert "duplicate mapping key 'key'" in output
    assert "s3cret" not in output
