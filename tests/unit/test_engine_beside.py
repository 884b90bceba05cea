"""When a second engine serves during a roll, by what runs on the host."""

from __future__ import annotations

import json
from pathlib import Path

import engine_beside
import engine_probe
import pytest


class Host:
    """Engines by name: whether they are up, whether they generate, and their fingerprints; and releases with theirs."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.directory, self.up, self.working = directory, set[str](), set[str]()
        monkeypatch.setattr(engine_beside, "HOME", directory / "home")
        monkeypatch.setattr(engine_probe, "RUN", directory / "run")
        monkeypatch.setattr(engine_probe, "unit_state", self.unit_state)
        monkeypatch.setattr(engine_probe, "generate", self.generate)
        monkeypatch.setattr(engine_probe, "prove", lambda engine, crashes=0: self.generate(engine))
        self.release("old", x="1", **{"x.beside": "1b"})
        self.release("new", x="2", **{"x.beside": "2b"})
        (directory / "home" / "current").symlink_to("releases/old")

    def unit_state(self, unit: str, names: str = "") -> dict[str, str]:
        name = unit.removeprefix("vllm@").removesuffix(".service")
        return {"ActiveState": "active" if name in self.up else "inactive"}

    def generate(self, engine: engine_probe.Engine) -> None:
        if engine.name not in self.working:
            raise engine_probe.ProbeError("it does not generate")

    def release(self, name: str, **fingerprints: str) -> None:
        engines = self.directory / "home" / "releases" / name / "engines"
        engines.mkdir(parents=True)
        for engine, fingerprint in fingerprints.items():
            (engines / f"{engine}.fingerprint").write_text(f"{fingerprint}\n")
            (engines / f"{engine}.probe.json").write_text(PROBE)

    def runs(self, name: str, fingerprint: str, *, generates: bool = True) -> None:
        self.up.add(name)
        if generates:
            self.working.add(name)
        run = self.directory / "run" / f"vllm-{name}"
        run.mkdir(parents=True)
        (run / "fingerprint").write_text(f"{fingerprint}\n")
        (run / "probe.json").write_text(PROBE)

    def decided(self, capsys: pytest.CaptureFixture[str]) -> str:
        assert engine_beside.main(["x", "--release", str(self.directory / "home" / "releases" / "new")]) == 0
        return capsys.readouterr().out.strip()


PROBE = json.dumps({"url": "http://127.0.0.1:9", "model": "m", "probe": "completions"})


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    return Host(tmp_path, monkeypatch)


def test_one_is_started_while_the_engine_generates(host: Host, capsys: pytest.CaptureFixture[str]) -> None:
    host.runs("x", "1")
    assert host.decided(capsys) == "start"


@pytest.mark.parametrize("hangs", [False, True])
def test_none_is_started_for_an_engine_that_does_not_generate(
    host: Host, capsys: pytest.CaptureFixture[str], hangs: bool
) -> None:
    if hangs:
        host.runs("x", "1", generates=False)
    assert host.decided(capsys) == "nothing"


def test_none_is_started_beside_an_engine_of_before(host: Host, capsys: pytest.CaptureFixture[str]) -> None:
    host.release("before", x="0")
    host.runs("x", "0")
    assert host.decided(capsys) == "no-room"
    # The port alone makes a new release and restarts nothing.
    host.release("port", x="0", **{"x.beside": "0b"})
    assert host.decided(capsys) == "start"


def test_an_engine_that_is_to_be_restarted_has_the_options_of_the_current_release(
    host: Host, capsys: pytest.CaptureFixture[str]
) -> None:
    host.runs("x", "1")
    (host.directory / "run" / "vllm-x" / "fingerprint").unlink()
    assert host.decided(capsys) == "start"
    (host.directory / "home" / "current" / "engines" / "x.fingerprint").unlink()
    assert host.decided(capsys) == "no-room"


def test_what_an_interrupted_roll_left_serves_on(host: Host, capsys: pytest.CaptureFixture[str]) -> None:
    host.runs("x.beside", "2b")
    assert host.decided(capsys) == "serving"
    host.runs("x", "1")
    assert host.decided(capsys) == "serving"


def test_of_another_release_it_is_of_use_only_while_the_engine_is_down(
    host: Host, capsys: pytest.CaptureFixture[str]
) -> None:
    host.runs("x.beside", "1b")
    assert host.decided(capsys) == "serving"
    host.runs("x", "1")
    assert host.decided(capsys) == "start"


def test_one_that_hangs_is_of_no_use(host: Host, capsys: pytest.CaptureFixture[str]) -> None:
    host.runs("x.beside", "2b", generates=False)
    assert host.decided(capsys) == "nothing"
    host.runs("x", "1")
    assert host.decided(capsys) == "start"
