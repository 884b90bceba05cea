"""Lab hosts: an overlay over an image, booted by systemd-nspawn, with its own address and SSH server."""

from __future__ import annotations

import os
import socket
import subprocess
import time
import uuid
from pathlib import Path

from ec2lab import machine, network, process
from ec2lab.images import remove_tree
from ec2lab.model import Host, Lab, Topology
from ec2lab.report import LabError, run

BOOT_TIMEOUT_S = 90
# Where a host sees the machine's directory of Python wheels.
FIND_LINKS = "/srv/find-links"
# nspawn exits with status 133 when its host reboots, and its caller has to boot the host again. The host's network interface may
# exist for a moment longer, and until it is gone its name is taken.
BOOT_AGAIN = """
cable=$1
shift
while "$@"; [ $? -eq 133 ]; do ip link delete "$cable" 2>/dev/null || :; done
"""


def directory(lab: Lab, host: Host) -> Path:
    """The directory of the host's overlay."""
    return lab.directory / "hosts" / host.name


def root(lab: Lab, host: Host) -> Path:
    """The host's root file system, as a path on the machine."""
    return directory(lab, host) / "root"


def device(lab: Lab, name: str) -> str:
    """The name under which the host's overlay is mounted; unique on this machine."""
    return f"{lab.bridge}-{name}"


def prepare(lab: Lab, host: Host, lower: list[Path], topology: Topology) -> None:
    """Mount the host's root and write its name, address, keys and the names of other hosts. Idempotent."""
    top = directory(lab, host)
    for part in ("upper", "work", "root"):
        (top / part).mkdir(parents=True, exist_ok=True)
    recorded = top / "lower"
    if not recorded.exists():
        recorded.write_text(":".join(map(str, lower)))
    if not os.path.ismount(top / "root"):
        # The layers that the host was made from, even if the image has a newer version now.
        options = f"lowerdir={recorded.read_text()},upperdir={top / 'upper'},workdir={top / 'work'}"
        run(["mount", "-t", "overlay", device(lab, host.name), "-o", options, top / "root"])
    _seed(lab, host, topology)


def boot(lab: Lab, host: Host) -> None:
    """Boot the host unless it runs, and again whenever it reboots. Does not wait; see wait_ready."""
    record = directory(lab, host) / "nspawn.pid"
    if process.running(record) is not None:
        return
    process.kill(process.inside(device(lab, host.name)))
    network.remove_interfaces(f"{lab.tag}-{host.index}")
    binds = []
    if wheels := machine.find_links():
        binds.append(f"--bind-ro={wheels}:{FIND_LINKS}")
    argv = [
        "sh",
        "-c",
        BOOT_AGAIN,
        "boot",
        f"vb-{lab.tag}-{host.index}",
        "systemd-nspawn",
        "--quiet",
        "--boot",
        "--register=no",
        "--keep-unit",
        "--console=passive",
        "--link-journal=no",
        "--resolv-conf=off",
        "--timezone=off",
        f"--directory={root(lab, host)}",
        # Names the network interface too, whose length is limited; the host's own name comes from /etc/hostname.
        f"--machine={lab.tag}-{host.index}",
        f"--hostname={host.name}",
        f"--network-bridge={lab.bridge}",
        *binds,
    ]
    process.start(
        argv,
        record,
        lab.directory / "log" / f"{host.name}.log",
        {**os.environ, "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"},
    )


def wait_ready(lab: Lab, host: Host) -> None:
    """Wait until the host's SSH server answers; raises LabError with the end of its console if it does not."""
    deadline = time.monotonic() + BOOT_TIMEOUT_S
    log = lab.directory / "log" / f"{host.name}.log"
    while time.monotonic() < deadline:
        try:
            with socket.create_connection((lab.address(host), 22), timeout=1) as connection:
                if connection.recv(4) == b"SSH-":
                    return
        except OSError:
            pass
        if process.running(directory(lab, host) / "nspawn.pid") is None:
            break
        time.sleep(0.1)
    tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:]) if log.exists() else ""
    raise LabError(
        f"host {host.name} of lab {lab.name} did not come up within {BOOT_TIMEOUT_S} s; its console ({log}) ends:\n{tail}"
    )


