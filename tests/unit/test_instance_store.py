"""What becomes of a host's instance store, on a simulated machine that knows what the real commands do to disks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import instance_store
import pytest

Disk = dict[str, Any]


def disk(path: str, **fields: Any) -> Disk:
    blank: Disk = {
        "path": path,
        "type": "disk",
        "model": instance_store.MODEL,
        "content": None,
        "label": None,
        "mountpoints": [None],
    }
    return blank | fields


ROOT = disk("/dev/nvme0n1", model="Amazon Elastic Block Store", content="gpt", children=[{"path": "/dev/nvme0n1p1"}])
MEMBER = {"content": "linux_raid_member", "label": instance_store.MEMBER}
OURS = {"content": "xfs", "label": instance_store.NAME}


class Machine:
    """Disks on which commands have the effect that matters here."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, mount_point: Path, *disks: Disk) -> None:
        self.disks, self.mount_point = [ROOT, *disks], mount_point
        self.commands: list[str] = []
        self.fails = ""
        monkeypatch.setattr(instance_store, "run", self.run)

    def mount(self, *options: str) -> tuple[int, dict[str, Any]]:
        steps, problem = [], ""
        try:
            steps = instance_store.mounted(str(self.mount_point), "--plan" in options)
        except instance_store.StoreError as error:
            problem = str(error)
        return len(steps), {"steps": steps, "problem": problem}

    def find(self, path: str) -> Disk:
        every = [*self.disks, *(child for one in self.disks for child in one.get("children", []))]
        return next(one for one in every if one["path"] == path)

    def run(self, command: list[str]) -> str:
        if command[0] == "lsblk":
            return json.dumps({"blockdevices": self.disks})
        if command[0] == "wipefs":
            found = self.find(command[-1])
            signatures = [
                {"type": kind, "label": found["label"]} for kind in (found["content"] or "").split(" and ") if kind
            ]
            return json.dumps({"signatures": signatures}) if signatures else ""
        if command[0] == "udevadm":
            return ""
        self.commands.append(" ".join(command[:2]))
        if self.fails and self.fails in " ".join(command):
            raise instance_store.StoreError("interrupted")
        match command:
            case ["mkfs.xfs", *_, path]:
                self.find(path).update(OURS)
            case ["mdadm", "--zero-superblock", path]:
                self.find(path).update(content=None, label=None)
            case ["mdadm", "--create" | "--assemble", *words]:
                array = disk("/dev/md127", type="raid0", model=None)
                for path in words:
                    if path.startswith("/dev/nvme"):
                        self.find(path).update(MEMBER, children=[array])
            case ["mount", *_, path, mount_point]:
                self.find(path)["mountpoints"] = [mount_point]
        return ""


def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *disks: Disk) -> Machine:
    return Machine(monkeypatch, tmp_path / "store", *disks)


TWO = ("/dev/nvme1n1", "/dev/nvme2n1")


def test_one_blank_disk_is_formatted_and_mounted_once(monkeypatch, tmp_path) -> None:
    host = machine(monkeypatch, tmp_path, disk("/dev/nvme1n1"))
    _, told = host.mount()
    assert told["steps"] == ["format /dev/nvme1n1", f"mount /dev/nvme1n1 at {tmp_path}/store"]
    assert host.mount() == (0, {"steps": [], "problem": ""})
    assert host.commands == ["mkfs.xfs -q", "mkdir --parents", "mount -t"]


def test_several_blank_disks_become_one_raid(monkeypatch, tmp_path) -> None:
    host = machine(monkeypatch, tmp_path, *map(disk, TWO))
    _, told = host.mount()
    assert told["steps"] == [
        "make a RAID 0 of /dev/nvme1n1, /dev/nvme2n1",
        "format /dev/md127",
        f"mount /dev/md127 at {tmp_path}/store",
    ]
    assert host.mount()[0] == 0


def test_after_a_reboot_it_is_only_mounted(monkeypatch, tmp_path) -> None:
    for content in ({**MEMBER, "children": [disk("/dev/md127", type="raid0", **OURS)]}, OURS):
        paths = TWO if "children" in content else TWO[:1]
        host = machine(monkeypatch, tmp_path, *(disk(path, **content) for path in paths))
        _, told = host.mount()
        assert [step.split()[0] for step in told["steps"]] == ["mount"]


def test_an_array_that_the_kernel_did_not_assemble_is_assembled(monkeypatch, tmp_path) -> None:
    host = machine(monkeypatch, tmp_path, *(disk(path, **MEMBER) for path in TWO))
    assert host.mount("--plan")[1]["steps"] == ["assemble /dev/nvme1n1, /dev/nvme2n1"]
    assert host.commands == []


