#!/usr/bin/env python3
"""ec2-inference-nginx: change what nginx serves. Only a configuration that nginx has tested is loaded or left on disk.

Installed by the nginx_certbot role. Used by the role, by certbot's deploy hook, by nginx.service (ExecReload) and by operators:

    ec2-inference-nginx drain api1:9000 --reason "replacing its disk"
    ec2-inference-nginx undrain api1:9000
    ec2-inference-nginx reload

nginx.conf includes small files that this tool edits. upstream.conf has one line per proxy worker, which is `down` while
drained/ has a marker file of the worker's name; the marker holds the reason, who drained it and since when. limits.conf names the
memory in which nginx counts connections. tls/NAME.conf names the files of a certificate that is served. Which certificates there are,
the role writes into certificates.json; ec2-inference-certificates gets and renews them.

`nginx -s reload` returns before the new configuration is in effect. A drain that relied on it would send requests to a proxy
that is being stopped. So a reload here ends when the workers of the old configuration no longer accept connections.

Runs with the host's own Python (3.9 or newer) and its standard library. Exit status: 0 done, 1 refused or failed (a message on
stderr says why), 2 wrong arguments.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import http.client
import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple

MAIN = Path("/etc/nginx/nginx.conf")
HOME = Path("/etc/nginx/ec2-inference")
UPSTREAM = HOME / "upstream.conf"
LIMITS = HOME / "limits.conf"
TLS = HOME / "tls"
# What earlier releases of the role included, for their only certificate.
ONLY_TLS = HOME / "tls.conf"
DRAINED = HOME / "drained"
PROVEN = HOME / "proven"
# The configuration that was proven before that one. The list of proxies is not in it: those of today stay.
PREVIOUS = HOME / "previous"
# The same, while the host returns to it and it is not proven again.
RETURNING = HOME / "returning"
PLACEHOLDER = HOME / "placeholder"
CERTIFICATES = HOME / "certificates.json"
# The directories with the files of each certificate: certbot's, and of those that come from elsewhere.
LIVE = Path("/etc/letsencrypt/live")
OWN = HOME / "certificates"
CERTIFICATES_TOOL = Path("/usr/local/sbin/ec2-inference-certificates")
LOGS = Path("/var/log/nginx")
PID_FILE = Path("/run/nginx.pid")
LOADED = Path("/run/ec2-inference-nginx.loaded")
WORKERS = Path("/run/ec2-inference-nginx.workers")
LOCK = Path("/run/ec2-inference-nginx.lock")

# Configurations that test an included file before the first deployment, when nginx.conf does not include it yet.
WRAPPERS = {
    UPSTREAM: "events {} http { upstream proxies { include %s; } }\n",
    LIMITS: "events {} http { include %s; }\n",
}
TLS_WRAPPER = "events {} http { server { listen 443 ssl; include %s; } }\n"
# What a tls/NAME.conf names.
PAIR = re.compile(r"^ssl_certificate(?:_key)? (\S+);", re.MULTILINE)
SERVER = re.compile(r"^(?P<server>server \S+ max_fails=0)(?: down)?;  # (?P<id>\S+)$")
# The zones in limits.conf that count connections; their names end with a generation.
ZONE = re.compile(r"\b(?P<zone>(?:key_)?connections)_(?P<generation>\d+)\b")
# Files of an operator that nginx.conf names: lists of networks, and the CA of clients' certificates.
LISTED = re.compile(r"^\s*(?:include|ssl_client_certificate) (/\S+);", re.MULTILINE)
# Connections to port 443 begin with the PROXY protocol.
PROXY_PROTOCOL = re.compile(r"^\s*listen 443 [^;]*\bproxy_protocol\b", re.MULTILINE)
# A drained worker's marker: "<reason>; by <who>; since <UTC>". The proxy role's markers of engines have the same format.
MARKER = re.compile(r"(?P<reason>.+); by [^;]+; since (?P<since>\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ)", re.DOTALL)
MARKER_TIME = "%Y-%m-%dT%H:%M:%SZ"
WORKER = "nginx: worker process"
RELOAD_S = 30


class Failed(Exception):
    """What went wrong and what to do about it."""


def run(*argv: str) -> subprocess.CompletedProcess[str]:
    """Run a program and return its output; a failure raises nothing."""
    return subprocess.run(argv, capture_output=True, text=True, check=False)


# --- configuration files -------------------------------------------------------------------------------------------


def test(candidates: dict[Path, Path]) -> None:
    """Let nginx test the whole configuration with `candidates` (live path: file to test) in place of the live files.

    One that nginx.conf does not include yet is tested by itself.
    """
    text = candidates.get(MAIN, MAIN).read_text()
    texts = []
    for live, candidate in candidates.items():
        if f"include {live};" in text:
            text = text.replace(f"include {live};", f"include {candidate};")
        elif live != MAIN:
            texts.append(WRAPPERS.get(live, TLS_WRAPPER) % candidate)
    if len(texts) < len(candidates) or not candidates:
        texts.append(text)
    trial = HOME / ".trial.conf"
    for tried in texts:
        trial.write_text(tried)
        try:
            answer = run("nginx", "-t", "-q", "-c", str(trial))
        finally:
            trial.unlink()
        if answer.returncode:
            raise Failed(f"nginx refuses the configuration, nothing was changed:\n{answer.stderr.strip()}")


def install(texts: dict[Path, str]) -> bool:
    """Write `texts` once nginx accepts all of them together; True if any of the files changed."""
    changed = {path: text for path, text in texts.items() if not path.exists() or path.read_text() != text}
    candidates = {path: path.with_name(f".{path.name}.candidate") for path in changed}
    try:
        for path, candidate in candidates.items():
            candidate.write_text(changed[path])
            candidate.chmod(0o644)
        if candidates:
            test(candidates)
        for path, candidate in candidates.items():
            candidate.replace(path)
    finally:
        for candidate in candidates.values():
            candidate.unlink(missing_ok=True)
    return bool(changed)


def mark_down(text: str, drained: set[str]) -> str:
    """Return upstream.conf's text with exactly the drained servers `down`."""
    lines = []
    for line in text.splitlines():
        server = SERVER.match(line)
        if server:
            down = " down" if server["id"] in drained else ""
            line = f"{server['server']}{down};  # {server['id']}"
        lines.append(line)
    return "\n".join(lines) + "\n"


