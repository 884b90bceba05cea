"""One screen of a fleet, from the reports of its hosts."""

from __future__ import annotations

import calendar
import json
import re
import time
from collections.abc import Iterator, Mapping
from typing import Any

DOCUMENTATION = r"""
name: fleet_status
short_description: Show what the hosts of a stack run and what needs attention
description:
  - For playbooks/status.yml.
positional: _input
options:
  _input:
    description: The registered result of playbooks/files/host_report.py on each host, by the host's name.
    type: dict
    required: true
  wanted:
    description: Names of the engines that each host should run, by the host.
    type: dict
    default: {}
"""

EXAMPLES = r"""
- ansible.builtin.debug:
    msg: "{{ (results | ec2_inference.stack.fleet_status).lines }}"
"""

RETURN = r"""
_value:
  description: C(lines), the screen; C(attention), what an operator should look at, one sentence each; C(reports), the hosts' reports.
  type: dict
"""

# A host is reported from these on.
DISK_USED_SHARE = 0.9
MEMORY_USED_SHARE = 0.95
CERTIFICATE_DAYS = 7
CLOCK_OFF_S = 30
DAY_S = 86_400
# A second engine serves while a roll replaces another one, and does not run otherwise. So proxies see it.
BESIDE, ABSENT = ".beside", "absent"
MARKER = re.compile(
    r"(?P<reason>.+?); by (?P<who>[^;]+)(?:; a start takes \d+ s)?; since (?P<since>\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ)",
    re.DOTALL,
)

MARKER_TIME = "%Y-%m-%dT%H:%M:%SZ"

Report = Mapping[str, Any]


def fleet_status(
    results: Mapping[str, Mapping[str, Any]], wanted: Mapping[str, list[str]] | None = None, now_s: float | None = None
) -> dict[str, Any]:
    """The screen as lines, what needs attention, and the reports. `now_s` is the controller's time in seconds since 1970."""
    now_s = time.time() if now_s is None else now_s
    reports = {host: _report(result) for host, result in results.items()}
    there = {host: report for host, report in sorted(reports.items()) if "lost" not in report}
    tables = [
        ("engines", ["engine", "state", "proxies see", "model", "vLLM", "requests", "cache", "up"], _engines(there)),
        ("proxy workers", ["worker", "state", "nginx", "release", "requests", "engines", "up"], _workers(there)),
        ("web hosts", ["host", "state", "proxy workers", "certificate", "up"], _web(there, now_s)),
        ("hosts", ["host", "load", "memory", "fullest disk", "GPUs", "up"], _hosts(reports)),
    ]
    lines = list(_runs(there, now_s))
    for title, head, rows in tables:
        if rows:
            lines += [title, *(f"  {line}" for line in _table([head, *rows])), ""]
    attention = list(_attention(reports, there, wanted or {}, now_s))
    lines += ["needs attention", *(f"  - {line}" for line in attention)] if attention else ["nothing needs attention"]
    return {"lines": lines, "attention": attention, "reports": reports}


def _report(result: Mapping[str, Any]) -> Report:
    """A host's report, or why there is none as `lost`."""
    if result.get("rc") == 0:
        report: Report = json.loads(result["stdout"])
        return report
    words = str(result.get("stderr") or result.get("msg") or "see above").strip()
    return {"lost": words.splitlines()[-1]}


# --- tables --------------------------------------------------------------------------------------------------------


def _runs(there: Mapping[str, Report], now_s: float) -> Iterator[str]:
    """Who changes the stack at the moment, or has not given its lock back."""
    locks = [report["lock"] for report in there.values() if isinstance(report.get("lock"), dict)]
    told = {lock.get("id"): lock for lock in locks}
    for lock in told.values():
        try:
            age = f" ({_duration(max(0.0, now_s - calendar.timegm(time.strptime(lock.get('since') or '', MARKER_TIME))))})"
        except ValueError:
            age = ""
        yield f"being changed: {lock.get('who')} runs {lock.get('runs')}, since {lock.get('since')}{age}"
    if told:
        yield ""


def _engines(there: Mapping[str, Report]) -> list[list[str]]:
    views = _views(there)
    return [
        [
            f"{host}:{engine['name']}",
            _state(engine),
            ", ".join(sorted(views.get(f"{host}:{engine['name']}", {"-"}))),
            engine["model"] or "-",
            engine["environment"] or "-",
            _of_engine(engine),
            _percent(engine["kv_cache_share"]),
            _duration(engine["active_s"]),
        ]
        for host, report in there.items()
        for engine in report["engines"]
    ]


def _of_engine(engine: Mapping[str, Any]) -> str:
    if engine["running"] is None:
        return "-"
    return f"{engine['running']:.0f} run, {engine['waiting'] or 0:.0f} wait"