@pytest.mark.parametrize("interrupted", ["mdadm --create", "mkfs.xfs", "mount -t"])
def test_an_interrupted_run_is_continued(monkeypatch, tmp_path, interrupted: str) -> None:
    host = machine(monkeypatch, tmp_path, *map(disk, TWO))
    host.fails = interrupted
    assert host.mount()[1]["problem"] == "interrupted"
    host.fails = ""
    assert host.mount()[1]["problem"] == ""
    assert host.mount()[0] == 0


def test_a_half_made_array_is_made_anew(monkeypatch, tmp_path) -> None:
    host = machine(monkeypatch, tmp_path, disk(TWO[0], **MEMBER), disk(TWO[1]))
    assert host.mount()[1]["problem"] == ""
    assert host.commands[:2] == ["mdadm --zero-superblock", "mdadm --create"]


@pytest.mark.parametrize(
    ("disks", "said"),
    [
        ([], "the host has no NVMe instance store"),
        ([disk(TWO[0], content="ext4", label="data")], "/dev/nvme1n1 has ext4 data, which the role did not make"),
        ([disk(TWO[0], content="xfs", label="data")], "/dev/nvme1n1 has xfs data"),
        ([disk(TWO[0], content="gpt and PMBR")], "/dev/nvme1n1 has gpt and PMBR"),
        ([disk(TWO[0], content="LVM2_member")], "/dev/nvme1n1 has LVM2_member"),
        ([disk(TWO[0]), disk(TWO[1], content="ext4", mountpoints=["/data"])], "/dev/nvme2n1 has ext4"),
        ([disk(TWO[0]), disk(TWO[1], content="linux_raid_member", label="db:0")], "has linux_raid_member db:0"),
        ([disk(TWO[0], **(OURS | {"mountpoints": ["/elsewhere"]}))], "is mounted at /elsewhere"),
        ([disk(TWO[0], children=[disk("/dev/mapper/x", type="crypt", model=None)])], "/dev/nvme1n1 has /dev/mapper/x"),
    ],
)
def test_what_is_not_ours_is_never_formatted(monkeypatch, tmp_path, disks: list[Disk], said: str) -> None:
    host = machine(monkeypatch, tmp_path, *disks)
    _, told = host.mount()
    assert said in told["problem"]
    assert host.commands == []


def test_what_is_on_a_disk_is_read_from_the_disk(tmp_path: Path) -> None:
    """A file stands for the disk; wipefs is the real one."""
    image = tmp_path / "disk"
    image.write_bytes(bytes(2**20))
    assert instance_store.signatures(str(image)) == {"content": None, "label": None}
    with image.open("r+b") as file:
        file.seek(4086)
        file.write(b"SWAPSPACE2")
        file.seek(1024)
        file.write((1).to_bytes(4, "little") + (255).to_bytes(4, "little") + bytes(20) + b"label".ljust(16, b"\0"))
    assert instance_store.signatures(str(image)) == {"content": "swap", "label": "label"}
    with pytest.raises(instance_store.StoreError, match="wipefs --no-act"):
        instance_store.signatures(str(tmp_path / "gone"))


def test_files_at_the_mount_point_are_not_hidden(monkeypatch, tmp_path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "model").write_text("")
    host = machine(monkeypatch, tmp_path, disk(TWO[0], **OURS))
    assert f"{tmp_path}/store has files, which a mount would hide" in host.mount()[1]["problem"]
    assert host.commands == []


def test_a_step_without_effect_does_not_go_on_for_ever(monkeypatch, tmp_path) -> None:
    host = machine(monkeypatch, tmp_path, disk(TWO[0]))
    monkeypatch.setattr(instance_store, "signatures", lambda _: {"content": None, "label": None})
    assert host.mount()[1]["problem"] == "format /dev/nvme1n1: done without effect; look with lsblk"


def test_the_program_tells_its_result_as_json(monkeypatch, tmp_path, capsys) -> None:
    machine(monkeypatch, tmp_path, disk(TWO[0]))
    assert instance_store.main(["--plan", f"{tmp_path}/store/"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told == {"changed": True, "steps": ["format /dev/nvme1n1"], "problem": ""}
    machine(monkeypatch, tmp_path)
    assert instance_store.main([f"{tmp_path}/store"]) == 1
    assert "has no NVMe" in json.loads(capsys.readouterr().out)["problem"]
