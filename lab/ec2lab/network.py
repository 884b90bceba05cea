"""A lab's bridge, its NAT rule, and its names in the machine's /etc/hosts."""

from __future__ import annotations

import json
import subprocess
from ipaddress import IPv4Network
from pathlib import Path

from ec2lab.machine import HOME
from ec2lab.model import Lab, Topology, all_labs, locked
from ec2lab.report import LabError, run

# 64 subnets of RFC 1918 space that few networks use; each is checked against the machine's routes.
CANDIDATES = list(IPv4Network("10.213.0.0/16").subnets(new_prefix=24))[::4]
ETC_HOSTS = Path("/etc/hosts")
FORWARDING = Path("/proc/sys/net/ipv4/ip_forward")
FORWARDING_MARK = HOME / "forwarding-was-off"


def choose_subnet(lab: Lab) -> None:
    """Give the lab a subnet that no route of this machine and no other lab has."""
    with locked("subnets"):
        state = lab.load()
        if "subnet" in state:
            return
        taken = [
            IPv4Network(route["dst"])
            for route in json.loads(run(["ip", "-j", "-4", "route"]))
            if route["dst"] != "default"
        ]
        taken += [IPv4Network(other.load()["subnet"]) for other in all_labs() if "subnet" in other.load()]
        free = (net for net in CANDIDATES if not any(net.overlaps(other) for other in taken))
        subnet = next(free, None)
        if subnet is None:
            raise LabError(
                f"no subnet is free in {CANDIDATES[0].supernet(new_prefix=16)}: `lab/lab list` shows the labs, `lab/lab down NAME` removes one"
            )
        lab.save({**state, "subnet": str(subnet)})


def up(lab: Lab) -> None:
    """Make the bridge and the NAT rule. Idempotent."""
    network = lab.network()
    if not _bridge_exists(lab):
        run(["ip", "link", "add", lab.bridge, "type", "bridge"])
        run(["ip", "address", "add", f"{lab.address()}/{network.prefixlen}", "dev", lab.bridge])
    run(["ip", "link", "set", lab.bridge, "up"])
    with locked("forwarding"):
        # The machine's own setting, restored when its last lab is removed.
        if FORWARDING.read_text().strip() == "0":
            FORWARDING_MARK.touch()
            FORWARDING.write_text("1")
    for rule in _rules(lab):
        if (
            subprocess.run(
                ["iptables", "-w", *_table(rule), "-C", *rule[1:]], capture_output=True, check=False
            ).returncode
            != 0
        ):
            run(["iptables", "-w", *_table(rule), "-A" if rule[0] == "nat" else "-I", *rule[1:]])


def down(lab: Lab) -> None:
    """Remove bridge, rules and names. Idempotent."""
    if "subnet" in lab.load():
        for rule in _rules(lab):
            while (
                subprocess.run(
                    ["iptables", "-w", *_table(rule), "-D", *rule[1:]], capture_output=True, check=False
                ).returncode
                == 0
            ):
                pass
    if _bridge_exists(lab):
        run(["ip", "link", "delete", lab.bridge])
    remove_interfaces(f"{lab.tag}-*")
    _write_names(lab, [])


def remove_interfaces(machines: str) -> None:
    """Remove network interfaces of nspawn's machines whose name matches the pattern `machines`.

    They normally disappear with the host. After a host was killed they may stay, and no new interface can have their name.
    """
    for entry in sorted(Path("/sys/class/net").glob(f"vb-{machines}")):
        subprocess.run(["ip", "link", "delete", entry.name], capture_output=True, check=False)


def restore_forwarding() -> None:
    """Restore the machine's IP forwarding setting once no lab is left."""
    with locked("forwarding"):
        if FORWARDING_MARK.exists() and not all_labs():
            FORWARDING.write_text("0")
            FORWARDING_MARK.unlink()


def name_lines(lab: Lab, topology: Topology) -> list[str]:
    """/etc/hosts lines: the lab's own services, its public names, and (for the hosts themselves) every host."""
    by_name = {host.name: host for host in topology.hosts}
    lines = [f"{lab.address()} ec2.{lab.domain} acme.{lab.domain}"]
    for name, targets in topology.names.items():
        lines += [f"{lab.address(by_name[target])} {name}.{lab.domain}" for target in targets]
    return lines


def write_names(lab: Lab, topology: Topology) -> None:
    """Make the lab's public names resolve on this machine."""
    _write_names(lab, name_lines(lab, topology))


def _write_names(lab: Lab, lines: list[str]) -> None:
    with locked("names"):
        text = ETC_HOSTS.read_text()
        mark = f"# ec2-inference lab {lab.name}"
        kept = "".join(line for line in text.splitlines(keepends=True) if not line.rstrip().endswith(mark))
        if kept and not kept.endswith("\n"):
            kept += "\n"
        wanted = kept + "".join(f"{line} {mark}\n" for line in lines)
        if wanted != text:
            ETC_HOSTS.write_text(wanted)


def _bridge_exists(lab: Lab) -> bool:
    return Path(f"/sys/class/net/{lab.bridge}").exists()


def _rules(lab: Lab) -> list[list[str]]:
    subnet = str(lab.network())
    return [
        ["nat", "POSTROUTING", "-s", subnet, "!", "-d", subnet, "-j", "MASQUERADE"],
        # A machine with a container engine drops forwarded packets by default.
        ["filter", "FORWARD", "-s", subnet, "-j", "ACCEPT"],
        ["filter", "FORWARD", "-d", subnet, "-j", "ACCEPT"],
    ]


def _table(rule: list[str]) -> list[str]:
    return ["-t", rule[0]]