def drained_now() -> set[str]:
    """Names of the workers that have a marker."""
    return {marker.name for marker in DRAINED.iterdir()} if DRAINED.is_dir() else set()


def make_placeholder() -> None:
    """Create a self-signed certificate: nginx does not start without one, and certbot gets none without nginx."""
    PLACEHOLDER.mkdir(exist_ok=True)
    if (PLACEHOLDER / "fullchain.pem").exists():
        return
    key, certificate = PLACEHOLDER / ".privkey.pem", PLACEHOLDER / ".fullchain.pem"
    argv = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-days",
        "3650",
    ]
    made = run(*argv, "-subj", "/CN=placeholder", "-keyout", str(key), "-out", str(certificate))
    if made.returncode:
        raise Failed(f"openssl could not create a placeholder certificate: {made.stderr.strip()}")
    key.replace(PLACEHOLDER / "privkey.pem")
    certificate.replace(PLACEHOLDER / "fullchain.pem")


def certificates() -> list[dict[str, Any]]:
    """The certificates that the role wants; earlier releases of it had one and no list."""
    if CERTIFICATES.exists():
        listed: list[dict[str, Any]] = json.loads(CERTIFICATES.read_text())["certificates"]
        return listed
    return [{"name": "ec2-inference", "source": "acme", "domains": []}]


def home_of(certificate: dict[str, Any]) -> Path:
    """The directory with the files of a certificate."""
    certbots = certificate["source"] == "acme" and not certificate.get("shared_arn")
    return (LIVE if certbots else OWN) / str(certificate["name"])


def is_whole(home: Path) -> bool:
    """Does a directory have a certificate and its key?"""
    return (home / "fullchain.pem").exists() and (home / "privkey.pem").exists()


