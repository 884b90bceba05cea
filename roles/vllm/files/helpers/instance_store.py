#!/usr/bin/env python3
"""Mount the host's NVMe instance store: the one disk, or a RAID 0 over several, formatted with XFS.

    instance_store.py [--plan] MOUNT_POINT

After a stop of the instance its disks are empty, and this makes everything anew; after a reboot it only mounts. It looks,
does one step, and looks again, so it can be interrupted at any time. Only blank disks are formatted: one with a file
system, a partition table or a RAID that this program did not make is a problem, and nothing is changed.

Prints one line of JSON: ``{"changed": …, "steps": […], "problem": …}``. With ``--plan`` nothing is changed, and ``steps``
has the next step only. Exit status 1 if there is a problem.
Standard library only (Python 3.9 or newer); needs lsblk, wipefs, mkfs.xfs and, for several disks, mdadm.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

MODEL = "Amazon EC2 NVMe Instance Storage"
# The label of the file system and the name of the array, by which the role recognizes its own.
NAME = "vllm-store"
ARRAY = f"/dev/md/{NAME}"
# "any" instead of the host's name, which may change: the kernel then assembles the array under its own name.
MEMBER = f"any:{NAME}"
COLUMNS = "PATH,TYPE,MODEL,MOUNTPOINTS"
# A bound on the loop over the steps; there are never so many.
MOST_STEPS = 8


class StoreError(Exception):
    """The store cannot be mounted; the text says what to do."""


@dataclass(frozen=True)
class Step:
    """A change: what it is, and the commands that make it."""

    what: str
    commands: list[list[str]]


def is_store(device: dict[str, Any]) -> bool:
    """Whether it is a disk of the instance store."""
    return device["type"] == "disk" and (device.get("model") or "").strip() == MODEL


def mounts(device: dict[str, Any]) -> list[str]:
    return [path for path in device.get("mountpoints") or [] if path]


def content(device: dict[str, Any]) -> str:
    """What is on a device; empty if it is blank."""
    if device["content"]:
        return f"{device['content']} {device['label'] or ''}".strip()
    return ", ".join(child["path"] for child in device.get("children", []))


def is_member(disk: dict[str, Any]) -> bool:
    return bool(disk["content"] == "linux_raid_member" and disk["label"] == MEMBER)


def next_step(devices: list[dict[str, Any]], mount_point: str, taken: str) -> Optional[Step]:
    """The change that is next, or None if the store is mounted.

    ``devices`` is what lsblk lists, with what is on the store's disks; ``taken`` what is at the mount point already: a mounted
    device, files, or nothing.
    """
    disks = list(filter(is_store, devices))
    if not disks:
        raise StoreError(
            "the host has no NVMe instance store: take an instance type with one, or empty vllm_instance_store"
        )
    paths = [disk["path"] for disk in disks]
    listed = ", ".join(paths)
    if len(disks) == 1:
        device = disks[0]
    else:
        arrays = {child["path"]: child for disk in disks if is_member(disk) for child in disk.get("children", [])}
        if not arrays:
            return _make_array(disks, paths, listed)
        if len(arrays) > 1 or not all(map(is_member, disks)):
            raise StoreError(
                f"{listed} do not form one RAID, but {', '.join(arrays)}: look with lsblk and mdadm --detail"
            )
        device = next(iter(arrays.values()))
    path = device["path"]
    if not content(device):
        return Step(f"format {path}", [["mkfs.xfs", "-q", "-K", "-L", NAME, path]])
    if (device["content"], device["label"]) != ("xfs", NAME):
        raise StoreError(
            f"{path} has {content(device)}, which the role did not make: remove it (wipefs --all), if it is not needed"
        )
    if mount_point in mounts(device):
        return None
    if mounts(device):
        raise StoreError(
            f"{path} is mounted at {', '.join(mounts(device))}, not at {mount_point}: stop the engines and unmount it"
        )
    if taken:
        raise StoreError(f"{mount_point} has {taken}: move that away, or choose another vllm_instance_store")
    return Step(
        f"mount {path} at {mount_point}",
        [["mkdir", "--parents", mount_point], ["mount", "-t", "xfs", "-o", "noatime,nodev,nosuid", path, mount_point]],
    )


def _make_array(disks: list[dict[str, Any]], paths: list[str], listed: str) -> Step:
    """The next step for disks that do not form an array yet."""
    foreign = [f"{disk['path']} has {content(disk)}" for disk in disks if content(disk) and not is_member(disk)]
    foreign += [f"{disk['path']} is mounted at {', '.join(mounts(disk))}" for disk in disks if mounts(disk)]
    if foreign:
        raise StoreError(
            f"{'; '.join(foreign)}, which the role did not make: remove it (wipefs --all), if it is not needed"
        )
    if all(map(is_member, disks)):
        return Step(f"assemble {listed}", [["mdadm", "--assemble", "--homehost=any", ARRAY, *paths]])
    create = ["mdadm", "--create", ARRAY, f"--name={NAME}", "--homehost=any", "--level=0", "--run"]
    # Some members beside blank disks are left from an interrupted creation.
    left = [["mdadm", "--zero-superblock", disk["path"]] for disk in disks if is_member(disk)]
    return Step(f"make a RAID 0 of {listed}", [*left, [*create, f"--raid-devices={len(disks)}", *paths]])


def run(command: list[str]) -> str:
    """The output of a command. Raises StoreError with its error message if it fails."""
    try:
        return subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True).stdout
    except FileNotFoundError as error:
        raise StoreError(f"{command[0]} is not installed; the role's install phase does that") from error
    except subprocess.CalledProcessError as error:
        why = error.stderr.strip() or f"exit status {error.returncode}"
        raise StoreError(f"{shlex.join(command)}: {why}") from error


def signatures(path: str) -> dict[str, Optional[str]]:
    """The content of a device, read from the device itself: udev's notes may be old, or missing."""
    found = json.loads(run(["wipefs", "--no-act", "--json", path]).strip() or '{"signatures": []}')["signatures"]
    types = dict.fromkeys(signature["type"] for signature in found)
    return {"content": " and ".join(types) or None, "label": found[0].get("label") if len(found) == 1 else None}


