"""What the engines' user may not read of models, and the command that opens it."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

HELPER = Path(__file__).resolve().parents[2] / "roles" / "vllm" / "files" / "helpers" / "closed_paths.py"
# Not on any machine. Run by root, the helper then looks as `nobody`; otherwise as whoever runs the test.
USER = "no-such-user"


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that everyone may search, which pytest's own are not."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name).resolve()
        directory.chmod(0o755)
        yield directory
        for closed in [directory, *directory.rglob("*")]:
            if closed.is_dir():
                closed.chmod(0o755)


def model(place: Path, name: str = "m") -> Path:
    directory = place / name
    directory.mkdir(parents=True)
    for file in ("config.json", "a.safetensors", "b.safetensors"):
        (directory / file).touch(mode=0o644)
    return directory


def closed(directory: Path) -> list[str]:
    """What the helper says of the directory. Its program comes by standard input, as the role passes it."""
    done = subprocess.run(
        [sys.executable, "-", USER, str(directory)],
        input=HELPER.read_text(),
        capture_output=True,
        text=True,
        check=True,
    )
    sentences: list[str] = json.loads(done.stdout)[str(directory)]
    return sentences


def opened_by_what_is_said(directory: Path) -> list[str]:
    """The sentences, after the command of each was run and the helper has nothing more to say."""
    told = closed(directory)
    for sentence in told:
        subprocess.run(sentence.partition(": run ")[2], shell=True, check=True)
    assert closed(directory) == []
    return told


def test_what_everyone_may_read_is_open(place: Path) -> None:
    directory = model(place)
    (directory / "broken").symlink_to("/nowhere")
    (directory / "original").mkdir(mode=0o700)
    assert closed(directory) == []


def test_a_file(place: Path) -> None:
    file = model(place) / "a.safetensors"
    file.chmod(0o200)
    assert opened_by_what_is_said(file.parent) == [f"user {USER} may not read {file}: run chmod a+r {file}"]


def test_several_files_are_opened_by_one_command(place: Path) -> None:
    directory = model(place, "a model")
    for file in directory.iterdir():
        file.chmod(0o200)
    (told,) = opened_by_what_is_said(directory)
    assert told == f"user {USER} may not read {directory}/a.safetensors and 2 more there: run chmod a+r '{directory}'/*"


@pytest.mark.parametrize("mode", [0o300, 0o600])
def test_the_directory(place: Path, mode: int) -> None:
    directory = model(place)
    directory.chmod(mode)
    assert opened_by_what_is_said(directory) == [f"user {USER} may not read {directory}: run chmod a+rx {directory}"]


def test_a_directory_above_it(place: Path) -> None:
    directory = model(place, "private/models/m")
    (place / "private").chmod(0o600)
    told = opened_by_what_is_said(directory)
    assert told == [f"user {USER} may not search {place}/private: run chmod a+x {place}/private"]


def test_a_hub_cache_whose_files_are_links(place: Path) -> None:
    snapshot = place / "models--org--m" / "snapshots" / ("0" * 40)
    blobs = place / "models--org--m" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for name in ("1", "2"):
        (blobs / name).touch(mode=0o644)
        (snapshot / f"file{name}").symlink_to(f"../../blobs/{name}")
    assert closed(snapshot) == []
    blobs.chmod(0o600)
    assert opened_by_what_is_said(snapshot) == [f"user {USER} may not search {blobs}: run chmod a+x {blobs}"]
    (blobs / "1").chmod(0o200)
    assert opened_by_what_is_said(snapshot) == [f"user {USER} may not read {blobs}/1: run chmod a+r {blobs}/1"]


def test_links_that_lead_to_each_other(place: Path) -> None:
    directory = model(place)
    (directory / "x").symlink_to("y")
    (directory / "y").symlink_to("x")
    assert closed(directory) == []
