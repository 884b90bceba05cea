"""The benchmark's report, measurements, rig and soak criteria."""

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from benchmarks import candidates, measure, prepare, report, soak
from benchmarks.cases import CASES
from benchmarks.standing import Standing

from inference_proxy.settings import Settings

RESULT: measure.Result = {
    "candidate": "ours",
    "case": "paced512",
    "repeat": 1,
    "cpu_us_per_chunk": 30.0,
    "cpu_us_per_request": 3000.0,
    "chunks_per_s": 25_000.0,
    "requests_per_s": 250.0,
    "ttft_p50_ms": 1.5,
    "ttft_p99_ms": 3.0,
    "chunk_p50_ms": 0.5,
    "chunk_p99_ms": 2.0,
    "rss_mb": 50.0,
    "errors": 0,
}


def result(**fields: Any) -> measure.Result:
    return {**RESULT, **fields}  # type: ignore[typeddict-item]


RESULTS = [
    result(candidate="direct", cpu_us_per_chunk=None, ttft_p50_ms=0.5, ttft_p99_ms=1.0, rss_mb=None),
    result(candidate="other"),
    result(candidate="slow", cpu_us_per_chunk=3000.0, chunks_per_s=100.0, errors=2),
    *(result(repeat=repeat, cpu_us_per_chunk=cost) for repeat, cost in ((1, 30.0), (2, 90.0), (3, 31.0))),
]


def test_a_table_has_medians_and_what_is_added() -> None:
    rows = [line.split(" | ") for line in report.tables(RESULTS).splitlines() if line.startswith("| ")]
    ours = next(row for row in rows if row[0] == "| ours")
    assert ours[1] == "31.0"
    assert "1.00 / 2.00" in ours
    assert any("slow (falls behind)" in row[0] for row in rows)


def test_a_chart_is_a_drawing() -> None:
    drawing = ElementTree.fromstring(report.chart(RESULTS))
    assert drawing.tag == "{http://www.w3.org/2000/svg}svg"
    text = " ".join(drawing.itertext())
    assert "3,000.0 (cut)" in text
    assert "31.0" in text


def test_the_page_keeps_what_is_not_the_benchmarks(tmp_path: Path) -> None:
    page = tmp_path / "performance.md"
    page.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    for _ in range(2):
        report.write_page(page, RESULTS, ["Machine: this one."])
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "old" not in text
    assert text.count("- Machine: this one.") == 1
    assert (tmp_path / "performance.svg").exists()
    page.write_text("no markers")
    with pytest.raises(ValueError, match="needs one line"):
        report.write_page(page, RESULTS, [])


def test_a_process_is_counted_with_its_children() -> None:
    pipe = subprocess.PIPE
    with subprocess.Popen(["sh", "-c", "echo; read line"], stdin=pipe, stdout=pipe) as child:
        # Right after its start, the kernel does not report any memory for it.
        assert child.stdout is not None
        assert child.stdout.readline()
        alone = measure.usage(child.pid)
        together = measure.usage(os.getpid())
        child.kill()
    assert together.rss_mb > alone.rss_mb > 0
    assert together.cpu_us > 0
    with pytest.raises(RuntimeError, match="has ended"):
        measure.usage(child.pid)


def test_a_missing_program_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    with pytest.raises(candidates.Missing, match="apt-get install nginx-light"):
        candidates.CANDIDATES["nginx"].check()


def test_ours_is_configured_as_it_has_to_be(tmp_path: Path) -> None:
    ground = candidates.Ground(tmp_path, tmp_path, 9000, 9001, ["http://127.0.0.1:8000"])
    candidates.CANDIDATES["ours"].prepare(ground)
    config = Settings.load(tmp_path / "config.yml").config
    assert config.admin is not None
    assert config.usage is not None
    assert config.traces is not None
    assert None not in config.limits.default.model_dump().values(), "every limit is counted"


def test_an_unknown_revision_is_said_to_be_unknown() -> None:
    with pytest.raises(candidates.Missing, match="no revision 'nowhere'"):
        prepare.checkout("nowhere")


def test_the_proxy_before_is_that_of_the_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare, "BUILD", tmp_path)
    tree = prepare.checkout("HEAD")
    assert tree == prepare.checkout("HEAD"), "it is unpacked once"
    before = candidates.proxy_of("before", tree)
    assert before.environment["PYTHONPATH"] == str(tree / "proxy_app/src")
    assert (tree / "proxy_app/src/inference_proxy/app.py").is_file()
    assert all(lock.is_file() for lock in before.locks)