def look(mount_point: str) -> tuple[list[dict[str, Any]], str]:
    """What lsblk lists, and what is at the mount point."""
    run(["udevadm", "settle"])
    devices = json.loads(run(["lsblk", "--json", "--output", COLUMNS]))["blockdevices"]
    for disk in filter(is_store, devices):
        for device in [disk, *disk.get("children", [])]:
            device.update(signatures(device["path"]))
    path = Path(mount_point)
    if path.is_mount():
        return devices, "another file system mounted"
    return devices, "files, which a mount would hide" if path.is_dir() and any(path.iterdir()) else ""


def mounted(mount_point: str, plan: bool) -> list[str]:
    """Mount the store; returns the steps taken. With ``plan``, only return the first step."""
    steps: list[str] = []
    while True:
        devices, taken = look(mount_point)
        step = next_step(devices, mount_point, taken)
        if step is None:
            return steps
        if len(steps) == MOST_STEPS or step.what in steps:
            raise StoreError(f"{step.what}: done without effect; look with lsblk")
        steps.append(step.what)
        if plan:
            return steps
        for command in step.commands:
            run(command)


def main(arguments: Optional[list[str]] = None) -> int:
    parser = argparse.ArgumentParser(description="Mount the NVMe instance store.")
    parser.add_argument("--plan", action="store_true", help="change nothing; name the next step")
    parser.add_argument("mount_point")
    options = parser.parse_args(arguments)
    try:
        steps = mounted(options.mount_point.rstrip("/"), options.plan)
    except StoreError as error:
        print(json.dumps({"changed": False, "steps": [], "problem": str(error)}))
        return 1
    print(json.dumps({"changed": bool(steps), "steps": steps, "problem": ""}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