def names_of(certificate: Path) -> set[str]:
    """The names of a certificate, in lower case."""
    text = run("openssl", "x509", "-noout", "-ext", "subjectAltName", "-in", str(certificate)).stdout
    return {name.lower() for name in re.findall(r"(?:DNS|IP Address):([^,\s]+)", text)}


def tls_files() -> list[Path]:
    """The files that name certificates, as they are now."""
    return [path for path in (*sorted(TLS.glob("[!.]*.conf")), ONLY_TLS) if path.exists()]


def served_homes() -> list[Path]:
    """The directories whose certificates are named now."""
    return [Path(pem).parent for path in tls_files() for pem in PAIR.findall(path.read_text())[:1]]


def home_to_serve(certificate: dict[str, Any]) -> Path:
    """The directory whose files nginx serves for a certificate that the role wants.

    Until it is there, another certificate that has its names stands in, or else the placeholder; never the placeholder once it was served.
    """
    home = home_of(certificate)
    if is_whole(home):
        return home
    served = served_homes()
    for other in served:
        if other != PLACEHOLDER and is_whole(other) and {*certificate["domains"]} <= names_of(other / "fullchain.pem"):
            return other
    if home in served:
        raise Failed(
            f"the certificate that nginx serves is gone from the disk: {home} has no fullchain.pem or privkey.pem. Nothing was "
            f"changed, and a running nginx goes on with what it has loaded. Restore {home.parent.parent} from a backup; or, to serve a "
            f"self-signed placeholder until there is a new certificate, remove {TLS}/{certificate['name']}.conf and run the playbook"
        )
    return PLACEHOLDER


def tls_texts() -> dict[Path, str]:
    """The text of each tls/NAME.conf."""
    return {TLS / f"{one['name']}.conf": tls_text(home_to_serve(one)) for one in certificates()}


def tls_text(home: Path) -> str:
    """The directives that serve the certificate in a directory."""
    lines = [f"ssl_certificate {home}/fullchain.pem;", f"ssl_certificate_key {home}/privkey.pem;"]
    # Most CAs have retired OCSP; stapling needs a certificate that names a responder.
    responder = run("openssl", "x509", "-noout", "-ocsp_uri", "-in", f"{home}/fullchain.pem").stdout.strip()
    if responder and (home / "chain.pem").exists():
        lines += ["ssl_stapling on;", "ssl_stapling_verify on;", f"ssl_trusted_certificate {home}/chain.pem;"]
    return "\n".join(lines) + "\n"


# --- the running nginx ---------------------------------------------------------------------------------------------


def master() -> int | None:
    """Pid of the running master process, or None."""
    with contextlib.suppress(OSError, ValueError):
        pid = int(PID_FILE.read_text())
        if title(pid).startswith("nginx: master process"):
            return pid
    return None


def title(pid: int) -> str:
    """A process's title, which nginx sets to its role."""
    return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ").strip()


def serving(parent: int) -> set[int]:
    """Pids of the master's workers that accept connections; workers that are shutting down have another title."""
    workers = set()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        # A process may end meanwhile. In stat the name is in brackets and may have spaces; the parent follows it.
        with contextlib.suppress(OSError, IndexError, ValueError):
            if int((entry / "stat").read_text().rpartition(")")[2].split()[1]) == parent:
                pid = int(entry.name)
                if title(pid) == WORKER:
                    workers.add(pid)
    return workers


def on_disk(pid: int) -> str:
    """Fingerprint of the files that the master `pid` would load."""
    digest = hashlib.sha256(str(pid).encode())
    tls = tls_files()
    pairs = [Path(pem) for path in tls for pem in PAIR.findall(path.read_text())]
    listed = [Path(path) for path in LISTED.findall(MAIN.read_text())] if MAIN.exists() else []
    for path in (MAIN, UPSTREAM, LIMITS, *tls, *pairs, *listed):
        digest.update(path.read_bytes() if path.exists() else b"absent")
    return digest.hexdigest()


