#!/usr/bin/env python3
"""Print what this host's logs have of one request, as one JSON object. Changes nothing.

    python3 find_request.py ID HOURS [ACCESS_LOG]

    events   in time order: `at_s` (seconds since 1970), `tier` (nginx, proxy or vllm), `what`, and whether it `ends` the tier's part
    looked   the logs that were searched
    more     whether there are more than EVENTS: a client may use one id for many requests

nginx writes ACCESS_LOG, with rotated files beside it, also compressed ones; the others write to the journal.
Runs as root with the host's own Python (3.9 or newer) and its standard library.
"""

from __future__ import annotations

import glob
import gzip
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import datetime
from typing import Any

LOGS = "/var/log/nginx/access.log"
EVENTS = 200
JOURNALCTL_S = 300
# Units whose journals name requests, and their tiers.
UNITS = {"proxy@*.service": "proxy", "vllm@*.service": "vllm"}
# vLLM puts its level, time and file before each message.
OF_ENGINE = re.compile(r"request (?P<id>\S+): (?P<what>.*)$")

Event = dict[str, Any]


# --- nginx ---------------------------------------------------------------------------------------------------------


def files_since(path: str, since_s: float) -> list[str]:
    """The log and its rotated files that were written after that time."""
    found = []
    for name in sorted(glob.glob(glob.escape(path) + "*")):
        try:
            if os.path.getmtime(name) >= since_s:
                found.append(name)
        except OSError:
            continue  # it was rotated away in this moment
    return found


def lines_with(path: str, text: str) -> Iterator[str]:
    """The lines of a log that contain `text`."""
    wanted = text.encode()
    try:
        with gzip.open(path) if path.endswith(".gz") else open(path, "rb") as log:
            for line in log:
                if wanted in line:
                    yield line.decode(errors="replace")
    except (OSError, EOFError) as error:
        print(f"{path}: {error}", file=sys.stderr)


def of_nginx(line: str, request_id: str) -> Iterator[Event]:
    """The arrival and the end of a request, from a line of nginx's access log."""
    try:
        told = json.loads(line)
        if told["request_id"] != request_id:
            return
        # Logs from before `ended_s` have whole seconds only.
        ended_s = float(told.get("ended_s") or datetime.fromisoformat(told["time"]).timestamp())
        took_s = float(told["seconds"])
        yield {
            "at_s": ended_s - took_s,
            "tier": "nginx",
            "what": f"{told['method']} {told['path']} from {told['client']}, {told['protocol']}",
        }
        if told.get("upstream"):
            connect_s = str(told.get("upstream_connect_seconds") or "").split(",")[0].strip(" -")
            yield {
                "at_s": ended_s - took_s + float(connect_s or 0),
                "tier": "nginx",
                "what": f"to {told['upstream']}, which answered {told.get('upstream_status') or 'nothing'}",
            }
        complete = "" if told.get("complete") in (True, None) else ", broken off"
        limits = [
            told[name] for name in ("rate_limit", "connection_limit") if told.get(name) not in (None, "", "PASSED")
        ]
        yield {
            "at_s": ended_s,
            "ends": True,
            "tier": "nginx",
            "what": f"{told['status']} after {took_s:.3f} s{complete}, {told['sent_bytes']} bytes sent"
            + "".join(f", limit: {limit}" for limit in limits),
        }
    except (ValueError, KeyError, TypeError):
        # A line of another format, or the end of a full disk.
        return


# --- proxy and engines ---------------------------------------------------------------------------------------------


