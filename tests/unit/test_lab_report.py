"""The lab's lines of progress."""

from __future__ import annotations

import io
import threading

import pytest
from ec2lab import report


class Terminal(io.StringIO):
    """stderr as a person has it. `redrawn` is set once a running step has shown itself."""

    def __init__(self) -> None:
        super().__init__()
        self.redrawn = threading.Event()

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        if "…" in text:
            self.redrawn.set()
        return super().write(text)


def a_terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Not a fixture: pytest sets stderr anew when a test begins."""
    monkeypatch.setattr("sys.stderr", terminal := Terminal())
    monkeypatch.setattr(report, "REDRAW_S", 0.001)
    return terminal


def test_a_running_step_shows_what_it_does_in_a_line_that_is_redrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = a_terminal(monkeypatch)
    with report.step("build the image") as step:
        step.detail = "install packages"
        terminal.redrawn.clear()
        assert terminal.redrawn.wait(10)
    before, _, last = terminal.getvalue().rpartition(report.CLEAR_LINE)
    assert "build the image … install packages" in before
    assert "\n" not in before
    assert last.endswith(" s  build the image\n")


def test_of_steps_inside_each_other_the_innermost_shows_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = a_terminal(monkeypatch)
    with report.step("outer"):
        with report.step("inner"):
            terminal.truncate(0)
            terminal.redrawn.clear()
            assert terminal.redrawn.wait(10)
            assert "outer" not in terminal.getvalue()
        terminal.redrawn.clear()
        assert terminal.redrawn.wait(10)
    assert "outer …" in terminal.getvalue()


def test_a_failed_step_says_so_and_a_log_gets_no_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RuntimeError), report.step("build the image"):
        raise RuntimeError
    shown = capsys.readouterr().err
    assert shown.endswith(" s  build the image: FAILED\n")
    assert "\x1b" not in shown