def stale() -> bool:
    """Does nginx run with another configuration or certificate than those on disk?"""
    pid = master()
    return pid is not None and (not LOADED.exists() or LOADED.read_text() != on_disk(pid))


def record() -> None:
    """Save the fingerprint of what nginx has loaded. nginx.service calls this right after a start."""
    pid = master()
    if pid is None:
        raise Failed(f"{PID_FILE} does not have the pid of a running nginx")
    LOADED.write_text(on_disk(pid))
    save_workers(pid, serving(pid))
    # nginx creates its logs for everybody to read.
    for log in LOGS.glob("*.log"):
        log.chmod(0o640)


def save_workers(parent: int, workers: set[int], reloaded_ns: int = 0) -> None:
    """Remember the workers, so that a later call can tell whether one of them has died, and when their reload began."""
    WORKERS.write_text(json.dumps({"master": parent, "workers": sorted(workers), "reloaded_ns": reloaded_ns}))


def reloaded_since(asked_ns: int) -> bool:
    """Has nginx loaded what is on disk by a reload that began after this time of the monotonic clock?"""
    with contextlib.suppress(OSError, ValueError, KeyError):
        return bool(json.loads(WORKERS.read_text())["reloaded_ns"] > asked_ns) and not stale()
    return False


def saved_workers(parent: int) -> set[int]:
    """The workers of this master when they were last saved."""
    with contextlib.suppress(OSError, ValueError):
        saved = json.loads(WORKERS.read_text())
        if saved["master"] == parent:
            return set(saved["workers"])
    return set()


def reload() -> str:
    """Test and load the configuration, and wait until the old workers no longer accept connections."""
    install(tls_texts())
    test({})
    pid = master()
    if pid is None:
        return "nginx is not running: nothing to load"
    before = serving(pid)
    loading = on_disk(pid)
    began_ns = time.monotonic_ns()
    os.kill(pid, signal.SIGHUP)
    deadline = time.monotonic() + RELOAD_S
    while time.monotonic() < deadline:
        now = serving(pid)
        if now and not now & before:
            LOADED.write_text(loading)
            save_workers(pid, now, began_ns)
            return "reloaded"
        time.sleep(0.02)
    raise Failed(
        f"nginx did not load the new configuration within {RELOAD_S} s and serves with the old one: "
        "see the end of /var/log/nginx/error.log"
    )


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Allow one change at a time: two playbooks, or a playbook and an operator, must not overwrite each other's changes."""
    with LOCK.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


# --- commands: each returns the word or line to print, which the role's changed_when reads ---------------------------------------


def reload_command(if_changed: bool, asked_ns: int = 0) -> str:
    """Reload; with `if_changed` only if nginx runs with something else than what is on disk.

    Of several that were asked for at once, the first does for those that waited: each reload leaves workers that finish their streams.
    """
    if asked_ns and reloaded_since(asked_ns):
        return "reloaded"
    changed = install(tls_texts())
    return reload() if changed or stale() or not if_changed else "unchanged"


def generation() -> int:
    """The generation in the name of the zone that counts connections."""
    zone = ZONE.search(LIMITS.read_text()) if LIMITS.exists() else None
    return int(zone["generation"]) if zone else 1


def mend() -> str:
    """Begin new counts if a worker has died. Its connections stay counted for ever, in memory that outlives a reload.

    The next generation's zone is empty. The upstream's counts, by which the next proxy worker is chosen, begin anew with each reload.
    """
    pid = master()
    if pid is None:
        return "nginx is not running"
    workers = serving(pid)
    died = saved_workers(pid) - workers
    if not died:
        save_workers(pid, workers)
        return "unchanged"
    if LIMITS.exists():
        install({LIMITS: ZONE.sub(rf"\g<zone>_{generation() + 1}", LIMITS.read_text())})
    reload()
    print(
        f"worker {', '.join(map(str, sorted(died)))} of nginx had died: connections are counted anew", file=sys.stderr
    )
    return "reloaded"


