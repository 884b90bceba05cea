#!/usr/bin/env python3
"""Make requirements-cpu.txt from requirements-cpu.in: exact versions with the hashes of their files.

``uv pip compile`` writes no hash for a wheel that it finds in a directory, so those of torch and of the
shim are computed here. torch's wheel is looked for in the directories of ``PIP_FIND_LINKS``.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import make_shim

HERE = Path(__file__).parent
SOURCE, TARGET = HERE / "requirements-cpu.in", HERE / "requirements-cpu.txt"


def wheel_hash(requirement: str, directories: list[Path]) -> str:
    """SHA-256 of the wheel that ``name==version`` stands for; LookupError if no directory has it."""
    name, version = requirement.split("==")
    for directory in directories:
        for wheel in sorted(directory.glob(f"{name.replace('-', '_')}-{version}-*.whl")):
            return hashlib.sha256(wheel.read_bytes()).hexdigest()
    places = ", ".join(map(str, directories))
    raise LookupError(f"no wheel of {requirement} in {places}: set PIP_FIND_LINKS to a directory that has it")


def compile_lock(directories: list[Path]) -> str:
    command = ["uv", "pip", "compile", "--quiet", "--no-deps", "--generate-hashes", "--no-annotate", "--no-header"]
    command += ["--python-version", "3.11", *(f"--find-links={directory}" for directory in directories), str(SOURCE)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def main() -> int:
    with tempfile.TemporaryDirectory() as scratch:
        make_shim.write(Path(scratch))
        directories = [Path(scratch), *map(Path, os.environ.get("PIP_FIND_LINKS", "").split())]
        lines = []
        for line in compile_lock(directories).splitlines():
            bare = "==" in line and not line.endswith("\\")
            if bare:
                line += f" \\\n    --hash=sha256:{wheel_hash(line, directories)}"
            lines.append(line)
    TARGET.write_text("\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
