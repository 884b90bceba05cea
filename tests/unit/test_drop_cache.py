"""A damaged compile cache does not keep an engine down, and a good one is not removed."""

from __future__ import annotations

import json
from pathlib import Path

import drop_cache
import pytest


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(drop_cache, "RUN", tmp_path / "run")
    monkeypatch.setattr(drop_cache, "CACHES", tmp_path / "cache")
    (tmp_path / "run" / "vllm-x").mkdir(parents=True)
    path = tmp_path / "cache" / "x-1"
    (path / "triton").mkdir(parents=True)
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(path))
    return path


def crashed(cache: Path, times: int) -> None:
    record = {"crashes": times, "started_s": 1.0}
    (cache.parents[1] / "run" / "vllm-x" / "crashes.json").write_text(json.dumps(record))


@pytest.mark.parametrize("times", [0, 1, 2, 4, 30])
def test_it_stays_but_at_the_third_crash_in_a_row(cache: Path, times: int) -> None:
    crashed(cache, times)
    assert drop_cache.main(["x"]) == 0
    assert cache.is_dir()


def test_the_third_crash_removes_it_and_says_so(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    crashed(cache, 3)
    assert drop_cache.main(["x"]) == 0
    assert not cache.exists()
    assert f"removing its compile cache {cache}" in capsys.readouterr().out
    assert drop_cache.main(["x"]) == 0


def test_an_operators_own_directory_is_never_removed(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    crashed(cache, 3)
    for own in (cache.parent, cache.parent.parent, cache / "triton"):
        monkeypatch.setenv("VLLM_CACHE_ROOT", str(own))
        assert drop_cache.main(["x"]) == 0
        assert own.is_dir()
    monkeypatch.delenv("VLLM_CACHE_ROOT")
    assert drop_cache.main(["x"]) == 0
    assert cache.is_dir()


def test_a_first_start_has_no_record(cache: Path) -> None:
    assert drop_cache.main(["x"]) == 0
    assert cache.is_dir()


def test_a_second_engine_keeps_the_cache_of_the_running_one(cache: Path) -> None:
    crashed(cache, 3)
    (cache.parents[1] / "run" / "vllm-x").rename(cache.parents[1] / "run" / "vllm-x.beside")
    assert drop_cache.main(["x.beside"]) == 0
    assert cache.is_dir()
