"""The lab's names and topologies: what keeps two labs on one machine apart, and what a wrong lab.yml says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from ec2lab import hosts, network, process
from ec2lab.model import Host, Lab, Topology
from ec2lab.report import LabError


def test_two_checkouts_never_share_a_lab() -> None:
    one, two = Lab.of("demo", Path("/a")), Lab.of("demo", Path("/b"))
    assert len({one.name, two.name}) == len({one.bridge, two.bridge}) == len({one.domain, two.domain}) == 2
    assert Lab.of("demo", Path("/a")) == one


def test_interface_names_fit_the_kernels_limit() -> None:
    lab = Lab.of("a-scenario-with-a-rather-long-name")
    assert len(lab.bridge) <= 15
    assert len(f"vb-{lab.tag}-244") <= 15


def test_a_wrong_topology_says_everything_at_once(tmp_path: Path) -> None:
    path = tmp_path / "lab.yml"
    path.write_text("hosts: {web1: {tiers: [ngnix]}, Big: {}}\nnames: {llm: [web2]}\nextra: 1\n")
    with pytest.raises(LabError) as error:
        Topology.load(path)
    for said in ("no tier 'ngnix'", "host 'Big'", "no host 'web2'", "unknown key 'extra'"):
        assert said in str(error.value)


def test_an_empty_topology_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "lab.yml"
    path.write_text("")
    with pytest.raises(LabError, match="name at least one host"):
        Topology.load(path)


def test_names_resolve_to_all_instances_of_a_tier(tmp_path: Path) -> None:
    path = tmp_path / "lab.yml"
    path.write_text("images: {nginx: trixie, vllm: engine}\nnames: {llm: [nginx], none: [vllm]}\n")
    topology = Topology.load(path)
    assert topology.of(()).names == {}
    web = Host(name="web-1", image="trixie", tiers=("nginx", "proxy"), index=-6)
    assert topology.of((web,)).names == {"llm": ["web-1"]}


def test_names_are_added_and_removed_without_touching_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text("127.0.0.1 localhost\n10.0.0.1 mine # kept")
    monkeypatch.setattr(network, "ETC_HOSTS", hosts)
    monkeypatch.setattr("ec2lab.model.HOME", tmp_path)
    one, two = Lab("one"), Lab("one-more")
    network._write_names(one, ["10.213.0.1 a"])
    network._write_names(two, ["10.213.4.1 b"])
    network._write_names(one, [])
    assert hosts.read_text() == "127.0.0.1 localhost\n10.0.0.1 mine # kept\n10.213.4.1 b # ec2-inference lab one-more\n"


def test_a_recorded_process_is_not_mistaken_for_another_with_its_pid(tmp_path: Path) -> None:
    record = tmp_path / "pid"
    with subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE) as other:
        record.write_text(json.dumps({"pid": other.pid, "started": 1}))
        assert process.running(record) is None
        process.stop(record)
        assert other.poll() is None
        other.communicate()
    assert not record.exists()


def test_a_process_is_started_found_and_stopped(tmp_path: Path) -> None:
    record = tmp_path / "pid"
    process.start([sys.executable, "-c", "import signal; signal.pause()"], record, tmp_path / "log")
    pid = process.running(record)
    assert pid is not None
    process.stop(record)
    assert process.running(record) is None
    assert not Path(f"/proc/{pid}/exe").exists()


def test_a_host_that_reboots_is_booted_again_until_it_powers_off(tmp_path: Path) -> None:
    boots = tmp_path / "boots"
    machine = tmp_path / "machine"
    # As nspawn does: 133 for a reboot, twice; then 0 for a poweroff.
    machine.write_text(f'#!/bin/sh\necho "$@" >> {boots}\n[ $(wc -l < {boots}) -gt 2 ] || exit 133\n')
    machine.chmod(0o755)
    subprocess.run(
        ["sh", "-c", hosts.BOOT_AGAIN, "boot", "vb-none-of-these", str(machine), "--boot"], check=True, timeout=30
    )
    assert boots.read_text() == "--boot\n" * 3