def _workers(there: Mapping[str, Report]) -> list[list[str]]:
    down = {
        f"{worker['id']}": worker["down"]
        for report in there.values()
        if report["web"]
        for worker in report["web"]["upstream"]
    }
    rows = []
    for host, report in there.items():
        for worker in report["workers"]:
            name, ready = f"{host}:{worker['port']}", worker["ready"] or {}
            engines = [engine for engine in ready.get("engines", []) if engine["state"] != ABSENT]
            rows.append(
                [
                    name,
                    ready.get("status") or _state(worker),
                    {True: "drained", False: "serving", None: "-"}[down.get(name)],
                    worker["release"] or "-",
                    str(ready.get("in_flight", "-")),
                    f"{sum(engine['state'] == 'serving' for engine in engines)} of {len(engines)}",
                    _duration(worker["active_s"]),
                ]
            )
    return rows


def _web(there: Mapping[str, Report], now_s: float) -> list[list[str]]:
    rows = []
    for host, report in there.items():
        if web := report["web"]:
            ends = [(one["ends_at_s"] - now_s) / DAY_S for one in web["certificates"] if one["ends_at_s"]]
            names = [name for one in web["certificates"] for name in one["names"]]
            rows.append(
                [
                    host,
                    _state(web),
                    f"{sum(not worker['down'] for worker in web['upstream'])} of {len(web['upstream'])}",
                    f"{', '.join(names)}, {min(ends):.0f} days left" if ends else "-",
                    _duration(web["active_s"]),
                ]
            )
    return rows


def _hosts(reports: Mapping[str, Report]) -> list[list[str]]:
    rows = []
    for host, report in sorted(reports.items()):
        if "lost" in report:
            rows.append([host, "no answer", "-", "-", "-", "-"])
            continue
        system = report["system"]
        disk = max(system["disks"], key=lambda disk: disk["used_share"] or 0, default=None)
        rows.append(
            [
                host,
                f"{system['load_1min']:.1f} of {system['cores']}",
                _percent(system["memory_used_share"]),
                f"{disk['path']} {_percent(disk['used_share'])}" if disk else "-",
                ", ".join(f"{gpu['used_percent']} %" for gpu in report["gpus"] or []) or "-",
                _duration(system["up_s"]),
            ]
        )
    return rows


