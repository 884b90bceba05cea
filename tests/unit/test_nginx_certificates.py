"""The web tier's tool for certificates: which have to be got and renewed, and which are refused."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import boto3
import pytest
from moto import mock_aws

SOURCE = Path(__file__).resolve().parents[2] / "roles/nginx_certbot/files/ec2_inference_certificates.py"
CA = {"server": "https://ca/dir", "email": "ops@example.com", "ca_bundle": "/etc/roots.pem"}
ARN = "arn:aws:secretsmanager:eu-west-1:123456789012:secret:llm"


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    return load_tool(monkeypatch, tmp_path)


def load_tool(monkeypatch: pytest.MonkeyPatch, directory: Path) -> ModuleType:
    """The tool with its directories under `directory`, and no nginx to reload."""
    spec = importlib.util.spec_from_file_location("ec2_inference_certificates", SOURCE)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    spec.loader.exec_module(module)
    for name in ("CERTIFICATES", "ENVIRONMENT", "ACCOUNT", "OWN", "LETSENCRYPT"):
        monkeypatch.setattr(module, name, directory / getattr(module, name).name)
    monkeypatch.setattr(module, "load", lambda: "unchanged")
    monkeypatch.setattr(module, "CERTBOT_PAUSES_S", (0, 0))
    return module


def openssl(*options: str, stdin: str = "") -> str:
    return subprocess.run(["openssl", *options], input=stdin, check=True, capture_output=True, text=True).stdout


class Authority:
    """A certificate authority of the test."""

    def __init__(self, directory: Path, name: str, issuer: Authority | None = None) -> None:
        self.directory, self.name = directory, name
        self.pem, self.key = make(
            directory, f"/CN={name}", "-addext", "basicConstraints=critical,CA:TRUE", issuer=issuer
        )


def make(
    directory: Path, subject: str, *options: str, issuer: Authority | None = None, days: int = 90, kind: str = "ec"
) -> tuple[str, str]:
    """A certificate and its key."""
    key, pem = directory / "made.key", directory / "made.pem"
    curve = ["-pkeyopt", "ec_paramgen_curve:P-256"] if kind == "ec" else []
    by = ()
    if issuer:
        (directory / "ca.pem").write_text(issuer.pem)
        (directory / "ca.key").write_text(issuer.key)
        by = ("-CA", str(directory / "ca.pem"), "-CAkey", str(directory / "ca.key"))
    request = ("req", "-x509", "-newkey", kind, *curve, "-nodes", "-days", str(days), "-subj", subject, *by)
    openssl(*request, *options, "-keyout", str(key), "-out", str(pem))
    return pem.read_text(), key.read_text()


def leaf(directory: Path, *names: str, **how: Any) -> tuple[str, str]:
    listed = ",".join(f"DNS:{name}" for name in names)
    return make(directory, "/CN=leaf", "-addext", f"subjectAltName={listed}", **how)


def of_ca(*domains: str, **more: str) -> dict[str, Any]:
    return {
        "name": "main",
        "source": "acme",
        "domains": list(domains),
        "key_type": "ecdsa",
        "profile": "",
        "challenge": "http",
        **more,
    }


def certify(tool: ModuleType, *names: str, profile: str = "", **how: Any) -> None:
    """As certbot leaves it: the certificate and its settings."""
    pem, key = leaf(tool.LETSENCRYPT.parent, *names, **how)
    home = tool.LETSENCRYPT / "live/main"
    home.mkdir(parents=True, exist_ok=True)
    (home / "fullchain.pem").write_text(pem)
    (home / "privkey.pem").write_text(key)
    (tool.LETSENCRYPT / "renewal").mkdir(exist_ok=True)
    profile_line = f"required_profile = {profile}\n" if profile else ""
    (tool.LETSENCRYPT / "renewal/main.conf").write_text(
        f"[renewalparams]\nserver = https://ca/dir\nauthenticator = webroot\n{profile_line}"
    )


def want(tool: ModuleType, *certificates: dict[str, Any], **more: Any) -> None:
    tool.CERTIFICATES.write_text(json.dumps({**CA, **more, "certificates": certificates}))


def reasons(tool: ModuleType, monkeypatch: pytest.MonkeyPatch, *certificates: dict[str, Any], **more: Any) -> Any:
    monkeypatch.setattr(sys, "stdin", io.StringIO(json.dumps({**CA, **more, "certificates": certificates})))
    return json.loads(tool.check())


def test_why_a_certificate_is_issued(tool: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def why(certificate: dict[str, Any], **more: Any) -> str:
        return str(reasons(tool, monkeypatch, certificate, **more)["main"])

    assert why(of_ca("a.test")) == "there is none yet"
    certify(tool, "a.test", "B.test")
    both = of_ca("b.test", "A.test")
    assert why(both) == "good"
    assert why(of_ca("a.test", "c.test")) == "it is for a.test, b.test; wanted: a.test, c.test"
    assert why(both | {"key_type": "rsa"}) == "its key is ecdsa; wanted: rsa"
    assert why(both | {"profile": "shortlived"}) == "its profile is the CA's default; wanted: shortlived"
    assert why(both | {"challenge": "route53"}) == "its names are validated by webroot; wanted: dns-route53"
    assert why(both, server="https://other/dir") == "it comes from https://ca/dir; wanted: https://other/dir"
    certify(tool, "a.test", kind="rsa:2048", profile="shortlived")
    assert why(of_ca("a.test", key_type="rsa", profile="shortlived")) == "good"
    assert why(of_ca("a.test", key_type="rsa")) == "its profile is shortlived; wanted: the CA's default"


def test_what_is_missing_comes_first(tool: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first certificate gives up a name that the second one is to have: until that is there, the first one serves it."""
    certify(tool, "a.test", "b.test")
    second = of_ca("b.test") | {"name": "second"}
    assert list(reasons(tool, monkeypatch, of_ca("a.test"), second)) == ["second", "main"]


