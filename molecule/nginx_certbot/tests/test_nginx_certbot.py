"""The web tier by itself: two hosts behind one name, nginx 1.26 on Debian 13 (web1) and 1.22 on Debian 12 (web2)."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import os
import re
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import boto3
import pytest
from ec2lab.model import DNS_MANAGEMENT_PORT
from held_streams import HeldStreams
from helpers.stack import CLIENT, PROJECT, SETTINGS, playbook, ssh
from route53_relay import route53_relay

DOMAIN = f"llm.{os.environ['LAB_NAME']}.test"
SECOND = f"chat.{os.environ['LAB_NAME']}.test"
THIRD = f"more.{os.environ['LAB_NAME']}.test"
OWN, KEPT = "own.example.test", "kept.example.test"
ADDRESS = dict(re.findall(r"^Host (\S+)\n  HostName (\S+)", (CLIENT / "ssh_config").read_text(), re.MULTILINE))
WEB = ["web1", "web2"]
PROXY_PORTS = [9000, 9001]
LIMIT = 16 * 1024 * 1024
TOOL = "ec2-inference-nginx"


@dataclass
class Answer:
    status: int
    headers: http.client.HTTPMessage
    body: bytes

    def json(self) -> dict:
        return json.loads(self.body)


def trust(only: ssl.TLSVersion | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=SETTINGS["SSL_CERT_FILE"])
    if only:
        context.minimum_version = context.maximum_version = only
    return context


# Made once: reading the machine's CA bundle takes longer than a request.
TRUST = trust()


def connect(host: str, name: str = DOMAIN, context: ssl.SSLContext | None = None) -> ssl.SSLSocket:
    """A TLS connection to one web host, its certificate verified against the lab's root and the name."""
    plain = socket.create_connection((ADDRESS[host], 443), timeout=30)
    return (context or TRUST).wrap_socket(plain, server_hostname=name)


def ask(
    host: str,
    path: str,
    method: str = "GET",
    *,
    scheme: str = "https",
    body: bytes | None = None,
    headers: dict[str, str] | None = None,
    name: str = DOMAIN,
) -> Answer:
    connection = http.client.HTTPConnection(ADDRESS[host], timeout=30)
    if scheme == "https":
        connection.sock = connect(host, name if name.endswith(".test") else DOMAIN)
    key = {"Authorization": "Bearer any"} if scheme == "https" else {}
    try:
        connection.request(method, path, body=body, headers={"Host": name, **key, **(headers or {})})
        answer = connection.getresponse()
        return Answer(answer.status, answer.headers, answer.read())
    finally:
        connection.close()


def served(host: str, name: str = DOMAIN) -> tuple[str, set[str]]:
    """Serial number and names of the certificate that is served."""
    with connect(host, name) as connection:
        certificate = connection.getpeercert() or {}
    return str(certificate["serialNumber"]), {value for _, value in certificate["subjectAltName"]}


def ends_at(host: str) -> float:
    """When the certificate expires that is served."""
    with connect(host) as connection:
        return ssl.cert_time_to_seconds(str((connection.getpeercert() or {})["notAfter"]))


def master(host: str) -> str:
    return ssh(host, "cat /run/nginx.pid").strip()


def converge(
    *options: str,
    check: bool = True,
    variables: dict | None = None,
    skip: str = "nginx_certbot_preflight,nginx_certbot_install",
) -> subprocess.CompletedProcess[str]:
    """The role again, with other variables; nothing is installed unless `skip` says so."""
    options = (*options, "--skip-tags", skip)
    extra = ["-e", json.dumps(variables)] if variables else []
    return playbook("../molecule/nginx_certbot/converge", *options, *extra, check=check)


@pytest.fixture(params=WEB)
def web(request: pytest.FixtureRequest) -> str:
    return request.param


def start_proxy(port: int, program: str = "echo_proxy.py") -> None:
    """Start a stand-in for a worker, a program beside this file, and wait until it listens."""
    place = f"/tmp/{program}"
    upload = ["ssh", "-F", CLIENT / "ssh_config", "api1", f"cat > {place}"]
    subprocess.run(upload, input=Path(__file__).with_name(program).read_text(), text=True, check=True)
    ssh("api1", f"systemd-run -q --collect --unit=echo-{port} python3 {place} {ADDRESS['api1']} {port}")
    for _ in range(100):
        with socket.socket() as probe:
            if probe.connect_ex((ADDRESS["api1"], port)) == 0:
                return
        time.sleep(0.05)
    raise AssertionError(f"the stand-in on port {port} does not listen")


@pytest.fixture(scope="module")
def proxies() -> Iterator[None]:
    """Two workers on the proxy host, for as long as the tests of this module need them."""
    for port in PROXY_PORTS:
        start_proxy(port)
    yield
    ssh("api1", "systemctl stop 'echo-*'")


# --- without proxies --------------------------------------------------------------------------------------------------


def test_the_certificate_comes_from_the_ca_and_names_the_domain(web: str) -> None:
    assert served(web)[1] == {DOMAIN}


def test_no_proxy_is_a_502_that_clients_can_read(web: str) -> None:
    answer = ask(web, "/v1/models")
    assert answer.status == 502
    assert answer.json()["error"]["code"] == "bad_gateway"
    assert answer.headers["Retry-After"]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/metrics"),
        ("POST", "/v1/unload_lora_adapter"),
        ("POST", "/adapters"),
        ("GET", "/health/ready"),
        ("GET", "/health"),
        ("POST", "/v1/load_lora_adapter"),
        ("GET", "/v1/chat/completions"),
        ("POST", "/v1/models"),
        ("POST", "/v1/models/tiny"),
        ("GET", "/v1/models/tiny/../../chat/completions"),
        ("POST", "/v1/chat/completions/"),
        ("POST", "/v2/completions"),
        ("GET", "/lab/summarize"),
        ("GET", "/"),
    ],
)
def test_what_is_not_listed_never_reaches_a_proxy(web: str, method: str, path: str) -> None:
    answer = ask(web, path, method, body=b"{}" if method == "POST" else None)
    assert answer.status == 404
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.json()["error"]["code"] == "not_found"


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/models/org/tiny"),
        ("HEAD", "/v1/models"),
        ("GET", "/openapi.json"),
        ("POST", "/lab/v1/chat/completions"),
        ("POST", "/lab/summarize"),
        ("GET", "/lab/terms"),
        ("POST", "/v1/audio/translations"),
        ("POST", "/classify"),
        ("POST", "/v2/rerank"),
        ("GET", "//v1/models"),
    ],
)
def test_what_is_listed_or_told_to_the_proxies_asks_one(web: str, method: str, path: str) -> None:
    assert ask(web, path, method, body=b"{}" if method == "POST" else None).status == 502


