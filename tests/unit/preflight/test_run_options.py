"""Options of a run under which it would do less than it says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from stack_preflight import load


def test_no_variable_leaves_the_checks_out(inventory: dict[str, Any]) -> None:
    assert load("run_options").refusal_of(inventory, []) == ""
    inventory["hostvars"]["api1"]["__stack_preflight_collect"] = True
    assert "__stack_preflight_collect is set by the inventory or by -e" in load("run_options").refusal_of(inventory, [])


def limited(limit: str) -> str:
    """What is said of a limit, of an inventory with two proxies and an engine."""
    groups = {"all": ["api1", "api2", "gpu1"], "ungrouped": [], "proxy": ["api1", "api2"], "vllm": ["gpu1"]}
    variables = {"ansible_limit": limit, "groups": groups, "ansible_play_hosts_all": groups["all"]}
    said: str = load("run_options").refusal_of(variables, [])
    return said


@pytest.mark.parametrize(
    ("limit", "said"),
    [
        (
            "all:!ap2",
            "--limit names ap2, which is no host and no group of the inventory, so nothing was changed: did you mean api2?",
        ),
        ("api1,gpu99", "--limit names gpu99"),
        (
            "api1,zzz",
            "zzz, which is no host and no group of the inventory, so nothing was changed: correct it, or take it out",
        ),
        ("proxy:&prxy", "did you mean proxy?"),
        ("vlm[0]", "did you mean vllm?"),
        ("all:!web*", "--limit names web*"),
        ("~web", "--limit names ~web"),
    ],
)
def test_a_part_of_a_limit_that_matches_nothing_is_refused(limit: str, said: str) -> None:
    assert said in limited(limit)


@pytest.mark.parametrize(
    "limit",
    [
        "api1",
        "all:!api2",
        "api1, gpu1",
        "proxy:&api*",
        "proxy[0]",
        "proxy[0:1]",
        "~api[12]",
        "*",
        "localhost",
        "ungrouped,api1",
        "!api2",
        "api?",
    ],
)
def test_a_limit_of_which_all_parts_match_is_taken(limit: str) -> None:
    assert limited(limit) == ""


def test_a_file_of_a_limit_is_read(tmp_path: Path) -> None:
    (tmp_path / "hosts").write_text("api1\n\napi3\n")
    assert "--limit names api3" in limited(f"@{tmp_path}/hosts")
    (tmp_path / "hosts").write_text("api1\n")
    assert limited(f"@{tmp_path}/hosts") == ""
