"""`lab up | down | list | env | bake | ssh`: the lab's command line."""

from __future__ import annotations

import argparse
import os
import secrets
import shlex
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import yaml

from ec2lab import demo, hosts, images, machine, network, process, services
from ec2lab.machine import HOME
from ec2lab.model import PROJECT, Host, Lab, Topology, all_labs, locked
from ec2lab.report import LabError, run, step

# How often `lab follow` looks.
FOLLOW_S = 1.0
COMMANDS = {
    "up": "make a lab, or bring it back up",
    "follow": "keep a lab's hosts like the running instances of its EC2 API, until interrupted",
    "down": "remove every trace of a lab",
    "env": "print the environment with which boto3 and the dynamic inventory use its EC2 API",
    "ssh": "log in to a host",
}


def main(argv: list[str] | None = None) -> int:
    """Run one command. Returns 0, or 1 after printing what went wrong."""
    parser = argparse.ArgumentParser(prog="lab", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in COMMANDS.items():
        command = commands.add_parser(name, help=text)
        command.add_argument("lab", help="short name, e.g. demo; this checkout's path makes it unique on the machine")
        if name in ("up", "follow"):
            command.add_argument("topology", type=Path, help="the lab.yml with its hosts")
        if name == "ssh":
            command.add_argument("host")
            command.add_argument("words", nargs=argparse.REMAINDER)
    commands.add_parser("demo", help="bring up the demo: lab, site.yml, a chat completion")
    commands.add_parser("demo-down", help="remove every trace of the demo")
    commands.add_parser("list", help="list the labs of this machine")
    commands.add_parser("clean", help="remove labs whose checkout is gone")
    bake = commands.add_parser("image", help="make sure that an image is cached")
    bake.add_argument("image")
    arguments = parser.parse_args(argv)
    try:
        return _run(arguments)
    except LabError as error:
        print(f"lab: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        print("lab: interrupted; run the same again to go on, or `make demo-down` to remove the lab", file=sys.stderr)
    return 1


def _run(arguments: argparse.Namespace) -> int:
    if arguments.command == "up":
        up(Lab.of(arguments.lab), Topology.load(arguments.topology))
    elif arguments.command == "follow":
        follow(Lab.of(arguments.lab), Topology.load(arguments.topology))
    elif arguments.command == "down":
        down(Lab.of(arguments.lab))
    elif arguments.command == "env":
        for name, value in Lab.of(arguments.lab).environment().items():
            print(f"{name}={shlex.quote(value)}")
    elif arguments.command == "demo":
        lab = Lab.of(demo.NAME)
        up(lab, Topology.load(demo.TOPOLOGY))
        demo.run_site(lab)
        demo.show(lab)
    elif arguments.command == "demo-down":
        with step("remove the demo"):
            down(Lab.of(demo.NAME))
            demo.CLIENT_ENV.unlink(missing_ok=True)
    elif arguments.command == "list":
        for lab in all_labs():
            print(f"{lab.name}\t{lab.load().get('subnet', '-')}\t{lab.load().get('project', '-')}")
    elif arguments.command == "clean":
        for lab in all_labs():
            if not Path(lab.load().get("project", "/")).exists():
                down(lab)
    elif arguments.command == "image":
        prepare_machine()
        images.layers(arguments.image, bake_layer)
    elif arguments.command == "ssh":
        lab = Lab.of(arguments.lab)
        found = [host for host in _hosts_of(lab) if host.name == arguments.host]
        if not found:
            raise LabError(f"lab {lab.name} has no host {arguments.host}; `lab/lab list` shows the labs that are up")
        return subprocess.call([*hosts.ssh(lab, found[0]), *arguments.words])
    return 0


def prepare_machine() -> None:
    """Check the machine, then install the packages that the lab needs and the machine lacks."""
    machine.check(HOME)
    missing = machine.missing_packages()
    if missing:
        with step(f"install {', '.join(missing)}"):
            machine.install_packages(missing, HOME / "logs" / "apt.log")


def up(lab: Lab, topology: Topology, *, quiet: bool = False) -> None:
    """Make the lab match `topology`. Idempotent."""
    prepare_machine()
    if topology.images and not topology.hosts:
        topology = topology.of(_hosts_of(lab))
    names = {host.image for host in topology.hosts} | set(topology.images.values())
    lower = {name: images.layers(name, bake_layer) for name in sorted(names)}
    with locked(f"lab-{lab.name}"), step(f"lab {lab.name}: {', '.join(host.name for host in topology.hosts)}"):
        wanted = [{"name": h.name, "image": h.image, "tiers": list(h.tiers), "index": h.index} for h in topology.hosts]
        for old in lab.load().get("hosts", []):
            if old not in wanted:
                hosts.destroy(lab, old["name"])
        lab.save({**lab.load(), "project": str(PROJECT), "hosts": wanted})
        network.choose_subnet(lab)
        network.up(lab)
        network.write_names(lab, topology)
        hosts.make_client_key(lab)
        services.make_authority(lab)
        services.start(lab)
        for host in topology.hosts:
            hosts.prepare(lab, host, lower[host.image], topology)
            hosts.boot(lab, host)
        hosts.write_ssh_config(lab, topology)
        services.wait_ready(lab, topology)
        services.register(lab, topology)
        for host in topology.hosts:
            hosts.wait_ready(lab, host)
        write_inventory(lab, topology)
        write_client(lab)


def follow(lab: Lab, topology: Topology) -> None:
    """Boot a host for each instance that is launched, and remove those of instances that are terminated. Ends only when interrupted."""
    if not topology.images:
        raise LabError("its hosts are those of the lab.yml: `lab follow` is for one that has `images:`")
    while True:
        found = services.instances(lab, topology)
        if found != _hosts_of(lab):
            up(lab, replace(topology.of(found), images={}))
        time.sleep(FOLLOW_S)


def _hosts_of(lab: Lab) -> tuple[Host, ...]:
    """The hosts that the lab has now."""
    return tuple(Host(**{**row, "tiers": tuple(row["tiers"])}) for row in lab.load().get("hosts", []))


def down(lab: Lab) -> None:
    """Remove the lab: hosts, mounts, bridge, NAT rule, names, processes, files. Idempotent."""
    if os.geteuid() != 0:
        raise LabError("run it as root: the lab's hosts, mounts and bridge belong to root")
    with locked(f"lab-{lab.name}"):
        services.stop(lab)
        directory = lab.directory / "hosts"
        for path in sorted(directory.iterdir()) if directory.is_dir() else []:
            hosts.destroy(lab, path.name)
        network.down(lab)
        images.remove_tree(lab.directory)
        images.remove_tree(lab.client)
    network.restore_forwarding()


def write_inventory(lab: Lab, topology: Topology) -> None:
    """Write the inventory that is used beside inventory/aws_ec2.yml: variables that an operator could set as well.

    What all labs set is in lab/group_vars. What differs from lab to lab, such as its domain, is written here.
    """
    directory = lab.client / "inventory"
    known = directory / "group_vars" / "all" / "lab.yml"
    known.parent.mkdir(parents=True, exist_ok=True)
    key = lab.client / "api-key"
    if not key.exists():
        _write_secret(key, f"sk-lab-{secrets.token_hex(24)}")
    variables = {
        "ansible_user": "admin",
        "ansible_ssh_common_args": f"-F {lab.client / 'ssh_config'}",
        "lab_project": str(PROJECT),
        "lab_domain": lab.domain,
        "lab_acme_directory": lab.acme_directory,
        "lab_ec2_url": lab.ec2_url,
        "lab_imds_url": lab.imds_url,
        "lab_api_key": key.read_text(),
        "lab_find_links": hosts.FIND_LINKS if machine.find_links() else "",
        "lab_index_environment": machine.package_index_environment(),
    }
    _write_secret(known, "# Written by the lab; lost when the lab is removed.\n" + yaml.safe_dump(variables))
    # Loaded after lab.yml, by the alphabet, so that a scenario's variables win over those of all labs.
    (known.parent / "scenario.yml").write_text(yaml.safe_dump(topology.vars) if topology.vars else "{}\n")
    for source in sorted((PROJECT / "lab" / "group_vars").iterdir()):
        link = (
            known.parent / f"common-{source.name}" if source.stem == "all" else directory / "group_vars" / source.name
        )
        if not link.is_symlink():
            link.symlink_to(source)
    (directory / "hosts.yml").write_text("# The hosts come from the EC2 API.\nall: {}\n")


def write_client(lab: Lab) -> None:
    """Write client.env, with which any OpenAI client can call the lab."""
    lines = {
        "OPENAI_BASE_URL": f"https://llm.{lab.domain}/v1",
        "OPENAI_API_KEY": (lab.client / "api-key").read_text(),
        "SSL_CERT_FILE": str(lab.client / "ca-bundle.pem"),
    }
    _write_secret(lab.client / "client.env", "".join(f"{name}={value}\n" for name, value in lines.items()))


def _write_secret(path: Path, text: str) -> None:
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as handle:
        handle.write(text)


def bake_layer(name: str, base: str, playbook: str, layer: Path) -> None:
    """Boot a host of image `base`, run `playbook` on it, and keep what it wrote as `layer`."""
    lab = Lab.of(f"bake-{name}")
    host = Host(name="builder", image=base, tiers=(), index=0)
    topology = Topology((host,))
    down(lab)
    try:
        up(lab, topology)
        with tempfile.TemporaryDirectory() as scratch:
            inventory = Path(scratch) / "hosts.yml"
            inventory.write_text(yaml.safe_dump({"vllm": {"hosts": {host.name: None}}}))
            ansible = Path(sys.executable).parent / "ansible-playbook"
            argv: list[str | Path] = [ansible, "-i", lab.client / "inventory", "-i", inventory, PROJECT / playbook]
            run(argv, cwd=PROJECT, log=HOME / "logs" / f"bake-{name}.log", env={**os.environ, **lab.environment()})
        hosts.poweroff(lab, host)
        process.kill(process.inside(hosts.device(lab, host.name)))
        run(["umount", hosts.root(lab, host)])
        upper = hosts.directory(lab, host) / "upper"
        for name_of_host in (
            "etc/machine-id",
            "etc/hostname",
            "etc/hosts",
            "etc/resolv.conf",
            "home/admin/.ssh/authorized_keys",
        ):
            (upper / name_of_host).unlink(missing_ok=True)
        for pattern in (
            "etc/ssh/ssh_host_*",
            "var/log/journal/*",
            "etc/systemd/network/*",
            "usr/local/share/ca-certificates/lab-*",
        ):
            for path in upper.glob(pattern):
                images.remove_tree(path) if path.is_dir() else path.unlink()
        upper.rename(layer)
    finally:
        down(lab)