def journal(unit: str, request_id: str, hours: int) -> Iterator[tuple[float, str, str]]:
    """Time, unit and text of the journal's entries that contain the id."""
    argv = ["journalctl", "--output=json", "--output-fields=MESSAGE,_SYSTEMD_UNIT", "--no-pager", "--quiet"]
    argv += [f"--unit={unit}", f"--since=-{hours}h", f"--grep={re.escape(request_id)}", "--case-sensitive=yes"]
    done = subprocess.run(argv, capture_output=True, text=True, errors="replace", timeout=JOURNALCTL_S, check=False)
    # Without a match it exits with 1 and prints nothing.
    if done.stderr.strip():
        print(f"journalctl: {done.stderr.strip()}", file=sys.stderr)
    for line in done.stdout.splitlines():
        entry = json.loads(line)
        message = entry.get("MESSAGE") or ""
        # A message with control characters is a list of bytes.
        text = bytes(message).decode(errors="replace") if isinstance(message, list) else str(message)
        yield int(entry["__REALTIME_TIMESTAMP"]) / 1e6, entry.get("_SYSTEMD_UNIT", unit), text


def of_proxy(at_s: float, unit: str, text: str, request_id: str) -> Iterator[Event]:
    """What a line of the proxy's log says of a request."""
    worker = re.sub(r"^proxy@(.*)\.service$", r"worker \1", unit)
    try:
        told = json.loads(text)
    except ValueError:
        told = {"message": text}
    if told.get("event") != "request":
        if re.search(rf"request {re.escape(request_id)}[: ]", str(told.get("message"))):
            yield {"at_s": at_s, "tier": "proxy", "what": f"{worker}: {told['message']}"}
        return
    if told.get("request_id") != request_id:
        return
    ended_s = datetime.fromisoformat(told["time"]).timestamp()
    began_s = ended_s - (told.get("duration_ms") or 0) / 1000
    yield {
        "at_s": began_s,
        "tier": "proxy",
        "what": f"{worker}: {told['method']} {told['path']}, key {told.get('key') or 'none'}, model {told.get('model') or 'none'}",
    }
    if told.get("ttft_ms") is not None:
        yield {"at_s": began_s + told["ttft_ms"] / 1000, "tier": "proxy", "what": f"{worker}: first part of the answer"}
    details = [f"engine {told['engine']}" if told.get("engine") else "no engine"]
    if told.get("queue_ms"):
        details.append(f"{told['queue_ms']:.0f} ms in the queue")
    if told.get("retries"):
        details.append(f"tried again {told['retries']} times")
    if told.get("prompt_tokens") is not None:
        details.append(f"{told['prompt_tokens']} + {told.get('completion_tokens') or 0} tokens")
    yield {
        "at_s": ended_s,
        "ends": True,
        "tier": "proxy",
        "what": f"{worker}: {told['status']}, {told.get('outcome')} after {(told.get('duration_ms') or 0) / 1000:.3f} s; {', '.join(details)}",
    }


def of_engine(at_s: float, unit: str, text: str, request_id: str) -> Iterator[Event]:
    """What a line of an engine's log says of a request."""
    engine = re.sub(r"^vllm@(.*)\.service$", r"engine \1", unit)
    found = OF_ENGINE.search(text)
    if found and found["id"] == request_id:
        # `POST /v1/…` when it arrives, `200 after …` at its end.
        ends = " after " in found["what"]
        yield {"at_s": at_s, "ends": ends, "tier": "vllm", "what": f"{engine}: {found['what']}"}


# --- the report ----------------------------------------------------------------------------------------------------


def events(request_id: str, hours: int, files: list[str]) -> Iterator[Event]:
    """All that the host knows of the request."""
    for path in files:
        for line in lines_with(path, request_id):
            yield from of_nginx(line, request_id)
    readers = {"proxy": of_proxy, "vllm": of_engine}
    for unit, tier in UNITS.items():
        for at_s, its_unit, text in journal(unit, request_id, hours):
            yield from readers[tier](at_s, its_unit, text, request_id)


def main(request_id: str, hours: int, log: str = LOGS) -> None:
    """Print the report."""
    files = files_since(log, time.time() - hours * 3600)
    found = sorted(events(request_id, hours, files), key=lambda event: event["at_s"])
    looked = files + [f"the journal of {unit.removesuffix('.service')}" for unit in UNITS]
    print(json.dumps({"events": found[:EVENTS], "looked": looked, "more": len(found) > EVENTS}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), *sys.argv[3:4])
