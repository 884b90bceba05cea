"""Which downloaded models go when they are pruned, and which never do."""

from __future__ import annotations

import fcntl
from pathlib import Path

import prune_models
import pytest

A, B, C = "a" * 40, "b" * 40, "c" * 12


@pytest.fixture
def host(tmp_path: Path) -> Path:
    """Release new is current and runs, old is previous, older is neither. Each has a model of its own."""
    for release, model in (("new", f"m@{A}"), ("old", f"m@{B}"), ("older", f"bucket--m@{C}")):
        engines = tmp_path / "home" / "releases" / release / "engines"
        engines.mkdir(parents=True)
        (engines / "x.yml").write_text(f"model: {tmp_path}/models/{model}\nport: 8000\n")
        (engines / "x.fingerprint").write_text(f"{release}\n")
        (tmp_path / "models" / model).mkdir(parents=True)
        (tmp_path / "models" / model / "config.json").write_text("{}")
    for link, release in (("current", "new"), ("previous", "old")):
        (tmp_path / "home" / link).symlink_to(tmp_path / "home" / "releases" / release)
    (tmp_path / "run" / "vllm-x").mkdir(parents=True)
    (tmp_path / "run" / "vllm-x" / "fingerprint").write_text("new\n")
    return tmp_path


def prune(host: Path, *options: str) -> list[str]:
    """The names of the directories that are left."""
    prune_models.main([*options, f"--home={host}/home", f"--run={host}/run", f"{host}/models"])
    return sorted(path.name for path in (host / "models").iterdir() if not path.name.startswith("."))


def test_models_of_the_current_and_the_previous_release_stay(host: Path) -> None:
    assert prune(host) == [f"m@{A}", f"m@{B}"]


def test_a_wanted_model_stays_before_its_release_is_current(host: Path) -> None:
    assert prune(host, f"--keep={host}/models/bucket--m@{C}") == [f"bucket--m@{C}", f"m@{A}", f"m@{B}"]


def test_an_engine_that_still_runs_an_older_release_keeps_its_model(host: Path) -> None:
    (host / "run" / "vllm-y").mkdir()
    (host / "run" / "vllm-y" / "fingerprint").write_text("older\n")
    assert prune(host) == [f"bucket--m@{C}", f"m@{A}", f"m@{B}"]


def test_a_model_that_is_no_engines_own_but_an_option_stays(host: Path) -> None:
    (host / "home" / "releases" / "new" / "engines" / "x.yml").write_text(
        f"model: {host}/models/m@{A}\nlora-modules:\n- one={host}/models/bucket--m@{C}\n"
        f'speculative-config: \'{{"model": "{host}/models/draft@{B}"}}\'\n'
    )
    (host / "models" / f"draft@{B}").mkdir()
    assert prune(host) == [f"bucket--m@{C}", f"draft@{B}", f"m@{A}", f"m@{B}"]


def test_what_fetch_model_did_not_make_stays(host: Path) -> None:
    for name in ("mine", "mine@main", "lost+found"):
        (host / "models" / name).mkdir()
    (host / "models" / f"file@{A}").write_text("")
    assert prune(host) == [f"file@{A}", "lost+found", f"m@{A}", f"m@{B}", "mine", "mine@main"]


def test_what_an_interrupted_download_left_goes_with_its_model(host: Path) -> None:
    (host / "models" / f"gone@{A}.part").mkdir()
    (host / "models" / f"m@{A}.part").mkdir()
    assert prune(host) == [f"m@{A}", f"m@{A}.part", f"m@{B}"]


def test_a_download_that_goes_on_is_left_alone(host: Path) -> None:
    (host / "models" / f"other@{A}.part").mkdir()
    with (host / "models" / f".other@{A}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert f"other@{A}.part" in prune(host)
    assert f"other@{A}.part" not in prune(host)


def test_a_model_whose_name_begins_like_another_is_another(host: Path) -> None:
    (host / "home" / "releases" / "new" / "engines" / "x.yml").write_text(f"model: {host}/models/m@{A}-mine\n")
    assert f"m@{A}" not in prune(host)


def test_a_dry_run_names_what_would_go_and_leaves_it(host: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert prune(host, "--dry-run") == [f"bucket--m@{C}", f"m@{A}", f"m@{B}"]
    assert capsys.readouterr().out == f"{host}/models/bucket--m@{C} (0.0 GB)\n"


def test_a_host_without_models_is_in_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert prune_models.main([f"--home={tmp_path}", f"--run={tmp_path}", f"{tmp_path}/models"]) == 0
    assert capsys.readouterr().out == ""