def load_markers(undo: dict[Path, str | None]) -> str:
    """Apply the markers to upstream.conf; if nginx refuses it, restore the markers (None: there was none)."""
    if not UPSTREAM.exists():
        return "unchanged: this host has no upstream.conf yet"
    try:
        install({UPSTREAM: mark_down(UPSTREAM.read_text(), drained_now())})
    except Failed:
        for marker, reason in undo.items():
            if reason is None:
                marker.unlink()
            else:
                write_marker(marker, reason)
        raise
    return reload() if stale() else "unchanged"


def write_marker(marker: Path, text: str) -> None:
    """Write a marker atomically: no undrain would match the reason of a truncated one."""
    candidate = marker.parent.with_name(".marker")
    candidate.write_text(f"{text}\n")
    candidate.replace(marker)


def who() -> str:
    """Who drains: a playbook sets a variable of the environment, which older versions of this tool ignore; sudo sets a person's name."""
    return os.environ.get("EC2_INFERENCE_DRAINED_BY") or f"{os.environ.get('SUDO_USER', 'root')}@{socket.gethostname()}"


def age(since: str) -> str:
    """How long ago a marker was written, such as "2 h 5 min"."""
    drained = datetime.strptime(since, MARKER_TIME).replace(tzinfo=timezone.utc)
    minutes = max(0, int((datetime.now(timezone.utc) - drained).total_seconds())) // 60
    return f"{minutes // 60} h {minutes % 60} min"


def drain(instances: list[str], reason: str, by: str) -> str:
    """Drain workers. An existing marker stays as it is: the drain that came first decides when it ends."""
    DRAINED.mkdir(exist_ok=True)
    fresh: dict[Path, str | None] = {DRAINED / name: None for name in instances if not (DRAINED / name).exists()}
    now = datetime.now(timezone.utc).strftime(MARKER_TIME)
    for marker in fresh:
        write_marker(marker, f"{reason}; by {by.replace(';', ',')}; since {now}")
    return load_markers(fresh)


def undrain(instances: list[str], reason: str | None) -> str:
    """Put workers back. With `reason`, only those that have it, so that a playbook leaves an operator's drain alone."""
    removed: dict[Path, str | None] = {}
    notes = []
    for marker in (DRAINED / name for name in instances):
        if not marker.exists():
            continue
        text = marker.read_text().strip()
        parts = MARKER.fullmatch(text)
        if reason in (None, parts["reason"] if parts else text):
            drained_for = f"after {age(parts['since'])}" if parts else "its marker does not say since when it was out"
            notes.append(f"{marker.name} is put back, {drained_for}: {text}")
            removed[marker] = text
            marker.unlink()
        else:
            notes.append(f"{marker.name} stays drained, by hand: {text}")
    answer = load_markers(removed)
    for note in notes:
        print(note, file=sys.stderr)
    return answer


def describe() -> str:
    """What the role's templates need to know about the host, as JSON."""
    told = run("nginx", "-V").stderr
    version = re.search(r"nginx/([0-9.]+)", told)
    # "running with" is told only if it is another one than the one that nginx was built with.
    openssl = re.search(r"running with OpenSSL ([0-9.]+)", told) or re.search(r"built with OpenSSL ([0-9.]+)", told)
    return json.dumps(
        {
            "nginx": version[1] if version else "0",
            "openssl": openssl[1] if openssl else "0",
            "ipv6": Path("/proc/net/if_inet6").exists(),
            "drained": sorted(drained_now()),
            "generation": generation(),
            "http3": "--with-http_v3_module" in told,
        }
    )


def ask(domain: str, path: str) -> tuple[int, str, http.client.HTTPMessage, bytes]:
    """GET from this host's own nginx as `domain`: status, leaf certificate's SHA-256, headers, body."""
    # The caller compares the fingerprint; the host may not know the CA, so the chain is not verified.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    plain = socket.create_connection(("127.0.0.1", 443), timeout=10)
    if PROXY_PROTOCOL.search(MAIN.read_text()):
        # "UNKNOWN": nginx keeps this host's own address as the client's.
        plain.sendall(b"PROXY UNKNOWN\r\n")
    with context.wrap_socket(plain, server_hostname=domain) as secure:
        leaf = secure.getpeercert(binary_form=True) or b""
        connection = http.client.HTTPConnection(domain, timeout=10)
        connection.sock = secure
        connection.request("GET", path, headers={"X-Request-Id": "ec2-inference-prove"})
        answer = connection.getresponse()
        return answer.status, hashlib.sha256(leaf).hexdigest(), answer.headers, answer.read()


