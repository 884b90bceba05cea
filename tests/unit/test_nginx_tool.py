"""The web tier's tool on the host: the parts that need no nginx."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import resource
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import ModuleType

import pytest

SOURCE = Path(__file__).resolve().parents[2] / "roles/nginx_certbot/files/ec2_inference_nginx.py"
UPSTREAM = """\
# a comment stays
server 10.0.0.5:9000 max_fails=0;  # api1:9000
server 10.0.0.5:9001 max_fails=0 down;  # api1:9001
server [fd00::5]:9000 max_fails=0;  # api2:9000
"""
ROLL = "alice@ops1 (Roll the API tier)"


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """The tool with its directories under `tmp_path`, an nginx that accepts everything, and none running."""
    spec = importlib.util.spec_from_file_location("ec2_inference_nginx", SOURCE)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    spec.loader.exec_module(module)
    for name in (
        "UPSTREAM",
        "LIMITS",
        "TLS",
        "ONLY_TLS",
        "CERTIFICATES",
        "OWN",
        "WORKERS",
        "LOADED",
        "DRAINED",
        "PROVEN",
        "PREVIOUS",
        "RETURNING",
        "PLACEHOLDER",
        "LOCK",
    ):
        monkeypatch.setattr(module, name, tmp_path / getattr(module, name).name)
    monkeypatch.setattr(module, "MAIN", tmp_path / "nginx.conf")
    monkeypatch.setattr(module, "LIVE", tmp_path / "live")
    module.TLS.mkdir()
    monkeypatch.setattr(module, "PID_FILE", tmp_path / "no.pid")
    monkeypatch.setattr(module, "test", lambda candidates: None)
    return module


def make_certificate(home: Path, *names: str) -> None:
    home.mkdir(parents=True)
    request = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    request += ["-subj", "/CN=test", "-days", "90"]
    request += ["-addext", f"subjectAltName={','.join(f'DNS:{name}' for name in names)}"]
    request += ["-keyout", str(home / "privkey.pem"), "-out", str(home / "fullchain.pem")]
    subprocess.run(request, check=True, capture_output=True)


def want(tool: ModuleType, **certificates: list[str]) -> None:
    """Write the list of certificates: names and domains; those whose name begins with `own` come from elsewhere than the CA."""
    listed = [
        {"name": name, "source": "pem" if name.startswith("own") else "acme", "domains": domains}
        for name, domains in certificates.items()
    ]
    tool.CERTIFICATES.write_text(json.dumps({"certificates": listed}))


def named(tool: ModuleType) -> dict[str, str]:
    """The directory that each tls/NAME.conf names, relative to the test's."""
    texts = {path.stem: path.read_text() for path in tool.TLS.glob("*.conf")}
    found = {name: Path(tool.PAIR.findall(text)[0]).parent for name, text in texts.items()}
    return {name: str(home.relative_to(tool.TLS.parent)) for name, home in found.items()}


def test_exactly_the_drained_servers_are_down(tool: ModuleType) -> None:
    text = tool.mark_down(UPSTREAM, {"api2:9000", "gone:9000"})
    assert text.splitlines() == [
        "# a comment stays",
        "server 10.0.0.5:9000 max_fails=0;  # api1:9000",
        "server 10.0.0.5:9001 max_fails=0;  # api1:9001",
        "server [fd00::5]:9000 max_fails=0 down;  # api2:9000",
    ]
    assert tool.mark_down(text, {"api2:9000"}) == text