def poweroff(lab: Lab, host: Host) -> None:
    """Shut the host down cleanly, so that its files are complete."""
    subprocess.run([*ssh(lab, host), "sudo", "systemctl", "poweroff"], capture_output=True, check=False)
    pid = process.running(directory(lab, host) / "nspawn.pid")
    if pid is not None and not process.wait_gone(pid, 30):
        raise LabError(f"host {host.name} of lab {lab.name} did not power off within 30 s")


def destroy(lab: Lab, name: str) -> None:
    """Kill the host and remove all its files."""
    top = lab.directory / "hosts" / name
    # First the loop that would boot the host again, with nspawn; then the processes inside the host.
    process.stop(top / "nspawn.pid", grace_s=0)
    process.kill(process.inside(device(lab, name)))
    while os.path.ismount(top / "root"):
        run(["umount", top / "root"])
    remove_tree(top)


def ssh(lab: Lab, host: Host) -> list[str]:
    """The ssh command line that reaches the host."""
    return ["ssh", "-F", str(lab.client / "ssh_config"), host.name]


def make_client_key(lab: Lab) -> None:
    """Make the SSH key for all hosts of the lab."""
    lab.client.mkdir(parents=True, exist_ok=True)
    key = lab.client / "id_ed25519"
    if not key.exists():
        run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", lab.name, "-f", key])


def write_ssh_config(lab: Lab, topology: Topology) -> None:
    """Write an ssh_config for all hosts, with their host keys: no key is trusted on first use."""
    known = []
    for host in topology.hosts:
        kind, key = (root(lab, host) / "etc/ssh/ssh_host_ed25519_key.pub").read_text().split()[:2]
        known.append(f"{host.name},{lab.address(host)} {kind} {key}\n")
    (lab.client / "known_hosts").write_text("".join(known))
    aliases = "".join(
        f"Host {host.name}\n  HostName {lab.address(host)}\n  HostKeyAlias {host.name}\n" for host in topology.hosts
    )
    (lab.client / "ssh_config").write_text(
        f"{aliases}Host *\n  User admin\n  IdentityFile {lab.client / 'id_ed25519'}\n  IdentitiesOnly yes\n"
        f"  UserKnownHostsFile {lab.client / 'known_hosts'}\n  GlobalKnownHostsFile none\n  StrictHostKeyChecking yes\n"
    )


def _seed(lab: Lab, host: Host, topology: Topology) -> None:
    """Write what a cloud's metadata service would give the host."""
    base = root(lab, host)
    subnet = lab.network()
    resolvers = machine.nameservers()
    others = [f"{lab.address(other)} {other.name}" for other in topology.hosts]
    files = {
        "etc/hostname": f"{host.name}\n",
        "etc/hosts": "\n".join(
            ["127.0.0.1 localhost", "::1 localhost", *others, *network.name_lines(lab, topology), ""]
        ),
        "etc/resolv.conf": "".join(f"nameserver {address}\n" for address in resolvers),
        # host0 is nspawn's name for the interface; a file of this name also overrides systemd's own DHCP setting for it.
        "etc/systemd/network/80-container-host0.network": (
            "[Match]\nName=host0\n[Network]\n"
            f"Address={lab.address(host)}/{subnet.prefixlen}\nGateway={lab.address()}\nLinkLocalAddressing=no\nIPv6AcceptRA=no\n"
        ),
        "usr/local/share/ca-certificates/lab-acme.crt": (lab.directory / "acme" / "ca.pem").read_text(),
    }
    for name, text in files.items():
        path = base / name
        if path.is_symlink():
            path.unlink()
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or path.read_text() != text:
            path.write_text(text)
    if not (base / "etc/machine-id").read_text().strip():
        (base / "etc/machine-id").write_text(uuid.uuid4().hex + "\n")
    host_key = base / "etc/ssh/ssh_host_ed25519_key"
    if not host_key.exists():
        run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", host.name, "-f", host_key])
        run(["chroot", base, "update-ca-certificates"])
    authorized = base / "home/admin/.ssh/authorized_keys"
    authorized.write_text((lab.client / "id_ed25519.pub").read_text())
    owner = authorized.parent.stat()
    os.chown(authorized, owner.st_uid, owner.st_gid)
    authorized.chmod(0o600)
