"""The vLLM role's smaller helpers: pruning, the option check's own part, the lab's reproducible wheel."""

from __future__ import annotations

import hashlib
import os
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import check_engine_config
import make_shim
import prune
import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Releases r1 (oldest) to r6, each with its environment; r2 is previous, r5 current; one environment is left over."""
    for number in range(1, 7):
        (tmp_path / "venvs" / f"v{number}").mkdir(parents=True)
        release = tmp_path / "releases" / f"r{number}"
        release.mkdir(parents=True)
        (release / "venv").symlink_to(tmp_path / "venvs" / f"v{number}")
        os.utime(release, (number, number))
    (tmp_path / "venvs" / "interrupted").mkdir()
    (tmp_path / "venvs" / ".cache").mkdir()
    (tmp_path / "current").symlink_to(tmp_path / "releases" / "r5")
    (tmp_path / "previous").symlink_to(tmp_path / "releases" / "r2")
    return tmp_path


def superfluous(home: Path, keep: int, needed: str = "r5", environment_link: str = "venv") -> list[Path]:
    """What prune would remove, with the caches below the same directory."""
    return prune.superfluous(home, keep, home / "releases" / needed, environment_link, home / "caches")


def test_prune_keeps_what_is_linked_and_the_newest_of_the_rest(home: Path) -> None:
    gone = {path.name for path in superfluous(home, keep=1)}
    assert gone == {"r1", "r3", "r4", "v1", "v3", "v4", "interrupted"}


def test_prune_removes_a_cache_with_the_last_release_whose_engines_use_it(home: Path) -> None:
    for release, cache in (("r1", "c1"), ("r2", "c2"), ("r5", "c5"), ("r6", "c5")):
        (home / "releases" / release / "engines").mkdir()
        environment = f'VLLM_CACHE_ROOT="{home}/caches/{cache}"\nTRITON_CACHE_DIR="{home}/caches/{cache}/triton"\n'
        (home / "releases" / release / "engines" / "x.env").write_text(environment)
        (home / "caches" / cache).mkdir(parents=True, exist_ok=True)
    os.utime(home / "releases" / "r1", (1, 1))
    for name in ("of a release from before", "c"):
        (home / "caches" / name).mkdir()
    gone = {path.name for path in superfluous(home, keep=0)}
    assert {"c1", "of a release from before", "c"} <= gone
    assert not gone & {"c2", "c5"}


def test_prune_keeps_environments_that_several_releases_share(home: Path) -> None:
    link = home / "releases" / "r5" / "venv"
    link.unlink()
    link.symlink_to(home / "venvs" / "v1")
    gone = {path.name for path in superfluous(home, keep=0)}
    assert "v1" not in gone
    assert {"r1", "v5"} <= gone


def test_prune_keeps_the_release_that_it_is_told_to_and_goes_by_the_link_that_it_is_told(home: Path) -> None:
    (home / "releases" / "r1" / "needs").symlink_to(home / "venvs" / "v3")
    gone = {path.name for path in superfluous(home, keep=0, needed="r1", environment_link="needs")}
    assert not gone & {"r1", "r2", "r5", "v3"}
    assert {"r3", "v1", "v5"} <= gone


def test_prune_has_nothing_to_do_on_a_bare_host(tmp_path: Path) -> None:
    assert superfluous(tmp_path, keep=2) == []


def test_unknown_keys_are_all_told_with_a_guess() -> None:
    known = {"max-num-seqs", "dtype", "compilation-config"}
    config = {"max_num_seqs": 1, "compilation-config.mode": 3, "max-num-seqz": 1, "gone": False}
    assert list(check_engine_config.unknown_keys(config, known)) == [
        "vLLM has no option 'max-num-seqz'; did you mean 'max-num-seqs'?",
        "vLLM has no option 'gone'",
    ]


def test_a_parser_that_vllm_does_not_have_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, manager, parser in (
        ("vllm.tool_parsers", "ToolParserManager", "hermes"),
        ("vllm.reasoning", "ReasoningParserManager", "qwen3"),
    ):
        registered = SimpleNamespace(list_registered=lambda parser=parser: [parser])
        monkeypatch.setitem(sys.modules, module, SimpleNamespace(**{manager: registered}))
    told = check_engine_config.unknown_parsers
    assert list(told({"tool-call-parser": "hermes", "reasoning_parser": "qwen3"})) == []
    assert list(told({"tool_call_parser": "herpes", "reasoning-parser": "hermes"})) == [
        "vLLM has no tool-call-parser 'herpes'; there are hermes",
        "vLLM has no reasoning-parser 'hermes'; there are qwen3",
    ]
    assert list(told({"tool-call-parser": "own", "tool-parser-plugin": "/srv/own.py"})) == []
    assert list(told({})) == []


def test_the_lab_s_wheel_is_always_the_same_and_locked(tmp_path: Path) -> None:
    wheels = [make_shim.write(tmp_path / name) for name in ("a", "b")]
    assert wheels[0].read_bytes() == wheels[1].read_bytes()
    with zipfile.ZipFile(wheels[0]) as archive:
        assert archive.testzip() is None
    lock = (ROOT / "lab" / "engine" / "requirements-cpu.txt").read_text()
    assert hashlib.sha256(wheels[0].read_bytes()).hexdigest() in lock


@pytest.mark.parametrize(
    "lock",
    [
        "roles/vllm/files/requirements-cuda.txt",
        "roles/vllm/files/requirements-uv.txt",
        "lab/engine/requirements-cpu.txt",
    ],
)
def test_locks_name_no_address_and_pin_everything(lock: str) -> None:
    lines = (ROOT / lock).read_text().splitlines()
    assert [line for line in lines if "://" in line or line.startswith("-")] == []
    requirements = [line for line in lines if not line.startswith(" ")]
    assert [line for line in requirements if "==" not in line or not line.endswith("\\")] == []