def test_a_roll_leaves_an_operators_drain_alone(tool: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    tool.UPSTREAM.write_text(UPSTREAM)
    tool.drain(["api1:9001"], "rolling update by hand", "alice@web1")
    tool.drain(["api1:9000", "api1:9001"], "rolling update", ROLL)
    tool.undrain(["api1:9000", "api1:9001"], "rolling update")
    assert tool.UPSTREAM.read_text() == UPSTREAM
    assert "api1:9001 stays drained, by hand: rolling update by hand; by alice@web1" in capsys.readouterr().err
    tool.undrain(["api1:9001"], None)
    assert "down" not in tool.UPSTREAM.read_text()


def test_a_marker_says_who_drained_and_since_when(tool: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUDO_USER", "alice")
    monkeypatch.setattr(tool.socket, "gethostname", lambda: "web1")
    monkeypatch.setattr(tool, "LOCK", tool.DRAINED.with_name("lock"))
    tool.answer_to(tool.arguments().parse_args(["drain", "api1:9000", "--reason", "disk"]))
    monkeypatch.setenv("EC2_INFERENCE_DRAINED_BY", "bob@ops1 (Roll; it)")
    tool.answer_to(tool.arguments().parse_args(["drain", "api1:9001", "--reason", "rolling update"]))
    lines = [(tool.DRAINED / name).read_text() for name in ("api1:9000", "api1:9001")]
    assert [re.sub(r"\d\d:\d\d:\d\dZ\n$", "TIME", re.sub(r"\d{4}-\d\d-\d\dT", "", line)) for line in lines] == [
        "disk; by alice@web1; since TIME",
        "rolling update; by bob@ops1 (Roll, it); since TIME",
    ]


def test_the_next_roll_says_whose_marker_it_takes_back(tool: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    tool.UPSTREAM.write_text(UPSTREAM)
    since = (datetime.now(UTC) - timedelta(hours=26, minutes=5, seconds=30)).strftime("%Y-%m-%dT%H:%M:%SZ")
    killed = f"rolling update; by bob@ops1 (Roll); since {since}\n"
    tool.DRAINED.mkdir()
    (tool.DRAINED / "api1:9000").write_text(killed)
    (tool.DRAINED / "api1:9001").write_text("rolling update")
    tool.drain(["api1:9000", "api1:9001"], "rolling update", ROLL)
    assert (tool.DRAINED / "api1:9000").read_text() == killed, "the first one's owner and age stay"
    capsys.readouterr()
    tool.undrain(["api1:9000", "api1:9001"], "rolling update")
    assert capsys.readouterr().err.splitlines() == [
        f"api1:9000 is put back, after 26 h 5 min: {killed.strip()}",
        "api1:9001 is put back, its marker does not say since when it was out: rolling update",
    ]
    assert list(tool.DRAINED.iterdir()) == []


def test_a_refused_undrain_leaves_the_marker_as_it_was(
    tool: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(candidates: dict[Path, Path]) -> None:
        raise tool.Failed("no")

    tool.UPSTREAM.write_text(UPSTREAM)
    tool.drain(["api1:9000", "api1:9001"], "rolling update", ROLL)
    before = (tool.DRAINED / "api1:9000").read_text()
    monkeypatch.setattr(tool, "test", refuse)
    with pytest.raises(tool.Failed):
        tool.undrain(["api1:9000"], "rolling update")
    assert (tool.DRAINED / "api1:9000").read_text() == before
    assert "put back" not in capsys.readouterr().err


def test_a_refused_drain_leaves_no_marker(tool: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(candidates: dict[Path, Path]) -> None:
        raise tool.Failed("no")

    tool.UPSTREAM.write_text(UPSTREAM)
    monkeypatch.setattr(tool, "test", refuse)
    with pytest.raises(tool.Failed):
        tool.drain(["api1:9000"], "rolling update", ROLL)
    assert tool.UPSTREAM.read_text() == UPSTREAM
    assert list(tool.DRAINED.iterdir()) == []
    assert list(tool.UPSTREAM.parent.glob(".*")) == []


def test_without_a_list_there_is_the_one_certificate_of_earlier_releases(tool: ModuleType) -> None:
    tool.select_tls(None)
    assert named(tool) == {"ec2-inference": "placeholder"}
    make_certificate(tool.LIVE / "ec2-inference", "a.test")
    assert tool.select_tls(None) == "changed"
    assert named(tool) == {"ec2-inference": "live/ec2-inference"}
    assert "stapling" not in (tool.TLS / "ec2-inference.conf").read_text()


def test_another_certificate_stands_in_for_one_that_is_not_there_yet(tool: ModuleType) -> None:
    """A name that moves to a certificate of its own is served by its old one until then."""
    make_certificate(tool.LIVE / "ec2-inference", "a.test", "b.test")
    tool.ONLY_TLS.write_text(tool.tls_text(tool.LIVE / "ec2-inference"))
    want(tool, **{"ec2-inference": ["a.test"], "own": ["b.test"], "other": ["c.test"]})
    tool.select_tls(None)
    assert named(tool) == {"ec2-inference": "live/ec2-inference", "own": "live/ec2-inference", "other": "placeholder"}
    make_certificate(tool.OWN / "own", "b.test")
    tool.select_tls(None)
    assert named(tool)["own"] == "certificates/own"


def test_files_that_only_an_earlier_configuration_included_are_removed(tool: ModuleType) -> None:
    want(tool, **{"ec2-inference": ["a.test"]})
    tool.select_tls(None)
    for path in (tool.ONLY_TLS, tool.TLS / "gone.conf"):
        path.write_text("ssl_certificate /x;\n")
    tool.MAIN.write_text(f"include {tool.TLS}/ec2-inference.conf;\n")
    for path in (tool.UPSTREAM, tool.LIMITS):
        path.write_text("")
    assert tool.keep() == "kept"
    assert tool.tls_files() == [tool.TLS / "ec2-inference.conf"]


def test_a_rollback_returns_to_the_proven_list_of_certificates(
    tool: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tool, "master", lambda: 7)
    monkeypatch.setattr(tool, "stale", lambda: False)
    for path in (tool.MAIN, tool.UPSTREAM, tool.LIMITS):
        path.write_text("old")
    want(tool, old=["a.test"])
    tool.keep()
    want(tool, new=["b.test"])
    tool.rollback()
    assert [one["name"] for one in tool.certificates()] == ["old"]
    (tool.PROVEN / "certificates.json").unlink()
    tool.rollback()
    assert [one["name"] for one in tool.certificates()] == ["ec2-inference"], "proven before there was a list"


@pytest.mark.parametrize("name", ["ec2-inference", "own"])
def test_a_certificate_that_was_served_is_never_replaced_by_the_placeholder(tool: ModuleType, name: str) -> None:
    want(tool, **{name: ["a.test"]})
    home = tool.home_of(tool.certificates()[0])
    make_certificate(home, "a.test")
    tool.select_tls(None)
    (home / "privkey.pem").unlink()
    with pytest.raises(
        tool.Failed, match=rf"is gone from the disk.*Restore .* from a backup.*remove .*tls/{name}.conf"
    ):
        tool.select_tls(None)
    with pytest.raises(tool.Failed, match="is gone from the disk"):
        tool.reload()
    (tool.TLS / f"{name}.conf").unlink()
    assert tool.select_tls(None) == "changed"
    assert named(tool) == {name: "placeholder"}


def test_the_placeholders_key_is_its_owners_alone_and_stays(tool: ModuleType) -> None:
    tool.make_placeholder()
    made = (tool.PLACEHOLDER / "privkey.pem").stat()
    assert made.st_mode & 0o077 == 0
    tool.make_placeholder()
    assert (tool.PLACEHOLDER / "privkey.pem").stat().st_ino == made.st_ino


@pytest.mark.parametrize("name", ["api1", "api1:x", "../x:9000", "a b:1"])
def test_odd_instances_are_refused(tool: ModuleType, name: str) -> None:
    with pytest.raises(SystemExit):
        tool.arguments().parse_args(["drain", name])


@pytest.mark.parametrize(
    ("saved", "zone", "answer"),
    [
        ({"master": 7, "workers": [8, 9]}, "connections_3", "unchanged"),
        ({"master": 7, "workers": [8, 9, 10]}, "connections_4", "reloaded"),
        ({"master": 6, "workers": [10]}, "connections_3", "unchanged"),  # before nginx's last start
        (None, "connections_3", "unchanged"),
    ],
)
def test_a_dead_workers_connections_are_forgotten(
    tool: ModuleType, monkeypatch: pytest.MonkeyPatch, saved: dict | None, zone: str, answer: str
) -> None:
    monkeypatch.setattr(tool, "master", lambda: 7)
    monkeypatch.setattr(tool, "serving", lambda parent: {8, 9})
    monkeypatch.setattr(tool, "reload", lambda: "reloaded")
    tool.LIMITS.write_text("limit_conn_zone $k zone=connections_3:10m;\nlimit_conn connections_3 5;\n")
    if saved:
        tool.WORKERS.write_text(json.dumps(saved))
    assert tool.mend() == answer
    assert tool.LIMITS.read_text() == f"limit_conn_zone $k zone={zone}:10m;\nlimit_conn {zone} 5;\n"
    assert tool.generation() == int(zone[-1])
    if answer == "unchanged":
        assert tool.saved_workers(7) == {8, 9}, "a worker that dies later is noticed"


def test_workers_that_may_open_too_few_files_are_told(tool: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """This test's own process stands for a worker."""
    monkeypatch.setattr(tool, "master", lambda: 7)
    monkeypatch.setattr(tool, "serving", lambda parent: {os.getpid()})
    allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    tool.MAIN.write_text(f"user x;\nworker_rlimit_nofile {allowed};\n")
    tool.prove_files()
    tool.MAIN.write_text(f"user x;\nworker_rlimit_nofile {allowed + 1};\n")
    with pytest.raises(tool.Failed, match=f"may open {allowed} files.* takes {allowed + 1}.*restart nginx"):
        tool.prove_files()


def test_a_reload_that_began_after_it_was_asked_for_does_for_it(
    tool: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    reloads: list[str] = []
    monkeypatch.setattr(tool, "tls_texts", dict)
    monkeypatch.setattr(tool, "stale", lambda: bool(tool.MAIN.exists()))

    def reload() -> str:
        reloads.append("reload")
        return "reloaded"

    monkeypatch.setattr(tool, "reload", reload)
    tool.save_workers(7, {8}, reloaded_ns=1000)
    assert tool.reload_command(if_changed=False, asked_ns=500) == "reloaded"
    assert reloads == [], "it waited while this reload began"
    tool.reload_command(if_changed=False, asked_ns=2000)
    assert len(reloads) == 1, "that reload was before it"
    tool.MAIN.write_text("changed since")
    tool.reload_command(if_changed=False, asked_ns=500)
    assert len(reloads) == 2, "what is on disk was changed since"


def configure(tool: ModuleType, text: str, *, upstream: str = UPSTREAM, generation: int = 1) -> None:
    tool.MAIN.write_text(text)
    tool.UPSTREAM.write_text(upstream)
    tool.LIMITS.write_text(f"limit_conn_zone $limit_key zone=connections_{generation}:10m;\n")


def test_a_return_goes_to_the_configuration_that_was_proven_before_and_not_forth_again(
    tool: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tool, "reload", lambda: "reloaded")
    configure(tool, "first")
    tool.keep()
    assert tool.return_command().startswith("unchanged")
    configure(tool, "second", generation=2, upstream="server 10.0.0.7:9000 max_fails=0;  # api3:9000\n")
    tool.keep()
    assert tool.return_command() == "returned"
    assert tool.return_command() == "returned", "one that was interrupted goes on"
    assert tool.MAIN.read_text() == "first"
    assert "connections_2" in tool.LIMITS.read_text(), "connections are counted as before"
    assert "api3" in tool.UPSTREAM.read_text(), "the proxies are those of today"
    tool.keep()
    assert tool.return_command().startswith("unchanged")
    assert tool.MAIN.read_text() == "first"


def test_a_return_that_is_not_proven_is_taken_back_and_may_be_tried_again(
    tool: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tool, "reload", lambda: "reloaded")
    monkeypatch.setattr(tool, "master", lambda: 1)
    monkeypatch.setattr(tool, "stale", lambda: False)
    for text in ("first", "second"):
        configure(tool, text)
        tool.keep()
    assert tool.return_command() == "returned"
    assert tool.rollback() == "restored"
    assert tool.MAIN.read_text() == "second"
    assert tool.return_command() == "returned"
    assert tool.MAIN.read_text() == "first"


def test_a_roll_back_and_forth_keeps_what_was_proven_before(tool: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """A roll to an old configuration is no return: the one before it is the newer one."""
    monkeypatch.setattr(tool, "reload", lambda: "reloaded")
    for text in ("first", "second", "first"):
        configure(tool, text)
        tool.keep()
        assert tool.keep() == "unchanged"
    assert tool.return_command() == "returned"
    assert tool.MAIN.read_text() == "second"


def test_a_return_finds_the_certificates_of_its_time(tool: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tool, "reload", lambda: "reloaded")
    # The first configuration is of a release that had one certificate and no list.
    configure(tool, f"include {tool.ONLY_TLS};")
    tool.ONLY_TLS.write_text(tool.tls_text(tool.PLACEHOLDER))
    tool.keep()
    want(tool, main=["a.test"])
    configure(tool, f"include {tool.TLS}/main.conf;")
    tool.select_tls(None)
    tool.keep()
    assert tool.ONLY_TLS.exists()
    assert tool.return_command() == "returned"
    assert [one["name"] for one in tool.certificates()] == ["ec2-inference"]
    tool.keep()
    assert tool.tls_files() == [tool.ONLY_TLS], "nothing returns to the others"
