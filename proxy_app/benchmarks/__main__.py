"""`make bench`: runs the cases on all candidates in turn, and writes bench.json and docs/performance.md."""

import argparse
import contextlib
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path

from . import report
from .candidates import (
    CANDIDATES,
    ROOT,
    Candidate,
    Missing,
    find,
    free_ports,
    proxy_of,
    running,
    wait_until_serving,
)
from .cases import CASES, Case
from .measure import Result, load
from .prepare import checkout, compile_native, install, two_cores
from .standing import Standing

NAMES = ["direct", *CANDIDATES]
BEFORE = "before"
WHOLE = ["direct", *(candidate.name for candidate in CANDIDATES.values() if not candidate.aside)]


def main(words: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(words)
    cases = [CASES[name].quick() if options.quick else CASES[name] for name in options.cases]
    try:
        cores = two_cores()
        gcc = find("gcc")
        chosen = [CANDIDATES[name] for name in options.candidates if name != "direct"]
        if options.before is not None:
            chosen.append(proxy_of(BEFORE, checkout(options.before)))
            options.candidates = [*options.candidates, BEFORE]
        for candidate in chosen:
            candidate.check()
        programs = {name: compile_native(gcc, name) for name in ("engine", "load")}
        venvs = {candidate.name: install(candidate) for candidate in chosen}
    except Missing as missing:
        print(f"bench: {missing}", file=sys.stderr)
        return 2
    # Exit as on an interrupt: processes that were started must not outlive this one.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    conditions = _conditions(chosen, venvs, options.repeats, cores)
    print(*conditions, sep="\n", flush=True)

    results: list[Result] = []
    with contextlib.ExitStack() as stack:
        engines = stack.enter_context(_engines(programs["engine"], cores[1]))
        standing = {
            candidate.name: stack.enter_context(Standing(candidate, venvs[candidate.name], engines, cores[0]))
            for candidate in chosen
        }
        started = [f"{name} {candidate.rss_mb:.0f}" for name, candidate in standing.items()]
        conditions.append(f"Resident memory once started, before any load, in MB: {', '.join(started)}.")
        for repeat in range(1, options.repeats + 1):
            # Reverse the order every other time, so that slow changes on the machine affect all candidates
            # alike.
            names = options.candidates if repeat % 2 else options.candidates[::-1]
            for case, name in product(cases, names):
                turn = (
                    contextlib.nullcontext((engines[0], None)) if name == "direct" else standing[name].awake()
                )
                with turn as (port, root):
                    result = load(programs["load"], case, port, name, repeat, root, cores[1])
                results.append(result)
                print(_line(result), flush=True)
    crashes = {name: candidate.ended for name, candidate in standing.items() if candidate.ended}
    for name, ends in crashes.items():
        print(f"{name} ended by itself and was started again:", *ends, sep="\n", file=sys.stderr)
        conditions.append(f"Ended by itself and started again: {name}, {len(ends)} x.")
    results.sort(key=lambda result: (options.candidates.index(result["candidate"]), result["repeat"]))
    options.output.write_text(json.dumps(results, indent=1) + "\n")
    print(report.tables(results))
    print(f"written: {options.output}")
    whole = options.candidates == WHOLE and options.cases == list(CASES) and not options.quick
    if whole:
        report.write_page(ROOT / "docs/performance.md", results, conditions)
        print("written: docs/performance.md, docs/performance.svg")
    else:
        print(
            "docs/performance.md stays as it is: that takes all candidates and cases, no --quick, no --before"
        )
    failed = any(result["errors"] for result in results if result["candidate"] == "ours")
    return 1 if failed or "ours" in crashes else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="benchmarks", description=__doc__)
    parser.add_argument("--candidates", type=_some_of(NAMES), default=WHOLE, help=f"of {','.join(NAMES)}")
    parser.add_argument("--cases", type=_some_of(CASES), default=list(CASES), help=f"of {','.join(CASES)}")
    parser.add_argument(
        "--before", metavar="REVISION", help="our proxy at this git revision as a candidate, too"
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="2 seconds a case: to see that it works")
    parser.add_argument("--output", type=Path, default=ROOT / "bench.json")
    return parser


def _some_of(known: Sequence[str] | dict[str, Case]):  # type: ignore[no-untyped-def]
    def parse(text: str) -> list[str]:
        names = text.split(",")
        if unknown := [name for name in names if name not in known]:
            raise argparse.ArgumentTypeError(f"unknown: {', '.join(unknown)}")
        return [name for name in known if name in names]

    return parse


@contextlib.contextmanager
def _engines(program: Path, core: int) -> Iterator[list[int]]:
    ports = free_ports(2)
    command = [str(program), *map(str, ports)]
    with tempfile.TemporaryDirectory() as directory, running(command, Path(directory), core) as engine:
        for port in ports:
            wait_until_serving(port, Path(directory) / "log", engine)
        yield ports


def _conditions(
    chosen: list[Candidate], venvs: dict[str, Path], repeats: int, cores: tuple[int, int]
) -> list[str]:
    """Machine, versions and method, one sentence each."""
    models = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    versions = [f"{candidate.name} {_version(candidate, venvs)}" for candidate in chosen]
    return [
        f"Machine: {models[0] if models else platform.machine()}, {os.cpu_count()} cores, "
        f"{platform.system()} {platform.release()}; "
        f"load average at the start {os.getloadavg()[0]:.1f}; {time.strftime('%Y-%m-%d')}.",
        f"Versions: {', '.join(versions)}.",
        f"Method: candidates on core {cores[0]}, engine and load generator on core {cores[1]}, two engines, "
        "one worker each. CPU is user and system time of a candidate's whole process tree over the load's "
        f"steady part. Medians of {repeats} repeats; in each case the candidates take turns, in opposite "
        "order every other time. Latencies are what is added to those without a candidate. "
        "See proxy_app/benchmarks.",
    ]


def _version(candidate: Candidate, venvs: dict[str, Path]) -> str:
    venv = venvs[candidate.name]
    version = candidate.version(venv)
    if candidate.name not in ("ours", BEFORE):
        return version
    shown = subprocess.run([venv / "bin/python", "-V"], capture_output=True, text=True, check=True)
    return f"(on uvicorn {version} and {shown.stdout.strip()})"


def _line(result: Result) -> str:
    shown = {name: value for name, value in result.items() if name not in ("candidate", "case", "repeat")}
    words = " ".join(f"{name}={value}" for name, value in shown.items() if value is not None)
    return f"{result['repeat']} {result['candidate']:12} {result['case']:9} {words}"


if __name__ == "__main__":
    raise SystemExit(main())
