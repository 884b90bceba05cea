"""The execution environment for AWX: everything in it has a version, the one that the repository locks elsewhere."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
DEFINITION = yaml.safe_load((ROOT / "execution-environment.yml").read_text())
LOCKED = {
    line.split(" ;")[0].split(" \\")[0]
    for name in ("controller", "dev")
    for line in (ROOT / f"requirements/{name}.txt").read_text().splitlines()
    if "==" in line
}


def test_every_version_is_fixed_and_that_of_the_lock_files() -> None:
    assert re.search(r"(@sha256:[0-9a-f]{64}|:\d+(\.\d+)+)$", DEFINITION["images"]["base_image"]["name"])
    parts = DEFINITION["dependencies"]
    packages = [parts["ansible_core"]["package_pip"], parts["ansible_runner"]["package_pip"], *parts["python"]]
    assert [package for package in packages if package not in LOCKED] == []
    least = {
        entry["name"]: entry["version"]
        for entry in yaml.safe_load((ROOT / "requirements.yml").read_text())["collections"]
    }
    fixed = {entry["name"]: entry["version"] for entry in parts["galaxy"]["collections"]}
    assert set(fixed) == set(least)
    for name, version in fixed.items():
        assert re.fullmatch(r"\d+\.\d+\.\d+", version)
        assert [int(part) for part in version.split(".")] >= [int(part) for part in least[name].lstrip(">=").split(".")]


def test_ansible_builder_takes_it(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            Path(sys.executable).parent / "ansible-builder",
            "create",
            "--file",
            "execution-environment.yml",
            "--context",
            tmp_path,
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(tmp_path.glob("*file"))
