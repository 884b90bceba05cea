"""Root file systems that hosts start from: Debian bases, and layers with a role already run on them (the lab's AMIs).

Each is cached under a hash of its inputs, and appears there only once it is complete.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from ec2lab import machine
from ec2lab.machine import HOME
from ec2lab.model import PROJECT, locked
from ec2lab.report import LabError, run, step

CACHE = HOME / "images"
DEFINITIONS = PROJECT / "lab" / "images.yml"
KEEP_PER_IMAGE = 2
PEM = re.compile(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)

# Runs in the new root as root. `admin` is the user that Debian's own AMIs have.
CUSTOMIZE = """
set -eu
useradd --create-home --shell /bin/bash admin
echo 'admin ALL=(ALL) NOPASSWD: ALL' > /etc/sudoers.d/admin
install -d -m 0700 -o admin -g admin /home/admin/.ssh
systemctl enable systemd-networkd ssh
systemctl disable systemd-networkd-wait-online apt-daily.timer apt-daily-upgrade.timer || true
rm -f /etc/ssh/ssh_host_*
: > /etc/machine-id
"""


def layers(name: str, bake: Callable[[str, str, str, Path], None]) -> list[Path]:
    """Return the overlay's lower directories for image `name`, top first. Builds what is missing.

    `bake(name, base, playbook, layer)` makes a derived layer by running a playbook on a host of the base image.
    """
    definitions = yaml.safe_load(DEFINITIONS.read_text())
    if name not in definitions:
        raise LabError(f"no image {name!r}: {DEFINITIONS} has {', '.join(definitions)}")
    spec = definitions[name]
    if "suite" in spec:
        key = _digest(
            yaml.safe_dump(spec),
            CUSTOMIZE,
            "with apt lists",
            machine.debian_sources(spec["suite"]),
            machine.ca_bundle().read_text(),
        )
        return [_cached(name, key, lambda target: _bootstrap(spec, target))]
    below = layers(spec["base"], bake)
    key = _digest(yaml.safe_dump(spec), *map(str, below), *(_content(pattern) for pattern in spec["inputs"]))
    return [_cached(name, key, lambda target: bake(name, spec["base"], spec["playbook"], target)), *below]


def _cached(name: str, key: str, build: Callable[[Path], None]) -> Path:
    target = CACHE / f"{name}-{key}"
    with locked(f"image-{name}"):
        if not target.exists():
            with step(f"image {name} ({key})"):
                partial = CACHE / f".{name}-{key}.partial"
                remove_tree(partial)
                partial.parent.mkdir(parents=True, exist_ok=True)
                build(partial)
                partial.rename(target)
        os.utime(target)
        _prune(name)
    return target


def _bootstrap(spec: dict[str, Any], target: Path) -> None:
    command = [
        "mmdebstrap",
        "--variant=minbase",
        # As in cloud images; a first `--check` on a host needs the package lists.
        "--skip=cleanup/apt/lists",
        f"--include={','.join(spec['packages'])}",
        f'--customize-hook=chroot "$1" sh -c {shlex.quote(CUSTOMIZE)}',
        spec["suite"],
        str(target),
    ]
    log = HOME / "logs" / f"mmdebstrap-{spec['suite']}.log"
    sources = machine.debian_sources(spec["suite"])
    if sources:
        run([*command, "-"], input=sources, log=log)
    else:
        run(command, log=log)
    _trust_machine_authorities(target)


def _trust_machine_authorities(root: Path) -> None:
    """Install the machine's extra certificate authorities on the host, such as that of a TLS-inspecting proxy."""
    known = set(PEM.findall((root / "etc/ssl/certs/ca-certificates.crt").read_text()))
    for number, certificate in enumerate(PEM.findall(machine.ca_bundle().read_text())):
        if certificate not in known:
            (root / f"usr/local/share/ca-certificates/machine-{number}.crt").write_text(certificate + "\n")
    run(["chroot", root, "update-ca-certificates"])


def remove_tree(path: Path) -> None:
    """Remove a directory tree. Refuses one with a mount in it."""
    mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    inside = [mount for mount in mounts if mount == str(path) or mount.startswith(f"{path}/")]
    if inside:
        raise LabError(f"{path} is not removed: {inside[0]} is still mounted")
    if path.exists():
        shutil.rmtree(path)


def _prune(name: str) -> None:
    """Remove older versions of an image that no mounted host uses."""
    mounted = Path("/proc/self/mountinfo").read_text()
    versions = sorted(CACHE.glob(f"{name}-*"), key=lambda path: path.stat().st_mtime, reverse=True)
    versions = [path for path in versions if path.name.rpartition("-")[0] == name]
    in_use = [str(path) for path in CACHE.parent.glob("labs/*/hosts/*/lower")]
    standing = "".join(Path(path).read_text() for path in in_use)
    for old in versions[KEEP_PER_IMAGE:]:
        if str(old) not in mounted and str(old) not in standing:
            remove_tree(old)


def _content(pattern: str) -> str:
    """Names and contents of the repository's files that match `pattern`."""
    files = sorted(path for path in PROJECT.glob(pattern) if path.is_file() and "__pycache__" not in path.parts)
    return "".join(f"{path.relative_to(PROJECT)}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\0" for path in files)


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]