def soaked(**changes: Any) -> soak.Tally:
    tally = soak.Tally(key_live_s=[0.2], rss_mb=[(float(at), 60.0 + at % 2) for at in range(100)])
    tally.outcomes.update(soak.EXPECTED)
    for name, value in changes.items():
        setattr(tally, name, value)
    return tally


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"lost": ["stream: b'' … b''"]}, "lost: stream"),
        ({"rss_mb": [(float(at), 60.0 + at / 10) for at in range(100)]}, "memory is not flat"),
        ({"rss_mb": [(float(at), 130.0) for at in range(100)]}, "130 MB is more than 120"),
        ({"key_live_s": [0.2, 1.5]}, "a change of keys was live after 1.50 s only"),
        ({"outcomes": Counter(soak.EXPECTED[1:])}, "this never happened: stream ok"),
    ],
)
def test_a_soak_is_judged(changes: dict[str, Any], problem: str) -> None:
    assert soaked().problems() == []
    (found,) = soaked(**changes).problems()
    assert found.startswith(problem)


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory with the compiled engine and load generator."""
    if shutil.which("gcc") is None:
        pytest.skip("the rig is written in C, and there is no gcc")
    directory = tmp_path_factory.mktemp("rig")
    for name in ("engine", "load"):
        source = candidates.HERE / "native" / f"{name}.c"
        command = ["gcc", "-O1", "-Wall", "-Wextra", "-Werror", "-o", str(directory / name), str(source)]
        subprocess.run(command, check=True)
    return directory


def test_a_candidate_that_crashes_is_started_again(rig: Path, tmp_path: Path) -> None:
    crashing = candidates.Candidate("crashing", lambda ground: [str(rig / "engine"), str(ground.port)])
    with Standing(crashing, tmp_path, [], min(os.sched_getaffinity(0))) as candidate:
        with candidate.awake() as (_, first):
            pass
        os.kill(first, signal.SIGKILL)
        with candidate.awake() as (port, second):
            assert second != first
            candidates.wait_until_serving(port, tmp_path / "log", second)
    (ended,) = candidate.ended
    assert ended.startswith("it ended with signal 9")


def test_the_rig_measures_itself_without_error(rig: Path, tmp_path: Path) -> None:
    (port,) = candidates.free_ports(1)
    core = min(os.sched_getaffinity(0))
    with candidates.running([str(rig / "engine"), str(port)], tmp_path, core) as engine:
        candidates.wait_until_serving(port, tmp_path / "log", engine)
        for case in ("fast", "json", "body100k"):
            short = dataclasses.replace(CASES[case], seconds=0.5, ramp_s=0.1)
            found = measure.load(rig / "load", short, port, "direct", 1, engine, core)
            assert list(found) == list(RESULT)
            assert found["errors"] == 0
            assert found["requests_per_s"] > 0
            assert found["ttft_p50_ms"]
            assert found["cpu_us_per_request"] is not None
            assert (found["chunks_per_s"] > 0) == short.stream


@pytest.mark.parametrize("client", ["ours", "aiohttp"])
def test_the_barest_proxy_passes_everything_on(rig: Path, tmp_path: Path, client: str) -> None:
    engine_port, port = candidates.free_ports(2)
    core = min(os.sched_getaffinity(0))
    bare = candidates.CANDIDATES[f"bare-{client}"]
    venv = Path(sys.executable).parents[1]
    ground = candidates.Ground(tmp_path, venv, port, 0, [f"http://127.0.0.1:{engine_port}"])
    (tmp_path / "engine").mkdir()
    with (
        candidates.running([str(rig / "engine"), str(engine_port)], tmp_path / "engine", core),
        candidates.running(bare.prepare(ground), tmp_path, core, bare.environment) as proxy,
    ):
        candidates.wait_until_serving(port, tmp_path / "log", proxy)
        for case in ("fast", "json"):
            short = dataclasses.replace(CASES[case], seconds=0.5, ramp_s=0.1)
            found = measure.load(rig / "load", short, port, bare.name, 1, proxy, core)
            assert found["errors"] == 0
            assert found["requests_per_s"] > 0