def is_live(domain: str) -> bool:
    """Does a proxy answer /health/live through nginx?"""
    with contextlib.suppress(OSError, http.client.HTTPException):
        return ask(domain, "/health/live")[0] == 200
    return False


def prove_files() -> None:
    """Check that nginx's workers may open as many files as its configuration asks for; nginx itself only logs that they may not."""
    wanted = re.search(r"^worker_rlimit_nofile (\d+);", MAIN.read_text(), re.MULTILINE)
    pid = master()
    if not wanted or pid is None:
        return
    for worker in serving(pid):
        limits = Path(f"/proc/{worker}/limits").read_text()
        allowed = re.search(r"^Max open files +(\S+)", limits, re.MULTILINE)
        if allowed and allowed[1] != "unlimited" and int(allowed[1]) < int(wanted[1]):
            raise Failed(
                f"nginx's workers may open {allowed[1]} files, and nginx_certbot_worker_connections takes {wanted[1]}: "
                "the running nginx was started with a lower limit (LimitNOFILE of nginx.service, or the system's). "
                "Set a smaller number; or restart nginx at a quiet time, which ends its streams, and run the playbook again"
            )


def fingerprint(chain: Path) -> str:
    """The SHA-256 of the first certificate in a file, as the TLS handshake shows it."""
    pem, end = chain.read_text(), "-----END CERTIFICATE-----"
    return hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem[: pem.index(end) + len(end)])).hexdigest()


def prove(live: bool) -> None:
    """Check that nginx serves every name with our error body and the certificate on disk; with `live`, that a proxy answers."""
    prove_files()
    first = ""
    for certificate in certificates():
        home = home_of(certificate)
        if not is_whole(home):
            raise Failed(
                f"the certificate {certificate['name']} is not there: {home} has no fullchain.pem or privkey.pem"
            )
        expected = fingerprint(home / "fullchain.pem")
        for domain in certificate["domains"]:
            first = first or domain
            prove_domain(domain, home, expected)
    deadline = time.monotonic() + 10
    while live and not is_live(first):
        if time.monotonic() > deadline:
            raise Failed("a proxy answered /health/live through nginx before this change, none does after it")
        time.sleep(0.5)


def prove_domain(domain: str, home: Path, expected: str) -> None:
    """Check that nginx serves one name with our error body and the certificate of this fingerprint."""
    try:
        status, leaf, headers, body = ask(domain, "/no-such-route")
    except (OSError, http.client.HTTPException) as error:
        raise Failed(f"nginx does not answer HTTPS for {domain}: {error}") from error
    if leaf != expected:
        raise Failed(f"nginx serves another certificate for {domain} than {home}/fullchain.pem")
    if status != 404 or headers["X-Request-Id"] != "ec2-inference-prove":
        raise Failed(
            f"nginx answers {domain}/no-such-route with {status}, without our headers: it does not run with this configuration"
        )
    with contextlib.suppress(ValueError, KeyError, TypeError):
        if json.loads(body)["error"]["code"]:
            return
    raise Failed(f"nginx answers {domain}/no-such-route with an unexpected body: {body[:200]!r}")


def keep() -> str:
    """Copy the proven configuration, for `rollback` to return to, keep the one before it for `return`, and remove files that none includes."""
    PROVEN.mkdir(mode=0o700, exist_ok=True)
    keep_previous()
    changed = False
    for path in (MAIN, UPSTREAM, LIMITS, CERTIFICATES):
        kept = PROVEN / path.name
        if path.exists() and (not kept.exists() or kept.read_bytes() != path.read_bytes()):
            kept.write_bytes(path.read_bytes())
            changed = True
    included = MAIN.read_text() + kept_in(PREVIOUS).get(MAIN, "")
    unused = [path for path in tls_files() if f"include {path};" not in included]
    pid = None if stale() else master()
    for path in unused:
        path.unlink()
    if unused and pid is not None:
        # They are part of the fingerprint, and nginx has not loaded them.
        LOADED.write_text(on_disk(pid))
    return "kept" if changed else "unchanged"


