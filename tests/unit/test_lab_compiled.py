"""What a lab host's Python keeps of the zips that Ansible sends: the same code, compiled once, and never a broken one."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

HOOK = Path(__file__).resolve().parents[2] / "lab" / "host"
IMPORT = """
import sys
sys.path[:0] = sys.argv[1:3]
import ec2lab_compiled
ec2lab_compiled.DIRECTORY = sys.argv[3]
import answer
print(answer.VALUE)
"""


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Where what is compiled is kept."""
    path = tmp_path / "compiled"
    path.mkdir()
    return path


def value(directory: Path, text: str) -> str:
    """What a module of this text says, imported from a zip by a Python with the hook."""
    archive = directory.parent / "payload.zip"
    with zipfile.ZipFile(archive, "w") as payload:
        payload.writestr("answer.py", f"VALUE = {text!r}\n")
    arguments = [sys.executable, "-c", IMPORT, str(HOOK), str(archive), str(directory)]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_the_same_source_is_compiled_once(directory: Path) -> None:
    assert value(directory, "first") == "first"
    (kept,) = directory.iterdir()
    before = kept.stat().st_mtime_ns
    assert value(directory, "first") == "first"
    assert [kept.stat().st_mtime_ns] == [path.stat().st_mtime_ns for path in directory.iterdir()] == [before]


def test_another_source_is_another_module(directory: Path) -> None:
    assert [value(directory, text) for text in ("first", "second")] == ["first", "second"]
    assert len(list(directory.iterdir())) == 2


@pytest.mark.parametrize("damage", [b"", b"N", b"nonsense"])
def test_what_is_damaged_is_compiled_again(directory: Path, damage: bytes) -> None:
    value(directory, "first")
    (kept,) = directory.iterdir()
    kept.write_bytes(damage)
    assert value(directory, "first") == "first"
    assert kept.read_bytes() != damage


def test_without_a_place_it_only_compiles(directory: Path) -> None:
    directory.rmdir()
    assert value(directory, "first") == "first"
