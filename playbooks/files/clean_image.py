#!/usr/bin/env python3
"""Remove from a host what must not be in a machine image: its identity, secrets, logs, and releases.

    clean_image.py [--dry-run]

Prints one line for each file or directory that is removed or emptied. Afterwards no new SSH connection is possible until the host
has been started again and cloud-init has made host keys and installed the login key. Standard library only (Python 3.9 or newer).
"""

from __future__ import annotations

import argparse
import glob
import shutil
import sys
from pathlib import Path

REMOVED = {
    "keys of this host": ["etc/ssh/ssh_host_*"],
    "who may log in": ["root/.ssh/authorized_keys", "home/*/.ssh/authorized_keys"],
    "identity": ["var/lib/dbus/machine-id", "var/lib/cloud/*", "var/lib/dhcp/*.leases", "var/lib/amazon/ssm/*"],
    "secrets": ["etc/vllm/fetch.env", "root/.aws", "home/*/.aws", "var/lib/vllm/.cache/huggingface/token"],
    "histories": ["root/.*_history", "home/*/.*_history"],
    # Releases have this host's address, and engines' environments, which may hold secrets. Venvs, models and caches stay.
    "engines of this host": [
        "opt/vllm/releases/*",
        "opt/vllm/current",
        "opt/vllm/previous",
        "etc/systemd/system/vllm@.service",
        "etc/systemd/system/*.wants/vllm@*.service",
    ],
    "logs": ["var/log/journal/*"],
}
# Files that are emptied, because they have to exist; they are written again at boot.
EMPTIED = {"identity": ["etc/machine-id"], "logs": ["var/log/**/*"]}


def found(root: Path, patterns: list[str]) -> list[Path]:
    """The paths that match some patterns, including dangling links (which Path.glob leaves out)."""
    return sorted(Path(name) for pattern in patterns for name in glob.glob(f"{root}/{pattern}", recursive=True))


def clean(root: Path, dry_run: bool) -> list[str]:
    """Clean the host below a root directory; return the paths that were, or would be, removed or emptied."""
    removed = {path: reason for reason, patterns in REMOVED.items() for path in found(root, patterns)}
    emptied = {
        path: reason
        for reason, patterns in EMPTIED.items()
        for path in found(root, patterns)
        if path.is_file()
        and not path.is_symlink()
        and path.stat().st_size
        and not removed.keys() & {path, *path.parents}
    }
    if not dry_run:
        for path in removed:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
        for path in emptied:
            path.write_bytes(b"")
    return [f"{path} ({reason})" for path, reason in removed.items()] + [
        f"{path} (emptied: {reason})" for path, reason in emptied.items()
    ]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Remove what must not be in a machine image.")
    parser.add_argument("--dry-run", action="store_true", help="remove nothing; say what would be")
    parser.add_argument("--root", type=Path, default=Path("/"), help="the root directory to clean")
    options = parser.parse_args(arguments)
    for line in clean(options.root, options.dry_run):
        print(line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
