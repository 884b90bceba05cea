"""What the lab takes from the machine it runs on: packages, Debian mirrors, resolver, certificate authorities, wheels.

The repository names no mirror, proxy, authority or directory of wheels: all come from the machine's own configuration.
"""

from __future__ import annotations

import ipaddress
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from ec2lab.report import LabError, run

# command -> the Debian/Ubuntu package that has it
COMMANDS = {
    "mmdebstrap": "mmdebstrap",
    "systemd-nspawn": "systemd-container",
    "ip": "iproute2",
    "iptables": "iptables",
    "pebble": "pebble",
    "pebble-challtestsrv": "pebble",
    "ssh-keygen": "openssh-client",
}
EXTRA_PACKAGES = ["debian-archive-keyring", "ca-certificates"]

# Where images and labs are kept. Defined here because the first check runs before any package is installed.
HOME = Path(os.environ.get("LAB_HOME", "/var/lib/ec2-inference-lab"))

DISK_NEEDED_GB = 12
MEMORY_NEEDED_GB = 6
# Debian's and Ubuntu's bundle; SSL_CERT_FILE may name another one.
CA_BUNDLE = Path("/etc/ssl/certs/ca-certificates.crt")


def check(home: Path) -> None:
    """Raise LabError with everything that this machine lacks for a lab. Changes nothing."""
    problems = []
    if os.geteuid() != 0:
        problems.append("run it as root: the lab makes a bridge, mounts and containers")
    if not (shutil.which("apt-get") and Path("/etc/debian_version").exists()):
        problems.append("run it on Debian 12/13 or Ubuntu: the lab installs its tools with apt-get")
    free_gb = shutil.disk_usage(_existing(home)).free / 1e9
    if free_gb < DISK_NEEDED_GB:
        problems.append(
            f"{home} has {free_gb:.0f} GB free and the lab needs {DISK_NEEDED_GB}: free some, or set LAB_HOME to a bigger disk"
        )
    memory_gb = _memory_gb()
    if memory_gb < MEMORY_NEEDED_GB:
        problems.append(
            f"the machine has {memory_gb:.0f} GB of memory and the lab needs {MEMORY_NEEDED_GB}: use a bigger one"
        )
    if problems:
        raise LabError(
            "this machine cannot run the lab; nothing was changed:\n" + "\n".join(f"  - {p}" for p in problems)
        )


def missing_packages() -> list[str]:
    """The packages that a lab needs and this machine does not have."""
    missing = {package for command, package in COMMANDS.items() if shutil.which(command) is None}
    for package in EXTRA_PACKAGES:
        if subprocess.run(["dpkg", "-s", package], capture_output=True, check=False).returncode != 0:
            missing.add(package)
    return sorted(missing)


def install_packages(packages: list[str], log: Path) -> None:
    """Install `packages` with apt."""
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    run(["apt-get", "update", "-q"], log=log, env=environment)
    run(["apt-get", "install", "-q", "-y", "--no-install-recommends", *packages], log=log, env=environment)


def debian_sources(suite: str) -> str:
    """The sources.list of a lab host of `suite`, on the mirrors this machine's apt uses.

    Empty if the machine has no Debian source and LAB_MIRROR is unset: mmdebstrap then uses its default.
    """
    mirror, security = os.environ.get("LAB_MIRROR"), os.environ.get("LAB_SECURITY_MIRROR")
    if mirror is None:
        targets = run(["apt-get", "indextargets", "--format", "$(LABEL) $(REPO_URI)", "Created-By: Packages"])
        found = dict(line.split(" ", 1) for line in reversed(targets.splitlines()) if line.startswith("Debian"))
        mirror, security = found.get("Debian"), found.get("Debian-Security")
    lines = []
    if mirror:
        lines += [f"deb {mirror.rstrip('/')} {pocket} main" for pocket in (suite, f"{suite}-updates")]
    if mirror and security:
        lines.append(f"deb {security.rstrip('/')} {suite}-security main")
    return "".join(line + "\n" for line in lines)


def nameservers() -> list[str]:
    """Resolvers that a lab host can reach: the machine's, with a local stub replaced by its upstream servers."""
    for path in (Path("/etc/resolv.conf"), Path("/run/systemd/resolve/resolv.conf")):
        if path.exists():
            found = re.findall(r"^nameserver\s+(\S+)", path.read_text(), re.MULTILINE)
            reachable = [address for address in found if not ipaddress.ip_address(address.split("%")[0]).is_loopback]
            if reachable:
                return reachable
    return []


def ca_bundle() -> Path:
    """The certificate authorities that this machine trusts, as one PEM file."""
    return Path(os.environ.get("SSL_CERT_FILE") or CA_BUNDLE)


def find_links() -> Path | None:
    """The directory of wheels in this machine's pip settings, if there is one."""
    for name in ("UV_FIND_LINKS", "PIP_FIND_LINKS"):
        for word in os.environ.get(name, "").replace(",", " ").split():
            if Path(word).is_dir():
                return Path(word).resolve()
    return None


def package_index_environment() -> dict[str, str]:
    """The Python package index settings that hosts inherit from this machine."""
    names = ("PIP_INDEX_URL", "UV_INDEX_URL", "UV_DEFAULT_INDEX", "https_proxy", "http_proxy", "no_proxy")
    return {name: os.environ[name] for name in names if name in os.environ}


def _existing(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path


def _memory_gb() -> float:
    match = re.search(r"^MemTotal:\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
    return int(match.group(1)) / 1e6 if match else 0.0


def main() -> int:
    """Check the machine before anything is installed. Runs on the system's Python, without third-party packages."""
    try:
        check(HOME)
    except LabError as error:
        print(f"lab: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