def kept_in(directory: Path) -> dict[Path, str]:
    """The configuration in a directory, by the paths that nginx reads, without the list of proxies and with the present counts of connections."""
    kept = {path: directory / path.name for path in (MAIN, LIMITS)}
    zones = rf"\g<zone>_{generation()}"
    return {path: ZONE.sub(zones, copy.read_text()) for path, copy in kept.items() if copy.exists()}


def restore_list(directory: Path) -> None:
    """Take back the list of certificates in a directory, or none, as before there was one."""
    listed = directory / CERTIFICATES.name
    if listed.exists():
        CERTIFICATES.write_bytes(listed.read_bytes())
    else:
        CERTIFICATES.unlink(missing_ok=True)


def keep_previous() -> None:
    """Keep what was proven before the present configuration. After a return there is nothing before it any more."""
    present = {path: path.read_text() for path in (MAIN, LIMITS) if path.exists()}
    if kept_in(RETURNING) == present:
        shutil.rmtree(RETURNING)
    elif kept_in(PROVEN) not in ({}, present):
        shutil.rmtree(PREVIOUS, ignore_errors=True)
        shutil.copytree(PROVEN, PREVIOUS)


def return_command() -> str:
    """Load the configuration that was proven before the present one. `prove` then keeps it, or `rollback` takes the return back."""
    # A return that was interrupted goes on.
    if PREVIOUS.exists():
        shutil.rmtree(RETURNING, ignore_errors=True)
        PREVIOUS.replace(RETURNING)
    if not RETURNING.exists():
        return "unchanged: this host has no earlier configuration that was proven"
    restore_list(RETURNING)
    install({**tls_texts(), **kept_in(RETURNING)})
    reload()
    return "returned"


def rollback() -> str:
    """Restore the proven configuration. The workers that are drained now stay drained."""
    if not (PROVEN / MAIN.name).exists():
        return "unchanged: this host has no proven configuration yet"
    if RETURNING.exists():
        shutil.rmtree(PREVIOUS, ignore_errors=True)
        RETURNING.replace(PREVIOUS)
    proven = {
        path: (PROVEN / path.name).read_text() for path in (MAIN, UPSTREAM, LIMITS) if (PROVEN / path.name).exists()
    }
    proven[UPSTREAM] = mark_down(proven[UPSTREAM], drained_now())
    restore_list(PROVEN)
    restored = install(proven)
    if master() is None:
        started = run("systemctl", "start", "nginx.service")
        if started.returncode:
            raise Failed(f"the proven configuration is restored, but nginx does not start: {started.stderr.strip()}")
        return "restored and started"
    if stale():
        reload()
        return "restored"
    return "restored" if restored else "unchanged"