@pytest.mark.parametrize(
    ("path", "meant"),
    [
        ("/v1/chat/completions/", "/v1/chat/completions"),
        ("/chat/completions", "/v1/chat/completions"),
        ("/v1/v1/messages/count_tokens", "/v1/messages/count_tokens"),
        ("/openai/deployments/x/Embeddings", "/v1/embeddings"),
        ("/v1/tokenize", "/tokenize"),
        ("/v1/lab/summarize", "/lab/summarize"),
        ("/v1/audio/translations/", "/v1/audio/translations"),
        ("/v1/rerank", None),  # right, but not for GET
        ("/metrics", None),
    ],
)
def test_a_path_that_is_nearly_right_is_told_the_right_one(web: str, path: str, meant: str | None) -> None:
    answer = ask(web, path)
    assert answer.status == 404
    told = "" if meant is None else f" Did you mean {meant}?"
    assert answer.json()["error"]["message"] == f"There is nothing at this path for this method.{told}"


APP = "https://app.example.com"
ASKS = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,x-stainless-os"}


def test_a_preflight_is_answered_without_a_key(web: str) -> None:
    for path in ("/v1/chat/completions", "/v1/models/tiny", "/nowhere"):
        answer = ask(web, path, "OPTIONS", headers={"Origin": APP, **ASKS})
        assert (answer.status, answer.body) == (204, b"")
        assert answer.headers["Access-Control-Allow-Origin"] == APP
        assert answer.headers["Access-Control-Allow-Methods"] == "GET, HEAD, POST"
        assert answer.headers["Access-Control-Allow-Headers"] == ASKS["Access-Control-Request-Headers"]
        assert answer.headers["Access-Control-Max-Age"] == "7200"
        assert answer.headers["Access-Control-Allow-Credentials"] is None
        assert answer.headers["Vary"] == "Origin"


def test_a_listed_origin_may_read_every_answer_and_errors_too(web: str) -> None:
    for origin in (APP, "http://localhost:3000"):
        origin_only = {"Origin": origin}
        answers = [
            ask(web, "/v1/models", headers=origin_only),
            ask(web, "/nowhere", headers=origin_only),
            ask(web, "/v1/completions", "POST", headers=origin_only | {"Content-Length": str(LIMIT + 1)}),
        ]
        assert [answer.status for answer in answers] == [502, 404, 413]
        for answer in answers:
            assert answer.headers["Access-Control-Allow-Origin"] == origin
            exposed = answer.headers["Access-Control-Expose-Headers"].split(", ")
            assert {"x-request-id", "retry-after", "x-ratelimit-remaining-tokens"} <= set(exposed)
            assert answer.headers["Access-Control-Allow-Methods"] is None
            assert answer.headers["Vary"] == "Origin"


@pytest.mark.parametrize(
    "origin",
    ["https://app.example.com.evil.test", "http://app.example.com", "https://app.example.com:8443", "null", ""],
)
def test_no_other_origin_is_told_anything(web: str, origin: str) -> None:
    for method, status in (("GET", 502), ("OPTIONS", 404)):
        answer = ask(web, "/v1/models", method, headers={"Origin": origin, **ASKS})
        assert answer.status == status
        assert not [name for name in answer.headers if name.lower().startswith("access-control")]
        assert answer.headers["Vary"] == "Origin"


def test_every_answer_carries_the_headers(web: str) -> None:
    answers = [
        ask(web, "/v1/models"),
        ask(web, "/nowhere"),
        ask(web, "/v1/completions", "POST", headers={"Content-Length": str(LIMIT + 1)}),
        ask(web, "/v1/models", name="other.example"),
        ask(web, "/v1/models", scheme="http"),
    ]
    assert [answer.status for answer in answers] == [502, 404, 413, 421, 308]
    for answer in answers:
        assert re.fullmatch("[0-9a-f]{32}", answer.headers["X-Request-Id"])
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Content-Security-Policy"] == "default-src 'none'; frame-ancestors 'none'"
        assert answer.headers["Server"] == "nginx"
    assert [bool(answer.headers["Strict-Transport-Security"]) for answer in answers] == [True] * 4 + [False]


def test_http_leads_to_https(web: str) -> None:
    answer = ask(web, "/v1/models?limit=1", scheme="http")
    assert answer.status == 308
    assert answer.headers["Location"] == f"https://{DOMAIN}/v1/models?limit=1"


@pytest.mark.parametrize(
    ("method", "headers"),
    [("POST", {}), ("GET", {"Authorization": "Bearer x"}), ("GET", {"api-key": "x"}), ("PUT", {})],
)
def test_a_secret_in_clear_text_is_not_redirected(web: str, method: str, headers: dict[str, str]) -> None:
    answer = ask(web, "/v1/models", method, scheme="http", headers=headers, body=b"{}" if method == "POST" else None)
    assert (answer.status, answer.json()["error"]["code"]) == (403, "https_required")
    assert answer.headers["Location"] is None


def exchange(web: str, data: bytes, tls: bool) -> tuple[int, http.client.HTTPMessage, bytes]:
    """Send any bytes and read one answer."""
    plain = socket.create_connection((ADDRESS[web], 443 if tls else 80), timeout=30)
    with TRUST.wrap_socket(plain, server_hostname=DOMAIN) if tls else plain as connection:
        connection.sendall(data)
        answer = http.client.HTTPResponse(connection)
        answer.begin()
        return answer.status, answer.headers, answer.read()