@pytest.mark.parametrize(
    ("lifetime", "left", "due", "late"),
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
        (1, 0.6, False, False),
        (1, 0.4, True, False),
    ],
)
def test_a_certificate_is_judged_by_its_own_lifetime(
    tool: ModuleType, monkeypatch: pytest.MonkeyPatch, lifetime: int, left: float, due: bool, late: bool
) -> None:
    """`left` days before its end it is due for the timer, or so late that the play issues a new one."""
    certify(tool, "a.test", days=lifetime)
    want(tool, of_ca("a.test"))
    at = time.time() + (lifetime - left) * 24 * 3600
    monkeypatch.setattr(tool.time, "time", lambda: at)
    asked: list[str] = []
    monkeypatch.setattr(tool, "certbot", lambda settings, *arguments: asked.append(" ".join(arguments)))
    tool.renew([], force=False)
    assert asked == (["renew --cert-name main --no-random-sleep-on-renew"] if due else [])
    reason = reasons(tool, monkeypatch, of_ca("a.test"))["main"]
    assert (f"of {lifetime}, and was not renewed" in reason) is late, reason


def test_a_forced_renewal_asks_for_the_named_ones_only(tool: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    certify(tool, "a.test")
    want(tool, of_ca("a.test"), of_ca("b.test") | {"name": "second"})
    asked: list[str] = []
    monkeypatch.setattr(tool, "certbot", lambda settings, *arguments: asked.append(" ".join(arguments)))
    tool.renew(["main"], force=True)
    assert asked == ["renew --cert-name main --no-random-sleep-on-renew --force-renewal"]
    with pytest.raises(tool.Failed, match=r"no certificate third: .* has main, second"):
        tool.renew(["third"], force=True)


def test_one_that_is_lost_is_not_issued_beside_the_lost_one(tool: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    certify(tool, "a.test")
    want(tool, of_ca("a.test"))
    (tool.LETSENCRYPT / "live/main/privkey.pem").unlink()
    monkeypatch.setattr(tool, "certbot", lambda settings, *arguments: pytest.fail("the CA was asked"))
    with pytest.raises(tool.Failed, match="certificate main: it is gone from the disk: restore"):
        tool.renew([], force=False)


def test_the_secret_of_an_external_account_is_in_no_argument(tool: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(tool, "certbot", lambda settings, *arguments: asked.extend(arguments))
    tool.ACCOUNT.write_text("eab-kid = kid\neab-hmac-key = hidden\n")
    want(tool, of_ca("a.test", profile="shortlived", key_type="rsa"))
    monkeypatch.setattr(tool, "write_metrics", lambda failures: None)
    tool.get("main")
    text = " ".join(asked)
    for words in (f"--config {tool.ACCOUNT}", "--required-profile shortlived", "--key-type rsa", "--domain=a.test"):
        assert words in text
    assert "hidden" not in text


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
    certbot.write_text(
        f'#!/bin/sh\necho "$HTTPS_PROXY $REQUESTS_CA_BUNDLE $1" >> {tmp_path}/runs\ncat {tmp_path}/says\nexit 1\n'
    )
    certbot.chmod(0o755)
    monkeypatch.setenv("PATH", f"{certbot.parent}:{os.environ['PATH']}")
    tool.ENVIRONMENT.write_text("HTTPS_PROXY=http://way.out:3128\n")
    metrics = tmp_path / "metrics"
    metrics.mkdir()
    want(tool, of_ca("a.test"), of_ca("b.test") | {"name": "second"}, metrics_dir=str(metrics))
    with pytest.raises(tool.Failed) as failure:
        tool.renew([], force=False)
    assert [word for word in words if word not in str(failure.value)] == []
    assert "certificate main: " in str(failure.value)
    assert "certificate second: " in str(failure.value), "the first failure does not stop the others"
    assert says.strip() in capsys.readouterr().err, "all words of the CA"
    called = (tmp_path / "runs").read_text().splitlines()
    assert called == ["http://way.out:3128 /etc/roots.pem certonly"] * runs * 2
    written = (metrics / "nginx_certbot.prom").read_text()
    assert 'nginx_certbot_certificate_renewal_failed{name="second",source="acme"} 1' in written


def test_metrics_have_the_times_of_each_certificate(tool: ModuleType, tmp_path: Path) -> None:
    certify(tool, "a.test", days=45)
    want(tool, of_ca("a.test"), of_ca("b.test") | {"name": "second"}, metrics_dir=str(tmp_path))
    tool.write_metrics({})
    values = dict(
        line.rsplit(" ", 1)
        for line in (tmp_path / "nginx_certbot.prom").read_text().splitlines()
        if not line.startswith("#")
    )
    begins, ends = (
        int(values[f'nginx_certbot_certificate_not_{when}_timestamp_seconds{{name="main",source="acme"}}'])
        for when in ("before", "after")
    )
    assert ends - begins == 45 * 24 * 3600
    assert values['nginx_certbot_certificate_renewal_failed{name="second",source="acme"}'] == "0"
    assert not [path for path in tmp_path.iterdir() if path.suffix == ".tmp"]


# --- certificates that come from elsewhere ----------------------------------------------------------------------------


def given(*domains: str, **more: str) -> dict[str, Any]:
    return {"name": "own", "source": "pem", "domains": list(domains), "given": "digest", **more}


def test_a_chain_is_put_in_order_without_its_root(tool: ModuleType, tmp_path: Path) -> None:
    root = Authority(tmp_path, "root")
    upper = Authority(tmp_path, "upper", root)
    lower = Authority(tmp_path, "lower", upper)
    pem, key = leaf(tmp_path, "a.test", "*.b.test", issuer=lower)
    shuffled = (
        upper.pem
        + key
        + root.pem
        + pem
        + "-----BEGIN EC PARAMETERS-----\nxx\n-----END EC PARAMETERS-----\n"
        + lower.pem
    )
    pair = tool.pair_in(shuffled, given("a.test", "c.b.test"))
    assert pair.chain == [pem, lower.pem, upper.pem]
    tool.write(given(), pair)
    home = tool.OWN / "own"
    assert (home / "chain.pem").read_text() == lower.pem + upper.pem
    assert openssl("pkey", "-pubout", "-in", str(home / "privkey.pem")) == openssl(
        "x509", "-noout", "-pubkey", stdin=pem
    )
    assert (home / "privkey.pem").stat().st_mode & 0o777 == 0o600
    assert home.stat().st_mode & 0o777 == 0o700


def test_what_cannot_be_served_is_refused_with_all_its_faults(
    tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pem, key = leaf(tmp_path, "a.test")
    _, other = leaf(tmp_path, "a.test")
    encrypted = openssl("pkey", "-aes256", "-passout", "pass:x", stdin=key)
    for text, words in {
        "": ["no PEM certificate", "no PEM private key"],
        pem: ["no PEM private key"],
        key: ["no PEM certificate"],
        pem + key + other: ["2 PEM private keys"],
        pem + encrypted: ["its key is encrypted"],
        pem + other: ["belongs to none of its certificates"],
        pem + key.replace("\n", "", 3): ["cannot read its key"],
    }.items():
        with pytest.raises(tool.Failed) as failure:
            tool.pair_in(text, given("a.test"))
        assert [word for word in words if word not in str(failure.value)] == []
        assert "PRIVATE KEY-" not in str(failure.value)
    at = time.time() + 91 * 24 * 3600
    monkeypatch.setattr(tool.time, "time", lambda: at)
    with pytest.raises(tool.Failed, match=r"for a.test, and not for b.test, a.b.test; it has expired"):
        tool.pair_in(pem + key, given("a.test", "b.test", "a.b.test"))


def test_one_of_the_inventory_is_written_once(
    tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = given("a.test")
    want(tool, wanted)
    for name in ("first", "second"):
        pem, key = leaf(tmp_path, "a.test")
        assert reasons(tool, monkeypatch, wanted | {"given": name})["own"] != "good"
        want(tool, wanted | {"given": name})
        monkeypatch.setattr(sys, "stdin", io.StringIO(f"{pem}\n{key}\n"))
        assert tool.get("own") == "got"
        assert (tool.OWN / "own/fullchain.pem").read_text() == pem
        assert reasons(tool, monkeypatch, wanted | {"given": name})["own"] == "good"
    assert len(list(tool.OWN.iterdir())) == 2, "the link, and the directory that it leads to"


def test_one_that_nobody_replaced_is_told_before_its_end(
    tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pem, key = leaf(tmp_path, "a.test")
    want(tool, given("a.test"))
    tool.write(given("a.test"), tool.pair_in(pem + key, given("a.test")))
    tool.renew([], force=False)
    at = time.time() + 84 * 24 * 3600
    monkeypatch.setattr(tool.time, "time", lambda: at)
    with pytest.raises(tool.Failed, match=r"own: it expires in 6.0 days, of 90, .*nginx_certbot_certificates"):
        tool.renew([], force=False)


@pytest.mark.parametrize("as_json", [True, False])
def test_a_secret_is_followed_when_it_changes(
    tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, as_json: bool
) -> None:
    kept = {"name": "own", "source": "secrets_manager", "domains": ["a.test"], "arn": ARN}
    want(tool, kept)
    secret: list[str] = []
    monkeypatch.setattr(tool, "kept_by_aws", lambda certificate: tool.pem_of_secret(secret[-1]))
    for _ in range(2):
        pem, key = leaf(tmp_path, "a.test")
        secret.append(json.dumps({"certificate": pem, "private_key": key}) if as_json else pem + key)
        assert reasons(tool, monkeypatch, kept)["own"] in ("there is none yet", f"{ARN} has another one")
        tool.renew([], force=False)
        assert (tool.OWN / "own/fullchain.pem").read_text() == pem
        assert reasons(tool, monkeypatch, kept)["own"] == "good"
    secret.append("not PEM")
    with pytest.raises(tool.Failed, match="own: the certificate own cannot be served: it has no PEM certificate"):
        tool.renew([], force=False)
    assert (tool.OWN / "own/fullchain.pem").read_text() == pem, "the last good one stays"


def test_a_key_of_acm_is_decrypted(tool: ModuleType, tmp_path: Path) -> None:
    _, key = leaf(tmp_path, "a.test")
    encrypted = openssl("pkey", "-aes256", "-passout", "pass:secret", stdin=key)
    assert openssl("pkey", "-pubout", stdin=tool.decrypted(encrypted, "secret")) == openssl(
        "pkey", "-pubout", stdin=key
    )
    with pytest.raises(tool.Failed, match="cannot decrypt the key"):
        tool.decrypted(encrypted, "wrong")


def test_aws_gives_what_it_keeps(tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ENDPOINT_URL", "AWS_URL"):
        monkeypatch.delenv(name, raising=False)
    tool.ENVIRONMENT.write_text("AWS_ACCESS_KEY_ID=test\nAWS_SECRET_ACCESS_KEY=test\n")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "replaced")
    pem, key = leaf(tmp_path, "a.test")
    with mock_aws():
        keeper = boto3.client("secretsmanager", region_name="eu-west-1")
        arn = keeper.create_secret(Name="llm", SecretString=json.dumps({"c": pem, "k": key}))["ARN"]
        secret = {"name": "own", "source": "secrets_manager", "domains": ["a.test"], "arn": arn}
        assert tool.pair_in(tool.kept_by_aws(secret), secret) == tool.Pair([pem], key)
        with pytest.raises(tool.Failed, match=f"AWS does not give {arn}x: .*ResourceNotFoundException"):
            tool.kept_by_aws(secret | {"arn": arn + "x"})
        acm = boto3.client("acm", region_name="eu-west-1")
        arn = acm.request_certificate(DomainName="b.test", Options={"Export": "ENABLED"})["CertificateArn"]
        exported = {"name": "own", "source": "acm", "domains": ["b.test"], "arn": arn}
        assert tool.pair_in(tool.kept_by_aws(exported), exported).chain
        arn = acm.request_certificate(DomainName="b.test")["CertificateArn"]
        with pytest.raises(tool.Failed, match=f"AWS does not give {arn}: "):
            tool.kept_by_aws(exported | {"arn": arn})


class Host:
    """A web host whose certbot gets a certificate of the wanted names, as often as it is asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, directory: Path, name: str) -> None:
        directory.mkdir()
        self.tool = load_tool(monkeypatch, directory)
        monkeypatch.setattr(self.tool, "socket", SimpleNamespace(gethostname=lambda: name))
        monkeypatch.setattr(self.tool, "PATIENCE_S", 0.01)
        monkeypatch.setattr(self.tool, "LOOK_S", 0.001)
        monkeypatch.setattr(self.tool, "issue", self._issue)
        self.asked = 0
        self.meanwhile: Callable[[], None] = lambda: None

    def _issue(self, certificate: dict[str, Any], settings: dict[str, Any]) -> None:
        self.asked += 1
        self.meanwhile()
        certify(self.tool, *certificate["domains"])

    def want(self, certificate: dict[str, Any]) -> None:
        want(self.tool, certificate)

    def reason(self, monkeypatch: pytest.MonkeyPatch, certificate: dict[str, Any]) -> str:
        return str(reasons(self.tool, monkeypatch, certificate)["main"])

    @property
    def served(self) -> str:
        return str((self.tool.OWN / "main/fullchain.pem").read_text())


@pytest.fixture
def shared(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """A certificate that hosts share through a secret, which is empty."""
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    with mock_aws():
        keeper = boto3.client("secretsmanager", region_name="eu-west-1")
        yield of_ca("a.test", shared_arn=keeper.create_secret(Name="llm")["ARN"])


@pytest.fixture
def pair(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, shared: dict[str, Any]) -> tuple[Host, Host]:
    hosts = Host(monkeypatch, tmp_path / "web1", "web1"), Host(monkeypatch, tmp_path / "web2", "web2")
    for host in hosts:
        host.want(shared)
    return hosts


def test_hosts_that_share_a_certificate_ask_the_ca_once(
    monkeypatch: pytest.MonkeyPatch, pair: tuple[Host, Host], shared: dict[str, Any]
) -> None:
    one, other = pair
    for host in pair:
        assert host.reason(monkeypatch, shared) == "there is none yet"
        host.tool.get("main")
        assert host.reason(monkeypatch, shared) == "good"
    assert one.served == other.served
    assert (one.asked, other.asked) == (1, 0)
    # The timer has nothing to do; an operator may force it, and the other host takes what is new when it looks again.
    for host in pair:
        host.tool.renew([], force=False)
    assert (one.asked, other.asked) == (1, 0)
    other.tool.renew(["main"], force=True)
    assert one.reason(monkeypatch, shared) == f"{shared['shared_arn']} has another one"
    one.tool.renew([], force=False)
    assert one.served == other.served
    assert (one.asked, other.asked) == (1, 1)


def test_no_host_asks_while_another_one_does(pair: tuple[Host, Host]) -> None:
    one, other = pair
    refused: list[str] = []

    def get_too() -> None:
        with pytest.raises(other.tool.Failed, match="another host has asked the CA within the last hour") as told:
            other.tool.get("main")
        refused.append(str(told.value))

    one.meanwhile = get_too
    one.tool.get("main")
    assert len(refused) == 1
    assert other.asked == 0
    # With a certificate to serve, the timer waits for nobody.
    other.tool.get("main")
    old = other.served
    one.meanwhile = lambda: other.tool.renew([], force=True)
    one.tool.renew([], force=True)
    assert (one.asked, other.asked) == (2, 0)
    assert other.served == old


def test_other_wishes_change_what_is_shared_for_all(
    monkeypatch: pytest.MonkeyPatch, pair: tuple[Host, Host], shared: dict[str, Any]
) -> None:
    one, other = pair
    one.tool.get("main")
    wider = shared | {"domains": ["a.test", "b.test"]}
    assert one.reason(monkeypatch, wider) == "it is for a.test; wanted: a.test, b.test"
    assert one.reason(monkeypatch, shared | {"key_type": "rsa"}) == "its key is ecdsa; wanted: rsa"
    assert "was asked for with" in one.reason(monkeypatch, shared | {"profile": "shortlived"})
    one.want(wider)
    one.tool.get("main")
    wide = one.served
    # The host that does not know the new name yet takes the certificate, and asks for none.
    other.tool.renew([], force=False)
    assert other.served == wide == one.served
    assert (one.asked, other.asked) == (2, 0)
    # Nor does one that still wants a name which is given up: it goes on with what it has, and says so.
    other.want(wider)
    one.want(shared)
    one.tool.get("main")
    with pytest.raises(other.tool.Failed, match=r"it is for a\.test, and not for b\.test"):
        other.tool.renew([], force=False)
    assert other.served == wide
    assert (one.asked, other.asked) == (3, 0)


def test_a_secret_that_does_not_exist_is_named(pair: tuple[Host, Host], shared: dict[str, Any]) -> None:
    one, _ = pair
    gone = shared["shared_arn"] + "x"
    one.want(shared | {"shared_arn": gone})
    with pytest.raises(one.tool.Failed, match=f"AWS does not take a new version of {gone}: .*ResourceNotFound"):
        one.tool.get("main")
    assert one.asked == 0, "before the CA is asked"


@pytest.mark.parametrize("around", ["%s", '["%s"]', '{"asked": 1, "pem": "%s"}'])
def test_a_secret_that_a_person_wrote_is_served_until_the_playbook_asks(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, pair: tuple[Host, Host], shared: dict[str, Any], around: str
) -> None:
    one, _ = pair
    text = around % "".join(leaf(tmp_path, "a.test"))
    if around != "%s":
        text = text.replace("\n", "\\n")
    keeper = boto3.client("secretsmanager", region_name="eu-west-1")
    keeper.put_secret_value(SecretId=shared["shared_arn"], SecretString=text)
    reason = one.reason(monkeypatch, shared)
    assert reason == "there is none yet"
    if around != '["%s"]':
        one.tool.renew([], force=False)
        assert one.asked == 0
        assert "was asked for with {}" in one.reason(monkeypatch, shared)
    one.tool.get("main")
    assert one.asked == 1
    assert one.reason(monkeypatch, shared) == "good"
