"""The pauses between starts of an engine that crashes again and again."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import crash_pause
import pytest


def test_the_first_restarts_come_at_once_and_pauses_grow_to_a_limit() -> None:
    assert [crash_pause.pause_s(crashes) for crashes in range(11)] == [0, 0, 0, 0, 10, 20, 40, 80, 160, 300, 300]
    assert crash_pause.pause_s(10**6) == crash_pause.LONGEST_PAUSE_S


def test_crashes_are_counted_in_a_row(tmp_path: Path) -> None:
    record = tmp_path / "crashes.json"
    starts = [(False, 0), (True, 60), (True, 120), (True, 120 + crash_pause.GOOD_RUN_S), (True, 2000), (False, 2010)]
    assert [crash_pause.crashes_in_a_row(record, by_itself, at) for by_itself, at in starts] == [0, 1, 2, 1, 2, 0]


def test_a_broken_record_stops_no_start(tmp_path: Path) -> None:
    record = tmp_path / "crashes.json"
    record.write_text("{")
    assert crash_pause.crashes_in_a_row(record, True, 5) == 1


def test_what_it_waits_for_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    (tmp_path / "vllm-x").mkdir()
    (tmp_path / "vllm-x" / "crashes.json").write_text(
        json.dumps({"crashes": 3, "started_s": crash_pause.time.monotonic()})
    )
    waits: list[float] = []
    monkeypatch.setattr(crash_pause, "RUN", tmp_path)
    monkeypatch.setattr(crash_pause, "restarts", lambda name: 4)
    monkeypatch.setattr(crash_pause.time, "sleep", waits.append)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        assert crash_pause.main(["x"]) == 0
        told = [manager.recv(1000).decode() for _ in range(2)]
    assert waits == [10]
    assert told[0].startswith("STATUS=crashed 4 times in a row; the next start is at ")
    assert told[1] == "STATUS=restarted after crash 4 in a row"
    assert "crashed 4 times in a row" in capsys.readouterr().out