HOST = f"Host: {DOMAIN}\r\n"
KEYED = f"{HOST}Authorization: Bearer x\r\n"
MALFORMED = {
    "a method in lower case": (f"foo /a HTTP/1.1\r\n{HOST}", 400),
    "a method with a bracket": (f"GE(T /a HTTP/1.1\r\n{HOST}", 400),
    "TRACE": (f"TRACE /a HTTP/1.1\r\n{HOST}", 405),
    "CONNECT": (f"CONNECT a:1 HTTP/1.1\r\n{HOST}", None),  # 400 or 405
    "an escape that is none": (f"GET /%zz HTTP/1.1\r\n{HOST}", 400),
    "an escaped zero": (f"GET /%00 HTTP/1.1\r\n{HOST}", 400),
    "a blank": (f"GET /a b HTTP/1.1\r\n{HOST}", 400),
    "a path above the root": (f"GET /../.. HTTP/1.1\r\n{HOST}", 400),
    "a star": (f"OPTIONS * HTTP/1.1\r\n{HOST}", 400),
    "a control byte": (f"GET /\x01 HTTP/1.1\r\n{HOST}", 400),
    "a long path": (f"GET /{'a' * 9000} HTTP/1.1\r\n{HOST}", 414),
    "a long header": (f"GET /a HTTP/1.1\r\n{HOST}X: {'a' * 9000}\r\n", 431),
    "many headers": (f"GET /a HTTP/1.1\r\n{HOST}" + "".join(f"X{n}: {'a' * 3000}\r\n" for n in range(20)), 431),
    "no request": ("\x16\x03\x01\r\n", 400),
    "another version": (f"GET /a HTTP/3.7\r\n{HOST}", 505),
    "no host": ("GET /a HTTP/1.1\r\n", 400),
    "two hosts": (f"GET /a HTTP/1.1\r\n{HOST}{HOST}", 400),
    "two lengths": (f"POST /v1/score HTTP/1.1\r\n{KEYED}Content-Length: 3\r\nTransfer-Encoding: chunked\r\n", 400),
    "an unknown encoding": (f"POST /v1/score HTTP/1.1\r\n{KEYED}Transfer-Encoding: gzip\r\n", 501),
    "a broken chunk": (f"POST /v1/score HTTP/1.1\r\n{KEYED}Transfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
}


@pytest.mark.parametrize("tls", [True, False], ids=["443", "80"])
def test_what_is_no_request_gets_json(web: str, tls: bool) -> None:
    wrong = {}
    for name, (head, expected) in MALFORMED.items():
        status, headers, body = exchange(web, f"{head}\r\n".encode("latin-1"), tls)
        try:
            code = json.loads(body)["error"]["code"]
        except ValueError:
            code = None
        if status not in ((expected,) if expected else (400, 405)) or not code or not headers["X-Content-Type-Options"]:
            wrong[name] = (status, body[:80])
    assert wrong == {}
    assert "empty URI" not in ssh(web, "cat /var/log/nginx/error.log")


def test_what_is_no_request_of_http2_gets_json(web: str) -> None:
    cases = {
        "-X foo /a": 400,
        "-X 'GE(T' /a": 400,
        "-X TRACE /a": 405,
        "/%zz": 400,
        "/%00": 400,
        "/../..": 400,
        "-X OPTIONS --request-target '*' /": 400,
        "-d {} /v1/completions": 401,
        "/nowhere": 404,
    }
    curl = (
        f"curl -sk --http2 --path-as-is --resolve {DOMAIN}:443:{ADDRESS[web]} -w ' %{{http_code}} %{{http_version}}\\n'"
    )
    commands = []
    for case in cases:
        options, _, path = case.rpartition(" ")
        commands.append(f"{curl} {options} 'https://{DOMAIN}{path}'")
    answers = ssh("api1", "; ".join(commands)).splitlines()
    assert len(answers) == len(cases)
    for (case, status), answer in zip(cases.items(), answers, strict=True):
        body, *told = answer.rsplit(" ", 2)
        assert told == [str(status), "2"], case
        assert json.loads(body)["error"]["code"], case


def test_a_request_without_a_key_is_refused_before_its_body(web: str) -> None:
    request = f"POST /v1/completions HTTP/1.1\r\n{HOST}Content-Length: 1000\r\nExpect: 100-continue\r\n\r\n"
    status, headers, body = exchange(web, request.encode(), tls=True)
    assert (status, json.loads(body)["error"]["code"]) == (401, "missing_api_key"), "and no 100 before it"
    assert headers["WWW-Authenticate"] == "Bearer"


def test_the_log_has_what_the_client_asked_for(web: str) -> None:
    for line in ("foo /asked/for?sk=secret HTTP/1.1", "GET /%zz HTTP/1.1", "GET /nowhere/at/all?sk=secret HTTP/1.1"):
        exchange(web, f"{line}\r\n{HOST}\r\n".encode(), tls=True)
    log = ssh(web, "tail -n 20 /var/log/nginx/access.log")
    asked = [(entry["method"], entry["path"], entry["status"]) for entry in map(json.loads, log.splitlines())]
    assert {("foo", "/asked/for", 400), ("GET", "/%zz", 400), ("GET", "/nowhere/at/all", 404)} <= set(asked)
    assert "secret" not in log


def test_unknown_names_get_nothing(web: str) -> None:
    with pytest.raises((http.client.RemoteDisconnected, ConnectionResetError)):
        ask(web, "/", scheme="http", name="other.example")
    with pytest.raises(ssl.SSLError, match="UNRECOGNIZED_NAME"):
        connect(web, "other.example")


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1:DeprecationWarning")
def test_old_tls_is_refused(web: str) -> None:
    context = trust(ssl.TLSVersion.TLSv1_1)
    context.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.raises((ssl.SSLError, ConnectionResetError)):
        connect(web, context=context)
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        with connect(web, context=trust(version)) as connection:
            assert connection.session_reused is False


def test_only_the_curves_of_mozillas_profile_are_offered(web: str) -> None:
    offered = "X25519 P-256 P-384 P-521 X448"
    if re.search(r"OpenSSL (3\.[5-9]|[4-9])", ssh("web1", "openssl version")) and web == "web1":
        offered += " X25519MLKEM768"
    loop = f"for curve in {offered}; do echo $curve $(openssl s_client -groups $curve -servername {DOMAIN} -connect {ADDRESS[web]}:443"
    told = ssh("web1", f"{loop} </dev/null 2>/dev/null | grep -c '^New, TLS'); done")
    taken = [curve for curve, answer in map(str.split, told.splitlines()) if answer == "1"]
    assert taken == [curve for curve in offered.split() if curve not in ("P-521", "X448")]


def test_logs_are_rotated_and_only_for_their_group_to_read(web: str) -> None:
    modes = "stat -c '%a %U' /var/log/nginx/access.log /var/log/nginx/error.log"
    user = ssh(web, "ps -o user= -p $(pgrep -P $(cat /run/nginx.pid) | head -n 1)").strip()
    assert set(ssh(web, modes).splitlines()) == {f"640 {user}"}
    before = ssh(web, "stat -c %i /var/log/nginx/access.log")
    ask(web, "/to/be/rotated")
    # As the timer's service does it, but now.
    ssh(web, "systemd-run -q --wait --pipe logrotate --force /etc/nginx/ec2-inference/logrotate.conf")
    ssh(web, "systemctl start ec2-inference-nginx-logs.service")
    for _ in range(100):
        ask(web, "/after/the/rotation")
        if "/after/the/rotation" in ssh(web, "cat /var/log/nginx/access.log"):
            break
    else:
        raise AssertionError("nginx does not write to the new log")
    assert ssh(web, "stat -c %i /var/log/nginx/access.log") != before
    assert set(ssh(web, modes).splitlines()) == {f"640 {user}"}
    assert "/to/be/rotated" in ssh(web, "zcat -f /var/log/nginx/access.log-*")
    assert ssh(web, "systemctl is-active ec2-inference-nginx-logs.timer").strip() == "active"


def test_http2_is_offered(web: str) -> None:
    context = trust()
    context.set_alpn_protocols(["h2", "http/1.1"])
    with connect(web, context=context) as connection:
        assert connection.selected_alpn_protocol() == "h2"


def test_a_challenge_is_found_on_whichever_host_has_it(web: str) -> None:
    other = next(host for host in WEB if host != web)
    directory = "/var/lib/ec2-inference/acme/.well-known/acme-challenge"
    ssh(other, f"mkdir -p {directory} && echo proof > {directory}/token-of-{other}")
    assert ask(web, f"/.well-known/acme-challenge/token-of-{other}", scheme="http").body == b"proof\n"
    began = time.monotonic()
    assert ask(web, "/.well-known/acme-challenge/nobodys", scheme="http").status == 404
    assert time.monotonic() - began < 2
    ssh(other, f"rm {directory}/token-of-{other}")


def test_units_are_hardened_and_one_timer_renews(web: str) -> None:
    for unit in ("nginx.service", "ec2-inference-certbot.service"):
        report = ssh(web, f"systemd-analyze security --no-pager {unit}")
        exposure = re.search(r"Overall exposure level for .*: ([0-9.]+)", report)
        assert exposure
        assert float(exposure[1]) <= 3.0, unit
    timers = ssh(web, "systemctl list-unit-files --type timer --state enabled --no-legend | cut -d' ' -f1").split()
    assert [timer for timer in timers if "certbot" in timer] == ["ec2-inference-certbot.timer"]


def test_the_readme_names_the_versions_that_run(web: str) -> None:
    run = ssh(web, ". /etc/os-release; nginx -v 2>&1; certbot --version; echo Debian $VERSION_ID")
    found = re.search(r"nginx/(\d+\.\d+).*certbot (\d+\.\d+).*(Debian \d+)", run, re.DOTALL)
    assert found
    nginx, certbot, debian = found.groups()
    readme = (PROJECT / "roles/nginx_certbot/README.md").read_text()
    assert f"{debian} (nginx {nginx}, certbot {certbot})" in readme


# --- with two stand-ins for proxy workers -----------------------------------------------------------------------


@pytest.mark.usefixtures("proxies")
def test_a_proxy_sees_our_headers_and_the_listed_path(web: str) -> None:
    answer = ask(
        web,
        "/v1/x/../models?limit=1",
        headers={
            "api-key": "mine",
            "X-Request-Id": "mine-1",
            "X-Forwarded-For": "192.0.2.1",
            "Connection": "keep-alive",
        },
    )
    assert answer.status == 200
    assert answer.headers.get_all("X-Request-Id") == ["mine-1"]
    seen = answer.json()
    assert seen["path"] == "/v1/models?limit=1"
    assert seen["headers"]["x-request-id"] == "mine-1"
    assert seen["headers"]["api-key"] == "mine", "Azure's clients send their key so"
    assert re.fullmatch(r"[0-9.]+", seen["headers"]["x-forwarded-for"])
    assert seen["headers"]["x-forwarded-for"] != "192.0.2.1"
    assert "connection" not in seen["headers"]


@pytest.mark.usefixtures("proxies")
def test_an_unfit_request_id_is_replaced(web: str) -> None:
    for unfit in ("a b", 'x"y', "z" * 129):
        assert re.fullmatch(
            "[0-9a-f]{32}", ask(web, "/v1/models", headers={"X-Request-Id": unfit}).headers["X-Request-Id"]
        )


@pytest.mark.usefixtures("proxies")
def test_events_arrive_as_they_are_made(web: str) -> None:
    connection = http.client.HTTPConnection(ADDRESS[web], timeout=30)
    connection.sock = connect(web)
    headers = {"Host": DOMAIN, "Authorization": "Bearer any"}
    connection.request("POST", "/v1/chat/completions", body=b'{"stream": true}', headers=headers)
    answer = connection.getresponse()
    arrivals = []
    while answer.readline():
        answer.readline()
        arrivals.append(time.monotonic())
    assert len(arrivals) == 5
    assert all(later - earlier > 0.1 for earlier, later in itertools.pairwise(arrivals))
    connection.close()


@pytest.mark.usefixtures("proxies")
def test_bodies_up_to_the_limit_pass(web: str) -> None:
    assert ask(web, "/v1/completions", "POST", body=b"x" * LIMIT).json()["body_bytes"] == LIMIT
    refused = ask(web, "/v1/completions", "POST", headers={"Content-Length": str(LIMIT + 1)})
    assert (refused.status, refused.json()["error"]["code"]) == (413, "body_too_large")


@pytest.mark.usefixtures("proxies")
def test_connections_to_the_proxies_are_kept(web: str) -> None:
    used = {(seen["worker"], seen["connection"]) for seen in (ask(web, "/v1/models").json() for _ in range(40))}
    # At most one for each pair of an nginx worker and a proxy worker; without keep-alive there would be forty.
    cores = int(ssh(web, "nproc"))
    assert len(used) <= 2 * cores


@pytest.mark.usefixtures("proxies")
def test_a_worker_that_is_gone_fails_nobody(web: str) -> None:
    ssh("api1", "systemctl stop echo-9001")
    try:
        answers = [ask(web, "/v1/completions", "POST", body=b"{}") for _ in range(20)]
    finally:
        start_proxy(9001)
    assert {(answer.status, answer.json()["worker"]) for answer in answers} == {(200, 9000)}


@pytest.mark.usefixtures("proxies")
def test_a_request_that_breaks_its_worker_is_not_sent_to_a_second_one(web: str) -> None:
    try:
        answer = ask(web, "/v1/completions", "POST", body=b'{"prompt": "poison"}')
        died = [port for port in PROXY_PORTS if "inactive" in ssh("api1", f"systemctl is-active echo-{port} || true")]
    finally:
        for port in PROXY_PORTS:
            ssh("api1", f"systemctl stop echo-{port} || true")
            start_proxy(port)
    assert (answer.status, answer.json()["error"]["code"]) == (502, "bad_gateway")
    assert len(died) == 1, died


@pytest.mark.usefixtures("proxies")
def test_what_a_killed_worker_of_nginx_counted_locks_nobody_out(web: str) -> None:
    limits = "/etc/nginx/ec2-inference/limits.conf"
    ssh(web, f"sed -i 's/^\\(limit_conn connections_[0-9]*\\) .*/\\1 2;/' {limits} && {TOOL} reload")
    body = b'{"prompt": "hang"}'
    head = f"POST /v1/completions HTTP/1.1\r\nHost: {DOMAIN}\r\nAuthorization: Bearer x\r\n"
    request = f"{head}Content-Length: {len(body)}\r\n\r\n"
    try:
        hanging = [connect(web) for _ in range(2)]
        for connection in hanging:
            connection.sendall(request.encode() + body)
        assert any(ask(web, "/v1/models").status == 429 for _ in range(100)), "the two that hang are not counted"
        ssh(web, "kill -9 $(pgrep -P $(cat /run/nginx.pid))")
        for connection in hanging:
            with contextlib.suppress(OSError):
                connection.recv(1)
            connection.close()
        ssh(web, "systemctl start ec2-inference-nginx-mend.service")
        assert ask(web, "/v1/models").status == 200
        assert "had died" in ssh(web, "journalctl -q --no-pager -n 20 -u ec2-inference-nginx-mend.service")
    finally:
        ssh(web, f"{TOOL} rollback")


@pytest.mark.usefixtures("proxies")
def test_a_drained_worker_gets_nothing_until_it_is_put_back() -> None:
    def drain(action: str) -> None:
        """Call the entry point as the proxy role does: the play's host is the proxy."""
        inventory = ["-i", "inventory/aws_ec2.yml", "-i", str(CLIENT / "inventory")]
        role = ["-m", "include_role", "-a", f"name=nginx_certbot tasks_from=upstream_{action}"]
        subprocess.run(
            [
                "ansible",
                *inventory,
                "api1",
                "--become",
                *role,
                "-e",
                '{"nginx_certbot_drain_instances": ["api1:9000"]}',
            ],
            cwd=PROJECT,
            env={**os.environ, "ANSIBLE_CONFIG": str(PROJECT / "ansible.cfg")},
            check=True,
            timeout=120,
        )

    def workers(web: str) -> set[int]:
        return {ask(web, "/v1/models").json()["worker"] for _ in range(20)}

    ssh("web1", f"{TOOL} drain api1:9001 --reason 'disk'")
    ssh("web1", f"{TOOL} undrain api1:9001 --reason 'rolling update'")
    assert workers("web1") == {9000}, "an operator's own drain must stay"
    ssh("web1", f"{TOOL} undrain api1:9001")
    drain("drain")
    assert [workers(web) for web in WEB] == [{9001}, {9001}]
    drain("undrain")
    assert [workers(web) for web in WEB] == [{9000, 9001}, {9000, 9001}]


@pytest.mark.usefixtures("proxies")
def test_the_log_is_json_without_secrets(web: str) -> None:
    ask(
        web,
        "/v1/models?key=sk-in-the-query",
        headers={"Authorization": "Bearer sk-very-secret", "X-Request-Id": "to-log"},
    )
    lines = ssh(web, "cat /var/log/nginx/access.log").splitlines()
    entries = [json.loads(line) for line in lines]
    entry = next(entry for entry in entries if entry["request_id"] == "to-log")
    assert (entry["status"], entry["path"], entry["upstream_status"]) == (200, "/v1/models", "200")
    # Both are there, in seconds; nginx rounds each by itself, so that either may seem the longer by a millisecond.
    assert 0 <= float(entry["upstream_header_seconds"]) < 60
    assert 0 <= entry["seconds"] < 60
    assert [line for line in lines if "sk-" in line] == []


@pytest.mark.usefixtures("proxies")
def test_the_log_tells_a_stream_that_was_cut_from_a_whole_one(web: str) -> None:
    for name, whole in (("whole", True), ("cut", False)):
        headers = {"Host": DOMAIN, "Authorization": "Bearer any", "X-Request-Id": name}
        connection = http.client.HTTPConnection(ADDRESS[web], timeout=30)
        connection.sock = connect(web)
        connection.request("POST", "/v1/chat/completions", body=b'{"stream": true}', headers=headers)
        answer = connection.getresponse()
        answer.readline()
        if whole:
            answer.read()
        answer.close()
        connection.close()
    told: dict[str, tuple[int, bool]] = {}
    for _ in range(100):
        entries = map(json.loads, ssh(web, "tail -n 20 /var/log/nginx/access.log").splitlines())
        told = {entry["request_id"]: (entry["status"], entry["complete"]) for entry in entries}
        if {"whole", "cut"} <= told.keys():
            break
    assert (told["whole"], told["cut"]) == ((200, True), (200, False))


# --- changes: under a hundred streams from each web host, of which none may be cut ------------------------------------


@pytest.fixture(scope="module")
def held_streams(proxies: None) -> Iterator[HeldStreams]:
    streams = HeldStreams([ADDRESS[web] for web in WEB], DOMAIN, TRUST, count=100)
    yield streams
    release(streams)


def release(streams: HeldStreams) -> None:
    for port in PROXY_PORTS:
        connection = http.client.HTTPConnection(ADDRESS["api1"], port, timeout=30)
        connection.request("POST", "/", body=b'"release"')
        connection.getresponse().read()
        connection.close()
    streams.join(30)


@pytest.mark.usefixtures("held_streams")
def test_a_renewal_is_served_without_a_restart(web: str) -> None:
    drop_in = "/run/systemd/system/ec2-inference-certbot.service.d"
    command = "/usr/local/sbin/ec2-inference-certificates renew --force"
    before, pid = served(web)[0], master(web)
    ssh(web, f"mkdir -p {drop_in} && printf '[Service]\\nExecStart=\\nExecStart={command}\\n' > {drop_in}/force.conf")
    try:
        ssh(web, "systemctl daemon-reload && systemctl start ec2-inference-certbot.service")
    finally:
        ssh(web, f"rm -r {drop_in} && systemctl daemon-reload")
    assert served(web)[0] != before
    assert master(web) == pid
    metrics = ssh(web, "cat /var/lib/prometheus/node-exporter/nginx_certbot.prom")
    ends = re.findall(
        r'^nginx_certbot_certificate_not_after_.*\{name="ec2-inference",source="acme"\} (\d+)$', metrics, re.M
    )
    assert [int(end) for end in ends] == [ends_at(web)]


@pytest.mark.usefixtures("held_streams")
def test_a_lost_certificate_is_missed_and_nothing_is_changed(web: str) -> None:
    before, live = served(web), "/etc/letsencrypt/live/ec2-inference"
    ssh(web, f"mv {live} {live}.lost")
    try:
        refused = ssh(web, f"{TOOL} tls 2>&1 || true") + ssh(web, f"{TOOL} reload 2>&1 || true")
        assert refused.count("the certificate that nginx serves is gone from the disk") == 2
        assert served(web) == before
    finally:
        ssh(web, f"mv {live}.lost {live}")
    assert ssh(web, f"{TOOL} tls").strip() == "unchanged"


def make_pair(directory: Path, name: str) -> tuple[str, str]:
    """A certificate for one name that no CA issued, and its key."""
    pem, key = directory / f"{name}.pem", directory / f"{name}.key"
    request = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 60 -subj /CN=own"
    request += f" -addext subjectAltName=DNS:{name} -keyout {key} -out {pem}"
    subprocess.run(request.split(), check=True, capture_output=True)
    return pem.read_text(), key.read_text()


def served_pem(host: str, name: str, pem: str) -> str:
    """The certificate that is served for a name, which has to be, or be issued by, the one that is given."""
    with connect(host, name, ssl.create_default_context(cadata=pem)) as connection:
        return ssl.DER_cert_to_PEM_cert(connection.getpeercert(binary_form=True) or b"")


@pytest.fixture(scope="module")
def relay() -> Iterator[str]:
    """The lab's AWS, whose Route 53 also answers the CA."""
    lab = socket.gethostbyname(f"ec2.{os.environ['LAB_NAME']}.test")
    with route53_relay(lab, os.environ["AWS_ENDPOINT_URL"], f"http://{lab}:{DNS_MANAGEMENT_PORT}") as url:
        yield url


def aws_settings(relay: str) -> dict[str, str]:
    """Environment of the hosts' requests to AWS."""
    keys = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    return {**keys, "AWS_ENDPOINT_URL": relay, "AWS_DEFAULT_REGION": os.environ["AWS_REGION"]}


@pytest.mark.usefixtures("held_streams")
def test_several_certificates_with_several_names(tmp_path: Path, relay: str) -> None:
    """The first gets another name and another kind of key; the others come from the CA by DNS, the inventory and Secrets Manager."""
    pem, key = make_pair(tmp_path, OWN)
    keeper = boto3.client("secretsmanager", region_name=os.environ["AWS_REGION"])
    texts = make_pair(tmp_path, KEPT)
    arn = keeper.create_secret(Name="kept", SecretString=json.dumps({"chain": texts[0], "key": texts[1]}))["ARN"]
    variables = {
        "nginx_certbot_certificates": [
            {"name": "ec2-inference", "domains": [DOMAIN, SECOND], "key_type": "rsa"},
            {"name": "more", "domains": [THIRD], "challenge": "route53"},
            {"name": "own", "domains": [OWN], "source": "pem", "certificate_pem": pem, "key_pem": key},
            {"name": "kept", "domains": [KEPT], "source": "secrets_manager", "arn": arn},
        ],
        "nginx_certbot_environment": aws_settings(relay),
        "nginx_certbot_renewal_failure_unit": "call-operator.service",
    }
    zones = boto3.client("route53", region_name=os.environ["AWS_REGION"])
    zones.create_hosted_zone(Name=f"{os.environ['LAB_NAME']}.test", CallerReference="test")
    pid = master("web1")
    # The CA may send a challenge to web2, which does not have the new names yet.
    told = converge("--limit", "web1", "--diff", "-v", variables=variables, skip="nginx_certbot_preflight")
    for secret in (key.splitlines()[1], texts[1].splitlines()[1]):
        assert secret not in told.stdout + told.stderr
    assert [served("web1", name)[1] for name in (DOMAIN, SECOND, THIRD)] == [{DOMAIN, SECOND}] * 2 + [{THIRD}]
    assert served_pem("web1", OWN, pem) == pem
    assert served_pem("web1", KEPT, texts[0]) == texts[0]
    assert "rsaEncryption" in ssh("web1", "openssl x509 -noout -text -in /etc/letsencrypt/live/ec2-inference/cert.pem")
    texts = make_pair(tmp_path, KEPT)
    keeper.put_secret_value(SecretId=arn, SecretString="".join(texts))
    ssh("web1", "systemctl start ec2-inference-certbot.service")
    assert served_pem("web1", KEPT, texts[0]) == texts[0], "the timer follows the secret"
    assert master("web1") == pid


@pytest.mark.usefixtures("relay", "held_streams")
def test_a_renewal_that_fails_calls_an_operator() -> None:
    """After the test before it: the secret of one certificate becomes useless."""
    called = "/run/systemd/system/call-operator.service"
    unit = "[Service]\\nType=oneshot\\nRemainAfterExit=true\\nExecStart=/bin/true\\n"
    ssh("web1", f"printf '{unit}' > {called} && systemctl daemon-reload")
    before = ssh("web1", "sha256sum /etc/nginx/ec2-inference/certificates/kept/*")
    keeper = boto3.client("secretsmanager", region_name=os.environ["AWS_REGION"])
    keeper.put_secret_value(SecretId="kept", SecretString="not PEM")
    ssh("web1", "systemctl start ec2-inference-certbot.service || true")
    wait = "for i in $(seq 100); do systemctl is-active -q call-operator && break; sleep 0.1; done"
    assert ssh("web1", f"{wait}; systemctl is-active call-operator || true").strip() == "active"
    told = ssh("web1", "journalctl -q --no-pager -n 20 -u ec2-inference-certbot.service")
    assert "the certificate kept cannot be served: it has no PEM certificate" in told
    assert ssh("web1", "sha256sum /etc/nginx/ec2-inference/certificates/kept/*") == before
    metrics = ssh("web1", "cat /var/lib/prometheus/node-exporter/nginx_certbot.prom")
    failed = re.findall(r'^nginx_certbot_certificate_renewal_failed\{name="(\w+)".* 1$', metrics, re.M)
    assert failed == ["kept"]


@pytest.mark.usefixtures("held_streams")
def test_the_hosts_share_a_certificate(relay: str) -> None:
    keeper = boto3.client("secretsmanager", region_name=os.environ["AWS_REGION"])
    shared = {
        "name": "ec2-inference",
        "domains": [DOMAIN],
        "shared_arn": keeper.create_secret(Name="shared")["ARN"],
    }
    variables = {"nginx_certbot_certificates": [shared], "nginx_certbot_environment": aws_settings(relay)}
    converge(variables=variables, skip="nginx_certbot_preflight")
    first = served("web1")
    assert first[1] == {DOMAIN}
    assert served("web2") == first
    newest = "openssl x509 -noout -serial -in /etc/letsencrypt/live/ec2-inference/cert.pem"
    assert sum(f"serial={first[0]}" in ssh(web, newest) for web in WEB) == 1, "one host asked the CA"
    ssh("web2", "/usr/local/sbin/ec2-inference-certificates renew --force ec2-inference")
    renewed = served("web2")
    assert renewed != first
    ssh("web1", "systemctl start ec2-inference-certbot.service")
    assert served("web1") == renewed


@pytest.mark.usefixtures("held_streams")
@pytest.mark.parametrize(
    ("variables", "reason"),
    [
        ({"nginx_certbot_worker_processes": "many"}, '"worker_processes" directive invalid value'),
        (
            {"nginx_certbot_domains": [DOMAIN, "nowhere.invalid"]},
            "the CA refused, so it was not asked again. nowhere.invalid: ",
        ),
    ],
    ids=["nginx refuses it", "the CA refuses it"],
)
def test_a_bad_change_is_taken_back(variables: dict, reason: str) -> None:
    files = "sha256sum /etc/nginx/nginx.conf /etc/nginx/ec2-inference/*.conf"
    before, pid, certificate = ssh("web1", files), master("web1"), served("web1")
    done = converge("--limit", "web1", check=False, variables=variables)
    assert done.returncode != 0
    assert reason in done.stdout
    assert "was taken back" in done.stdout
    assert (ssh("web1", files), master("web1"), served("web1")) == (before, pid, certificate)
    assert ssh("web1", f"{TOOL} stale").strip() == "no"
    assert ask("web1", "/nowhere").status == 404


@pytest.mark.usefixtures("held_streams")
def test_limits_and_refused_networks() -> None:
    limits = {
        "nginx_certbot_requests_per_second": 1,
        "nginx_certbot_requests_burst": 1,
        "nginx_certbot_connections_per_ip": 5,
        "nginx_certbot_allow_cidrs": ["10.0.0.0/8"],
        "nginx_certbot_deny_cidrs": [ADDRESS["web1"]],
        "nginx_certbot_cors_origins": ["*"],
        "nginx_certbot_worker_connections": 17_000,
    }
    pid = master("web2")
    converge("--limit", "web2", variables=limits)
    assert master("web2") == pid
    # Without the old workers, which still have streams.
    workers = "pgrep -P $(cat /run/nginx.pid) -f 'worker process$'"
    files = ssh("web2", f"grep -h '^Max open files' $({workers} | sed 's|.*|/proc/&/limits|')")
    assert {line.split()[3] for line in files.splitlines()} == {"18024"}, "more connections, without a restart"
    answers = [ask("web2", "/v1/models") for _ in range(5)]
    refused = next(answer for answer in answers if answer.status == 429)
    assert refused.json()["error"]["type"] == "rate_limit_error"
    assert refused.headers["Retry-After"] == "1"
    assert refused.headers["Access-Control-Allow-Origin"] is None, "this client sent no Origin"
    anybody = ask("web2", "/nowhere", headers={"Origin": "https://any.example"})
    assert anybody.headers["Access-Control-Allow-Origin"] == "*"
    url = f"--resolve {DOMAIN}:443:{ADDRESS['web2']} https://{DOMAIN}/v1/models"
    denied = json.loads(ssh("web1", f"curl -sk {url}"))
    assert denied["error"]["code"] == "forbidden"


def through_balancer(client: str, path: str, context: ssl.SSLContext, key: str = "any") -> Answer:
    """GET from web1 as a load balancer sends it for `client`: after a line of the PROXY protocol."""
    plain = socket.create_connection((ADDRESS["web1"], 443), timeout=30)
    plain.sendall(f"PROXY TCP4 {client} 192.0.2.250 50000 443\r\n".encode())
    connection = http.client.HTTPConnection(DOMAIN, timeout=30)
    connection.sock = context.wrap_socket(plain, server_hostname=DOMAIN)
    try:
        connection.request("GET", path, headers={"Authorization": f"Bearer {key}", "X-Request-Id": client})
        answer = connection.getresponse()
        return Answer(answer.status, answer.headers, answer.read())
    finally:
        connection.close()


@pytest.mark.usefixtures("held_streams")
def test_what_an_operator_switches_on_is_served(tmp_path: Path) -> None:
    lists = "/etc/nginx/lists"
    openssl = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2"
    ssh(
        "web1",
        f"mkdir -p {lists} && cd {lists} && echo '198.51.100.0/24 1;' > refused.conf"
        f" && {openssl} -subj /CN=lab-ca -keyout ca.key -out ca.pem 2>/dev/null"
        f" && {openssl} -subj /CN=batch-7 -CA ca.pem -CAkey ca.key -addext basicConstraints=critical,CA:FALSE"
        " -keyout client.key -out client.pem 2>/dev/null",
    )
    pair = tmp_path / "client.pem"
    pair.write_text(ssh("web1", f"cat {lists}/client.key {lists}/client.pem"))
    known, unknown = trust(), trust()
    known.load_cert_chain(pair)
    variables = {
        "nginx_certbot_real_ip_from": ["10.0.0.0/8"],
        "nginx_certbot_real_ip_header": "proxy_protocol",
        "nginx_certbot_client_certificates": "required",
        "nginx_certbot_client_ca_file": f"{lists}/ca.pem",
        "nginx_certbot_deny_files": [f"{lists}/refused.conf"],
        "nginx_certbot_path_cidrs": [{"path": "/v1/models", "cidrs": ["203.0.113.0/24"]}],
        "nginx_certbot_key_requests_per_second": 1,
        "nginx_certbot_key_connections": 50,
        "nginx_certbot_requests_burst": 1,
        "nginx_certbot_maintenance_s": 90,
        "nginx_certbot_hsts_preload": True,
        "nginx_certbot_tls_profile": "modern",
    }
    pid = master("web1")
    converge("--limit", "web1", variables=variables)
    try:
        assert master("web1") == pid
        maintained = through_balancer("203.0.113.5", "/v1/models", known, "one")
        assert (maintained.status, maintained.json()["error"]["code"]) == (503, "maintenance")
        assert maintained.headers["Retry-After"] == "90"
        assert maintained.headers["Strict-Transport-Security"] == "max-age=63072000; includeSubDomains; preload"
        assert "camera=()" in maintained.headers["Permissions-Policy"]
        refusals = {
            "client_certificate_required": through_balancer("203.0.113.6", "/v1/models", unknown, "two"),
            "forbidden": through_balancer("198.51.100.7", "/robots", known, "three"),
        }
        for code, answer in refusals.items():
            assert (answer.status, answer.json()["error"]["code"]) == (403, code)
        assert through_balancer("192.0.2.9", "/v1/models", known, "four").json()["error"]["code"] == "forbidden"
        assert through_balancer("192.0.2.9", "/health/live", known, "five").status in (200, 502), "not maintained"
        assert b"Disallow: /" in through_balancer("192.0.2.9", "/robots.txt", known, "six").body
        # The same key from many addresses, and another key from one of them.
        limited = [through_balancer(f"203.0.113.{number}", "/v1/models", known, "same") for number in range(20, 30)]
        assert {answer.status for answer in limited} == {429, 503}
        assert through_balancer("203.0.113.29", "/v1/models", known, "another").status == 503
        with pytest.raises((ssl.SSLError, ConnectionResetError)):
            through_balancer("203.0.113.5", "/v1/models", trust(ssl.TLSVersion.TLSv1_2))
        log = [json.loads(line) for line in ssh("web1", "tail -n 40 /var/log/nginx/access.log").splitlines()]
        entry = next(entry for entry in log if entry["request_id"] == "203.0.113.5")
        assert (entry["client"], entry["client_subject"]) == ("203.0.113.5", "CN=batch-7")
        assert "Active connections" in ssh("web1", "curl -s http://127.0.0.1:8404/stub_status")
    finally:
        converge("--limit", "web1")


def test_no_change_has_cut_a_stream(held_streams: HeldStreams) -> None:
    """After the changes above: settings, names, kinds of keys, renewals, own certificates, limits, refused changes."""
    release(held_streams)
    assert held_streams.cut == [], "\n".join(held_streams.cut)
    assert held_streams.whole == 100 * len(WEB)
    print(f"{held_streams.whole} streams, {held_streams.events} events, none was cut")
