#!/usr/bin/env python3
"""Print what this host can reach, and the last errors of its tiers, as one JSON object. Changes nothing.

    python3 look_around.py OPTIONS

OPTIONS is a JSON object:

    reach    addresses that have to answer, and
    closed   addresses that must not, each as {name: [host, port]}
    hours    how far back the logs are read
    bundle   whether to print the logs, too

The result:

    ways     for each name of `reach` how many milliseconds a connection took, or why there is none
    open     the names of `closed` that accept a connection
    errors   for each log the number of its error lines and the last of them
    logs     with `bundle`: the end of each log, by its file name

Secrets are masked in all that is printed: those that lie on this host, and whatever looks like one. Runs as root with the host's own
Python (3.9 or newer) and its standard library.
"""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path("/")
CONNECT_S = 2.0
JOURNALCTL_S = 120
UNITS = ("vllm@*", "vllm-watchdog", "vllm-models", "proxy@*", "proxy-store", "nginx", "ec2-inference-*")
NGINX_LOG = "var/log/nginx/error.log"
# What a line needs to count as an error: the levels of vLLM, of the proxy's JSON lines, of nginx, and systemd's words.
ERROR = re.compile(
    r"\bERROR\b|\bCRITICAL\b|\"level\":\"(?:error|critical)\"|\[(?:error|crit|alert|emerg)\]|: Failed with result|Main process exited"
)
LAST_ERRORS = 3
BUNDLE_LINES = 2000
NGINX_BYTES = 1_000_000

# --- secrets -------------------------------------------------------------------------------------------------------

MASK = "***"
SECRET_FILES = ("etc/proxy/*password*", "etc/vllm/*token*")
ENVIRONMENT_FILES = ("etc/vllm/*.env", "opt/vllm/current/engines/*.env")
SECRET_NAME = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|CREDENTIAL", re.IGNORECASE)
LOOKS_SECRET = (
    # Clients' words, which the proxy logs with proxy_log_content only.
    re.compile(r'(?<="prompt":")(?:[^"\\]|\\.)*'),
    re.compile(r'(?<="completion":")(?:[^"\\]|\\.)*'),
    re.compile(r"(?i)(?<=bearer )[^\s\"',;]+"),
    re.compile(r"(?i)(?<=basic )[A-Za-z0-9+/=]{8,}"),
    re.compile(
        r"(?i)((?:x-)?api[-_]key|password|passwd|secret|token|authorization)([\"']?\s*[:=]\s*[\"']?)(?!\*)[^\s\"',;&]{6,}"
    ),
    re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"),
    re.compile(r"\b(?:sk|hf|ghp|glpat)[-_][A-Za-z0-9_-]{16,}"),
    re.compile(r"://[^/\s:@]+:[^/\s@]+(?=@)"),
    re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|$)", re.DOTALL),
)


def secrets() -> list[str]:
    """The secrets that lie on this host, the longest first."""
    found: set[str] = set()
    for pattern in SECRET_FILES:
        found.update(text.strip() for text in _texts(pattern))
    for pattern in ENVIRONMENT_FILES:
        for text in _texts(pattern):
            for line in text.splitlines():
                name, _, value = line.partition("=")
                if SECRET_NAME.search(name):
                    found.add(value.strip().strip("\"'"))
    return sorted((secret for secret in found if len(secret) >= 6), key=len, reverse=True)


def _texts(pattern: str) -> Iterator[str]:
    for path in sorted(ROOT.glob(pattern)):
        try:
            yield path.read_text(errors="replace")
        except OSError:
            continue


def masked(text: str, known: list[str]) -> str:
    """The text without secrets."""
    for secret in known:
        text = text.replace(secret, MASK)
    for pattern in LOOKS_SECRET:
        text = pattern.sub(lambda found: (found[1] + found[2] if found.re.groups == 2 else "") + MASK, text)
    return text


# --- the network ---------------------------------------------------------------------------------------------------


def way(host: str, port: int) -> float | str:
    """How many milliseconds a connection takes, or why there is none."""
    began_s = time.monotonic()
    try:
        with socket.create_connection((host, port), timeout=CONNECT_S):
            return round((time.monotonic() - began_s) * 1000, 2)
    except TimeoutError:
        return f"no answer within {CONNECT_S:.0f} s"
    except OSError as error:
        return error.strerror or str(error)


# --- logs ----------------------------------------------------------------------------------------------------------


def logs(hours: int) -> dict[str, str]:
    """The end of each log, by a name for its file."""
    found = {}
    for unit in UNITS:
        argv = ["journalctl", "--quiet", "--no-pager", "--output=short-iso", f"--unit={unit}", f"--since=-{hours}h"]
        done = subprocess.run(
            [*argv, f"--lines={BUNDLE_LINES}"],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=JOURNALCTL_S,
            check=False,
        )
        if done.stdout.strip():
            found[unit.replace("@*", "").replace("-*", "") + ".log"] = done.stdout
    try:
        with (ROOT / NGINX_LOG).open("rb") as log:
            log.seek(max(0, log.seek(0, 2) - NGINX_BYTES))
            found["nginx-error.log"] = log.read().decode(errors="replace")
    except OSError:
        pass  # no web host
    return {name: text for name, text in found.items() if text.strip()}


def errors(text: str) -> dict[str, Any] | None:
    """The number of a log's error lines, and the last ones; None without any."""
    lines = [line for line in text.splitlines() if ERROR.search(line)]
    return {"count": len(lines), "last": [line[:500] for line in lines[-LAST_ERRORS:]]} if lines else None


def main(options: dict[str, Any]) -> None:
    """Print the report."""
    known = secrets()
    texts = {name: masked(text, known) for name, text in logs(options["hours"]).items()}
    told: dict[str, Any] = {
        "ways": {name: way(*place) for name, place in options["reach"].items()},
        "open": [name for name, place in options["closed"].items() if isinstance(way(*place), float)],
        "errors": {name: found for name, text in texts.items() if (found := errors(text))},
    }
    if options["bundle"]:
        told["logs"] = texts
    print(json.dumps(told))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
