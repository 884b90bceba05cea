"""The stack's lock: the program on the hosts, and whose lock another run may take."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import stack_lock as action

PROGRAM = action.PROGRAM


def lock(path: Path, *arguments: str) -> Any:
    done = subprocess.run(
        [sys.executable, PROGRAM, f"--path={path}", *arguments], capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


def of(name: str, **more: Any) -> dict[str, Any]:
    return {"id": name, "who": f"{name}@ops1", "runs": "playbooks/vllm.yml", "since": "2026-11-27T03:00:00Z", **more}


def test_the_second_run_gets_nothing_until_the_first_gives_the_lock_back(tmp_path: Path) -> None:
    path = tmp_path / "stack.lock"
    assert lock(path, "show") == {"lock": None, "replaced": None}
    assert list(tmp_path.iterdir()) == []
    first = json.dumps(of("alice"))
    assert lock(path, "take", first)["lock"]["id"] == "alice"
    assert lock(path, "take", first)["lock"]["id"] == "alice", "the run that has it may ask again"
    assert lock(path, "take", json.dumps(of("bob")))["lock"]["id"] == "alice"
    assert lock(path, "release", "bob")["lock"]["id"] == "alice"
    assert lock(path, "release", "alice")["lock"] is None
    assert lock(path, "release", "alice")["lock"] is None
    assert lock(path, "take", json.dumps(of("bob")))["lock"]["id"] == "bob"


def test_only_the_lock_that_was_looked_at_is_replaced(tmp_path: Path) -> None:
    """Two runs may find the same dead run at once."""
    path = tmp_path / "stack.lock"
    lock(path, "take", json.dumps(of("dead")))
    assert lock(path, "take", json.dumps(of("alice")), "--instead-of", "dead")["replaced"]["id"] == "dead"
    late = lock(path, "take", json.dumps(of("bob")), "--instead-of", "dead")
    assert (late["lock"]["id"], late["replaced"]) == ("alice", None)


def test_a_lock_that_cannot_be_read_belongs_to_somebody(tmp_path: Path) -> None:
    path = tmp_path / "stack.lock"
    for text in ("", "[]", "{", "\0", '{"who": "x"}'):
        path.write_text(text)
        found = lock(path, "take", json.dumps(of("alice")))["lock"]
        assert found["who"] == "unknown"
        said = action.refusal(found, "", "web1")
        assert "a run that cannot be told" in said
        assert "-e stack_break_lock=unknown" in said
        assert action.why_replaced(found, "unknown")
    assert lock(path, "take", json.dumps(of("alice")), "--instead-of", "unreadable")["lock"]["id"] == "alice"


def ended() -> int:
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_a_process_of_this_machine_tells_whether_its_run_has_ended() -> None:
    ours = action.holder({}, {"args": ["playbooks/vllm.yml"], "subset": "engine1"}, os.getpid())
    assert ours == {
        **action.holder({}, {"args": ["playbooks/vllm.yml"], "subset": "engine1"}, os.getpid()),
        "since": ours["since"],
    }
    assert ours["runs"] == "playbooks/vllm.yml --limit engine1"
    assert action.fate(ours) == "alive"
    assert action.why_replaced(ours, ours["who"]) == "", "not even on demand, while it runs"
    assert f"end its process {os.getpid()}" in action.refusal(ours, "", "web1")
    gone = {**ours, "pid": ended()}
    assert action.fate(gone) == "dead"
    assert action.why_replaced(gone, "")
    assert action.fate({**ours, "started": "1"}) == "dead", "its number belongs to another process by now"


@pytest.mark.parametrize("elsewhere", [{"machine": "another"}, {"machine": ""}, {"started": ""}])
def test_the_end_of_a_run_elsewhere_is_told_by_a_person(elsewhere: dict[str, str]) -> None:
    theirs = {**action.holder({"awx_job_id": 17}, {}, ended()), **elsewhere}
    assert action.fate(theirs) == "unknown"
    assert action.why_replaced(theirs, "") == ""
    assert action.why_replaced(theirs, "AWX job 16") == ""
    assert action.why_replaced(theirs, "AWX job 17")
    assert "-e 'stack_break_lock=\"AWX job 17\"'" in action.refusal(theirs, "", "web1")
    assert "stack_break_lock is bob, who does not hold it" in action.refusal(theirs, "bob", "web1")
