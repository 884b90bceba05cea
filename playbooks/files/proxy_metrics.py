#!/usr/bin/env python3
"""Print what this host's proxy workers have counted since their start, by engine, as one JSON object.

    {"engine1:qwen": {"requests": 120, "failed": 1, "first_token": {"0.1": 80, …, "+Inf": 100}, "inter_token": {…}}}

`failed` are answers of status 5xx; the others are cumulative counts of streams by seconds. Workers that do not answer are left out. Runs as root with
the host's own Python (3.9 or newer) and its standard library. Changes nothing.
"""

from __future__ import annotations

import json
import re
import urllib.request
from pathlib import Path
from typing import Any

ROOT = Path("/")
ANSWER_S = 5.0
SAMPLE = re.compile(r"^inference_proxy_(?P<name>\w+)\{(?P<labels>[^}]*)\} (?P<value>\S+)$", re.MULTILINE)
LABEL = re.compile(r'(\w+)="([^"]*)"')
BUCKETS = {"time_to_first_token_seconds_bucket": "first_token", "inter_token_seconds_bucket": "inter_token"}


def urls() -> list[str]:
    """Where the workers of this host show their metrics."""
    try:
        admin = (ROOT / "etc/proxy/config.yml").read_text().partition("\nadmin:")[2]
    except OSError:
        return []
    address = re.search(r"^  address: \"?([^\"\n]+)", admin, re.MULTILINE)
    offset = re.search(r"^  port_offset: (-?\d+)", admin, re.MULTILINE)
    if not address or not offset:
        return []
    host = f"[{address[1]}]" if ":" in address[1] else address[1]
    ports = sorted(int(path.name.partition("-")[2]) for path in (ROOT / "run").glob("proxy-[0-9]*"))
    return [f"http://{host}:{port + int(offset[1])}/metrics" for port in ports]


def get(url: str) -> str:
    """A worker's metrics; "" without an answer."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=ANSWER_S) as answer:
            return str(answer.read().decode(errors="replace"))
    except (OSError, ValueError):
        return ""


def add(text: str, to: dict[str, dict[str, Any]]) -> None:
    """Add a worker's counts to those of the others."""
    for sample in SAMPLE.finditer(text):
        labels = dict(LABEL.findall(sample["labels"]))
        value = float(sample["value"])
        if sample["name"] != "requests_total" and sample["name"] not in BUCKETS:
            continue
        counts = to.setdefault(
            labels.get("engine", "other"), {"requests": 0, "failed": 0, "first_token": {}, "inter_token": {}}
        )
        if sample["name"] == "requests_total":
            counts["requests"] += value
            counts["failed"] += value if labels.get("status", "").startswith("5") else 0
        else:
            buckets = counts[BUCKETS[sample["name"]]]
            buckets[labels["le"]] = buckets.get(labels["le"], 0) + value


def main() -> None:
    found: dict[str, dict[str, Any]] = {}
    for url in urls():
        add(get(url), found)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
