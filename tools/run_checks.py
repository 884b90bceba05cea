"""Everything that CI runs, as a table of named steps: `run_checks.py fast`, `run_checks.py all`, or steps by name. `run_checks.py long` has the rest.

Prints one line per step with its seconds. A step's output is in .build/checks/NAME.log; when the step fails, the lines that tell why
are shown. All steps run even when one fails, so that one run shows every failure.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LOGS = ROOT / ".build" / "checks"
BIN = ROOT / ".venv" / "bin"
END_LINES = 60
# Around a failed task of Ansible, and of pytest's section of failures.
TASK_LINES = 25
TESTS_LINES = 80
FAILED_TASK = re.compile(r"(fatal|failed): \[")
FAILED_TESTS = re.compile(r"=+ (FAILURES|ERRORS) =+$")


@dataclass(frozen=True)
class Step:
    """A command with its time limit."""

    name: str
    command: str
    timeout_s: int


FAST = [
    Step("ansible-lint", "ansible-lint", 900),
    Step("ruff", "ruff check . && ruff format --check .", 60),
    Step("mypy", "mypy && mypy --config-file proxy_app/pyproject.toml proxy_app/src proxy_app/benchmarks", 300),
    Step(
        "shellcheck",
        "shellcheck lab/lab lab/scenario tools/bootstrap tools/lock tools/matrix tools/package .ci/run",
        60,
    ),
    Step("yamllint", "yamllint --strict .", 60),
    Step("variables", "PYTHONPATH=proxy_app/src python tools/variables.py --check", 30),
    Step(
        "changelog", "antsibull-changelog lint && antsibull-changelog lint-changelog-yaml changelogs/changelog.yaml", 30
    ),
    Step("unit", "python -m pytest --durations=15", 2700),
    Step("proxy", "cd proxy_app && python -m pytest", 900),
]
PACKAGING = [
    Step("package", "tools/package", 600),
    Step("images", "lab/lab image bookworm && lab/lab image trixie && lab/lab image engine", 900),
]
# The longest first, so that both of two parallel runs end at about the same time.
SCENARIOS = [
    Step("vllm", "lab/scenario vllm", 2700),
    Step("rolling", "lab/scenario rolling", 3600),
    Step("proxy-role", "lab/scenario proxy", 2700),
    Step("site", "lab/scenario site", 2700),
    Step("nginx_certbot", "lab/scenario nginx_certbot", 2700),
    Step("fleet", "python -m pytest tests/fleet --durations=15", 2700),
    Step("matrix", "tools/matrix", 900),
]
# With them, CI on a slow machine would not end in its 90 minutes. Run them before a release, and after a change of what they are about: how
# engines are replaced (cluster, beside, and all of rolling), drivers, which are compiled (nvidia_drivers), instances (provision), images (bake), one
# host with all tiers and its reboot (single).
LONG = [
    Step("rolling-long", "ROLLING_LONG=1 lab/scenario rolling", 3600),
    Step("nvidia_drivers", "lab/scenario nvidia_drivers", 2700),
    Step("cluster", "lab/scenario cluster", 3600),
    Step("beside", "lab/scenario beside", 2700),
    Step("provision", "lab/scenario provision", 2700),
    Step("single", "lab/scenario single", 2700),
    Step("bake", "lab/scenario bake", 2700),
]
SETS = {"fast": FAST, "all": [*FAST, *PACKAGING, *SCENARIOS], "long": LONG}
# Steps that run at the same time.
SIDE_BY_SIDE = 2


def excerpt(lines: list[str]) -> list[str]:
    """The lines of a failed step's output that tell why: the last failed task, the failed tests, and the end."""
    shown = [range(len(lines) - END_LINES, len(lines))]
    tests = [number for number, line in enumerate(lines) if FAILED_TESTS.search(line)]
    tasks = [number for number, line in enumerate(lines) if FAILED_TASK.match(line) and not _ignored(lines, number)]
    if tests:
        shown.append(range(tests[0], tests[0] + TESTS_LINES))
    elif tasks:
        shown.append(range(tasks[-1] - TASK_LINES, tasks[-1] + TASK_LINES + 1))
    wanted = sorted({number for part in shown for number in part if 0 <= number < len(lines)})
    found: list[str] = []
    for before, number in zip([-1, *wanted], wanted, strict=False):
        if number > before + 1:
            found.append("[…]")
        found.append(lines[number])
    return found


def _ignored(lines: list[str], number: int) -> bool:
    """Whether the play went on after the failure on this line, as its `ignore_errors` wanted."""
    end = next((n for n in range(number, len(lines)) if not lines[n]), len(lines))
    return lines[end - 1] == "...ignoring"


class Runner:
    """Runs steps in order, several at a time, and records which failed."""

    def __init__(self) -> None:
        self.failed: list[Step] = []
        self.passed: list[Step] = []
        self._running: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.Lock()
        self._stopped = False

    def run(self, steps: list[Step]) -> None:
        """Run all steps and wait for them."""
        with ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
            for done in [pool.submit(self._step, step) for step in steps]:
                done.result()

    def stop(self) -> None:
        """Terminate the running steps with all their processes."""
        with self._lock:
            self._stopped = True
            for process in self._running:
                os.killpg(process.pid, signal.SIGTERM)

    def _step(self, step: Step) -> None:
        if self._stopped:
            return
        log = LOGS / f"{step.name}.log"
        began = time.monotonic()
        environment = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", "NO_COLOR": "1", "ANSIBLE_NOCOLOR": "1"}
        with log.open("wb") as output:
            process = subprocess.Popen(
                step.command,
                shell=True,
                cwd=ROOT,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            with self._lock:
                self._running.add(process)
            try:
                status = process.wait(timeout=step.timeout_s)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                status = -1
                output.write(f"\nstopped after its limit of {step.timeout_s} s\n".encode())
        with self._lock:
            self._running.discard(process)
            seconds = time.monotonic() - began
            (self.failed if status else self.passed).append(step)
            print(f"{seconds:6.1f} s  {step.name}{': FAILED' if status else ''}", flush=True)
            if status and not self._stopped:
                lines = excerpt(log.read_text(errors="replace").splitlines())
                print(
                    "\n".join(f"    | {line}" for line in lines),
                    f"\n    (all of it: {log.relative_to(ROOT)})",
                    flush=True,
                )


def main(words: list[str]) -> int:
    """Run the named steps. Returns 0 if all passed."""
    known = {step.name: step for steps in SETS.values() for step in steps}
    unknown = [word for word in words if word not in SETS and word not in known]
    if unknown or not words:
        print(f"usage: run_checks.py fast|all|long|STEP…; steps: {' '.join(known)}", file=sys.stderr)
        return 2
    steps = [step for word in words for step in (SETS[word] if word in SETS else [known[word]])]
    LOGS.mkdir(parents=True, exist_ok=True)
    runner = Runner()

    def interrupted(*_: object) -> None:
        print("interrupted: stopping the running steps; the same command starts again and cleans up", file=sys.stderr)
        runner.stop()

    signal.signal(signal.SIGINT, interrupted)
    signal.signal(signal.SIGTERM, interrupted)
    runner.run(steps)
    print(f"{len(runner.passed)} passed, {len(runner.failed)} failed")
    return 1 if runner.failed or len(runner.passed) < len(steps) else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