def instance(text: str) -> str:
    """The name of a proxy worker, from an argument."""
    if not re.fullmatch(r"[^/\s]+:\d+", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not <proxy host>:<port>")
    return text


# --- the command line ----------------------------------------------------------------------------------------------


def drain_named(options: argparse.Namespace) -> str:
    return drain(options.instances, options.reason, who())


def undrain_named(options: argparse.Namespace) -> str:
    return undrain(options.instances, options.reason)


def select_tls(_: argparse.Namespace) -> str:
    make_placeholder()
    TLS.mkdir(exist_ok=True)
    return "changed" if install(tls_texts()) else "unchanged"


def check_file(options: argparse.Namespace) -> str:
    test({HOME / options.file: options.candidate})
    return "good"


def prove_and_keep(options: argparse.Namespace) -> str:
    # A proxy may need seconds to answer, during which other commands should not wait.
    prove(options.live)
    with alone():
        return keep()


def renew(options: argparse.Namespace) -> str:
    force = ["--force"] if options.force else []
    os.execv(CERTIFICATES_TOOL, [CERTIFICATES_TOOL.name, "renew", *force])


def record_loaded(_: argparse.Namespace) -> str:
    record()
    return "recorded"


def yes_or_no(answer: bool) -> str:
    return "yes" if answer else "no"


class Argument(NamedTuple):
    """One argument of a command, as argparse's add_argument takes it."""

    name: str
    options: dict[str, Any]


def argument(name: str, **options: Any) -> Argument:
    return Argument(name, options)


class Command(NamedTuple):
    """One command: its help, what it runs, and its arguments. `locked` commands run one at a time."""

    help: str
    run: Callable[[argparse.Namespace], str]
    arguments: tuple[Argument, ...] = ()
    locked: bool = False


INSTANCES = argument("instances", nargs="+", type=instance, metavar="HOST:PORT")
# Commands that only read are not locked. `prove` locks its last step itself. `record` runs inside nginx.service's start,
# which a locked `rollback` may be waiting for.
COMMANDS = {
    "drain": Command(
        "take proxy workers out of the upstream",
        drain_named,
        (INSTANCES, argument("--reason", default="drained by hand")),
        locked=True,
    ),
    "undrain": Command("put proxy workers back", undrain_named, (INSTANCES, argument("--reason")), locked=True),
    "reload": Command(
        "test the configuration, load it, wait until it is in effect",
        lambda options: reload_command(options.if_changed, options.asked_ns),
        (argument("--if-changed", action="store_true", help="only if nginx runs with another one"),),
        locked=True,
    ),
    "tls": Command(
        "let tls/NAME.conf name each certificate, or the placeholder until it is there", select_tls, locked=True
    ),
    "check": Command(
        "test a candidate for an included file in the whole configuration",
        check_file,
        (argument("file", choices=[path.name for path in WRAPPERS]), argument("candidate", type=Path)),
        locked=True,
    ),
    "live": Command(
        "does a proxy answer /health/live through nginx? yes or no",
        lambda options: yes_or_no(is_live(options.domain)),
        (argument("domain"),),
    ),
    "prove": Command(
        "check that nginx serves each name with its certificate, and keep this configuration",
        prove_and_keep,
        (argument("--live", action="store_true", help="and that a proxy answers through it"),),
    ),
    "renew": Command(
        "renew the certificates that are due: what ec2-inference-certificates renew does",
        renew,
        (argument("--force", action="store_true", help="even those that are not due"),),
    ),
    "describe": Command(
        "nginx's version, whether there is IPv6, and the drained workers, as JSON", lambda _: describe()
    ),
    "stale": Command(
        "does nginx run with something else than what is on disk? yes or no", lambda _: yes_or_no(stale())
    ),
    "mend": Command("begin new counts of connections if a worker has died", lambda _: mend(), locked=True),
    "record": Command("save what nginx has loaded at its start", record_loaded),
    "rollback": Command("return to the proven configuration", lambda _: rollback(), locked=True),
    "previous": Command(
        "is there a configuration that was proven before this one? yes or no",
        lambda _: yes_or_no(PREVIOUS.exists() or RETURNING.exists()),
    ),
    "return": Command(
        "return to the configuration that was proven before this one", lambda _: return_command(), locked=True
    ),
}


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="ec2-inference-nginx", description=(__doc__ or "").partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for name, command in COMMANDS.items():
        subparser = commands.add_parser(name, help=command.help)
        for added in command.arguments:
            subparser.add_argument(added.name, **added.options)
    return parser


def answer_to(options: argparse.Namespace) -> str:
    """Run one command and return what it prints."""
    command = COMMANDS[options.command]
    options.asked_ns = time.monotonic_ns()
    with alone() if command.locked else contextlib.nullcontext():
        return command.run(options)


def main() -> int:
    # The files written here are for nginx and for operators, and hold no secret.
    os.umask(0o022)
    try:
        print(answer_to(arguments().parse_args()))
    except Failed as error:
        print(f"ec2-inference-nginx: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