def _table(rows: list[list[str]]) -> list[str]:
    """Rows as lines, with columns of equal width."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _state(unit: Mapping[str, Any]) -> str:
    state = str(unit["state"] or "unknown")
    return state if state in ("active", "inactive", "failed") else f"{state} ({unit['sub_state']})"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.0f} %"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    minutes = int(seconds) // 60
    if minutes < 60:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min" if minutes < 1440 else f"{minutes // 1440} d {minutes // 60 % 24} h"


# --- what needs attention --------------------------------------------------------------------------------------------


def _views(there: Mapping[str, Report]) -> dict[str, set[str]]:
    """The states in which proxy workers see each engine."""
    found: dict[str, set[str]] = {}
    for report in there.values():
        for worker in report["workers"]:
            for engine in (worker["ready"] or {}).get("engines", []):
                found.setdefault(engine["id"], set()).add(engine["state"])
    return found


def _attention(
    reports: Mapping[str, Report], there: Mapping[str, Report], wanted: Mapping[str, list[str]], now_s: float
) -> Iterator[str]:
    for host, report in sorted(reports.items()):
        if "lost" in report:
            yield f"{host} gives no report: {report['lost']}"
    for host, report in there.items():
        yield from _of_notice(host, report)
        yield from _of_units(host, report, wanted.get(host, []))
        yield from _of_web(host, report, now_s)
        yield from _of_host(host, report, now_s)
    yield from _of_markers(there, now_s)
    yield from _of_views(there)
    yield from _of_versions(there)


def _of_notice(host: str, report: Report) -> Iterator[str]:
    notice = report.get("notice")
    if notice:
        until = f", at {_utc(notice['ends_s'])} at the latest" if notice.get("ends_s") else ""
        since = _utc(notice.get("since_s", ""))
        yield f"{host} will end{until}: {notice.get('reason')}; since {since}. Other engines get the requests for its models, where there are any"


def _utc(seconds: Any) -> str:
    try:
        return time.strftime(MARKER_TIME, time.gmtime(seconds))
    except (TypeError, ValueError, OverflowError, OSError):
        return "an unknown time"


def _of_units(host: str, report: Report, wanted: list[str]) -> Iterator[str]:
    for engine in report["engines"]:
        name, unit = f"engine {host}:{engine['name']}", f"vllm@{engine['name']}"
        if engine["name"].endswith(BESIDE):
            replaced = engine["name"].removesuffix(BESIDE)
            yield f"{name} serves while {replaced} is replaced: if no roll runs, one was interrupted, so run playbooks/vllm.yml"
        if engine["state"] != "active":
            status = f": {engine['status']}" if engine["status"] else ""
            yield f"{name} is {_state(engine)}{status}; its log is in `journalctl -u {unit}` on {host}"
        elif not engine["answers"]:
            yield f"{name} runs and does not answer: it is loading its model, or it hangs; see `journalctl -u {unit}` on {host}"
        elif not engine["runs_current_release"]:
            yield f"{name} does not run the host's current release: run playbooks/vllm.yml"
    for missing in sorted(set(wanted) - {engine["name"] for engine in report["engines"]}):
        yield f"engine {host}:{missing} is in vllm_engines and not on the host: run playbooks/vllm.yml"
    for worker in report["workers"]:
        name, unit, ready = f"worker {host}:{worker['port']}", f"proxy@{worker['port']}", worker["ready"]
        if worker["state"] != "active":
            yield f"{name} is {_state(worker)}; its log is in `journalctl -u {unit}` on {host}"
        elif ready is None:
            yield f"{name} runs and does not answer; see `journalctl -u {unit}` on {host}"
        else:
            if ready.get("fault"):
                yield f'{name} has a fault: {ready["fault"]} (docs/operations.md, "A worker with a fault")'
            if ready.get("config_error"):
                yield f"{name} refuses its configuration and goes on with the last good one: {ready['config_error']}"
            if ready.get("limits_store_away"):
                yield f"{name} cannot reach the store of limits"
            if not worker["runs_current_release"]:
                yield f"{name} does not run the host's current release: run playbooks/proxy.yml"


def _of_web(host: str, report: Report, now_s: float) -> Iterator[str]:
    web = report["web"]
    if not web:
        return
    if web["state"] != "active":
        yield f"nginx on {host} is {_state(web)}; see `journalctl -u nginx` and /var/log/nginx/error.log there"
    if web["upstream"] and all(worker["down"] for worker in web["upstream"]):
        yield f"nginx on {host} has no proxy worker in rotation: every request gets 502"
    for certificate in web["certificates"]:
        names = ", ".join(certificate["names"]) or certificate["path"]
        if certificate["ends_at_s"] is None:
            yield f"the certificate {certificate['path']} on {host} cannot be read"
        elif (days := (certificate["ends_at_s"] - now_s) / DAY_S) < CERTIFICATE_DAYS:
            ends = f"expires in {days:.1f} days" if days > 0 else "has expired"
            yield f"the certificate of {names} on {host} {ends}: run playbooks/nginx.yml"


def _of_host(host: str, report: Report, now_s: float) -> Iterator[str]:
    system = report["system"]
    for disk in system["disks"]:
        if (disk["used_share"] or 0) >= DISK_USED_SHARE:
            yield f"{host}: {disk['path']} is {_percent(disk['used_share'])} full, {disk['free_gb']:.1f} GB are left"
    if (system["memory_used_share"] or 0) >= MEMORY_USED_SHARE:
        yield f"{host}: {_percent(system['memory_used_share'])} of the memory is in use"
    if abs(report["at_s"] - now_s) > CLOCK_OFF_S:
        yield f"{host}: its clock is {report['at_s'] - now_s:+.0f} s off the controller's; certificates and log times depend on it"
    if system["clock_synchronized"] is False:
        yield f"{host}: no time server sets its clock"
    ours = [name for name in system["failed_units"] if not name.startswith(("vllm@", "proxy@", "nginx."))]
    if ours:
        yield f"{host}: failed units: {', '.join(ours)}"
    if system["reboot_required"]:
        yield f"{host} waits for a reboot (/run/reboot-required)"


def _of_markers(there: Mapping[str, Report], now_s: float) -> Iterator[str]:
    """Drained instances, each with the hosts where it is drained, the reason and for how long."""
    places: dict[tuple[str, str], list[tuple[str, float | None]]] = {}
    for host, report in there.items():
        for marker in report["drained"]:
            parts = MARKER.fullmatch(marker["text"])
            because = f"{parts['reason']}; by {parts['who']}" if parts else marker["text"] or "its marker is empty"
            since_s = calendar.timegm(time.strptime(parts["since"], MARKER_TIME)) if parts else None
            places.setdefault((marker["instance"], because), []).append((host, since_s))
    for (instance, because), found in sorted(places.items()):
        # The hosts are drained one after the other.
        begins_s = [since_s for _, since_s in found if since_s is not None]
        age = f" for {_duration(max(0.0, now_s - min(begins_s)))}" if begins_s else ""
        yield f"{instance} is drained on {', '.join(host for host, _ in found)}{age}: {because}"


def _of_views(there: Mapping[str, Report]) -> Iterator[str]:
    for engine, states in sorted(_views(there).items()):
        wrong = states - {"serving", "drained", "draining", ABSENT}
        if wrong:
            yield f"proxy workers see engine {engine} as {' and '.join(sorted(wrong))}: `reason` in /admin/engines says why"


def _of_versions(there: Mapping[str, Report]) -> Iterator[str]:
    """Tiers whose hosts run different versions, which is so in the middle of a roll only."""
    for what, group, field, playbook in (
        ("vLLM's environment", "engines", "environment", "vllm"),
        ("the proxy's release", "workers", "release", "proxy"),
    ):
        found: dict[str, set[str]] = {}
        for host, report in there.items():
            for unit in report[group]:
                if unit[field]:
                    found.setdefault(unit[field], set()).add(host)
        if len(found) > 1:
            listed = "; ".join(f"{version} on {', '.join(sorted(hosts))}" for version, hosts in sorted(found.items()))
            yield f"{what} differs between hosts: {listed}; playbooks/{playbook}.yml makes them alike"


class FilterModule:
    """Ansible's entry point."""

    def filters(self) -> dict[str, Any]:
        return {"fleet_status": fleet_status}
