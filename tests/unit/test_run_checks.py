"""What is shown of a failed step's output."""

from __future__ import annotations

from run_checks import END_LINES, excerpt

TASK = ["TASK [Start it] ****", "fatal: [api1]: FAILED! =>", "    msg: the port is taken", ""]
IGNORED = ["TASK [Try it] ****", "fatal: [api1]: FAILED! =>", "    msg: nothing there", "...ignoring", ""]
MANY = [f"line {number}" for number in range(200)]


def test_a_short_output_is_shown_whole() -> None:
    assert excerpt(MANY[:5]) == MANY[:5]


def test_the_end_is_shown() -> None:
    assert excerpt(MANY) == ["[…]", *MANY[-END_LINES:]]


def test_the_last_failed_task_is_shown_with_the_lines_around_it() -> None:
    lines = [*MANY, "TASK [Earlier] ****", "fatal: [api1]: FAILED! =>", *MANY, *TASK, *IGNORED, *MANY]
    shown = excerpt(lines)
    assert "\n".join(TASK) in "\n".join(shown)
    assert shown[-END_LINES:] == MANY[-END_LINES:]
    assert "TASK [Earlier] ****" not in shown
    assert shown.count("[…]") == 2, "what is left out is marked"


def test_a_failed_item_of_a_loop_is_a_failed_task() -> None:
    failed = "failed: [api1] (item=a) =>"
    assert failed in excerpt([*MANY, failed, *MANY])


def test_failed_tests_are_shown_instead_of_tasks() -> None:
    tests = ["=========== FAILURES ===========", "___ test_it ___", "E   AssertionError: 502", ""]
    shown = excerpt([*MANY, *TASK, *MANY, *tests, *MANY])
    assert "\n".join(tests) in "\n".join(shown)
    assert TASK[1] not in shown
