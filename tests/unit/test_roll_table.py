"""What a roll did to each host, from what the hosts said before and after it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import running
from roll_table import roll_table


def said(release: str, state: str = "1") -> dict[str, Any]:
    return {"rc": 0, "stdout": json.dumps({"release": release, "state": state})}


def test_one_line_per_host() -> None:
    before = {"a": said("1.0"), "b": said("1.0"), "c": said(""), "d": said("1.0"), "e": said("1.0")}
    after = {
        "a": said("2.0", "2"),
        "b": said("1.0", "2"),
        "c": said("2.0"),
        "d": said("1.0"),
        "e": {"unreachable": True},
    }
    out = {"a": {"a:x": {"since": 10.0, "until": 52.4}, "a:y": {"since": 60.0}}, "e": {"e:x": {"since": 1.0}}}
    lines = [" ".join(line.split()) for line in roll_table(["b", "a", "c", "d", "e", "f"], before, after, out)]
    assert lines == [
        "host changed out of service runs",
        "a yes x 42 s, y still is 1.0 -> 2.0",
        "b yes - 1.0",
        "c yes - nothing -> 2.0",
        "d no - 1.0",
        "e unknown x still is no answer",
        "f unknown - no answer",
    ]


def test_a_host_that_was_restarted_with_the_same_release_was_changed() -> None:
    out = {"a": {"a:x": {"since": 1.0, "until": 2.0}}}
    assert roll_table(["a"], {"a": said("1")}, {"a": said("1")}, out)[1].split()[:2] == ["a", "yes"]


@pytest.mark.parametrize("tier", ["vllm", "proxy", "nginx"])
def test_a_host_without_the_tier_runs_nothing(tier: str, tmp_path: Path) -> None:
    assert running.release_of(tier, tmp_path) == ""
    assert running.state_of(tier, tmp_path)


def test_what_differs_shows_in_the_state(tmp_path: Path) -> None:
    (tmp_path / "opt/proxy/releases/1.0-a").mkdir(parents=True)
    (tmp_path / "opt/proxy/current").symlink_to(tmp_path / "opt/proxy/releases/1.0-a")
    (tmp_path / "etc/proxy").mkdir(parents=True)
    (tmp_path / "etc/proxy/keys.yml").write_text("a")
    before = running.state_of("proxy", tmp_path)
    assert running.release_of("proxy", tmp_path) == "1.0-a"
    (tmp_path / "etc/proxy/keys.yml").write_text("b")
    assert running.state_of("proxy", tmp_path) != before


def test_a_worker_that_is_drained_for_a_while_is_no_change_of_nginx(tmp_path: Path) -> None:
    home = tmp_path / "etc/nginx/ec2-inference"
    home.mkdir(parents=True)
    (tmp_path / "etc/nginx/nginx.conf").write_text("events {}")
    (home / "upstream.conf").write_text("server 10.0.0.2:9000 max_fails=0;  # api1:9000\n")
    before = running.state_of("nginx", tmp_path)
    assert running.release_of("nginx", tmp_path).startswith("configuration ")
    (home / "upstream.conf").write_text("server 10.0.0.2:9000 max_fails=0 down;  # api1:9000\n")
    assert running.state_of("nginx", tmp_path) == before
