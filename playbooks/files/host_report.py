#!/usr/bin/env python3
"""Print what a host of the stack runs and how it is, as one JSON object. Changes nothing.

Each part is there on every host, and empty where the host has no such tier:

    at_s       when the report was made, in seconds since 1970
    system     load, memory, disks, clock, failed units
    gpus       one row for each GPU; None without NVIDIA's driver
    engines    vLLM's units, each with its state, release and load
    workers    the proxy's units, each with its own view of itself and of the engines (/health/ready)
    web        nginx's unit, the proxy workers that it sends requests to, and the certificates that it serves; None without nginx
    drained    the markers of instances that are out of rotation, with their texts
    notice     AWS's notice that the host will end; None without one
    lock       who changes the stack at the moment, if this host keeps its lock; None if nobody does

Runs as root with the host's own Python (3.9 or newer) and its standard library. What cannot be read is None.
"""

from __future__ import annotations

import json
import os
import re
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path("/")
COMMAND_S = 20
ANSWER_S = 3.0
GPU_FIELDS = "index,name,memory.used,memory.total,utilization.gpu,temperature.gpu,driver_version,ecc.errors.uncorrected.volatile.total"
# Gauges of vLLM by their names here, and how those of several data-parallel ranks become one.
GAUGES: dict[str, tuple[str, Callable[[list[float]], float]]] = {
    "running": ("vllm:num_requests_running", sum),
    "waiting": ("vllm:num_requests_waiting", sum),
    "kv_cache_share": ("vllm:kv_cache_usage_perc", max),
}
UNIT_FIELDS = ["ActiveState", "SubState", "NRestarts", "StatusText", "ActiveEnterTimestampMonotonic"]
SERVER = re.compile(r"^server \S+ max_fails=0(?P<down> down)?;  # (?P<id>\S+)$", re.MULTILINE)
CERTIFICATE = re.compile(r"^ssl_certificate (\S+);", re.MULTILINE)


def output(*argv: str) -> str | None:
    """What a program prints; None if it is missing, fails or hangs."""
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=COMMAND_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def text_of(path: Path) -> str | None:
    """A file's content; None if there is none."""
    try:
        return path.read_text(errors="replace")
    except OSError:
        return None


def get(url: str) -> str | None:
    """The body at an address of this host, whatever the status; None without an answer."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=ANSWER_S) as answer:
            return str(answer.read().decode(errors="replace"))
    except urllib.error.HTTPError as error:
        return error.read().decode(errors="replace")
    except (OSError, ValueError):
        return None


def json_of(text: str | None) -> Any:
    """The value of a JSON text; None if it is none."""
    try:
        return json.loads(text or "")
    except ValueError:
        return None


# --- the host ------------------------------------------------------------------------------------------------------


def system() -> dict[str, Any]:
    memory = dict(re.findall(r"^(\w+):\s+(\d+) kB$", text_of(Path("/proc/meminfo")) or "", re.MULTILINE))
    total_kb, free_kb = int(memory.get("MemTotal", 0)), int(memory.get("MemAvailable", 0))
    clock = output("timedatectl", "show", "--property=NTPSynchronized", "--value")
    failed = output("systemctl", "list-units", "--state=failed", "--plain", "--no-legend", "--full") or ""
    release = dict(line.partition("=")[::2] for line in (text_of(ROOT / "etc/os-release") or "").splitlines())
    return {
        "os": release.get("PRETTY_NAME", "").strip('"') or None,
        "up_s": float((text_of(Path("/proc/uptime")) or "0").split()[0]),
        "load_1min": os.getloadavg()[0],
        "cores": os.cpu_count(),
        "memory_used_share": 1 - free_kb / total_kb if total_kb else None,
        "clock_synchronized": None if clock is None else clock.strip() == "yes",
        "failed_units": [line.split()[0] for line in failed.splitlines() if line.strip()],
        "reboot_required": (ROOT / "run/reboot-required").exists(),
        "disks": disks(),
    }


def disks() -> list[dict[str, Any]]:
    """The file systems of the directories that the stack fills, each once."""
    found: dict[int, dict[str, Any]] = {}
    for name in ("/", "/var/log", "/opt/vllm", "/var/lib/vllm", "/mnt/instance-store"):
        try:
            device, space = os.stat(name).st_dev, os.statvfs(name)
        except OSError:
            continue
        # What only root may use is not free for the stack.
        usable = space.f_blocks - space.f_bfree + space.f_bavail
        found.setdefault(
            device,
            {
                "path": name,
                "free_gb": space.f_bavail * space.f_frsize / 1e9,
                "used_share": 1 - space.f_bavail / usable if usable else None,
            },
        )
    return list(found.values())


def gpus() -> list[dict[str, Any]] | None:
    printed = output("nvidia-smi", f"--query-gpu={GPU_FIELDS}", "--format=csv,noheader,nounits")
    if printed is None:
        return None
    names = (
        "index",
        "name",
        "memory_used_mib",
        "memory_total_mib",
        "used_percent",
        "temperature_c",
        "driver",
        "uncorrected_errors",
    )
    return [dict(zip(names, (cell.strip() for cell in line.split(",")))) for line in printed.splitlines()]


def unit(name: str) -> dict[str, Any]:
    """What systemd says of a unit."""
    printed = output("systemctl", "show", *(f"--property={field}" for field in UNIT_FIELDS), name) or ""
    told = dict(line.partition("=")[::2] for line in printed.splitlines())
    entered_us = int(told.get("ActiveEnterTimestampMonotonic") or 0)
    active = told.get("ActiveState") == "active"
    return {
        "state": told.get("ActiveState"),
        "sub_state": told.get("SubState"),
        "restarts": int(told.get("NRestarts") or 0),
        "status": told.get("StatusText") or "",
        "active_s": time.monotonic() - entered_us / 1e6 if active and entered_us else None,
    }


def units(prefix: str) -> list[str]:
    """The instances of a template unit that run, wait or have failed: what follows the @ in their names."""
    printed = output("systemctl", "list-units", "--all", "--plain", "--no-legend", "--full", f"{prefix}@*.service")
    return sorted(re.findall(rf"^{prefix}@(\S+)\.service", printed or "", re.MULTILINE))


def release_of(home: str, link: str = "current") -> str | None:
    """The name of the release that is current."""
    try:
        return (ROOT / home / link).resolve(strict=True).name
    except OSError:
        return None


# --- the tiers -----------------------------------------------------------------------------------------------------


def engines() -> list[dict[str, Any]]:
    return [engine(name) for name in units("vllm")]


def engine(name: str) -> dict[str, Any]:
    # A second engine, which serves while a roll replaces another one, runs from a link of its own.
    link, running = "beside" if name.endswith(".beside") else "current", ROOT / f"run/vllm-{name}"
    current = ROOT / "opt/vllm" / link
    told = json_of(text_of(running / "probe.json")) or {}
    url = told.get("url")
    metrics = (get(f"{url}/metrics") or "") if url else ""
    venv = current / "venv"
    return {
        "name": name,
        **unit(f"vllm@{name}.service"),
        "url": url,
        "model": told.get("model"),
        "release": release_of("opt/vllm", link),
        "environment": venv.resolve().name if venv.exists() else None,
        "runs_current_release": text_of(running / "fingerprint") == text_of(current / f"engines/{name}.fingerprint"),
        "last_start_s": json_of(text_of(ROOT / f"opt/vllm/starts/{name}")),
        "answers": bool(metrics),
        **{field: gauge(metrics, *how) for field, how in GAUGES.items()},
    }


def gauge(metrics: str, name: str, together: Callable[[list[float]], float]) -> float | None:
    """A gauge of Prometheus' text format, of all its labels together."""
    found = re.findall(rf"^{name}(?:\{{.*\}})? (\S+)$", metrics, re.MULTILINE)
    return together([float(value) for value in found]) if found else None


