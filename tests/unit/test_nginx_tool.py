"""The web tier's tool on the host: the parts that need no nginx."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import resource
import subprocess
import sys
import time
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
        "WORKERS",
        "LOADED",
        "DRAINED",
        "PROVEN",
        "PREVIOUS",
        "RETURNING",
        "PLACEHOLDER",
        "LOCK",
        "CERTBOT_ENVIRONMENT",
    ):
        monkeypatch.setattr(module, name, tmp_path / getattr(module, name).name)
    monkeypatch.setattr(module, "MAIN", tmp_path / "nginx.conf")
    monkeypatch.setattr(module, "CERTIFICATE", tmp_path / "live")
    monkeypatch.setattr(module, "RENEWAL", tmp_path / "renewal.conf")
    monkeypatch.setattr(module, "PID_FILE", tmp_path / "no.pid")
    monkeypatch.setattr(module, "test", lambda candidates: None)
    return module


def make_certificate(tool: ModuleType, *names: str, days: int = 90) -> None:
    tool.CERTIFICATE.mkdir()
    request = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    request += [
        "-subj",
        "/CN=test",
        "-days",
        str(days),
        "-addext",
        f"subjectAltName={','.join(f'DNS:{name}' for name in names)}",
    ]
    request += ["-keyout", str(tool.CERTIFICATE / "privkey.pem"), "-out", str(tool.CERTIFICATE / "fullchain.pem")]
    subprocess.run(request, check=True, capture_output=True)
    tool.RENEWAL.write_text("[renewalparams]\nserver = https://ca/dir\n")


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


def test_why_a_certificate_is_issued(tool: ModuleType) -> None:
    assert tool.certificate_command(["a.test"], "https://ca/dir") == "there is none yet"
    make_certificate(tool, "a.test", "B.test")
    assert tool.certificate_command(["b.test", "A.test"], "https://ca/dir") == "good"
    assert "wanted: a.test, c.test" in tool.certificate_command(["a.test", "c.test"], "https://ca/dir")
    assert "comes from https://ca/dir" in tool.certificate_command(["a.test", "b.test"], "https://other/dir")


@pytest.mark.parametrize(
    ("lifetime", "left", "due", "issue"),
    [
        (90, 60, False, False),
        (90, 29, True, False),
        (90, 6, True, True),
        (45, 16, False, False),
        (45, 14, True, False),
        (45, 4, True, True),
        (6, 4, False, False),
        (6, 2, True, False),
        (6, 0.5, True, True),
        (6, -1, True, True),
    ],
)
def test_a_certificate_is_judged_by_its_own_lifetime(
    tool: ModuleType, monkeypatch: pytest.MonkeyPatch, lifetime: int, left: float, due: bool, issue: bool
) -> None:
    """`left` days before its end it is due for the timer, or so late that the play issues a new one."""
    make_certificate(tool, "a.test", days=lifetime)
    at = time.time() + (lifetime - left) * 24 * 3600
    monkeypatch.setattr(tool.time, "time", lambda: at)
    assert tool.is_due() is due
    reason = tool.certificate_command(["a.test"], "https://ca/dir")
    assert (reason != "good") is issue, reason
    if issue:
        assert f"of {lifetime}, and was not renewed" in reason


def test_a_certificate_that_was_served_is_never_replaced_by_the_placeholder(tool: ModuleType) -> None:
    make_certificate(tool, "a.test")
    tool.TLS.write_text(tool.tls_text())
    (tool.CERTIFICATE / "privkey.pem").unlink()
    with pytest.raises(tool.Failed, match=r"is gone from the disk.*Restore /etc/letsencrypt.*remove .*tls.conf"):
        tool.select_tls(None)
    with pytest.raises(tool.Failed, match="is gone from the disk"):
        tool.reload()
    assert str(tool.CERTIFICATE) in tool.TLS.read_text()
    tool.TLS.unlink()
    assert tool.select_tls(None) == "changed"
    assert str(tool.PLACEHOLDER) in tool.TLS.read_text()


def test_the_placeholder_serves_until_there_is_a_certificate(tool: ModuleType) -> None:
    tool.make_placeholder()
    made = (tool.PLACEHOLDER / "privkey.pem").stat()
    assert made.st_mode & 0o077 == 0, "a private key is its owner's alone"
    tool.make_placeholder()
    assert (tool.PLACEHOLDER / "privkey.pem").stat().st_ino == made.st_ino, "one that is there stays"
    assert str(tool.PLACEHOLDER) in tool.tls_text()
    make_certificate(tool, "a.test")
    assert str(tool.CERTIFICATE / "fullchain.pem") in tool.tls_text()
    assert "stapling" not in tool.tls_text()


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


CA_SAYS = """\
Certbot failed to authenticate some domains (authenticator: webroot). The Certificate Authority reported these problems:
  Domain: a.test
  Type:   connection
  Detail: 192.0.2.1: Fetching http://a.test/.well-known/acme-challenge/x: Timeout during connect
  Domain: b.test
  Type:   dns
  Detail: no valid A records found for b.test
"""
LIMITED = "There were too many requests of a given type :: Error creating new order :: too many certificates (5) already issued"


@pytest.mark.parametrize(
    ("says", "runs", "words"),
    [
        (CA_SAYS, 1, ["a.test: 192.0.2.1: Fetching", "(connection)", "b.test: no valid A records", "(dns)"]),
        (LIMITED, 1, ["the CA refused, so it was not asked again"]),
        ("The client sent an unacceptable anti-replay nonce", 3, ["certbot failed three times (exit status 1)"]),
    ],
)
def test_what_the_ca_refuses_is_told_and_not_asked_again(
    tool: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    says: str,
    runs: int,
    words: list[str],
) -> None:
    (tmp_path / "says").write_text(says)
    certbot = tmp_path / "bin/certbot"
    certbot.parent.mkdir()
    certbot.write_text(f'#!/bin/sh\necho "$REQUESTS_CA_BUNDLE $*" >> {tmp_path}/runs\ncat {tmp_path}/says\nexit 1\n')
    certbot.chmod(0o755)
    monkeypatch.setenv("PATH", f"{certbot.parent}:{os.environ['PATH']}")
    monkeypatch.setattr(tool, "CERTBOT_PAUSES_S", (0, 0))
    tool.CERTBOT_ENVIRONMENT.write_text("REQUESTS_CA_BUNDLE=/etc/roots.pem\n")
    tool.make_placeholder()
    with pytest.raises(tool.Failed) as failure:
        tool.renew(force=False)
    assert [word for word in words if word not in str(failure.value)] == []
    assert says.strip() in capsys.readouterr().err, "all words of the CA"
    called = (tmp_path / "runs").read_text().splitlines()
    assert called == ["/etc/roots.pem renew --no-random-sleep-on-renew --non-interactive"] * runs


def test_what_is_not_due_asks_no_ca(tool: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    make_certificate(tool, "a.test", days=6)
    asked: list[str] = []
    monkeypatch.setattr(tool, "certbot", lambda *arguments: asked.append(" ".join(arguments)))
    tool.renew(force=False)
    assert asked == []
    tool.renew(force=True)
    assert asked == ["renew --no-random-sleep-on-renew --force-renewal"]


def test_a_reload_that_began_after_it_was_asked_for_does_for_it(
    tool: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    reloads: list[str] = []
    monkeypatch.setattr(tool, "tls_text", lambda: "")
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
    tool.TLS.write_text("")


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
