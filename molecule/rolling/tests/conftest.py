"""The load of each change, and what it went through: `make chaos-roll` runs all changes, and writes its table into docs/reliability.md."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from helpers.load import Load, Tally

LONG_FORM = bool(os.environ.get("CHAOS_ROLL"))
# The short form, in `make test`, leaves most of two cores to the rolls.
OPTIONS = {"streams": 3, "calls": 2, "long_streams": 1, "pause_s": 2.0} if LONG_FORM else {}
PAGE = Path(__file__).parents[3] / "docs" / "reliability.md"
BEGIN, END = "<!-- The next lines are written by make chaos-roll. -->", "<!-- until here -->"


@dataclass
class Change:
    """What the load met while one change was made."""

    name: str
    seconds: float
    tally: Tally

    @property
    def first_token_p99_s(self) -> float:
        waits = sorted(self.tally.first_token_s)
        return waits[min(len(waits) - 1, int(len(waits) * 0.99))] if waits else float("nan")


changes: list[Change] = []
remarks: list[str] = []


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "change(name): what this test changes under load, as a line of docs/reliability.md"
    )
    config.addinivalue_line("markers", "long_form: only in `make chaos-roll`")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    skip = pytest.mark.skip(reason="only in `make chaos-roll`")
    for item in items:
        if not LONG_FORM and item.get_closest_marker("long_form"):
            item.add_marker(skip)


@pytest.fixture
def start_load(request: pytest.FixtureRequest) -> Callable[..., Load]:
    """Makes a load that is a line of the table."""

    def start(**options: str) -> Load:
        load = Load(**{**OPTIONS, **options})
        marker = request.node.get_closest_marker("change")
        assert marker, "say what is changed: @pytest.mark.change(…)"
        began = time.monotonic()
        request.addfinalizer(lambda: changes.append(Change(marker.args[0], time.monotonic() - began, load.tally)))
        return load

    return start


@pytest.fixture
def remark() -> Callable[[str], None]:
    """Adds a sentence below the table."""
    return remarks.append


@pytest.fixture
def load(start_load: Callable[..., Load]) -> Iterator[Load]:
    with start_load() as running:
        yield running
    running.assert_unharmed()


def pytest_sessionfinish() -> None:
    if not LONG_FORM or not changes:
        return
    lines = [
        "| change | seconds | requests | failed or cut | first token, p99 |",
        "|---|---|---|---|---|",
        *(
            f"| {change.name} | {change.seconds:.0f} | {change.tally.streams + change.tally.answers + len(change.tally.failures)} "
            f"| {len(change.tally.failures)} | {change.first_token_p99_s:.2f} s |"
            for change in changes
        ),
    ]
    requests = sum(change.tally.streams + change.tally.answers + len(change.tally.failures) for change in changes)
    failed = sum(len(change.tally.failures) for change in changes)
    longest_s = max(change.tally.longest_s for change in changes)
    day = time.strftime("%Y-%m-%d")
    told = f"On {day}: {requests} requests, {failed} failed or cut; the longest stream took {longest_s:.0f} s."
    head, _, rest = PAGE.read_text().partition(BEGIN)
    _, _, tail = rest.partition(END)
    PAGE.write_text("\n".join([f"{head}{BEGIN}", "", told, "", *lines, "", *remarks, "", f"{END}{tail}"]))