def workers() -> list[dict[str, Any]]:
    return [worker(port) for port in units("proxy")]


def worker(port: str) -> dict[str, Any]:
    fingerprint = text_of(ROOT / f"run/proxy-{port}/fingerprint") or ""
    address = dict(line.partition("=")[::2] for line in fingerprint.splitlines()).get("PROXY_ADDRESS", "")
    host = f"[{address}]" if ":" in address else address
    return {
        "port": int(port),
        "address": address or None,
        **unit(f"proxy@{port}.service"),
        "release": release_of("opt/proxy"),
        "runs_current_release": fingerprint == text_of(ROOT / "opt/proxy/current/release.env"),
        "ready": json_of(get(f"http://{host}:{port}/health/ready")) if address else None,
    }


def web() -> dict[str, Any] | None:
    home = ROOT / "etc/nginx/ec2-inference"
    upstream = text_of(home / "upstream.conf")
    if upstream is None:
        return None
    # nginx prints its version on stderr.
    version = output("sh", "-c", "nginx -v 2>&1")
    named = [*home.glob("*.conf"), *home.glob("tls/[!.]*.conf")]
    files = sorted({path for file in named for path in CERTIFICATE.findall(text_of(file) or "")})
    return {
        **unit("nginx.service"),
        "version": version.strip().rpartition("/")[2] if version else None,
        "upstream": [{"id": found["id"], "down": bool(found["down"])} for found in SERVER.finditer(upstream)],
        "certificates": [certificate(path) for path in files],
    }


def certificate(path: str) -> dict[str, Any]:
    """Who issued a certificate, for which names, and until when."""
    printed = output("openssl", "x509", "-noout", "-issuer", "-enddate", "-ext", "subjectAltName", "-in", path) or ""
    ends = re.search(r"^notAfter=(.+)$", printed, re.MULTILINE)
    issuer = re.search(r"^issuer=(.+)$", printed, re.MULTILINE)
    return {
        "path": path,
        "names": sorted(set(re.findall(r"(?:DNS|IP Address):([^,\s]+)", printed))),
        "issuer": issuer[1].strip() if issuer else None,
        "ends_at_s": ssl.cert_time_to_seconds(ends[1]) if ends else None,
    }


def drained() -> list[dict[str, Any]]:
    """What is out of rotation here: engines on a proxy host, proxy workers on a web host."""
    found = []
    for tier, directory in (("proxy", "etc/proxy/drained"), ("nginx", "etc/nginx/ec2-inference/drained")):
        for marker in sorted((ROOT / directory).glob("*")):
            found.append({"tier": tier, "instance": marker.name, "text": (text_of(marker) or "").strip()})
    return found


def notice() -> dict[str, Any] | None:
    """What the watcher of AWS's notices has announced."""
    told = json_of(text_of(ROOT / "run/vllm/draining.json"))
    return told if isinstance(told, dict) else None


def report() -> dict[str, Any]:
    return {
        "at_s": time.time(),
        "system": system(),
        "gpus": gpus(),
        "engines": engines(),
        "workers": workers(),
        "web": web(),
        "drained": drained(),
        "notice": notice(),
        "lock": json_of(text_of(ROOT / "run/ec2-inference-stack.lock")),
    }


if __name__ == "__main__":
    print(json.dumps(report()))
